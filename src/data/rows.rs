//! Rows of a data file, read as a stream: JSON lines, a JSON array, or parquet. What is read at once is bounded, however long the
//! file is, and no row is taken that is larger than allowed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

#[cfg(feature = "parquet")]
use super::parquet::Table;
use crate::error::{Error, Result};

/// A row as it was read.
pub(super) enum Content {
    /// JSON that is yet to be parsed.
    Json(Vec<u8>),
    /// Fields.
    #[cfg(feature = "parquet")]
    Fields(Map<String, Value>),
}

/// A row, its number in the file, from 1 (for JSON lines the line).
pub(super) struct RawRow {
    pub(super) number: usize,
    pub(super) content: Content,
}

impl RawRow {
    /// The row's fields. Errors: Data.
    pub(super) fn fields(self, path: &Path) -> Result<Map<String, Value>> {
        match self.content {
            Content::Json(text) => {
                let bad = |message: String| data(path, self.number, message);
                let utf8 = |_| bad("expected JSON lines or parquet, got bytes that are not UTF-8".into());
                let text = std::str::from_utf8(&text).map_err(utf8)?;
                serde_json::from_str(text).map_err(|e| bad(format!("expected a JSON object, got something else: {e}")))
            }
            #[cfg(feature = "parquet")]
            Content::Fields(fields) => Ok(fields),
        }
    }
}

/// The rows of a file, one after the other.
pub(super) struct Rows {
    path: PathBuf,
    source: Source,
    max_row_bytes: usize,
    /// Bytes of the file.
    length: u64,
    /// The number of the last row.
    number: usize,
    /// What ended the chunk before.
    failed: Option<Error>,
}

enum Source {
    Lines(BufReader<File>),
    Array(BufReader<File>),
    /// Nothing is left.
    Ended,
    #[cfg(feature = "parquet")]
    Parquet(Box<Table>),
}

impl Rows {
    /// The kind follows from the content: parquet's magic bytes, a JSON array's `[`, else JSON lines (blank lines are passed over).
    ///
    /// Errors: [`Error::Io`]; [`Error::Unsupported`] for parquet without the feature `parquet`; [`Error::Format`] for a damaged
    /// parquet file; [`Error::Data`] for one with pages beyond `max_row_bytes`.
    pub(super) fn open(path: &Path, max_row_bytes: usize) -> Result<Rows> {
        let io = || Error::io(path);
        let mut file = File::open(path).map_err(io())?;
        let mut head = Vec::new();
        (&mut file).take(4096).read_to_end(&mut head).map_err(io())?;
        let length = file.metadata().map_err(io())?.len();
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
        let first = text.iter().position(|b| !b.is_ascii_whitespace());
        let is_array = first.is_some_and(|at| text[at] == b'[');
        let begin = match first {
            Some(at) if is_array => head.len() - text.len() + at + 1,
            _ => 0,
        };
        let source = if head.starts_with(b"PAR1") {
            parquet(path, file, max_row_bytes)?
        } else {
            file.seek(SeekFrom::Start(begin as u64)).map_err(io())?;
            let reader = BufReader::with_capacity(1 << 18, file);
            if is_array { Source::Array(reader) } else { Source::Lines(reader) }
        };
        Ok(Rows { path: path.into(), source, max_row_bytes, length, number: 0, failed: None })
    }

    /// The rows that come next, about `bytes` of them; none at the end. Errors: as [`Rows::open`], once the rows before have been given;
    /// Data for a row beyond `max_row_bytes`.
    pub(super) fn chunk(&mut self, bytes: usize) -> Result<Vec<RawRow>> {
        let (mut rows, mut taken) = (Vec::new(), 0);
        while self.failed.is_none() && taken < bytes {
            match self.next() {
                Ok(None) => break,
                Ok(Some((content, size))) => {
                    // A small row takes its fields too.
                    taken += size + 64;
                    rows.push(RawRow { number: self.number, content });
                }
                Err(error) => self.failed = Some(error),
            }
        }
        match self.failed.take() {
            Some(error) if rows.is_empty() => Err(error),
            failed => {
                self.failed = failed;
                Ok(rows)
            }
        }
    }

    /// How much of the file has been read, 0 to 1.
    pub(super) fn read(&mut self) -> f64 {
        let read = match &mut self.source {
            Source::Lines(reader) | Source::Array(reader) => reader.stream_position().unwrap_or(self.length),
            Source::Ended => self.length,
            #[cfg(feature = "parquet")]
            Source::Parquet(table) => return table.read(),
        };
        read as f64 / self.length.max(1) as f64
    }

