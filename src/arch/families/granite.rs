//! Granite 3: as `GraniteConfig`. Llama with a factor of the embedding, of what is added to the residual stream, of the scores, and of
//! the logits.

use super::{Family, GgufFamily};
use crate::{
    Result,
    arch::{
        Architecture, Site,
        config_json::{self, Defaults},
    },
    format::{fields::Fields, gguf::MetaValue},
};
use serde_json::Value;

pub(super) static FAMILY: Family = Family {
    model_type: "granite",
    class: "GraniteForCausalLM",
    biased: &[],
    fused: false,
    read,
    gguf: GgufFamily { name: "granite", read: read_gguf, write: write_gguf, ..GgufFamily::LLAMA },
};

fn read(f: &Fields<'_>) -> Result<Architecture> {
    let mut arch = config_json::decoder(f, &FAMILY, Defaults::LLAMA)?;
    config_json::set_biases(f, &mut arch, "attention_bias", [Site::Qkv, Site::O])?;
    config_json::set_biases(f, &mut arch, "mlp_bias", [Site::GateUp, Site::Down])?;
    arch.embedding_factor = f.number_or("embedding_multiplier", 1.0)? as f32;
    arch.prompt_factor = arch.embedding_factor;
    arch.residual_factor = f.number_or("residual_multiplier", 1.0)? as f32;
    arch.attention.scale = f.number_or("attention_multiplier", 1.0)? as f32;
    let divisor = f.number_or("logits_scaling", 1.0)?;
    if divisor == 0.0 {
        return Err(f.fail("logits_scaling", "a number other than 0"));
    }
    arch.logits.factor = (1.0 / divisor) as f32;
    Ok(arch)
}

fn read_gguf(f: &Fields<'_>, json: &mut Value) -> Result<()> {
    // The key tells whether anything is rotated at all there, and true is taken where it is missing.
    if !f.flag("rope.scaling.finetuned", true)? {
        return Err(f.fail("rope.scaling.finetuned", "true: without it llama.cpp rotates nothing in this family"));
    }
    json["logits_scaling"] = f.number("logit_scale")?.into();
    let head_dim = json["head_dim"].as_f64().unwrap_or(1.0);
    let absent = [
        ("embedding_scale", "embedding_multiplier", 1.0),
        ("residual_scale", "residual_multiplier", 1.0),
        ("attention.scale", "attention_multiplier", 1.0 / head_dim.sqrt()),
    ];
    for (key, field, default) in absent {
        // 0 is as if it were missing.
        let value = f.number_or(key, 0.0)?;
        json[field] = if value == 0.0 { default } else { value }.into();
    }
    Ok(())
}

fn write_gguf(arch: &Architecture) -> Vec<(&'static str, MetaValue)> {
    vec![
        ("embedding_scale", MetaValue::F32(arch.embedding_factor)),
        ("residual_scale", MetaValue::F32(arch.residual_factor)),
        ("attention.scale", MetaValue::F32(arch.attention.scale)),
        ("logit_scale", MetaValue::F32(1.0 / arch.logits.factor)),
    ]
}
