//! Rows of a Parquet file, as JSON has them.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use super::rows::NumberedRow;
use crate::error::{Error, Result, caught};

/// Every row of a Parquet file. Errors: Format.
pub(super) fn read(path: &Path, file: File) -> Result<Vec<NumberedRow>> {
    // The parquet crate has places that panic on damaged pages; a data file must not end the program that way.
    caught(|| parquet_rows(path, file)).unwrap_or_else(|_| Err(Error::format(path, "the parquet file is damaged")))
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
