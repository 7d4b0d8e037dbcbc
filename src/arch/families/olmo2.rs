//! OLMo 2: as `Olmo2Config`. Norms are behind the two parts of a block and not before them, and the queries and keys of all heads are
//! normalized together.

use super::{Family, GgufFamily, GgufHead};
use crate::{
    Result,
    arch::{
        Architecture, NormId, NormSpec, Site,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family = Family {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily { head: GgufHead::Own, ..GgufFamily::plain("olmo2") },
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults { vocab_size: 50304, norm_eps: 1e-5, ..Defaults::LLAMA };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    config_json::set_biases(f, &mut arch, "attention_bias", [Site::Qkv, Site::O])?;
    let hidden = arch.hidden_size;
    let norm = |id, name, gguf, width| NormSpec { id, name, gguf, width };
    let attention = arch.attention;
    arch.norms = vec![
        norm(NormId::AfterAttention, "post_attention_layernorm", "post_attention_norm", hidden),
        norm(NormId::AfterFeedForward, "post_feedforward_layernorm", "post_ffw_norm", hidden),
        norm(NormId::Query, "self_attn.q_norm", "attn_q_norm", attention.heads * attention.head_dim),
        norm(NormId::Key, "self_attn.k_norm", "attn_k_norm", attention.kv_heads * attention.head_dim),
    ];
    Ok(arch)
}
