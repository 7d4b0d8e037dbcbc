//! Phi-3, 3.5 and 4-mini: as `Phi3Config`. Queries, keys and values come out of one linear layer, gate and up out of another.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    biased: &[],
    fused: true,
    read,
    gguf: GgufFamily::plain("phi3"),
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 32064,
        hidden_size: 3072,
        intermediate_size: 8192,
        max_positions: 4096,
        norm_eps: 1e-5,
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
