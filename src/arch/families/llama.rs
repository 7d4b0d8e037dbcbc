//! Llama 1 to 3, TinyLlama, SmolLM2: as `LlamaConfig`.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture, Site,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family =
    Family { model_type: "llama", class: "LlamaForCausalLM", biased: &[], fused: false, read, gguf: GgufFamily::LLAMA };

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults::LLAMA;
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    config_json::set_biases(f, &mut arch, "attention_bias", [Site::Qkv, Site::O])?;
    config_json::set_biases(f, &mut arch, "mlp_bias", [Site::GateUp, Site::Down])?;
    Ok(arch)
}
