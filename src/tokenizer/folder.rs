//! The tokenizer files of a Hugging Face model folder, read as transformers reads them.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::template::DEFAULT;
use super::{Parts, SPECIAL, Tokenizer, door, token_text};
use crate::error::{Error, Result};
use crate::format::fields::Fields;

pub(super) fn load(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let json = door::read(&path)?;
    let mut config = object(&dir.join("tokenizer_config.json"))?;
    if let (Some("GemmaTokenizer" | "GemmaTokenizerFast"), None) =
        (config.get("tokenizer_class").and_then(Value::as_str), config.get("mask_token"))
    {
        // The class has one by itself.
        config.insert("mask_token".to_owned(), json!("<mask>"));
    }
    let added = added_tokens(dir, &mut config)?;
    let named: Vec<&str> = SPECIAL.iter().filter_map(|name| config.get(*name).and_then(token_text)).collect();
    let json = with_added(json, &added, &named, &path)?;
    let mut eos_ids = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        let path = dir.join(file);
        eos_ids.extend(Fields::owned(object(&path)?, &path).token_ids("eos_token_id")?);
    }
    let (templates, from_files) = templates(dir, &config)?;
    if from_files {
        // Files win over the configuration's entry; what is saved must be what was used.
        config.remove("chat_template");
    }
    Parts { json, config, eos_ids, templates, path: &path }.build()
}

/// A JSON object, empty where the file is absent.
fn object(path: &Path) -> Result<Map<String, Value>> {
    match door::read(path) {
        Ok(bytes) => door::object(&bytes, path),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(e) => Err(e),
    }
}

/// A token that files beside `tokenizer.json` add.
struct Added {
    content: String,
    /// The id that the file says it has.
    id: Option<u64>,
    entry: Map<String, Value>,
}

/// The tokens that the files beside `tokenizer.json` name; special tokens of `special_tokens_map.json` go into `config`.
///
/// `added_tokens_decoder` of the configuration lists all; only without it are `special_tokens_map.json`, whose names then win over
/// the configuration's, and `added_tokens.json` read, as in transformers.
fn added_tokens(dir: &Path, config: &mut Map<String, Value>) -> Result<Vec<Added>> {
    let mut added = Vec::new();
    let path = dir.join("tokenizer_config.json");
    let fields = Fields::owned(config.clone(), &path);
    if let Some(decoder) = fields.object("added_tokens_decoder")? {
        for name in decoder.names() {
            let wrong = || decoder.fail(name, "a token's id and an object with content");
            let id: u64 = name.parse().map_err(|_| wrong())?;
            let token = decoder.object(name)?.ok_or_else(wrong)?;
            let content = token.text("content")?.ok_or_else(wrong)?.to_owned();
            let mut entry = Map::new();
            for flag in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
                if token.get(flag).is_some() {
                    entry.insert(flag.to_owned(), token.flag(flag, false)?.into());
                }
            }
            added.push(Added { content, id: Some(id), entry });
        }
    } else {
        for (name, token) in object(&dir.join("special_tokens_map.json"))? {
            if token_text(&token).is_some() {
                config.insert(name, token);
            }
        }
        let special: Vec<&str> = SPECIAL.iter().filter_map(|name| config.get(*name).and_then(token_text)).collect();
        let path = dir.join("added_tokens.json");
        for (content, id) in object(&path)? {
            let wrong = || Error::format(&path, format!("{content}: expected a token's id, got {id}"));
            let id = id.as_u64().ok_or_else(wrong)?;
            let is_special = special.contains(&content.as_str());
            let entry = json!({"normalized": !is_special, "special": is_special});
            added.push(Added { content, id: Some(id), entry: entry.as_object().cloned().unwrap_or_default() });
        }
    }
    added.sort_by_key(|token| token.id);
    // Special tokens that no vocabulary has are added behind all.
    let named = SPECIAL.iter().filter_map(|name| config.get(*name));
    let more = ["additional_special_tokens", "extra_special_tokens"].into_iter().filter_map(|name| config.get(name));
    let more = more.flat_map(|value| match value {
        Value::Array(list) => list.iter().collect::<Vec<_>>(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    });
    for text in named.chain(more).filter_map(token_text) {
        if !text.is_empty() && !added.iter().any(|token| token.content == text) {
            let entry = json!({"normalized": false, "special": true});
            added.push(Added {
                content: text.to_owned(),
                id: None,
                entry: entry.as_object().cloned().unwrap_or_default(),
            });
        }
    }
    Ok(added)
}

