//! A model in the words of GGUF's keys: to and from those of transformers.

use super::{Architecture, AttentionSpec, FAMILIES, Family, GgufHead, RopeScaling, RopeSpec, Site};
use crate::{
    Error, Result,
    format::{
        Gguf,
        fields::{Fields, MAX_EXTENT},
        gguf::MetaValue,
    },
    kernels::rope::frequencies,
};
use serde_json::{Value, json};
use std::{f64::consts::TAU, path::Path};

/// What is asked of a file's tensors to read its configuration.
struct Tensors {
    /// Rows of the embedding.
    vocab_size: usize,
    /// Whether the head is the embedding.
    tied: bool,
    /// The divisors of the rotary frequencies: as many lists as the family has names for, or none.
    divisors: Vec<Vec<f32>>,
}

/// The configuration that transformers would write for this file. Errors: Format naming the key, Unsupported.
pub(super) fn read(gguf: &Gguf) -> Result<Architecture> {
    let general = gguf.fields("general.")?;
    let arch = general.text("architecture")?.ok_or_else(|| general.fail("architecture", "a text"))?.to_owned();
    let family = FAMILIES
        .into_iter()
        .find(|family| family.gguf.name == arch)
        .ok_or_else(|| Error::unsupported("architecture in a GGUF file", &arch, in_files()))?;
    let tensors = Tensors {
        vocab_size: gguf.get("token_embd.weight")?.shape.first().copied().unwrap_or(0),
        tied: !gguf.contains("output.weight"),
        divisors: match family.gguf.rope_divisors {
            names if names.iter().any(|name| gguf.contains(name)) => {
                names.iter().map(|name| gguf.get(name)?.to_f32()).collect::<Result<_>>()?
            }
            _ => Vec::new(),
        },
    };
    let mut json = config(family, &gguf.fields(&format!("{arch}."))?, &tensors)?;
    let tokenizer = gguf.fields("tokenizer.ggml.")?;
    for (field, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = tokenizer.integer(&format!("{name}_token_id"), 0..=u32::MAX.into())? {
            json[field] = id.into();
        }
    }
    let mut architecture = Architecture::from_json(json, gguf.path())?;
    // Read with every bias that the family's configuration can tell of: which layers have one is seen from the tensors.
    let told = |sites: &[Site]| {
        let here = architecture.linears.iter().filter(|linear| sites.contains(&linear.id.reads()));
        let ends: Vec<String> = here.map(|linear| format!(".{}.bias", linear.gguf)).collect();
        gguf.names().any(|name| ends.iter().any(|end| name.ends_with(end)))
    };
    let (qkv, o, feed_forward) = (told(&[Site::Qkv]), told(&[Site::O]), told(&[Site::GateUp, Site::Down]));
    architecture.json["attention_bias"] = (qkv || o).into();
    architecture.json["mlp_bias"] = feed_forward.into();
    for linear in &mut architecture.linears {
        linear.bias = match linear.id.reads() {
            // Some conversions have those of query, key and value alone, which config.json cannot express.
            Site::Qkv => qkv || family.biased.contains(&linear.id),
            Site::O => o || family.biased.contains(&linear.id),
            Site::GateUp | Site::Down => linear.bias && feed_forward,
        };
    }
    Ok(architecture)
}

