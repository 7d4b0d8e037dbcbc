//! Gemma 2: as `Gemma2Config`. Norms before and behind both parts of a block, soft caps of the scores and of the logits, each second
//! block with a window.

use super::{Family, GgufFamily, GgufHead};
use crate::{
    Result,
    arch::{
        Architecture, about_one,
        config_json::{self, Defaults},
    },
    format::{fields::Fields, gguf::MetaValue},
};
use serde_json::Value;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily {
        windows: true,
        head: GgufHead::Embedding,
        read: read_gguf,
        write: write_gguf,
        ..GgufFamily::plain("gemma2")
    },
};

/// Of the scores, and of the logits.
const CAPS: [f64; 2] = [50.0, 30.0];

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 256_000,
        hidden_size: 2304,
        intermediate_size: 9216,
        blocks: 26,
        heads: 8,
        kv_heads: Some(4),
        max_positions: 8192,
        ..about_one::shared(f)?
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    about_one::set_of_second(f, &mut arch, Some(CAPS[1]))?;
    arch.attention.soft_cap = about_one::soft_cap(f, "attn_logit_softcapping", Some(CAPS[0]))?;
    about_one::set_windows(f, &mut arch, |block| block.is_multiple_of(2))?;
    Ok(arch)
}

fn read_gguf(f: &Fields<'_>, json: &mut Value) -> Result<()> {
    about_one::read_gguf(f, json, 46)?;
    for (field, cap) in [("attn_logit_softcapping", CAPS[0]), ("final_logit_softcapping", CAPS[1])] {
        json[field] = f.number_or(field, cap)?.into();
    }
    Ok(())
}

fn write_gguf(arch: &Architecture) -> Vec<(&'static str, MetaValue)> {
    let mut entries = about_one::window_to_gguf(arch);
    let caps = [("attn_logit_softcapping", arch.attention.soft_cap), ("final_logit_softcapping", arch.logits.soft_cap)];
    entries.extend(caps.into_iter().filter_map(|(key, cap)| Some((key, MetaValue::F32(cap?)))));
    entries
}
