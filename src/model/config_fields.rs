//! What config.json says, field by field and family by family, as the classes `LlamaConfig`, `MistralConfig` and `Qwen2Config`
//! of transformers 5.23 read it: a missing field has the default of its family's class, and an explicit null what the class makes
//! of one. Fields that these classes do not have change nothing there, and nothing here.

use super::{Config, FAMILIES, RopeScaling};
use crate::{Error, Result, format::fields::Fields};
use serde_json::Value;

/// Blocks that a model may have; each has an entry in [`Config::windows`].
const MAX_LAYERS: i64 = 1 << 16;

/// What a family's class fills in.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    max_positions: usize,
}

const LLAMA: Defaults = Defaults { vocab_size: 32000, intermediate_size: 11008, kv_heads: None, max_positions: 2048 };
const MISTRAL: Defaults =
    Defaults { vocab_size: 32000, intermediate_size: 14336, kv_heads: Some(8), max_positions: 131_072 };
const QWEN2: Defaults =
    Defaults { vocab_size: 151_936, intermediate_size: 22016, kv_heads: Some(32), max_positions: 32768 };
const HIDDEN_SIZE: usize = 4096;
const LAYERS: usize = 32;
const HEADS: usize = 32;
const WINDOW: usize = 4096;

/// Errors: Format naming the field, Unsupported for another family or option.
pub(super) fn read(f: &Fields<'_>) -> Result<Config> {
    let model_type = family(f)?;
    let (llama, qwen) = (model_type == "llama", model_type == "qwen2");
    let defaults = match model_type {
        "mistral" => MISTRAL,
        "qwen2" => QWEN2,
        _ => LLAMA,
    };
    // It has no part in inference; training tells of it.
    f.nullable_number("attention_dropout", None)?;
    // PyTorch has two names for one function.
    f.one_of("hidden_act", &["silu", "swish"])?;
    refuse_options(f)?;
    let hidden_size = f.extent_or("hidden_size", HIDDEN_SIZE)?;
    let heads = f.extent_or("num_attention_heads", HEADS)?;
    let layers = f.integer("num_hidden_layers", 1..=MAX_LAYERS)?.map_or(LAYERS, |n| n as usize);
    let attention_bias = llama && f.flag("attention_bias", false)?;
    let max_positions = f.extent_or("max_position_embeddings", defaults.max_positions)?;
    let head_dim = f.nullable_extent("head_dim", None)?.unwrap_or(hidden_size / heads);
    let (rope_theta, rope_scaling) = rope(f, max_positions, head_dim)?;
    Ok(Config {
        hidden_size,
        intermediate_size: f.extent_or("intermediate_size", defaults.intermediate_size)?,
        layers,
        heads,
        kv_heads: f.nullable_extent("num_key_value_heads", defaults.kv_heads)?.unwrap_or(heads),
        head_dim,
        vocab_size: f.extent_or("vocab_size", defaults.vocab_size)?,
        max_positions,
        rms_norm_eps: f.number_or("rms_norm_eps", 1e-6)? as f32,
        rope_theta,
        rope_scaling,
        tie_embeddings: f.flag("tie_word_embeddings", false)?,
        qkv_bias: qwen || attention_bias,
        o_bias: attention_bias,
        mlp_bias: llama && f.flag("mlp_bias", false)?,
        windows: windows(f, model_type, layers)?,
        model_type: model_type.to_owned(),
        json: Value::Null,
    })
}

