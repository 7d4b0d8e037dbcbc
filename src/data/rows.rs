//! Rows of a data file: JSON lines, a JSON array, or parquet.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A row: its number in the file, from 1 (for JSON lines the line), and its fields.
pub(super) type NumberedRow = (usize, Map<String, Value>);

/// Every row of the file. The kind follows from the content: parquet's magic bytes, a JSON array's `[`, else JSON lines
/// (blank lines are passed over).
///
/// Errors: [`Error::Io`]; [`Error::Format`] for parquet or a JSON array that does not parse; [`Error::Data`] with the
/// line for JSON lines, and for a file without rows.
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

fn parquet(path: &Path, file: File) -> Result<Vec<NumberedRow>> {
    // The parquet crate has places that panic on damaged pages; a data file must not end the program that way.
    catch_unwind(AssertUnwindSafe(|| parquet_rows(path, file)))
        .unwrap_or_else(|_| Err(Error::format(path, "the parquet file is damaged")))
}

fn parquet_rows(path: &Path, file: File) -> Result<Vec<NumberedRow>> {
    let bad = |e: parquet::errors::ParquetError| Error::format(path, format!("parquet: {e}"));
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let mut rows = Vec::new();
    for (n, row) in RowIter::from_file_into(Box::new(reader)).enumerate() {
        rows.push((n + 1, fields(row.map_err(bad)?.into_columns())));
    }
    Ok(rows)
}

fn fields(columns: Vec<(String, Field)>) -> Map<String, Value> {
    columns.into_iter().map(|(name, field)| (name, json(field))).collect()
}

fn json(field: Field) -> Value {
    match field {
        Field::Bool(v) => v.into(),
        Field::Byte(v) => v.into(),
        Field::Short(v) => v.into(),
        Field::Int(v) | Field::Date(v) | Field::TimeMillis(v) => v.into(),
        Field::Long(v) | Field::TimeMicros(v) | Field::TimestampMillis(v) | Field::TimestampMicros(v) => v.into(),
        Field::UByte(v) => v.into(),
        Field::UShort(v) => v.into(),
        Field::UInt(v) => v.into(),
        Field::ULong(v) => v.into(),
        Field::Float16(v) => f32::from(v).into(),
        Field::Float(v) => v.into(),
        Field::Double(v) => v.into(),
        Field::Str(v) => v.into(),
        // Some writers leave out the UTF-8 mark of a text column.
        Field::Bytes(v) => String::from_utf8_lossy(v.data()).into_owned().into(),
        Field::Group(row) => Value::Object(fields(row.into_columns())),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        Field::MapInternal(map) => {
            let entry = |(k, v): &(Field, Field)| (k.to_string(), json(v.clone()));
            Value::Object(map.entries().iter().map(entry).collect())
        }
        Field::Null | Field::Decimal(_) => Value::Null,
    }
}