/// `tokenizer.json` with the added tokens that it does not hold; those in it that are `named` as special are special, whatever it says.
/// Errors: Format, also where a token would get another id than the file says.
fn with_added(json: Vec<u8>, added: &[Added], named: &[&str], path: &Path) -> Result<Vec<u8>> {
    if added.is_empty() {
        return Ok(json);
    }
    let mut file = Value::Object(door::object(&json, path)?);
    let of_list = |list: &Value| -> Vec<(String, u64)> {
        let entry = |v: &Value| Some((v["content"].as_str()?.to_owned(), v["id"].as_u64()?));
        list.as_array().into_iter().flatten().filter_map(entry).collect()
    };
    if !matches!(&file["added_tokens"], Value::Null | Value::Array(_)) {
        return Err(Error::format(path, "added_tokens: expected a list"));
    }
    let listed = of_list(&file["added_tokens"]);
    let vocab = &file["model"]["vocab"];
    let size = vocab.as_object().map_or_else(|| vocab.as_array().map_or(0, Vec::len), Map::len) as u64;
    let known = |token: &str| {
        let in_vocab = match vocab {
            Value::Object(vocab) => vocab.get(token).and_then(Value::as_u64),
            Value::Array(list) => list.iter().position(|v| v[0] == *token).map(|at| at as u64),
            _ => None,
        };
        listed.iter().find(|(content, _)| content == token).map(|(_, id)| *id).or(in_vocab)
    };
    let behind = |id: u64| id.checked_add(1).filter(|_| u32::try_from(id).is_ok());
    let too_large = |id: u64| Error::format(path, format!("a token has the id {id}, which is no number of 32 bits"));
    let mut next = size;
    for (_, id) in &listed {
        next = next.max(behind(*id).ok_or_else(|| too_large(*id))?);
    }
    let mut entries = Vec::new();
    for token in added {
        if listed.iter().any(|(content, _)| *content == token.content) {
            continue;
        }
        let id = known(&token.content).unwrap_or(next);
        if let Some(said) = token.id.filter(|&said| said != id) {
            let message = format!(
                "the files beside it give {:?} the id {said}, but it would get {id} here; write the tokenizer anew with save_pretrained",
                token.content
            );
            return Err(Error::format(path, message));
        }
        next = next.max(behind(id).ok_or_else(|| too_large(id))?);
        let flag = |name: &str, default: bool| token.entry.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", false);
        entries.push(json!({
            "id": id, "content": token.content, "single_word": flag("single_word", false), "lstrip": flag("lstrip", false),
            "rstrip": flag("rstrip", false), "normalized": flag("normalized", !special), "special": special,
        }));
    }
    let mut changed = !entries.is_empty();
    for entry in file["added_tokens"].as_array_mut().into_iter().flatten() {
        if entry["special"] == false && entry["content"].as_str().is_some_and(|content| named.contains(&content)) {
            entry["special"] = true.into();
            changed = true;
        }
    }
    if !changed {
        return Ok(json);
    }
    match file["added_tokens"].as_array_mut() {
        Some(list) => list.extend(entries),
        None => file["added_tokens"] = Value::Array(entries),
    }
    Ok(file.to_string().into_bytes())
}

/// The chat templates beside an adapter. Errors: Io, Format.
pub(super) fn adapter_templates(dir: &Path) -> Result<Vec<(String, String)>> {
    Ok(templates(dir, &object(&dir.join("tokenizer_config.json"))?)?.0)
}

/// The chat templates of a folder by name, and whether they came from files of their own.
///
/// `chat_template.jinja` (the default) and `additional_chat_templates/NAME.jinja` win over `chat_template` of
/// `tokenizer_config.json`, which is a text, a list of names and texts, or a mapping; last comes `chat_template.json`. Empty
/// where there is none. Errors: Io, Format.
fn templates(dir: &Path, config: &Map<String, Value>) -> Result<(Vec<(String, String)>, bool)> {
    let mut found = Vec::new();
    let path = dir.join("chat_template.jinja");
    match fs::read_to_string(&path) {
        Ok(source) => found.push((DEFAULT.to_owned(), source)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&path)(e)),
    }
    let more = dir.join("additional_chat_templates");
    if more.is_dir() {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&more).map_err(Error::io(&more))? {
            paths.push(entry.map_err(Error::io(&more))?.path());
        }
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "jinja")) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(path).map_err(Error::io(path))?));
        }
    }
    if !found.is_empty() {
        return Ok((found, true));
    }
    let named = named_templates(config.get("chat_template"), &dir.join("tokenizer_config.json"))?;
    if !named.is_empty() {
        return Ok((named, false));
    }
    let path = dir.join("chat_template.json");
    Ok((named_templates(object(&path)?.get("chat_template"), &path)?, true))
}

/// A text, a list of `{name, template}`, or a mapping of names to texts.
fn named_templates(value: Option<&Value>, path: &Path) -> Result<Vec<(String, String)>> {
    let wrong = || {
        Error::format(
            path,
            "chat_template: expected a text, a list of objects with name and template, or an object of texts",
        )
    };
    let named = |name: Option<&str>, source: Option<&str>| Some((name?.to_owned(), source?.to_owned()));
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![(DEFAULT.to_owned(), source.clone())]),
        Some(Value::Array(list)) => {
            list.iter().map(|t| named(t["name"].as_str(), t["template"].as_str()).ok_or_else(wrong)).collect()
        }
        Some(Value::Object(map)) => map.iter().map(|(k, v)| named(Some(k), v.as_str()).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}