    /// The next row and its size.
    fn next(&mut self) -> Result<Option<(Content, usize)>> {
        let text = match &mut self.source {
            Source::Ended => return Ok(None),
            #[cfg(feature = "parquet")]
            Source::Parquet(table) => {
                let Some(fields) = table.next_row()? else { return Ok(None) };
                self.number += 1;
                let size = fields.iter().map(|(key, value)| key.len() + size(value)).sum();
                if size > self.max_row_bytes {
                    return Err(too_large(&self.path, self.number, "the row has", size as u64, self.max_row_bytes));
                }
                return Ok(Some((Content::Fields(fields), size)));
            }
            Source::Lines(_) => self.line()?,
            Source::Array(_) => self.element()?,
        };
        Ok(text.map(|text| {
            let size = text.len();
            (Content::Json(text), size)
        }))
    }

    /// The next line that is not blank.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let Source::Lines(reader) = &mut self.source else { return Ok(None) };
        loop {
            let mut line = Vec::new();
            let most = self.max_row_bytes as u64 + 2;
            let read = reader.by_ref().take(most).read_until(b'\n', &mut line).map_err(Error::io(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text).len();
            if text > self.max_row_bytes {
                // How long it is the file tells: nothing of it is kept.
                let rest = if line.ends_with(b"\n") { Ok(0) } else { rest_of_line(reader) };
                let rest = rest.map_err(Error::io(&self.path))?;
                return Err(too_large(&self.path, self.number, "the line has", text as u64 + rest, self.max_row_bytes));
            }
            line.truncate(text);
            while line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line));
            }
        }
    }

    /// The next element of the array: its text up to the comma or bracket behind it. What it holds is for the parser to say.
    fn element(&mut self) -> Result<Option<Vec<u8>>> {
        let Source::Array(reader) = &mut self.source else { return Ok(None) };
        let number = self.number + 1;
        let mut scan = Scan::default();
        let mut element = Vec::new();
        let end = loop {
            let bytes = reader.fill_buf().map_err(Error::io(&self.path))?;
            if bytes.is_empty() {
                return Err(Error::format(&self.path, format!("the JSON array ends within row {number}")));
            }
            // Blanks in front are no part of it, however many.
            let blank =
                if element.is_empty() { bytes.iter().take_while(|b| b.is_ascii_whitespace()).count() } else { 0 };
            let end = bytes[blank..].iter().position(|&byte| scan.ends_at(byte)).map(|at| blank + at);
            element.extend_from_slice(&bytes[blank..end.unwrap_or(bytes.len())]);
            let (read, end) = (end.map_or(bytes.len(), |end| end + 1), end.map(|end| bytes[end]));
            reader.consume(read);
            if element.len() > self.max_row_bytes {
                let what = if end.is_some() { "the element has" } else { "the element has at least" };
                return Err(too_large(&self.path, number, what, element.len() as u64, self.max_row_bytes));
            }
            if let Some(end) = end {
                break end;
            }
        };
        self.number = number;
        if end == b']' {
            let rest = blanks(reader).map_err(Error::io(&self.path))?;
            self.source = Source::Ended;
            if !rest {
                self.failed = Some(Error::format(&self.path, "expected nothing behind the JSON array, got more text"));
            }
            if element.is_empty() && number == 1 {
                return Ok(None);
            }
        }
        Ok(Some(element))
    }
}

/// Where a reader of JSON stands.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Goes on by one byte; whether an element ends in front of it.
    fn ends_at(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b']' if self.depth == 0 => return true,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' => return self.depth == 0,
            _ => {}
        }
        false
    }
}

/// Reads on to the line's end, and keeps nothing; the bytes in front of it.
fn rest_of_line(reader: &mut impl BufRead) -> std::io::Result<u64> {
    let mut read = 0;
    loop {
        let bytes = reader.fill_buf()?;
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(bytes.len());
        read += taken as u64;
        if end.is_some() || taken == 0 {
            return Ok(read);
        }
        reader.consume(taken);
    }
}

/// Whether nothing but blanks is left.
fn blanks(reader: &mut impl BufRead) -> std::io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        match bytes {
            [] => return Ok(true),
            bytes if !bytes.iter().all(u8::is_ascii_whitespace) => return Ok(false),
            bytes => {
                let read = bytes.len();
                reader.consume(read);
            }
        }
    }
}

/// Bytes of a value, about as its JSON has it.
#[cfg(feature = "parquet")]
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(values) => values.iter().map(|value| size(value) + 1).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + 4 + size(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}

pub(super) fn data(path: &Path, row: usize, message: impl Into<String>) -> Error {
    Error::Data { path: path.into(), row, message: message.into() }
}

