//! What the generations of a family whose norms have differences from one have in common.

use super::{
    Activation, Architecture, NormId, NormSpec, Site,
    config_json::{self, Defaults},
};
use crate::{
    Error, Result,
    format::{fields::Fields, gguf::MetaValue},
};
use serde_json::Value;

/// What they have in common where a configuration says nothing. Errors: Format, Unsupported.
pub(super) fn shared(f: &Fields<'_>) -> Result<Defaults> {
    if !f.is_null("use_bidirectional_attention") && f.flag("use_bidirectional_attention", false)? {
        let what = format!("use_bidirectional_attention in {}", f.path().display());
        return Err(Error::unsupported(what, true, "attention to what came before"));
    }
    Ok(Defaults {
        // Unlike Llama's it has no null there.
        head_dim: Some(f.extent_or("head_dim", 256)?),
        tie_embeddings: true,
        activation: ("hidden_activation", &[], Activation::GeluTanh),
        ..Defaults::LLAMA
    })
}

/// What they have in common. Errors: Format.
pub(super) fn set_shared(f: &Fields<'_>, arch: &mut Architecture) -> Result<()> {
    config_json::set_biases(f, arch, "attention_bias", [Site::Qkv, Site::O])?;
    arch.norm_offset = 1.0;
    arch.embedding_factor = (arch.hidden_size as f32).sqrt();
    Ok(())
}

/// What the second and third have in common: norms before and behind both parts of a block, a factor of the scores that is told, and a soft cap
/// of the logits. Errors: Format.
pub(super) fn set_of_second(f: &Fields<'_>, arch: &mut Architecture, cap: Option<f64>) -> Result<()> {
    set_shared(f, arch)?;
    let width = arch.hidden_size;
    let norm = |id, name, gguf| NormSpec { id, name, gguf, width };
    arch.norms = vec![
        norm(NormId::Attention, "input_layernorm", "attn_norm"),
        norm(NormId::AfterAttention, "post_attention_layernorm", "post_attention_norm"),
        norm(NormId::FeedForward, "pre_feedforward_layernorm", "ffn_norm"),
        norm(NormId::AfterFeedForward, "post_feedforward_layernorm", "post_ffw_norm"),
    ];
    arch.attention.scale = (f.extent_or("query_pre_attn_scalar", 256)? as f64).powf(-0.5) as f32;
    arch.logits.soft_cap = soft_cap(f, "final_logit_softcapping", cap)?;
    Ok(())
}

/// A bound of what is put through its tanh; `None` where it is null. Errors: Format.
pub(super) fn soft_cap(f: &Fields<'_>, name: &str, default: Option<f64>) -> Result<Option<f32>> {
    match f.nullable_number(name, default)? {
        Some(cap) if cap <= 0.0 => Err(f.fail(name, "a positive number, or null")),
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}

/// The windows of the second and third; unlike other families' they are always used. Errors: Format.
pub(super) fn set_windows(f: &Fields<'_>, arch: &mut Architecture, slides: impl Fn(usize) -> bool) -> Result<()> {
    let window = config_json::window(f)?.ok_or_else(|| f.fail("sliding_window", "a number of tokens"))?;
    config_json::set_windows(f, arch, Some(window), slides)
}

/// What the second and third have in common in GGUF files. `largest`: blocks of the model whose factor of the scores is another, which no key
/// tells. Errors: Format.
pub(super) fn read_gguf(f: &Fields<'_>, json: &mut Value, largest: u64) -> Result<()> {
    let number = |json: &Value, name: &str| json[name].as_u64().unwrap_or(1);
    let scalar = match number(json, "num_hidden_layers") == largest {
        true => number(json, "hidden_size") / number(json, "num_attention_heads"),
        false => number(json, "head_dim"),
    };
    json["query_pre_attn_scalar"] = scalar.into();
    json["hidden_activation"] = "gelu_pytorch_tanh".into();
    json["sliding_window"] = f.extent("attention.sliding_window")?.into();
    Ok(())
}

/// The window as GGUF files tell it.
pub(super) fn window_to_gguf(arch: &Architecture) -> Vec<(&'static str, MetaValue)> {
    let window = arch.blocks.iter().find_map(|block| block.window);
    // Without one a file must say something: what no text reaches.
    let window = window.unwrap_or(arch.max_positions);
    vec![("attention.sliding_window", MetaValue::U32(u32::try_from(window).unwrap_or(u32::MAX)))]
}
