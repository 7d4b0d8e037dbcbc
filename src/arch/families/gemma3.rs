//! Gemma 3, its text alone, as `Gemma3TextConfig`: as Gemma 2, with norms of queries and keys, and angles by the kind of block.

use super::{Family, GgufFamily, GgufHead};
use crate::{
    Result,
    arch::{
        Architecture, about_one,
        config_json::{self, Defaults},
        rope,
    },
    format::{fields::Fields, gguf::MetaValue},
};
use serde_json::{Value, json};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily {
        windows: true,
        head: GgufHead::Embedding,
        read: read_gguf,
        write: write_gguf,
        ..GgufFamily::plain("gemma3")
    },
};

/// Each so many-th block has no window.
const PATTERN: usize = 6;
/// Base of the angles in blocks with a window, and in those without.
const BASES: [f64; 2] = [1e4, 1e6];

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 262_208,
        hidden_size: 2304,
        intermediate_size: 9216,
        blocks: 26,
        heads: 8,
        kv_heads: Some(4),
        max_positions: 131_072,
        ropes: |f, around| rope::by_window(f, around, BASES),
        ..about_one::shared(f)?
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    about_one::set_of_second(f, &mut arch, None)?;
    config_json::add_head_norms(&mut arch);
    if f.nullable_number("attn_logit_softcapping", None)?.is_some() {
        return Err(f.fail("attn_logit_softcapping", "null, as all models of this generation have it"));
    }
    let pattern = f.extent_or("sliding_window_pattern", PATTERN)?;
    about_one::set_windows(f, &mut arch, |block| !(block + 1).is_multiple_of(pattern))?;
    for block in &mut arch.blocks {
        block.rope = Some(usize::from(block.window.is_some()));
    }
    Ok(arch)
}

fn read_gguf(f: &Fields<'_>, json: &mut Value) -> Result<()> {
    about_one::read_gguf(f, json, 62)?;
    let pattern = f.extent_or("attention.sliding_window_pattern", PATTERN)?;
    json["sliding_window_pattern"] = pattern.into();
    json["rope_parameters"] = json!({
        "full_attention": json["rope_parameters"].take(),
        "sliding_attention": {"rope_type": "default", "rope_theta": f.number_or("rope.freq_base_swa", BASES[0])?},
    });
    // Read where there is no window alone.
    f.ignore(&["final_logit_softcapping", "attn_logit_softcapping"]);
    Ok(())
}

fn write_gguf(arch: &Architecture) -> Vec<(&'static str, MetaValue)> {
    let mut entries = about_one::window_to_gguf(arch);
    let pattern = arch.blocks.iter().position(|block| block.window.is_none()).map_or(PATTERN, |at| at + 1);
    entries.push(("attention.sliding_window_pattern", MetaValue::U32(pattern as u32)));
    entries.push(("rope.freq_base_swa", MetaValue::F32(arch.ropes[1].theta as f32)));
    entries
}
