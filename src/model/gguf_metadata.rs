//! What llama.cpp wants to know of a model beside its tensors: the inverse of reading a GGUF file's configuration.

use super::{Config, RopeScaling, Source};
use crate::{Error, Result, format::gguf::MetaValue, quant::Scheme};
use std::f64::consts::TAU;

/// llama.cpp's name of the architecture. Mistral's is that of Llama. Errors: Unsupported.
pub(super) fn architecture(config: &Config) -> Result<&'static str> {
    match config.model_type.as_str() {
        "llama" | "mistral" => Ok("llama"),
        "qwen2" => Ok("qwen2"),
        other => Err(Error::unsupported("architecture for a GGUF file", other, "llama, mistral, qwen2")),
    }
}

/// llama.cpp's number for files whose weights are mostly of this scheme.
fn file_type(scheme: Scheme) -> Option<u32> {
    Some(match scheme {
        Scheme::F32 => 0,
        Scheme::F16 => 1,
        Scheme::BF16 => 32,
        Scheme::Q4_0 => 2,
        Scheme::Q4_1 => 3,
        Scheme::Q8_0 => 7,
        Scheme::Q5_0 => 8,
        Scheme::Q5_1 => 9,
        Scheme::Q2K => 10,
        Scheme::Q3K => 11,
        Scheme::Q4K => 14,
        Scheme::Q5K => 16,
        Scheme::Q6K => 18,
        Scheme::Iq4Nl => 25,
        Scheme::Iq4Xs => 30,
        _ => return None,
    })
}

/// The metadata of a model whose weights become `scheme`: that of a GGUF file is carried over, of a folder it is made from
/// config.json; `extra` (a tokenizer's) replaces entries of the same keys. Errors: Unsupported.
pub(super) fn metadata(
    source: &Source,
    scheme: Scheme,
    extra: &[(String, MetaValue)],
) -> Result<Vec<(String, MetaValue)>> {
    let mut entries = match source.weights().gguf() {
        Some(gguf) => {
            // What describes the old file's bytes does not hold for the new one.
            let stays =
                |key: &&str| !key.starts_with("split.") && !key.starts_with("quantize.") && *key != "general.alignment";
            // A tokenizer brings all of its templates, so that none of another is left beside them.
            let others = extra.iter().any(|(key, _)| key.starts_with("tokenizer."));
            let stays = |key: &&str| stays(key) && !(others && key.starts_with("tokenizer.chat_template"));
            gguf.keys().filter(stays).filter_map(|key| Some((key.to_owned(), gguf.raw(key)?))).collect()
        }
        None => of_config(source)?,
    };
    let mut set = |key: &str, value: MetaValue| match entries.iter_mut().find(|(k, _)| k == key) {
        Some(entry) => entry.1 = value,
        None => entries.push((key.to_owned(), value)),
    };
    if let Some(number) = file_type(scheme) {
        set("general.file_type", MetaValue::U32(number));
    }
    set("general.quantization_version", MetaValue::U32(2));
    extra.iter().for_each(|(key, value)| set(key, value.clone()));
    Ok(entries)
}

fn of_config(source: &Source) -> Result<Vec<(String, MetaValue)>> {
    let config = &source.config;
    let arch = architecture(config)?;
    let text = |value: &str| MetaValue::Text(value.to_owned());
    let path = source.path();
    let name = path.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
    let mut entries = vec![
        ("general.architecture".to_owned(), text(arch)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(&name)),
    ];
    let mut add = |key: &str, value: MetaValue| entries.push((format!("{arch}.{key}"), value));
    let counts = [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden_size),
        ("block_count", config.layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ];
    for (key, count) in counts {
        let count = u32::try_from(count).map_err(|_| Error::config(key, format!("{count} is too large")))?;
        add(key, MetaValue::U32(count));
    }
    add("attention.layer_norm_rms_epsilon", MetaValue::F32(config.rms_norm_eps));
    add("rope.freq_base", MetaValue::F32(config.rope_theta as f32));
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        add("rope.scaling.type", text("linear"));
        add("rope.scaling.factor", MetaValue::F32(factor as f32));
    }
    Ok(entries)
}

/// The divisors of the rotary frequencies that llama.cpp reads as a tensor: `[head_dim / 2]`; none where there is no scaling,
/// or one that metadata tell.
pub(super) fn rope_divisors(config: &Config) -> Option<Vec<f32>> {
    let (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings) = match config.rope_scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => return None,
        RopeScaling::Divisors(ref divisors) => return Some(divisors.iter().map(|&d| d as f32).collect()),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings)
        }
    };
    let original = original_max_position_embeddings as f64;
    let divisor = |i: usize| {
        let wavelength = TAU * config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64);
        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Some((0..config.head_dim / 2).map(divisor).collect())
}
