//! GGUF's names and metadata in transformers' words.

use super::Config;
use crate::{Error, Result, format::Gguf};
use serde_json::json;

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
    let missing = |key: &str| Error::format(gguf.path(), format!("metadata {key} is missing"));
    let arch = gguf.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?.to_owned();
    let (class, bias) = match arch.as_str() {
        "llama" => ("LlamaForCausalLM", false),
        "qwen2" => ("Qwen2ForCausalLM", true),
        other => return Err(Error::unsupported("architecture in a GGUF file", other, "llama (with Mistral), qwen2")),
    };
    let key = |name: &str| format!("{arch}.{name}");
    let uint = |name: &str| gguf.uint(&key(name))?.ok_or_else(|| missing(&key(name)));
    let hidden = uint("embedding_length")?;
    let heads = uint("attention.head_count")?.max(1);
    let head_dim = gguf.uint(&key("attention.key_length"))?.unwrap_or(hidden / heads);
    let embedding = gguf.get("token_embd.weight")?.shape.first().copied().unwrap_or(0);
    let eps = gguf.float(&key("attention.layer_norm_rms_epsilon"))?.ok_or_else(|| missing("the norm's epsilon"))?;
    let mut rope = json!({
        "rope_type": "default",
        "rope_theta": gguf.float(&key("rope.freq_base"))?.unwrap_or(10000.0),
    });
    match gguf.text(&key("rope.scaling.type"))?.unwrap_or("none") {
        "none" => {}
        "linear" => {
            rope["rope_type"] = "linear".into();
            rope["factor"] = json!(gguf.float(&key("rope.scaling.factor"))?.unwrap_or(1.0));
        }
        other => return Err(Error::unsupported("rope scaling in a GGUF file", other, "none, linear")),
    }
    if gguf.contains("rope_freqs.weight") {
        llama3_scaling(gguf, &mut rope, head_dim)?;
    }
    let mut json = json!({
        "architectures": [class],
        "model_type": arch,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": uint("feed_forward_length")?,
        "num_hidden_layers": uint("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.uint(&key("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": embedding,
        "max_position_embeddings": gguf.uint(&key("context_length"))?.unwrap_or(2048),
        "rms_norm_eps": shortest(eps as f32),
        "rope_parameters": rope,
        "tie_word_embeddings": !gguf.contains("output.weight"),
        "attention_bias": bias,
        "dtype": "bfloat16",
    });
    for (field, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = gguf.uint(&format!("tokenizer.ggml.{name}_token_id"))? {
            json[field] = id.into();
        }
    }
    let mut config = Config::from_json(json, gguf.path())?;
    // Llama files may carry biases (rare conversions); the tensors tell.
    config.qkv_bias |= gguf.contains("blk.0.attn_q.bias");
    Ok(config)
}

/// The f32 as the decimal that was meant: 1e-5 rather than 9.99999974737875e-06.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Llama 3.1 files hold the divisors of the frequencies as a tensor instead of the scheme's numbers, which are the same in
/// all published models but for the factor.
fn llama3_scaling(gguf: &Gguf, rope: &mut serde_json::Value, head_dim: u64) -> Result<()> {
    let divisors = gguf.get("rope_freqs.weight")?.to_f32()?;
    let theta = rope["rope_theta"].as_f64().unwrap_or(10000.0);
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let agrees = divisors.iter().enumerate().all(|(i, &divisor)| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        (f64::from(divisor) - expected).abs() <= 1e-3 * expected
    });
    if !agrees {
        let supported = "the divisors of Llama 3.1 (low 1, high 4, 8192 positions)";
        return Err(Error::unsupported("rope_freqs.weight", format!("{} divisors", divisors.len()), supported));
    }
    *rope = json!({"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
                   "high_freq_factor": high, "original_max_position_embeddings": original});
    Ok(())
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