/// The error of what is beyond `most` bytes.
pub(super) fn too_large(path: &Path, row: usize, what: &str, bytes: u64, most: usize) -> Error {
    data(path, row, format!("{what} {bytes} bytes, more than the {most} that a row may have; raise `max_row_bytes`"))
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, file: File, max_row_bytes: usize) -> Result<Source> {
    Ok(Source::Parquet(Box::new(Table::open(path, file, max_row_bytes)?)))
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: File, _: usize) -> Result<Source> {
    let supported = "JSON lines and JSON arrays; reading Parquet needs the feature `parquet` of the crate fourbit";
    Err(Error::unsupported(format!("data file {}", path.display()), "Parquet", supported))
}

#[cfg(all(test, not(feature = "parquet")))]
mod feature_tests {
    use super::*;

    #[test]
    fn parquet_is_refused_with_the_name_of_the_feature() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chats.parquet");
        let error = Rows::open(&path, 1 << 20).map(drop).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("reading Parquet needs the feature `parquet`"), "{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows' texts and numbers, read in chunks of so many bytes, and what ended them.
    fn read(text: &[u8], most: usize, chunk: usize) -> (Vec<(usize, String)>, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        std::fs::write(&path, text).unwrap();
        let mut rows = Rows::open(&path, most).unwrap();
        let mut out = Vec::new();
        loop {
            match rows.chunk(chunk) {
                Ok(rows) if rows.is_empty() => return (out, None),
                Ok(rows) => out.extend(rows.into_iter().map(|row| {
                    let number = row.number;
                    let text = row.fields(&path).map(|fields| Value::from(fields).to_string());
                    (number, text.unwrap_or_else(|e| format!("error: {e}")))
                })),
                Err(error) => return (out, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn lines_and_arrays_have_the_same_rows_in_chunks_of_any_size() {
        let rows = [r#"{"a":"],[}{\\\" \u00e9"}"#, r#"{"b":[1,[2,{}],"\\"]}"#, r#"{}"#, r#"{"c":null}"#];
        let texts = [
            rows.join("\n"),
            format!("\u{feff}\n {}\r\n\n", rows.join("\r\n\n")),
            format!(" [{}]\n ", rows.join(",")),
            format!("\u{feff}[\n{} \n]", rows.join(" ,\n\t")),
        ];
        let expected: Vec<String> =
            rows.iter().map(|row| serde_json::from_str::<Value>(row).unwrap().to_string()).collect();
        for text in &texts {
            for chunk in [1, 100, 1 << 20] {
                let (rows, error) = read(text.as_bytes(), 64, chunk);
                assert_eq!((rows.into_iter().map(|row| row.1).collect(), error), (expected.clone(), None), "{text}");
            }
        }
        assert_eq!(read(b"[ ]", 9, 9), (vec![], None));
        // Larger than what is read at once.
        let long = format!("[{{\"a\":\"{}\"}},{{}}]", "x".repeat(1 << 19));
        assert_eq!(read(long.as_bytes(), 1 << 20, 1).0.len(), 2);
    }

    #[test]
    fn what_is_no_array_of_objects_is_told_by_row() {
        for (text, rows, words) in [
            ("[{},", 1, "ends within row 2"),
            ("[{}", 0, "ends within row 1"),
            ("[{}] x", 1, "nothing behind"),
            ("[{}]]", 1, "nothing behind"),
        ] {
            let (got, error) = read(text.as_bytes(), 99, 9);
            assert_eq!(got.len(), rows, "{text}");
            assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{text}: {error:?}");
        }
        for text in ["[{},]", "[{},,{}]", "[,{}]", "[{} {}]", "[{]}]", "[1]", "[{}}]"] {
            let (rows, _) = read(text.as_bytes(), 99, 9);
            assert!(rows.iter().any(|row| row.1.contains("expected a JSON object")), "{text}: {rows:?}");
        }
        let deep = "[".repeat(100_000);
        let (rows, error) = read(format!("{{\"a\":{deep}}}\n").as_bytes(), 1 << 20, 9);
        assert!(rows[0].1.contains("recursion limit") && error.is_none(), "{rows:?}");
    }

    #[test]
    fn a_row_that_is_too_large_is_told_after_those_before_it() {
        let row = format!("{{\"a\":\"{}\"}}", "x".repeat(92));
        assert_eq!(row.len(), 100);
        for text in [format!("{{}}\n{row}\n{{}}"), format!("[{{}},  {row},{{}}]")] {
            assert_eq!(read(text.as_bytes(), 100, 1 << 20).0.len(), 3);
            for most in [98, 99] {
                let (rows, error) = read(text.as_bytes(), most, 1 << 20);
                let error = error.unwrap();
                assert_eq!(rows.len(), 1, "{error}");
                assert!(error.contains("row 2: the ") && error.contains("has 100 bytes, more than the"), "{error}");
                assert!(error.contains(&format!("{most} that a row may have; raise `max_row_bytes`")), "{error}");
            }
        }
    }
}
