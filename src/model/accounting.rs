//! Everything in a file is accounted for: a tensor that no part of the model uses is refused by its name, since the program that
//! wrote it computes something else with it than what is computed here.

use super::Source;
use crate::{Error, Result};
use std::collections::BTreeSet;

/// Tensors that change nothing, by a part of their names: rotary angles, which follow from the configuration.
const IGNORED: [&str; 3] = ["rotary_emb.inv_freq", "attn_rot_embd", "rotary_emb.cos_cached"];

/// Errors: Format for a tensor that the model does not use, or a weight that is there twice.
pub(super) fn check(source: &Source) -> Result<()> {
    let mut seen = BTreeSet::new();
    for stored in source.weights().names() {
        let name = source.name_of(stored);
        let used = match &name {
            Some(name) => source.arch.has(name),
            // The other parts of a weight whose codes are accounted for under their own name.
            None => source.weights().gguf().is_none() || is_divisors(source, stored),
        };
        if used {
            if let Some(name) = name.filter(|name| !seen.insert(name.clone())) {
                let message =
                    format!("tensor {stored}: the file holds {name} in another form too; one of them is stale");
                return Err(Error::format(source.path(), message));
            }
            continue;
        }
        let ignored = IGNORED.iter().any(|part| stored.contains(part)) || stored.contains("rotary_emb.sin_cached");
        if ignored || matches!(source.weights().get(stored), Err(Error::Unsupported { .. })) {
            continue;
        }
        let message = format!("tensor {stored} is not used: {}", meaning(source, stored));
        return Err(Error::format(source.path(), message));
    }
    Ok(())
}

/// The divisors of the rotary frequencies, which the configuration has taken in where the family has them.
fn is_divisors(source: &Source, stored: &str) -> bool {
    source.arch.family.gguf.rope_divisors.contains(&stored)
}

/// What a tensor may be, that no part of the model uses.
fn meaning(source: &Source, stored: &str) -> String {
    let has = |parts: &[&str]| parts.iter().any(|part| stored.contains(part));
    if has(&["_exps.", "ffn_gate_inp", ".experts.", "block_sparse_moe", "shared_expert"]) {
        return "it is of a mixture of experts, which fourbit does not run".to_owned();
    }
    if has(&["lora_", "modules_to_save"]) {
        return "it is an adapter's; open its base as the model, and the adapter with `load_adapter`".to_owned();
    }
    if has(&["q_norm", "k_norm"]) {
        return "it normalizes queries or keys, which the model's family does not".to_owned();
    }
    if stored.ends_with(".bias") {
        return "the configuration says that this layer has no bias".to_owned();
    }
    if has(&["score.", "classifier.", "v_head."]) {
        return "it is the head of another task than language modeling".to_owned();
    }
    if has(&[".biases", ".scales", ".qweight", ".qzeros", "_scale", "_packed", ".absmax"]) {
        return "it is of a quantized layer, in a layout that the model's quantization_config does not tell".to_owned();
    }
    let layers = source.arch.blocks.len();
    match source.name_of(stored).and_then(|name| source.arch.role(&name)?.block()) {
        Some(layer) if layer >= layers => format!("the configuration has {layers} blocks, and it is of block {layer}"),
        _ => "the model's family has no such tensor, so that the file means something else than what would be computed"
            .to_owned(),
    }
}
