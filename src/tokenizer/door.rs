//! The one door to the crate tokenizers: it parses, encodes and decodes behind it, and what a malformed file makes it panic at
//! becomes an error that names the file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Encoded;
use crate::error::{Error, Result, caught};

/// Bytes of a tokenizer's file; the largest published ones have about 35 MB.
const MOST: u64 = 256 << 20;

/// A tokenizer of that crate.
pub(super) struct Door {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Door {
    /// Reads a `tokenizer.json`, without its padding and truncation, and with offsets that cover each token's whole text
    /// (the byte-level post-processor otherwise cuts blanks off them; ids are the same). Errors: Format.
    pub(super) fn parse(json: &[u8], path: &Path) -> Result<Door> {
        let mut file = object(json, path)?;
        for key in ["padding", "truncation"] {
            file.insert(key.to_owned(), Value::Null);
        }
        file.get_mut("post_processor").into_iter().for_each(keep_blanks);
        let inner = through(path, "the tokenizer is malformed", || {
            serde_json::from_value::<tokenizers::Tokenizer>(Value::Object(file)).map_err(|e| e.to_string())
        })?;
        Ok(Door { inner, path: path.to_owned() })
    }

    /// Errors: Format.
    pub(super) fn encode(&self, text: &str, add_special: bool) -> Result<Encoded> {
        through(&self.path, "the tokenizer cannot encode the text", || {
            let encoding = self.inner.encode(text, add_special).map_err(|e| e.to_string())?;
            Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
        })
    }

    /// Errors: Format.
    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        through(&self.path, "the tokenizer cannot decode the ids", || {
            self.inner.decode(ids, skip_special).map_err(|e| e.to_string())
        })
    }

    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token of the added vocabulary, and whether it is special.
    pub(super) fn added(&self, id: u32) -> Option<bool> {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).map(|token| added.is_special_token(&token))
    }

    /// The largest id.
    pub(super) fn last(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// Ids from `rows` on, in order.
    pub(super) fn beyond(&self, rows: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = self.inner.get_vocab(true).into_values().filter(|&id| id as usize >= rows).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether tokens such as `<0x0A>` stand for bytes.
    pub(super) fn has_bytes(&self) -> bool {
        serde_json::to_string(&self.inner.get_decoder()).is_ok_and(|d| d.contains("\"ByteFallback\""))
    }
}

/// Runs `f`, which calls the crate tokenizers and nothing else. Errors: Format, with what it returned or panicked at.
fn through<T>(path: &Path, what: &str, f: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let wrong = |message: String| Error::format(path, format!("{what}: {message}"));
    caught(f).map_err(wrong)?.map_err(wrong)
}

/// A file beside which others may lie, whole. Errors: Io; Format where it is too large for a tokenizer's.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    crate::format::expect_file(path)?;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes)).map_err(Error::io(path))?;
    match bytes.len() as u64 > MOST {
        true => Err(Error::format(path, format!("expected at most {MOST} bytes of a tokenizer's file"))),
        false => Ok(bytes),
    }
}

/// A file's JSON object. Errors: Format.
pub(super) fn object(json: &[u8], path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(json).map_err(|e| Error::format(path, format!("expected a JSON object: {e}")))
}

fn keep_blanks(processor: &mut Value) {
    if processor["type"] == "ByteLevel" {
        processor["trim_offsets"] = json!(false);
    }
    if let Some(steps) = processor.get_mut("processors").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(keep_blanks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::is_catching;

    #[test]
    fn a_panic_behind_the_door_is_an_error_with_the_files_name() {
        let path = Path::new("a/tokenizer.json");
        let error = through(path, "the tokenizer is malformed", || -> Result<(), String> {
            assert!(is_catching());
            std::panic::resume_unwind(Box::new("index out of bounds"))
        });
        let message = error.unwrap_err().to_string();
        assert_eq!(message, "a/tokenizer.json: the tokenizer is malformed: index out of bounds");
        assert!(!is_catching());
        let error = through(path, "x", || Err::<(), _>("no such model".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "a/tokenizer.json: x: no such model");
        assert_eq!(through(path, "x", || Ok(1)).unwrap(), 1);
    }
}
