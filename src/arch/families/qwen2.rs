//! Qwen2 and 2.5: as `Qwen2Config`. `layer_types` or `max_window_layers` tell which blocks have the window, where it is used.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture, LinearId,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    biased: &[LinearId::Q, LinearId::K, LinearId::V],
    fused: false,
    read,
    gguf: GgufFamily { biased: &[LinearId::Q, LinearId::K, LinearId::V], ..GgufFamily::plain("qwen2") },
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 151_936,
        intermediate_size: 22016,
        kv_heads: Some(32),
        max_positions: 32768,
        ..Defaults::LLAMA
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    config_json::set_used_windows(f, &mut arch)?;
    Ok(arch)
}
