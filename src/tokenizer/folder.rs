//! The tokenizer files of a Hugging Face model folder.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Parts, Tokenizer};
use crate::error::{Error, Result};

pub(super) fn load(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let json = fs::read(&path).map_err(Error::io(&path))?;
    let mut config = object(&dir.join("tokenizer_config.json"))?;
    // Older folders keep the special tokens' names in a file of their own.
    for (name, token) in object(&dir.join("special_tokens_map.json"))? {
        if config.get(&name).is_none_or(Value::is_null) {
            config.insert(name, token);
        }
    }
    let mut eos_ids = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        eos_ids.extend(ids(object(&dir.join(file))?.get("eos_token_id")));
    }
    let template = match template(dir, &config)? {
        // A file wins over the configuration's entry; what is saved must be what was used.
        Some((source, true)) => {
            config.remove("chat_template");
            Some(source)
        }
        found => found.map(|(source, _)| source),
    };
    let affixes = affixes(&config);
    Parts { json, config, eos_ids, affixes, template, path: &path }.build()
}

/// A JSON object, empty where the file is absent.
fn object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(Error::io(path)(e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::format(path, format!("expected a JSON object: {e}")))
}

/// An id or a list of ids.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The chat template and whether it came from a file of its own.
fn template(dir: &Path, config: &Map<String, Value>) -> Result<Option<(String, bool)>> {
    let path = dir.join("chat_template.jinja");
    match fs::read_to_string(&path) {
        Ok(source) => return Ok(Some((source, true))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&path)(e)),
    }
    let file = object(&dir.join("chat_template.json"))?;
    let (value, from_file) = match file.get("chat_template") {
        Some(value) => (Some(value), true),
        None => (config.get("chat_template"), false),
    };
    Ok(value.and_then(named_template).map(|source| (source.to_string(), from_file)))
}

/// A template's text; of a list of named ones the one named `default`, else the first.
fn named_template(value: &Value) -> Option<&str> {
    let Value::Array(list) = value else { return value.as_str() };
    let default = list.iter().find(|t| t["name"] == "default").or_else(|| list.first());
    default?.get("template")?.as_str()
}

/// `add_bos_token` and `add_eos_token`, which override the post-processor where either is given, as in transformers.
fn affixes(config: &Map<String, Value>) -> Option<(bool, bool)> {
    let flag = |name: &str| config.get(name).and_then(Value::as_bool);
    let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
    (bos.is_some() || eos.is_some()).then(|| (bos.unwrap_or(false), eos.unwrap_or(false)))
}
