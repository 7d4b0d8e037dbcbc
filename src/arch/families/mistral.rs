//! Mistral 7B and its kin: as `MistralConfig`. All blocks have the window, unless there are `layer_types` (which transformers then
//! loads as Ministral).

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
    model_type: "mistral",
    class: "MistralForCausalLM",
    biased: &[],
    fused: false,
    read,
    // In its words of Llama: such a file is read as one.
    gguf: GgufFamily::LLAMA,
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults { intermediate_size: 14336, kv_heads: Some(8), max_positions: 131_072, ..Defaults::LLAMA };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    let window = config_json::window(f)?;
    config_json::set_windows(f, &mut arch, window, |_| true)?;
    Ok(arch)
}
