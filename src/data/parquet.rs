//! Rows of a Parquet file, as JSON has them.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use super::pages;
use crate::error::{Error, Result, caught};

/// A Parquet file whose rows are read one after the other: of each column, a page is in memory.
pub(super) struct Table {
    path: PathBuf,
    rows: RowIter<'static>,
    /// Rows that there are, and that were read.
    count: u64,
    read: u64,
}

impl Table {
    /// Opens a file all of whose pages are small enough. Errors: Format; Data for a page that is not.
    pub(super) fn open(path: &Path, file: File, max_row_bytes: usize) -> Result<Table> {
        let bad = |e: parquet::errors::ParquetError| Error::format(path, format!("parquet: {e}"));
        unpanicked(path, || {
            let headers = file.try_clone().map_err(Error::io(path))?;
            let reader = SerializedFileReader::new(file).map_err(bad)?;
            let mut count = 0;
            for group in reader.metadata().row_groups() {
                for column in group.columns() {
                    let (begin, length) = column.byte_range();
                    let place = pages::Place { path, row: count as usize + 1, column: &column.column_path().string() };
                    pages::check(&headers, begin, length, max_row_bytes, &place)?;
                }
                count += group.num_rows().max(0) as u64;
            }
            // Rows are read one by one: many of them could be of many pages.
            let rows = RowIter::from_file_into(Box::new(reader)).with_batch_size(1);
            Ok(Table { path: path.into(), rows, count, read: 0 })
        })
    }

    /// The next row. Errors: Format, after which there are no more.
    pub(super) fn next_row(&mut self) -> Result<Option<Map<String, Value>>> {
        let rows = &mut self.rows;
        let row = unpanicked(&self.path, || {
            let row = rows.next().transpose();
            let row = row.map_err(|e| Error::format(&self.path, format!("parquet: {e}")))?;
            Ok(row.map(|row| fields(row.into_columns())))
        })?;
        self.read += u64::from(row.is_some());
        Ok(row)
    }

    /// How much of the file has been read, 0 to 1.
    pub(super) fn read(&self) -> f64 {
        self.read as f64 / self.count.max(1) as f64
    }
}

/// The parquet crate has places that panic on damaged pages; a data file must not end the program that way.
fn unpanicked<T>(path: &Path, f: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(f).unwrap_or_else(|_| Err(Error::format(path, "the parquet file is damaged")))
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
