//! What llama.cpp wants to know of a model beside its tensors: the inverse of reading a GGUF file's configuration.

use crate::{Result, format::gguf::MetaValue, model::Source, quant::Scheme};

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
    let text = |value: &str| MetaValue::Text(value.to_owned());
    let path = source.path();
    let name = path.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
    let mut entries = source.arch.gguf_metadata()?;
    let general = [("general.type".to_owned(), text("model")), ("general.name".to_owned(), text(&name))];
    // Behind the architecture, where other writers have them.
    entries.splice(1..1, general);
    Ok(entries)
}
