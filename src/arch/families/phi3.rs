//! Phi-3, 3.5 and 4-mini: as `Phi3Config`. Queries, keys and values come out of one linear layer, gate and up out of another.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture, RopeSpec,
        config_json::{self, Defaults},
        rope::{self, Around},
    },
    format::{
        fields::{Fields, MAX_EXTENT},
        gguf::MetaValue,
    },
};
use serde_json::{Map, Value};

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    biased: &[],
    fused: true,
    read,
    gguf: GgufFamily { windows: true, read: read_gguf, write: write_gguf, ..GgufFamily::by_length("phi3") },
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 32064,
        hidden_size: 3072,
        intermediate_size: 8192,
        max_positions: 4096,
        norm_eps: 1e-5,
        partial_rotary_factor: Some(1.0),
        ropes,
        ..Defaults::LLAMA
    };
    // They have no part in inference, and are 0 in what is published.
    for name in ["resid_pdrop", "embd_pdrop"] {
        f.nullable_number(name, None)?;
    }
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    let window = f.nullable_extent("sliding_window", None)?;
    arch.blocks.iter_mut().for_each(|block| block.window = window);
    Ok(arch)
}

/// The rotary embedding; `su` and `yarn` are older names of longrope in this family. Errors: Format, Unsupported.
fn ropes(f: &Fields<'_>, around: Around) -> Result<Vec<RopeSpec>> {
    let beside = ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
    let kinds = ["rope_scaling", "rope_parameters"];
    let told = beside.into_iter().chain(kinds).filter_map(|name| Some((name.to_owned(), f.get(name)?.clone())));
    let mut told: Map<String, Value> = told.collect();
    // The class has a number where a file has none.
    told.entry("original_max_position_embeddings").or_insert(4096.into());
    for name in kinds {
        let Some(rope) = told.get_mut(name).and_then(Value::as_object_mut) else { continue };
        for kind in ["rope_type", "type"] {
            match rope.get(kind).and_then(Value::as_str) {
                Some("su" | "yarn") => rope[kind] = "longrope".into(),
                None | Some("default" | "longrope") => {}
                Some(_) => return Err(f.fail(name, "a rope_type of default or longrope")),
            }
        }
    }
    rope::one(&Fields::owned(told, f.path()), around)
}

fn read_gguf(f: &Fields<'_>, json: &mut Value) -> Result<()> {
    let window = f.integer("attention.sliding_window", 0..=MAX_EXTENT)?.filter(|&window| window > 0);
    json["sliding_window"] = window.into();
    Ok(())
}

/// llama.cpp keeps the window and says that it does not use it.
fn write_gguf(arch: &Architecture) -> Vec<(&'static str, MetaValue)> {
    let window = arch.blocks[0].window.and_then(|window| u32::try_from(window).ok());
    window.map(|window| ("attention.sliding_window", MetaValue::U32(window))).into_iter().collect()
}
