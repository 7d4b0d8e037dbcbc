//! Rows of a data file: JSON lines, a JSON array, or parquet.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Map, Value};

#[cfg(feature = "parquet")]
use super::parquet::read as parquet;
use crate::error::{Error, Result};

/// A row: its number in the file, from 1 (for JSON lines the line), and its fields.
pub(super) type NumberedRow = (usize, Map<String, Value>);

/// Every row of the file. The kind follows from the content: parquet's magic bytes, a JSON array's `[`, else JSON lines
/// (blank lines are passed over).
///
/// Errors: [`Error::Io`]; [`Error::Unsupported`] for parquet without the feature `parquet`; [`Error::Format`] for parquet or a
/// JSON array that does not parse; [`Error::Data`] with the line for JSON lines, and for a file without rows.
pub(super) fn read(path: &Path) -> Result<Vec<NumberedRow>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut head = Vec::new();
    (&mut file).take(4096).read_to_end(&mut head).map_err(Error::io(path))?;
    file.rewind().map_err(Error::io(path))?;
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    let first = text.iter().find(|b| !b.is_ascii_whitespace());
    let rows = if head.starts_with(b"PAR1") {
        parquet(path, file)?
    } else if first == Some(&b'[') {
        file.seek(SeekFrom::Start((head.len() - text.len()) as u64)).map_err(Error::io(path))?;
        array(path, file)?
    } else {
        lines(path, file)?
    };
    if rows.is_empty() {
        return Err(data(path, 1, "the file has no rows"));
    }
    Ok(rows)
}

fn data(path: &Path, row: usize, message: impl Into<String>) -> Error {
    Error::Data { path: path.into(), row, message: message.into() }
}

fn lines(path: &Path, file: File) -> Result<Vec<NumberedRow>> {
    let mut rows = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let line = match line {
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                return Err(data(path, n + 1, "expected JSON lines or parquet, got bytes that are not UTF-8"));
            }
            line => line.map_err(Error::io(path))?,
        };
        let text = line.trim_start_matches('\u{feff}');
        if text.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(text)
            .map_err(|e| data(path, n + 1, format!("expected one JSON object a line, got something else: {e}")))?;
        rows.push((n + 1, row));
    }
    Ok(rows)
}

fn array(path: &Path, file: File) -> Result<Vec<NumberedRow>> {
    let rows: Vec<Map<String, Value>> = serde_json::from_reader(BufReader::new(file))
        .map_err(|e| Error::format(path, format!("expected a JSON array of objects: {e}")))?;
    Ok(rows.into_iter().enumerate().map(|(n, row)| (n + 1, row)).collect())
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: File) -> Result<Vec<NumberedRow>> {
    let supported = "JSON lines and JSON arrays; reading Parquet needs the feature `parquet` of the crate fourbit";
    Err(Error::unsupported(format!("data file {}", path.display()), "Parquet", supported))
}

#[cfg(all(test, not(feature = "parquet")))]
mod tests {
    use super::*;

    #[test]
    fn parquet_is_refused_with_the_name_of_the_feature() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chats.parquet");
        let error = read(&path).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("reading Parquet needs the feature `parquet`"), "{error}");
    }
}
