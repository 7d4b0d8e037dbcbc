//! What the headers of a Parquet column's pages claim, looked at before a page is unpacked.
//!
//! The parquet crate takes as much memory for a page as its header says. Headers are structs in Thrift's compact protocol; this
//! reads sizes out of them and knows nothing else of what they say.

use std::fs::File;
use std::io::{BufReader, Error as IoError, ErrorKind, Read, Result as IoResult, Seek, SeekFrom};
use std::path::Path;

use super::rows::data;
use crate::error::{Error, Result};

/// A page may be so many times as large as a row: writers look at a page's size only after some rows, pyarrow after 1024.
const PAGE_ROWS: u64 = 16;
/// Structs in structs and lists, at most. A page's statistics are the third level.
const DEPTH: usize = 8;

/// Whose pages they are.
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    /// The first row of the column chunk.
    pub(super) row: usize,
    pub(super) column: &'a str,
}

/// Looks at the headers of all pages of a column chunk. Errors: Format for headers that cannot be read, and sizes beyond the chunk or
/// the file; Data for pages that would have more than [`PAGE_ROWS`] rows of `max_row_bytes`, or more values than such bytes.
pub(super) fn check(file: &File, begin: u64, length: u64, max_row_bytes: usize, place: &Place) -> Result<()> {
    let damaged = |what: &str| Error::format(place.path, format!("parquet: column {}: {what}", place.column));
    let size = file.metadata().map_err(Error::io(place.path))?.len();
    let end = begin.checked_add(length).filter(|&end| end <= size);
    let end = end.ok_or_else(|| damaged("its pages lie outside the file"))?;
    let most = PAGE_ROWS.saturating_mul(max_row_bytes as u64);
    let mut reader = BufReader::with_capacity(1 << 10, file);
    reader.seek(SeekFrom::Start(begin)).map_err(Error::io(place.path))?;
    let mut at = begin;
    while at < end {
        let mut header = Header { input: reader.by_ref().take(end - at), sizes: Sizes::default() };
        header.fields(&mut Vec::new()).map_err(|e| damaged(&format!("the header of a page: {e}")))?;
        let (left, Sizes { unpacked, packed, values }) = (header.input.limit(), header.sizes);
        let packed = u64::try_from(packed).ok().filter(|&packed| packed <= left);
        let packed = packed.ok_or_else(|| damaged("a page that is larger than what holds it"))?;
        let claims = [(unpacked, "bytes"), (values, "values")];
        if let Some((claim, what)) =
            claims.into_iter().find(|&(claim, _)| u64::try_from(claim).map_or(true, |n| n > most))
        {
            let message = format!(
                "column {}: a page of {claim} {what}, more than {PAGE_ROWS} times the {max_row_bytes} bytes that a row may have; \
                 raise `max_row_bytes`, or write the file with smaller pages",
                place.column
            );
            return Err(data(place.path, place.row, message));
        }
        at = end - left + packed;
        reader.seek_relative(packed as i64).map_err(Error::io(place.path))?;
    }
    Ok(())
}

/// Of a page.
#[derive(Default)]
struct Sizes {
    unpacked: i64,
    packed: i64,
    values: i64,
}

struct Header<R> {
    input: R,
    sizes: Sizes,
}

