//! Encoded rows, kept small: in memory while they are few, else in a temporary file without a name, and an index into it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::encode::{Example, IGNORE};
use crate::error::{Error, Result};

/// Bytes of encoded rows that stay in memory.
const IN_MEMORY: usize = 32 << 20;
/// What a record's first byte tells: labels are listed, rather than a bit per token; there is a mask.
const LABELS: u8 = 1;
const MASK: u8 = 2;

/// Rows that are written once and read in any order.
///
/// A record is a byte of flags; ids of 2, 3 or 4 bytes; a bit per token, whether it is its own label, or, where one has another
/// label, all labels as i32; a bit per token of its mask, where it has one.
#[derive(Debug)]
pub(super) struct Spool {
    store: Store,
    /// Bytes of an id.
    width: usize,
    /// Where each record ends.
    ends: Vec<u64>,
    /// Tokens of each row.
    lengths: Vec<u32>,
    digest: blake3::Hasher,
}

enum Store {
    Memory(Vec<u8>),
    /// Its place is moved by each read.
    File(Mutex<File>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Store::Memory(bytes) => write!(f, "{} bytes in memory", bytes.len()),
            Store::File(file) => file.fmt(f),
        }
    }
}

/// An encoded row, as it is kept.
pub(super) struct Record {
    bytes: Vec<u8>,
    tokens: u32,
}

impl Record {
    /// `width`: bytes of an id.
    pub(super) fn of(example: &Example, width: usize) -> Record {
        let Example { input_ids, labels, attention_mask } = example;
        let listed = input_ids.iter().zip(labels).any(|(&id, &label)| label != IGNORE && label != id as i32);
        let flags = u8::from(listed) * LABELS + u8::from(attention_mask.is_some()) * MASK;
        let mut bytes = vec![flags];
        bytes.extend(input_ids.iter().flat_map(|id| id.to_le_bytes().into_iter().take(width)));
        match listed {
            true => bytes.extend(labels.iter().flat_map(|label| label.to_le_bytes())),
            false => bytes.extend(bits(labels.iter().map(|&label| label != IGNORE))),
        }
        if let Some(mask) = attention_mask {
            bytes.extend(bits(mask.iter().map(|&shown| shown != 0)));
        }
        Record { bytes, tokens: input_ids.len() as u32 }
    }

    /// The row that was made a record. Errors: a record of another length.
    fn example(&self, width: usize) -> io::Result<Example> {
        let tokens = self.tokens as usize;
        let short = || io::Error::new(io::ErrorKind::InvalidData, "an encoded row is not as it was written");
        let (flags, rest) = self.bytes.split_first().ok_or_else(short)?;
        let (listed, masked) = (flags & LABELS != 0, flags & MASK != 0);
        let bits = tokens.div_ceil(8);
        let (ids, rest) = rest.split_at_checked(tokens * width).ok_or_else(short)?;
        let (labels, mask) = rest.split_at_checked(if listed { 4 * tokens } else { bits }).ok_or_else(short)?;
        if mask.len() != if masked { bits } else { 0 } {
            return Err(short());
        }
        let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, &byte| id << 8 | u32::from(byte));
        let input_ids: Vec<u32> = ids.chunks(width).map(id).collect();
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (at % 8) & 1;
        let labels = match listed {
            true => labels.chunks(4).map(|label| id(label) as i32).collect(),
            false => {
                let label = |(at, &id): (usize, &u32)| if bit(labels, at) == 1 { id as i32 } else { IGNORE };
                input_ids.iter().enumerate().map(label).collect()
            }
        };
        let attention_mask = masked.then(|| (0..tokens).map(|at| bit(mask, at)).collect());
        Ok(Example { input_ids, labels, attention_mask })
    }
}

/// Eight of them a byte, the first one lowest.
fn bits(values: impl Iterator<Item = bool>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, value) in values.enumerate() {
        if at % 8 == 0 {
            bytes.push(0);
        }
        if let Some(last) = bytes.last_mut() {
            *last |= u8::from(value) << (at % 8);
        }
    }
    bytes
}

/// Bytes of an id below `vocab_size`.
pub(super) fn id_width(vocab_size: usize) -> usize {
    match vocab_size {
        0..=0x1_0000 => 2,
        0x1_0001..=0x100_0000 => 3,
        _ => 4,
    }
}

impl Spool {
    /// Without rows, for ids below `vocab_size`.
    pub(super) fn new(vocab_size: usize) -> Spool {
        Spool {
            store: Store::Memory(Vec::new()),
            width: id_width(vocab_size),
            ends: Vec::new(),
            lengths: Vec::new(),
            digest: blake3::Hasher::new(),
        }
    }

    /// Appends rows. `read`: how much of the data they and those before are, 0 to 1, from which follows what the rest takes. Errors:
    /// Io where the folder for temporary files has no room; Config for more rows than can be counted.
    pub(super) fn push(&mut self, records: impl IntoIterator<Item = Record>, read: f64) -> Result<()> {
        let mut bytes = Vec::new();
        let begin = self.bytes();
        for record in records {
            self.digest.update(&record.tokens.to_le_bytes()).update(&record.bytes);
            bytes.extend_from_slice(&record.bytes);
            self.ends.push(begin + bytes.len() as u64);
            self.lengths.push(record.tokens);
        }
        if u32::try_from(self.len()).is_err() {
            return Err(Error::config("data", format!("expected at most {} rows, got more", u32::MAX)));
        }
        match &mut self.store {
            Store::Memory(kept) if kept.len() + bytes.len() <= IN_MEMORY => kept.extend_from_slice(&bytes),
            Store::Memory(kept) => {
                expect_room(((kept.len() + bytes.len()) as f64 / read.clamp(1e-6, 1.0)) as u64)?;
                let mut file = tempfile::tempfile().map_err(unwritten)?;
                file.write_all(kept).and_then(|()| file.write_all(&bytes)).map_err(unwritten)?;
                self.store = Store::File(Mutex::new(file));
            }
            Store::File(file) => {
                file.get_mut().unwrap_or_else(PoisonError::into_inner).write_all(&bytes).map_err(unwritten)?;
            }
        }
        Ok(())
    }

