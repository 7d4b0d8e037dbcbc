//! Gemma 1: as `GemmaConfig`. The embedding is multiplied by the root of its width, norms have differences from 1, the gate is opened by
//! GELU.

use super::{Family, GgufFamily, GgufHead};
use crate::{
    Result,
    arch::{
        Activation, Architecture, about_one,
        config_json::{self, Defaults},
    },
    format::fields::Fields,
};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily {
        read: |_, json| {
            json["hidden_act"] = "gelu_pytorch_tanh".into();
            Ok(())
        },
        head: GgufHead::Embedding,
        ..GgufFamily::plain("gemma")
    },
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let defaults = Defaults {
        vocab_size: 256_000,
        hidden_size: 3072,
        intermediate_size: 24576,
        blocks: 28,
        heads: 16,
        kv_heads: Some(16),
        max_positions: 8192,
        // The first configurations have "gelu" and mean its approximation.
        activation: ("hidden_act", &[("gelu", Activation::GeluTanh)], Activation::GeluTanh),
        ..about_one::shared(f)?
    };
    let mut arch = config_json::decoder(f, &FAMILY, defaults)?;
    about_one::set_shared(f, &mut arch)?;
    Ok(arch)
}