/// config.json of a family in the words of its keys in a GGUF file. Errors: Format naming the key, Unsupported.
fn config(family: &Family, f: &Fields<'_>, tensors: &Tensors) -> Result<Value> {
    refuse_options(f)?;
    let hidden = f.extent("embedding_length")?;
    let heads = same_for_all(f, "attention.head_count", None)?;
    let head_dim = f.extent_or("attention.key_length", hidden / heads)?;
    let rotary_dim = f.extent_or("rope.dimension_count", head_dim)?;
    // Rows in llama.cpp's order are those of a head that turns as a whole.
    let whole = rotary_dim == head_dim || (rotary_dim < head_dim && !family.gguf.rotated);
    for (name, right) in [
        ("attention.value_length", f.extent_or("attention.value_length", head_dim)? == head_dim),
        ("rope.dimension_count", whole),
    ] {
        if !right {
            return Err(f.fail(name, format!("the width of a head, {head_dim}")));
        }
    }
    let context = f.extent_or("context_length", 2048)?;
    let mut rope = rope(f, family, &tensors.divisors, rotary_dim, context)?;
    if rotary_dim != head_dim {
        rope["partial_rotary_factor"] = share(rotary_dim, head_dim).into();
    }
    let mut json = json!({
        "architectures": [family.class],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": same_for_all(f, "feed_forward_length", None)?,
        "num_hidden_layers": f.extent("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": same_for_all(f, "attention.head_count_kv", Some(heads))?,
        "head_dim": head_dim,
        "vocab_size": tensors.vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": shortest(f.number("attention.layer_norm_rms_epsilon")? as f32),
        "rope_parameters": rope,
        "tie_word_embeddings": tensors.tied,
        "attention_bias": true,
        "mlp_bias": true,
        "dtype": "bfloat16",
    });
    if tensors.divisors.len() == 2 {
        // Classes with two lists have a default of their own for it, and read it here.
        json["original_max_position_embeddings"] = json["rope_parameters"]["original_max_position_embeddings"].clone();
    }
    (family.gguf.read)(f, &mut json)?;
    f.refuse_unknown()?;
    Ok(json)
}

/// The architectures in GGUF files that are read, with the families whose name there is another's.
fn in_files() -> String {
    let mut names: Vec<&str> = FAMILIES.iter().map(|family| family.gguf.name).collect();
    names.dedup();
    let others = FAMILIES.iter().filter(|family| family.gguf.name != family.model_type);
    let others: Vec<_> = others.map(|family| format!("{} as {}", family.model_type, family.gguf.name)).collect();
    format!("{} ({})", names.join(", "), others.join(", "))
}

/// Refuses what changes the forward pass of llama.cpp in a way that is not computed here, and passes over what changes nothing.
/// Errors: Format, Unsupported.
fn refuse_options(f: &Fields<'_>) -> Result<()> {
    let experts = f.integer("expert_count", 0..=MAX_EXTENT)?.unwrap_or(0);
    if experts > 0 {
        let got = format!("a mixture of {experts} experts");
        return Err(Error::unsupported(format!("model in {}", f.path().display()), got, "models without experts"));
    }
    if !f.flag("attention.causal", true)? {
        return Err(f.fail("attention.causal", "true"));
    }
    f.ignore(&["vocab_size", "expert_used_count", "tensor_data_layout", "rope.scaling.finetuned"]);
    // Written beside the one that Llama has, and what YaRN alone reads.
    f.ignore(&["attention.layer_norm_epsilon", "rope.scaling.original_context_length"]);
    Ok(())
}

/// A whole number, or a list of one per block where they are all the same. Errors: Format.
fn same_for_all(f: &Fields<'_>, name: &str, default: Option<usize>) -> Result<usize> {
    let Some(Value::Array(list)) = f.get(name) else {
        return default.map_or_else(|| f.extent(name), |default| f.extent_or(name, default));
    };
    let first = list.first().and_then(Value::as_u64).filter(|&n| n > 0 && n <= MAX_EXTENT as u64);
    match first.filter(|_| list.iter().all(|other| *other == list[0])) {
        Some(n) => Ok(n as usize),
        None => Err(f.fail(name, "the same positive number for every block")),
    }
}

/// The share of `head_dim` features of which transformers makes `rotary_dim`: int(head_dim · share).
fn share(rotary_dim: usize, head_dim: usize) -> f64 {
    let share = rotary_dim as f64 / head_dim as f64;
    if ((share * head_dim as f64) as usize) < rotary_dim { share.next_up() } else { share }
}

/// What YaRN multiplies cosines and sines with where nothing is told: 0.1 ln(factor) + 1.
fn yarn_attention(factor: f64) -> f64 {
    0.1 * factor.max(1.0).ln() + 1.0
}

/// Base and scaling of the rotary frequencies, as llama.cpp reads them. `context`: tokens of the pretraining where they are not told.
/// Errors: Format, Unsupported.
fn rope(f: &Fields<'_>, family: &Family, divisors: &[Vec<f32>], rotary_dim: usize, context: usize) -> Result<Value> {
    for (name, divisors) in family.gguf.rope_divisors.iter().zip(divisors) {
        if divisors.len() != rotary_dim / 2 || divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
            let message = format!("{name}: expected {} positive numbers, got {divisors:?}", rotary_dim / 2);
            return Err(Error::format(f.path(), message));
        }
    }
    let theta = f.number_or("rope.freq_base", 10000.0)?;
    // The newer key wins over the older one even where it says 0, which is no scaling.
    let older = f.number_or("rope.scale_linear", 0.0)?;
    let given = f.number_or("rope.scaling.factor", older)?;
    let kind = f.text("rope.scaling.type")?.unwrap_or("linear");
    let factor = match kind {
        "none" => 1.0,
        "linear" | "yarn" if given == 0.0 => 1.0,
        "linear" | "yarn" if given > 0.0 => given,
        "linear" | "yarn" => return Err(f.fail("rope.scaling.factor", "a positive number, or 0 for no scaling")),
        other => return Err(Error::unsupported("rope scaling in a GGUF file", other, "none, linear, yarn")),
    };
    // Multiplies the rotated queries and keys in every kind of scaling.
    let attention = f.number_or("rope.scaling.attn_factor", 1.0)?;
    let original = f.integer("rope.scaling.original_context_length", 0..=MAX_EXTENT)?.filter(|&n| n > 0);
    let original = original.map_or(context, |n| n as usize);
    if kind == "yarn" {
        if !divisors.is_empty() {
            let expected = format!("another than yarn beside {}", family.gguf.rope_divisors.join(" and "));
            return Err(f.fail("rope.scaling.type", expected));
        }
        // llama.cpp has the same two for all files, whatever these keys say.
        for (key, beta) in [("rope.scaling.yarn_beta_fast", 32.0), ("rope.scaling.yarn_beta_slow", 1.0)] {
            if f.number_or(key, beta)? != beta {
                return Err(f.fail(key, format!("{beta:?}")));
            }
        }
        return Ok(json!({
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": attention * yarn_attention(factor),
        }));
    }
    if let [short, long] = divisors {
        let by = |divisors: &[f32]| -> Vec<f64> { divisors.iter().map(|&d| factor * f64::from(d)).collect() };
        return Ok(json!({
            "rope_type": "longrope",
            "rope_theta": theta,
            "short_factor": by(short),
            "long_factor": by(long),
            "original_max_position_embeddings": original,
            "attention_factor": attention,
            "factor": 1.0,
        }));
    }
    if attention != 1.0 {
        return Err(f.fail("rope.scaling.attn_factor", "1.0"));
    }
    if let [divisors] = divisors {
        return Ok(divided(divisors, theta, factor, rotary_dim));
    }
    Ok(match factor == 1.0 {
        true => json!({"rope_type": "default", "rope_theta": theta}),
        false => json!({"rope_type": "linear", "rope_theta": theta, "factor": factor}),
    })
}