    /// No more rows will come.
    pub(super) fn finish(&mut self) {
        self.ends.shrink_to_fit();
        self.lengths.shrink_to_fit();
        if let Store::Memory(bytes) = &mut self.store {
            bytes.shrink_to_fit();
        }
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Tokens of each row.
    pub(super) fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Tells spools apart by what is in them.
    pub(super) fn digest(&self) -> blake3::Hash {
        self.digest.finalize()
    }

    fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Row `at`, which has to be there. Errors: Io.
    pub(super) fn example(&self, at: usize) -> Result<Example> {
        let begin = if at == 0 { 0 } else { self.ends[at - 1] };
        let size = (self.ends[at] - begin) as usize;
        let bytes = match &self.store {
            Store::Memory(bytes) => bytes[begin as usize..][..size].to_vec(),
            Store::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let mut bytes = vec![0; size];
                file.seek(SeekFrom::Start(begin)).and_then(|_| file.read_exact(&mut bytes)).map_err(unread)?;
                bytes
            }
        };
        Record { bytes, tokens: self.lengths[at] }.example(self.width).map_err(unread)
    }
}

fn unread(source: io::Error) -> Error {
    Error::Io { path: place(), source }
}

/// The temporary file, as far as it has a name.
fn place() -> PathBuf {
    std::env::temp_dir().join("(encoded rows)")
}

const REMEDY: &str = "TMPDIR (TMP on Windows) names another folder";

fn unwritten(source: io::Error) -> Error {
    Error::Io { path: place(), source: io::Error::new(source.kind(), format!("{source}; {REMEDY}")) }
}

/// Errors: Io where the folder for temporary files has less room. What is not known is no error.
fn expect_room(bytes: u64) -> Result<()> {
    match fs4::available_space(std::env::temp_dir()) {
        Ok(free) if free < bytes => {
            let message = format!("about {bytes} bytes are to be written, {free} are free");
            Err(unwritten(io::Error::new(io::ErrorKind::StorageFull, message)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Example> {
        let row = |n: u32| {
            let input_ids: Vec<u32> = (0..n).map(|i| i * 7919 % 60_000).collect();
            let labels = input_ids.iter().map(|&id| if id % 3 == n % 3 { IGNORE } else { id as i32 });
            let labels = labels.map(|label| if n % 5 == 0 && label != IGNORE { 59_999 } else { label }).collect();
            let attention_mask = (n % 4 == 0).then(|| (0..n).map(|i| (i % 5 != 0) as u8).collect());
            Example { input_ids, labels, attention_mask }
        };
        (1..60).map(row).collect()
    }

    #[test]
    fn rows_come_back_as_they_were_from_memory_and_from_a_file() {
        for vocab_size in [60_000, 70_000, 1 << 25] {
            let mut spool = Spool::new(vocab_size);
            let width = id_width(vocab_size);
            let records = |rows: &[Example]| rows.iter().map(|row| Record::of(row, width)).collect::<Vec<_>>();
            let rows = examples();
            spool.push(records(&rows[..20]), 0.3).unwrap();
            assert!(matches!(spool.store, Store::Memory(_)));
            // As if it had been too much.
            let Store::Memory(bytes) = &spool.store else { unreachable!() };
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            let mut filed = Spool { store: Store::File(Mutex::new(file)), ..Spool::new(vocab_size) };
            (filed.ends, filed.lengths, filed.digest) =
                (spool.ends.clone(), spool.lengths.clone(), spool.digest.clone());
            for spool in [&mut spool, &mut filed] {
                spool.push(records(&rows[20..]), 1.0).unwrap();
                spool.finish();
                assert_eq!(spool.len(), rows.len());
                for (at, row) in rows.iter().enumerate().rev() {
                    assert_eq!(&spool.example(at).unwrap(), row, "row {at}");
                }
            }
            assert_eq!(spool.digest(), filed.digest());
            assert_eq!(filed.bytes(), filed.ends[58]);
            let Store::File(file) = &filed.store else { unreachable!() };
            file.lock().unwrap().set_len(9).unwrap();
            assert!(matches!(filed.example(58), Err(Error::Io { .. })));
        }
    }

    #[test]
    fn a_record_of_another_length_is_an_error() {
        for row in examples() {
            let Record { bytes, tokens } = Record::of(&row, 2);
            for cut in 0..bytes.len() {
                assert!(Record { bytes: bytes[..cut].to_vec(), tokens }.example(2).is_err());
            }
        }
    }

    #[test]
    fn too_little_room_is_told_with_the_remedy() {
        let message = expect_room(u64::MAX).unwrap_err().to_string();
        assert!(message.contains("bytes are to be written") && message.contains("TMPDIR"), "{message}");
        assert!(expect_room(0).is_ok());
    }
}
