//! Gemma 3, its text alone: as `Gemma3TextConfig`. As Gemma 2, with norms of each head's queries and keys in place of the scores' soft
//! cap, and with five blocks that have a window, and angles of their own, to one without.

use super::{Family, GgufFamily, GgufHead, gemma};
use crate::{
    Error, Result,
    arch::{
        Architecture, NormId, NormSpec, RopeSpec,
        config_json::{self, Defaults},
        rope::{self, Around},
    },
    format::{
        fields::{Fields, MAX_EXTENT},
        gguf::MetaValue,
    },
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
        ropes,
        ..gemma::shared(f)?
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    gemma::set_shared(f, &mut arch)?;
    gemma::set_of_second(f, &mut arch, None)?;
    let width = arch.attention.head_dim;
    arch.norms.push(NormSpec { id: NormId::Query, name: "self_attn.q_norm", gguf: "attn_q_norm", width });
    arch.norms.push(NormSpec { id: NormId::Key, name: "self_attn.k_norm", gguf: "attn_k_norm", width });
    if f.nullable_number("attn_logit_softcapping", None)?.is_some() {
        let what = format!("attn_logit_softcapping in {}", f.path().display());
        return Err(Error::unsupported(what, "a number", "null, as all models of this generation have it"));
    }
    let pattern = f.integer("sliding_window_pattern", 1..=MAX_EXTENT)?.map_or(PATTERN, |n| n as usize);
    gemma::set_windows(f, &mut arch, |block| !(block + 1).is_multiple_of(pattern))?;
    for block in &mut arch.blocks {
        block.rope = Some(usize::from(block.window.is_some()));
    }
    Ok(arch)
}

/// Of blocks without a window, then of those with one. The newer spelling has an object for each kind of block; `rope_scaling`, the older
/// one, is of those without. Errors: Format.
fn ropes(f: &Fields<'_>, around: Around) -> Result<Vec<RopeSpec>> {
    let (old, new) = (f.object("rope_scaling")?, f.object("rope_parameters")?);
    let kinds = ["full_attention", "sliding_attention"];
    if let Some((new, other)) =
        new.as_ref().and_then(|new| Some((new, new.names().find(|name| !kinds.contains(name))?)))
    {
        return Err(new.fail(other, "full_attention and sliding_attention alone, each with its own"));
    }
    if old.is_some() && new.is_some() {
        return Err(f.fail("rope_scaling", "one of rope_scaling, the older spelling, and rope_parameters"));
    }
    let [full, sliding] = kinds.map(|kind| new.as_ref().map_or(Ok(None), |new| new.object(kind)));
    let of = |own: Option<Fields<'_>>, theta: f64| {
        if let Some(own) = own.as_ref().filter(|own| own.get("truncate").is_some_and(|told| told != true)) {
            return Err(own.fail("truncate", "true, which is what transformers takes where blocks differ"));
        }
        rope::of(f, own.as_ref(), Around { theta, ..around })
    };
    let [local, global] = BASES;
    Ok(vec![
        of(full?.or(old), f.number_or("rope_theta", global)?)?,
        of(sliding?, f.number_or("rope_local_base_freq", local)?)?,
    ])
}

fn read_gguf(f: &Fields<'_>, json: &mut Value) -> Result<()> {
    gemma::read_gguf(f, json, 62)?;
    let pattern = f.integer("attention.sliding_window_pattern", 1..=MAX_EXTENT)?.map_or(PATTERN, |n| n as usize);
    json["sliding_window_pattern"] = pattern.into();
    json["rope_parameters"] = json!({
        "full_attention": json["rope_parameters"].take(),
        "sliding_attention": {"rope_type": "default", "rope_theta": f.number_or("rope.freq_base_swa", BASES[0])?},
    });
    // What llama.cpp reads where there is no window alone.
    f.ignore(&["final_logit_softcapping", "attn_logit_softcapping"]);
    Ok(())
}

fn write_gguf(arch: &Architecture) -> Vec<(&'static str, MetaValue)> {
    let mut entries = gemma::window_to_gguf(arch);
    let pattern = arch.blocks.iter().position(|block| block.window.is_none()).map_or(PATTERN, |at| at + 1);
    if pattern != PATTERN {
        entries.push(("attention.sliding_window_pattern", MetaValue::U32(pattern as u32)));
    }
    if arch.ropes[1].theta != BASES[0] {
        entries.push(("rope.freq_base_swa", MetaValue::F32(arch.ropes[1].theta as f32)));
    }
    entries
}