/// The f32 as the decimal that was meant: 1e-5 rather than 9.99999974737875e-06.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The divisors of the frequencies that a file holds as a tensor, taken as they are. Where they are those of Llama 3.1's published
/// models, as f32 has them, they are described by that scheme's numbers, which more programs read.
fn divided(divisors: &[f32], theta: f64, factor: f64, rotary_dim: usize) -> Value {
    let most = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192);
    let published = divisors.iter().enumerate().all(|(i, &divisor)| {
        let wavelength = TAU * theta.powf(2.0 * i as f64 / rotary_dim as f64);
        let smooth = ((f64::from(original) / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / most + smooth);
        // Those who wrote the file computed in f32, or in f64 and rounded.
        (f64::from(divisor) - expected).abs() <= 1e-5 * expected
    });
    if published && factor == 1.0 {
        return json!({"rope_type": "llama3", "rope_theta": theta, "factor": most, "low_freq_factor": low,
                      "high_freq_factor": high, "original_max_position_embeddings": original});
    }
    let divisors: Vec<f64> = divisors.iter().map(|&divisor| factor * f64::from(divisor)).collect();
    json!({"rope_type": "longrope", "rope_theta": theta, "short_factor": divisors, "long_factor": divisors,
           "attention_factor": 1.0, "factor": 1.0})
}

fn changing(kind: &str) -> Error {
    let supported = "default, linear, llama3, yarn, or longrope with one list of factors (with two in the families whose files have both)";
    Error::unsupported("rope_type in a GGUF file", kind, supported)
}