/// The family that `model_type` names. Errors: Unsupported for another, by what it is.
fn family(f: &Fields<'_>) -> Result<&'static str> {
    let model_type = f.nullable_text("model_type")?;
    let what = format!("architecture in {}", f.path().display());
    let experts = ["num_local_experts", "num_experts", "n_routed_experts"].into_iter().find(|name| f.has(name));
    let known = FAMILIES.into_iter().find(|family| Some(*family) == model_type);
    let name = model_type.unwrap_or("no model_type");
    if known.is_none() && (experts.is_some() || name.contains("moe") || name == "mixtral") {
        let supported = format!("models without experts: {}", FAMILIES.join(", "));
        return Err(Error::unsupported(what, format!("{name}, a mixture of experts"), supported));
    }
    known.ok_or_else(|| Error::unsupported(what, name, FAMILIES.join(", ")))
}

/// Options of transformers' base class that change the forward pass. Errors: Unsupported where one is set.
fn refuse_options(f: &Fields<'_>) -> Result<()> {
    if f.has("quantization") {
        let message = "\"quantization\" is how mlx-lm writes its own 4- and 8-bit weights, which are not read here; take the \
                       model that it was made from, or write floats with `mlx_lm.convert --dequantize`";
        return Err(Error::format(f.path(), message));
    }
    let refuse = |name: &str, supported: &str| {
        let got = f.get(name).map_or_else(String::new, Value::to_string);
        Err(Error::unsupported(format!("{name} in {}", f.path().display()), got, supported))
    };
    if !f.flag("is_causal", true)? {
        return refuse("is_causal", "true");
    }
    if f.has("per_layer_config") {
        return refuse("per_layer_config", "the same for every block");
    }
    if f.nullable_number("partial_rotary_factor", None)?.is_some_and(|factor| factor != 1.0) {
        return refuse("partial_rotary_factor", "1.0");
    }
    Ok(())
}

/// The window of each block. Llama has none, whatever its configuration says. Of Qwen2, `layer_types` or `max_window_layers` tell
/// which blocks have it; of Mistral all do, unless there are `layer_types` (which transformers then loads as Ministral).
/// Errors: Format.
fn windows(f: &Fields<'_>, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let (first, used) = match model_type {
        "mistral" => (0, true),
        "qwen2" => {
            let first = f.integer("max_window_layers", 0..=MAX_LAYERS)?.unwrap_or(28) as usize;
            (first, f.flag("use_sliding_window", false)?)
        }
        _ => return Ok(vec![None; layers]),
    };
    let window = if used { f.nullable_extent("sliding_window", Some(WINDOW))? } else { None };
    let Some(types) = f.nullable_texts("layer_types")? else {
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        return Err(f.fail("layer_types", format!("one type for each of {layers} blocks")));
    }
    let of = |kind: &str| match (kind, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(f.fail("layer_types", "no sliding_attention where there is no window")),
        _ => Err(f.fail("layer_types", "full_attention or sliding_attention")),
    };
    types.into_iter().map(of).collect()
}

/// Base and scaling of the rotary frequencies. transformers 5 keeps both in `rope_parameters`; `rope_scaling`, the older name of
/// the same, wins where both stand, and a `rope_theta` inside wins over one beside it. Errors: Format, Unsupported.
fn rope(f: &Fields<'_>, max_positions: usize, head_dim: usize) -> Result<(f64, RopeScaling)> {
    // An empty object counts as none there.
    let filled = |name: &str| f.get(name).and_then(Value::as_object).is_some_and(|object| !object.is_empty());
    let (old, new) = (f.object("rope_scaling")?, f.object("rope_parameters")?);
    let rope = if filled("rope_scaling") { old } else { new };
    let beside = f.number_or("rope_theta", 10000.0)?;
    // A field of the configuration itself wins over one inside.
    let original = f.nullable_extent("original_max_position_embeddings", None)?;
    let Some(rope) = rope else { return Ok((beside, RopeScaling::None)) };
    let theta = rope.number_or("rope_theta", beside)?;
    if let Some(name) = rope.names().find(|name| rope.get(name).is_some_and(Value::is_object)) {
        return Err(rope.fail(name, "one scaling for all blocks"));
    }
    if rope.number_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(rope.fail("partial_rotary_factor", "1.0"));
    }
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let positive = |name: &str| match rope.number(name)? {
        number if number > 0.0 => Ok(number),
        _ => Err(rope.fail(name, "a positive number")),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: positive("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: positive("factor")?,
            low_freq_factor: positive("low_freq_factor")?,
            high_freq_factor: positive("high_freq_factor")?,
            original_max_position_embeddings: match original {
                Some(original) => original,
                None => rope.extent_or("original_max_position_embeddings", max_positions)?,
            },
        },
        "longrope" => divisors(&rope, head_dim)?,
        _ => {
            let name = if rope.has("rope_type") { "rope_type" } else { "type" };
            return Err(rope.fail(name, "default, linear or llama3, the kinds that are computed here"));
        }
    };
    Ok((theta, scaling))
}

/// `longrope` whose short and long divisors are the same and whose attention is not scaled: the divisors as they are, which is
/// how a GGUF file's `rope_freqs.weight` is told in config.json. Errors: Format, Unsupported for any other.
fn divisors(rope: &Fields<'_>, head_dim: usize) -> Result<RopeScaling> {
    let (short, long) = (rope.list("short_factor")?, rope.list("long_factor")?);
    if short.is_none() || short != long || rope.nullable_number("attention_factor", None)? != Some(1.0) {
        let supported =
            "default, linear or llama3, or longrope whose short_factor is its long_factor with attention_factor 1";
        return Err(rope.fail("rope_type", supported));
    }
    let numbers = short.into_iter().flatten().map(|value| value.as_f64().filter(|&d| d > 0.0));
    let numbers: Option<Vec<f64>> = numbers.collect();
    match numbers.filter(|numbers| numbers.len() == head_dim / 2) {
        Some(numbers) => Ok(RopeScaling::Divisors(numbers.into())),
        None => Err(rope.fail("short_factor", format!("{} positive numbers", head_dim / 2))),
    }
}
