//! The tokenizer that goes along with a written model.

use crate::{Error, Result, format::atomic, tokenizer::Tokenizer};
use serde_json::json;
use std::path::Path;

/// What transformers reads beside the weights: copied as it is.
const FILES: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Chat templates by name, as transformers writes them.
const TEMPLATES: &str = "additional_chat_templates";

/// What of it training may leave beside an adapter.
const BESIDE: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", TEMPLATES];

/// The tokenizer of a base with what stands beside the adapter, and `generation_config.json` with every token that ends an answer:
/// those of the base, and the one after which the chat template, by which adapters learn, closes an answer.
pub(super) fn write_merged_tokenizer(model: &Path, adapter: &Path, folder: &Path) -> Result<()> {
    let tokenizer = Tokenizer::with_adapter(model, adapter)?;
    let Some(tokenizer) = tokenizer else { return write_tokenizer(model, folder) };
    match BESIDE.iter().any(|name| adapter.join(name).exists()) {
        true => tokenizer.save(folder)?,
        false => write_tokenizer(model, folder)?,
    }
    let path = model.join("generation_config.json");
    let mut config = match std::fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|e| Error::format(&path, format!("expected a JSON object: {e}")))?
        }
        Err(_) if !path.exists() => serde_json::Map::new(),
        Err(e) => return Err(Error::io(&path)(e)),
    };
    let ids = match tokenizer.eos_ids() {
        [] => return Ok(()),
        [id] => json!(id),
        ids => json!(ids),
    };
    config.insert("eos_token_id".to_owned(), ids);
    atomic::write_json(folder.join("generation_config.json"), &config)
}

/// The tokenizer of a folder as it is, or that of a GGUF file as transformers would write it.
pub fn write_tokenizer(model: &Path, folder: &Path) -> Result<()> {
    if model.is_dir() {
        for name in FILES.iter().filter(|name| model.join(name).is_file()) {
            std::fs::copy(model.join(name), folder.join(name)).map_err(Error::io(folder.join(name)))?;
        }
        let templates = model.join(TEMPLATES);
        for entry in templates
            .is_dir()
            .then(|| std::fs::read_dir(&templates))
            .transpose()
            .map_err(Error::io(&templates))?
            .into_iter()
            .flatten()
        {
            let from = entry.map_err(Error::io(&templates))?.path();
            let to = folder.join(TEMPLATES);
            std::fs::create_dir_all(&to).map_err(Error::io(&to))?;
            std::fs::copy(&from, to.join(from.file_name().unwrap_or_default())).map_err(Error::io(&from))?;
        }
        return Ok(());
    }
    match Tokenizer::open(model)? {
        Some(tokenizer) => tokenizer.save(folder),
        None => Ok(()),
    }
}