/// What llama.cpp wants to know of a model beside its tensors: the inverse of [`read`]. Errors: Config for a size beyond u32,
/// Unsupported for what no key of the family can say.
pub(super) fn metadata(arch: &Architecture) -> Result<Vec<(String, MetaValue)>> {
    let name = arch.family.gguf.name;
    let text = |value: &str| MetaValue::Text(value.to_owned());
    let mut entries = vec![("general.architecture".to_owned(), text(name))];
    let mut add = |key: &str, value: MetaValue| entries.push((format!("{name}.{key}"), value));
    let AttentionSpec { heads, kv_heads, head_dim, .. } = arch.attention;
    let counts = [
        ("vocab_size", arch.vocab_size),
        ("context_length", arch.max_positions),
        ("embedding_length", arch.hidden_size),
        ("block_count", arch.blocks.len()),
        ("feed_forward_length", arch.intermediate_size),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", arch.ropes[0].rotary_dim),
    ];
    for (key, count) in counts {
        let count = u32::try_from(count).map_err(|_| Error::config(key, format!("{count} is too large")))?;
        add(key, MetaValue::U32(count));
    }
    add("attention.layer_norm_rms_epsilon", MetaValue::F32(arch.norm_eps));
    let rope = &arch.ropes[0];
    add("rope.freq_base", MetaValue::F32(rope.theta as f32));
    match rope.scaling {
        RopeScaling::Linear { factor } => {
            add("rope.scaling.type", text("linear"));
            add("rope.scaling.factor", MetaValue::F32(factor as f32));
        }
        RopeScaling::Yarn { factor, attention_factor, original_max_position_embeddings, .. } => {
            add("rope.scaling.type", text("yarn"));
            add("rope.scaling.factor", MetaValue::F32(factor as f32));
            add("rope.scaling.original_context_length", MetaValue::U32(original_max_position_embeddings as u32));
            let attention = (attention_factor / yarn_attention(factor)) as f32;
            if attention != 1.0 {
                add("rope.scaling.attn_factor", MetaValue::F32(attention));
            }
        }
        RopeScaling::Dynamic { .. } => return Err(changing("dynamic")),
        RopeScaling::LongRope { attention_factor, original_max_position_embeddings, .. }
            if arch.family.gguf.rope_divisors.len() == 2 =>
        {
            add("rope.scaling.attn_factor", MetaValue::F32(attention_factor as f32));
            add("rope.scaling.original_context_length", MetaValue::U32(original_max_position_embeddings as u32));
        }
        RopeScaling::LongRope { ref short_factor, ref long_factor, .. } if short_factor != long_factor => {
            return Err(changing("longrope"));
        }
        // Said by a tensor, or by nothing.
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } => {}
    }
    for (key, value) in (arch.family.gguf.write)(arch) {
        add(key, value);
    }
    check_said(arch, &entries)?;
    Ok(entries)
}

