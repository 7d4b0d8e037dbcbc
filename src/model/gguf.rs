//! GGUF's names and metadata in transformers' words.

use super::Config;
use crate::{
    Error, Result,
    format::{
        Gguf,
        fields::{Fields, MAX_EXTENT},
    },
};
use serde_json::{Value, json};

/// (GGUF, transformers) names outside of the blocks.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output.weight", "lm_head.weight"),
    ("output_norm.weight", "model.norm.weight"),
];

/// (GGUF, transformers) names inside a block, without `.weight` or `.bias`.
const INNER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// `blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`; `None` for tensors that are no weights.
pub(super) fn transformers_name(stored: &str) -> Option<String> {
    if let Some((_, name)) = OUTER.iter().find(|(s, _)| *s == stored) {
        return Some((*name).to_owned());
    }
    let (layer, rest) = stored.strip_prefix("blk.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, name) = INNER.iter().find(|(s, _)| *s == module)?;
    Some(format!("model.layers.{layer}.{name}.{kind}"))
}

/// The inverse of [`transformers_name`].
pub(super) fn stored_name(name: &str) -> Option<String> {
    if let Some((stored, _)) = OUTER.iter().find(|(_, n)| *n == name) {
        return Some((*stored).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let (stored, _) = INNER.iter().find(|(_, n)| *n == module)?;
    Some(format!("blk.{layer}.{stored}.{kind}"))
}

/// The configuration that transformers would write for this file. Errors: Format naming the key, Unsupported.
pub(super) fn config(gguf: &Gguf) -> Result<Config> {
    let general = gguf.fields("general.")?;
    let arch = general.text("architecture")?.ok_or_else(|| general.fail("architecture", "a text"))?.to_owned();
    let class = match arch.as_str() {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        other => return Err(Error::unsupported("architecture in a GGUF file", other, "llama (with Mistral), qwen2")),
    };
    let f = gguf.fields(&format!("{arch}."))?;
    refuse_options(&f)?;
    let hidden = f.extent("embedding_length")?;
    let heads = same_for_all(&f, "attention.head_count", None)?;
    let head_dim = f.extent_or("attention.key_length", hidden / heads)?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if f.extent_or(name, head_dim)? != head_dim {
            return Err(f.fail(name, format!("the width of a head, {head_dim}")));
        }
    }
    let embedding = gguf.get("token_embd.weight")?.shape.first().copied().unwrap_or(0);
    let bias = |kinds: &[&str]| gguf.names().any(|name| kinds.iter().any(|kind| name.ends_with(kind)));
    let qkv_bias = bias(&[".attn_q.bias", ".attn_k.bias", ".attn_v.bias"]);
    let o_bias = bias(&[".attn_output.bias"]);
    let mut json = json!({
        "architectures": [class],
        "model_type": arch,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": same_for_all(&f, "feed_forward_length", None)?,
        "num_hidden_layers": f.extent("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": same_for_all(&f, "attention.head_count_kv", Some(heads))?,
        "head_dim": head_dim,
        "vocab_size": embedding,
        "max_position_embeddings": f.extent_or("context_length", 2048)?,
        "rms_norm_eps": shortest(f.number("attention.layer_norm_rms_epsilon")? as f32),
        "rope_parameters": rope(gguf, &f, head_dim)?,
        "tie_word_embeddings": !gguf.contains("output.weight"),
        "attention_bias": qkv_bias || o_bias,
        "mlp_bias": bias(&[".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"]),
        "dtype": "bfloat16",
    });
    f.refuse_unknown()?;
    let tokenizer = gguf.fields("tokenizer.ggml.")?;
    for (field, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = tokenizer.integer(&format!("{name}_token_id"), 0..=u32::MAX.into())? {
            json[field] = id.into();
        }
    }
    let mut config = Config::from_json(json, gguf.path())?;
    // Some conversions to Llama files have biases, all of them or those of query, key and value alone: the tensors tell.
    (config.qkv_bias, config.o_bias) = (qkv_bias || arch == "qwen2", o_bias);
    Ok(config)
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
    // Multiplies the rotated queries and keys in every kind of scaling.
    if f.number_or("rope.scaling.attn_factor", 1.0)? != 1.0 {
        return Err(f.fail("rope.scaling.attn_factor", "1.0"));
    }
    f.ignore(&["vocab_size", "expert_used_count", "tensor_data_layout", "rope.scaling.finetuned"]);
    // Told beside the one that Llama has, and what YaRN alone reads.
    f.ignore(&["attention.layer_norm_epsilon", "rope.scaling.original_context_length"]);
    Ok(())
}

/// A whole number, or a list of one a block where they are all the same. Errors: Format.
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

/// Base and scaling of the rotary frequencies, as llama.cpp reads them. Errors: Format, Unsupported.
fn rope(gguf: &Gguf, f: &Fields<'_>, head_dim: usize) -> Result<Value> {
    let theta = f.number_or("rope.freq_base", 10000.0)?;
    // The newer key wins over the older one even where it says 0, which is no scaling.
    let older = f.number_or("rope.scale_linear", 0.0)?;
    let given = f.number_or("rope.scaling.factor", older)?;
    let factor = match f.text("rope.scaling.type")?.unwrap_or("linear") {
        "none" => 1.0,
        "linear" if given == 0.0 => 1.0,
        "linear" if given > 0.0 => given,
        "linear" => return Err(f.fail("rope.scaling.factor", "a positive number, or 0 for no scaling")),
        other => return Err(Error::unsupported("rope scaling in a GGUF file", other, "none, linear")),
    };
    if gguf.contains("rope_freqs.weight") {
        return divisors(gguf, theta, factor, head_dim);
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
/// models, as f32 has them, they are told by that scheme's numbers, which more programs read. Errors: Format.
fn divisors(gguf: &Gguf, theta: f64, factor: f64, head_dim: usize) -> Result<Value> {
    let divisors = gguf.get("rope_freqs.weight")?.to_f32()?;
    if divisors.len() != head_dim / 2 || divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
        let message = format!("rope_freqs.weight: expected {} positive numbers, got {divisors:?}", head_dim / 2);
        return Err(Error::format(gguf.path(), message));
    }
    let most = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192);
    let published = divisors.iter().enumerate().all(|(i, &divisor)| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((f64::from(original) / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / most + smooth);
        // Those who wrote the file computed in f32, or in f64 and rounded.
        (f64::from(divisor) - expected).abs() <= 1e-5 * expected
    });
    if published && factor == 1.0 {
        return Ok(json!({"rope_type": "llama3", "rope_theta": theta, "factor": most, "low_freq_factor": low,
                         "high_freq_factor": high, "original_max_position_embeddings": original}));
    }
    let divisors: Vec<f64> = divisors.iter().map(|&divisor| factor * f64::from(divisor)).collect();
    Ok(json!({"rope_type": "longrope", "rope_theta": theta, "short_factor": divisors, "long_factor": divisors,
              "attention_factor": 1.0, "factor": 1.0}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (stored, name) in [
            ("blk.11.attn_output.weight", "model.layers.11.self_attn.o_proj.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("token_embd.weight", "model.embed_tokens.weight"),
        ] {
            assert_eq!(transformers_name(stored).as_deref(), Some(name));
            assert_eq!(stored_name(name).as_deref(), Some(stored));
        }
        assert_eq!(transformers_name("rope_freqs.weight"), None);
        assert_eq!(stored_name("model.layers.0.unknown.weight"), None);
    }

    #[test]
    fn epsilons_are_written_as_meant() {
        assert_eq!(shortest(1e-5), 1e-5);
    }
}
