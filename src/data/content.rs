//! What a file holds, before it is read: rows, or prose.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Names of files that hold rows, and of files that hold prose, whatever is written in them.
const ROWS: [&str; 4] = ["jsonl", "json", "ndjson", "parquet"];
const PROSE: [&str; 3] = ["txt", "md", "text"];
/// Bytes of a first line in which a row is recognized.
const HEAD: u64 = 1 << 20;

/// Whether a file holds rows, as [`Dataset::load`](super::Dataset::load) reads them, rather than prose.
///
/// Parquet is recognized by its magic bytes. Else the name decides (`.jsonl`, `.json`, `.ndjson`, `.parquet`; `.txt`, `.md`, `.text`), and
/// under other names the beginning: a line that is a JSON object, or a JSON array of objects. Errors: Io.
pub fn holds_rows(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head)).map_err(Error::io(path))?;
    if head.starts_with(b"PAR1") {
        return Ok(true);
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if ROWS.contains(&extension.as_str()) || PROSE.contains(&extension.as_str()) {
        return Ok(ROWS.contains(&extension.as_str()));
    }
    let text = head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&head).trim_ascii_start();
    let after = |mark: &[u8]| text.strip_prefix(mark).map(<[u8]>::trim_ascii_start);
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let row = || serde_json::from_slice::<Map<String, Value>>(line).is_ok();
    Ok(after(b"[").is_some_and(|rest| rest.starts_with(b"{")) || row())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_then_beginnings_tell_rows_from_prose() {
        let folder = tempfile::tempdir().unwrap();
        let row = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
        for (name, content, rows) in [
            ("a.jsonl", "prose", true),
            ("a.NDJSON", "", true),
            ("a.txt", row, false),
            ("a.md", "[{\"text\": \"a\"}]", false),
            ("a.txt", "PAR1", true),
            ("rows", row, true),
            ("rows.data", "\u{feff}\n [\n {\"text\": \"a\"}]", true),
            ("prose", "{ is a brace", false),
            ("prose", "[1] a reference", false),
            ("code.rs", "{\n}\n", false),
            ("nothing", "", false),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            assert_eq!(holds_rows(&path).unwrap(), rows, "{name}: {content}");
        }
        assert!(holds_rows(folder.path().join("missing.jsonl")).is_err());
    }
}