/// The keys are read again as llama.cpp does: what comes out must be what was meant. Errors: Unsupported, naming the difference.
fn check_said(arch: &Architecture, entries: &[(String, MetaValue)]) -> Result<()> {
    let family = arch.family;
    let refuse = |what: &str, got: String, said: String| {
        let supported = format!("{said}, as llama.cpp has them for {}", family.gguf.name);
        Err(Error::unsupported(format!("{what} in a GGUF file"), got, supported))
    };
    if let Some(linear) = arch.linears.iter().find(|linear| linear.bias && !family.gguf.biased.contains(&linear.id)) {
        return refuse("biases", format!("one of {}", linear.name), "none of this layer".to_owned());
    }
    match family.gguf.head {
        GgufHead::Own if arch.tie_embeddings => {
            return refuse("head", "the embedding".to_owned(), "a head of its own".to_owned());
        }
        GgufHead::Embedding if !arch.tie_embeddings => {
            return refuse("head", "a head of its own".to_owned(), "the embedding".to_owned());
        }
        GgufHead::Either | GgufHead::Own | GgufHead::Embedding => {}
    }
    let prefix = format!("{}.", family.gguf.name);
    let json = |(key, value): &(String, MetaValue)| Some((key.strip_prefix(&prefix)?.to_owned(), value.to_json()?));
    let fields = Fields::owned(entries.iter().filter_map(json).collect(), Path::new("a GGUF file"));
    let divisors = rope_divisors(arch).into_iter().map(|(_, values)| values).collect();
    let tensors = Tensors { vocab_size: arch.vocab_size, tied: arch.tie_embeddings, divisors };
    let said = Architecture::from_json(config(family, &fields, &tensors)?, fields.path())?;
    let without = |arch: &Architecture| -> Vec<usize> {
        arch.blocks.iter().enumerate().filter(|(_, block)| block.rope.is_none()).map(|(number, _)| number).collect()
    };
    if without(arch) != without(&said) {
        return refuse("blocks without positions", format!("{:?}", without(arch)), format!("{:?}", without(&said)));
    }
    let windows =
        |arch: &Architecture| -> Vec<Option<usize>> { arch.blocks.iter().map(|block| block.window).collect() };
    // Where a family has none there, that is told when the file is begun.
    if family.gguf.windows && windows(arch) != windows(&said) {
        return refuse("windows", format!("{:?}", windows(arch)), format!("{:?}", windows(&said)));
    }
    let functions = |arch: &Architecture| {
        format!("{:?}, {:?}, {:?}", arch.activation, arch.attention.soft_cap, arch.logits.soft_cap)
    };
    if functions(arch) != functions(&said) {
        return refuse("activation and soft caps of scores and logits", functions(arch), functions(&said));
    }
    let factors = |arch: &Architecture| {
        [arch.attention.scale, arch.embedding_factor, arch.residual_factor, arch.logits.factor, arch.norm_eps]
    };
    if factors(arch).iter().zip(factors(&said)).any(|(a, b)| (a - b).abs() > 1e-6 * a.abs()) {
        let what = "factors of scores, embedding, residual stream and logits, and epsilon";
        return refuse(what, format!("{:?}", factors(arch)), format!("{:?}", factors(&said)));
    }
    for (number, (block, other)) in arch.blocks.iter().zip(&said.blocks).enumerate() {
        let (Some(rope), Some(other)) = (block.rope, other.rope) else { continue };
        let (rope, other) = (&arch.ropes[rope], &said.ropes[other]);
        // Of the shortest and of the longest text; the factor of the queries and keys goes along.
        let angles = |rope: &RopeSpec| -> Result<Vec<f64>> {
            let mut angles = vec![rope.scaling.attention_factor()];
            for length in [1, arch.max_positions] {
                angles.extend(frequencies(rope.theta, rope.rotary_dim, &rope.scaling, length)?);
            }
            Ok(angles)
        };
        let (meant, read) = (angles(rope)?, angles(other)?);
        if meant.len() != read.len() || meant.iter().zip(read).any(|(a, b)| (a - b).abs() > 1e-5 * a.abs()) {
            return refuse(&format!("angles of block {number}"), format!("{rope:?}"), format!("{other:?}"));
        }
    }
    Ok(())
}

/// The divisors of the rotary frequencies that llama.cpp reads as tensors, by name: `[rotary_dim / 2]` each; none where there is no
/// scaling, or one that metadata describe.
pub(super) fn rope_divisors(arch: &Architecture) -> Vec<(&'static str, Vec<f32>)> {
    let rope = &arch.ropes[0];
    let narrow = |divisors: &[f64]| divisors.iter().map(|&d| d as f32).collect();
    let named = |lists: Vec<Vec<f32>>| arch.family.gguf.rope_divisors.iter().copied().zip(lists).collect();
    let (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings) = match rope.scaling {
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } | RopeScaling::Yarn { .. } => {
            return Vec::new();
        }
        // A family with one name has the same list for all texts: that is compared when the file is begun.
        RopeScaling::LongRope { ref short_factor, ref long_factor, .. } => {
            return named(vec![narrow(short_factor), narrow(long_factor)]);
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings)
        }
    };
    let original = original_max_position_embeddings as f64;
    let divisor = |i: usize| {
        let wavelength = TAU * rope.theta.powf(2.0 * i as f64 / rope.rotary_dim as f64);
        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    named(vec![(0..rope.rotary_dim / 2).map(divisor).collect()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epsilons_are_written_as_meant() {
        assert_eq!(shortest(1e-5), 1e-5);
    }
}