impl<R: Read> Header<R> {
    fn byte(&mut self) -> IoResult<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> IoResult<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(bad("a number that does not end"))
    }

    fn number(&mut self) -> IoResult<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip(&mut self, bytes: u64) -> IoResult<()> {
        match std::io::copy(&mut self.input.by_ref().take(bytes), &mut std::io::sink())? {
            read if read == bytes => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The fields of a struct, which is field `place[0]` of the header's field `place[1]` and so on.
    fn fields(&mut self, place: &mut Vec<i64>) -> IoResult<()> {
        if place.len() >= DEPTH {
            return Err(bad("structs that are nested too deep"));
        }
        let mut id = 0i64;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                return Ok(());
            }
            id = match byte >> 4 {
                0 => self.number()?,
                more => id.saturating_add(i64::from(more)),
            };
            place.push(id);
            self.value(byte & 15, place, true)?;
            place.pop();
        }
    }

    /// A value of a kind. A field's kind has its truth in it, an element of a list is a byte.
    fn value(&mut self, kind: u8, place: &mut Vec<i64>, is_field: bool) -> IoResult<()> {
        match kind {
            1 | 2 if is_field => {}
            1..=3 => self.skip(1)?,
            4..=6 => {
                let number = self.number()?;
                match place.as_slice() {
                    [2] => self.sizes.unpacked = number,
                    [3] => self.sizes.packed = number,
                    // Of a data page, a dictionary, a data page of the second version.
                    [5 | 7 | 8, 1] => self.sizes.values = number,
                    _ => {}
                }
            }
            7 => self.skip(8)?,
            8 => {
                let bytes = self.varint()?;
                self.skip(bytes)?;
            }
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                place.push(-1);
                // An element takes a byte at least, so that a count beyond the input ends with it.
                (0..count).try_for_each(|_| self.value(byte & 15, place, false))?;
                place.pop();
            }
            12 => self.fields(place)?,
            _ => return Err(bad("a field of an unknown kind")),
        }
        Ok(())
    }
}

fn bad(message: &str) -> IoError {
    IoError::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A number as a field's value.
    fn number(value: i64) -> Vec<u8> {
        let mut left = ((value << 1) ^ (value >> 63)) as u64;
        let mut bytes = Vec::new();
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    }

    /// A data page, with its statistics in front of its size: the order of fields is free.
    fn page(unpacked: i64, packed: i64, values: i64) -> Vec<u8> {
        let statistics = [&[0x18, 3][..], b"max", &[0x18, 3], b"min", &[0]].concat();
        let data = [&[0x15][..], &number(values), &[0x15, 0, 0x3c], &statistics, &[0]].concat();
        [
            &[0x15, 0, 0x15][..],
            &number(unpacked),
            &[0x15],
            &number(packed),
            &[0x2c],
            &data,
            &[0],
            &vec![7; packed.max(0) as usize],
        ]
        .concat()
    }

    fn told(bytes: &[u8], length: u64) -> Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[&b"PAR1"[..], bytes].concat()).unwrap();
        let place = Place { path: Path::new("rows"), row: 5, column: "text" };
        check(&file, 4, length, 100, &place).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_read_of_each_page() {
        let good = [page(1600, 9, 1600), page(5, 0, 1)].concat();
        assert_eq!(told(&good, good.len() as u64), Ok(()));
        for (last, words) in [
            (page(1601, 9, 1), "row 5: column text: a page of 1601 bytes, more than 16 times the 100 bytes"),
            (page(1 << 40, 9, 1), "a page of 1099511627776 bytes"),
            (page(-1, 9, 1), "a page of -1 bytes"),
            (page(9, 9, i64::from(i32::MAX)), "a page of 2147483647 values"),
            (page(9, -1, 1), "larger than what holds it"),
            (page(9, 9, 1).split_last().unwrap().1.to_vec(), "larger than what holds it"),
            (page(9, 9, 1)[..9].to_vec(), "the header of a page"),
            (vec![0x1c; 50], "nested too deep"),
            (vec![0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x0f], "the header of a page"),
            (vec![0x18, 0xff, 0xff, 0xff, 0xff, 0x0f], "the header of a page"),
            (vec![0x15; 11].into_iter().chain([0xff; 12]).collect(), "does not end"),
            (vec![0x1f], "unknown kind"),
        ] {
            let bytes = [good.clone(), last].concat();
            let error = told(&bytes, bytes.len() as u64).unwrap_err();
            assert!(error.contains(words), "{error}; expected {words}");
        }
        assert!(told(&good, 1 << 50).unwrap_err().contains("outside the file"));
    }
}
