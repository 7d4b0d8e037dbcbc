//! Llama 1 to 3, TinyLlama, SmolLM2: as `LlamaConfig`.

use super::Family;
use crate::{
    Result,
    arch::{
        Architecture, Site,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    gguf: "llama",
    biased: &[],
    rotated: true,
    rope_freqs: true,
    read,
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults::LLAMA;
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    let (attention, feed_forward) = (f.flag("attention_bias", false)?, f.flag("mlp_bias", false)?);
    for linear in &mut arch.linears {
        linear.bias = match linear.id.reads() {
            Site::Qkv | Site::O => attention,
            Site::GateUp | Site::Down => feed_forward,
        };
    }
    Ok(arch)
}
