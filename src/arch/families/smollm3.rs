//! SmolLM3: as `SmolLM3Config`. Some blocks see no positions, each fourth one as a rule.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture, Site,
        config_json::{self, Defaults},
    },
    format::fields::{Fields, MAX_EXTENT},
};
use serde_json::Value;

pub(super) static FAMILY: Family = Family {
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily { rotated: true, ..GgufFamily::plain("smollm3") },
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 128_256,
        hidden_size: 2048,
        blocks: 36,
        heads: 16,
        kv_heads: Some(4),
        max_positions: 32768,
        rope_theta: 2e6,
        tie_embeddings: true,
        ..Defaults::LLAMA
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    config_json::set_biases(f, &mut arch, "attention_bias", [Site::Qkv, Site::O])?;
    config_json::set_biases(f, &mut arch, "mlp_bias", [Site::GateUp, Site::Down])?;
    let interval = f.integer("no_rope_layer_interval", 1..=MAX_EXTENT)?.unwrap_or(4) as usize;
    let listed = match f.get("no_rope_layers").filter(|list| !list.is_null()) {
        None => None,
        Some(list) => {
            let numbers = list.as_array().and_then(|list| list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>());
            let whole = numbers.filter(|numbers| numbers.len() >= arch.blocks.len());
            Some(whole.ok_or_else(|| f.fail("no_rope_layers", "a 1 or 0 for each block"))?)
        }
    };
    let rotates = |block: usize| match &listed {
        // By its name the list is of those without; what counts is what the class makes of it.
        Some(listed) => listed[block] != 0,
        None => !(block + 1).is_multiple_of(interval),
    };
    for (number, block) in arch.blocks.iter_mut().enumerate() {
        block.rope = block.rope.filter(|_| rotates(number));
    }
    let (window, used) = (f.nullable_extent("sliding_window", None)?, f.flag("use_sliding_window", false)?);
    if f.get("layer_types").is_some_and(|types| !types.is_null()) {
        config_json::set_windows(f, &mut arch, window, |_| true)?;
    } else if used {
        arch.blocks.iter_mut().filter(|block| block.rope.is_none()).for_each(|block| block.window = window);
    }
    Ok(arch)
}
