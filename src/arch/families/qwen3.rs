//! Qwen3: as `Qwen3Config`. Queries and keys of each head are normalized; windows as in Qwen2.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture, Site,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily::plain("qwen3"),
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 151_936,
        intermediate_size: 22016,
        kv_heads: Some(32),
        // Unlike its forebears it has no null there.
        head_dim: Some(f.extent_or("head_dim", 128)?),
        max_positions: 32768,
        ..Defaults::LLAMA
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    config_json::add_head_norms(&mut arch);
    config_json::set_biases(f, &mut arch, "attention_bias", [Site::Qkv, Site::O])?;
    config_json::set_used_windows(f, &mut arch)?;
    Ok(arch)
}
