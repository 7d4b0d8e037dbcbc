//! Writing GGUF files (version 3): metadata and sizes first, then the tensors, in any order and in pieces.

use super::{MAGIC, byte_size, kind_of};
use crate::format::{Stored, atomic::AtomicFile};
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

/// Where tensors begin: multiples of this, GGUF's default.
pub const ALIGNMENT: usize = 32;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// UINT32.
    U32(u32),
    /// FLOAT32.
    F32(f32),
    /// BOOL.
    Bool(bool),
    /// STRING.
    Text(String),
    /// An ARRAY of STRING.
    Texts(Vec<String>),
    /// An ARRAY of INT32.
    Integers(Vec<i32>),
    /// An ARRAY of FLOAT32.
    Floats(Vec<f32>),
    /// The number of any type, and the value as a file has it.
    Raw(u32, Vec<u8>),
}

impl MetaValue {
    /// A single number, truth value or text, as JSON has it; `None` for the others.
    pub(crate) fn to_json(&self) -> Option<serde_json::Value> {
        match self {
            MetaValue::U32(v) => Some((*v).into()),
            MetaValue::F32(v) => Some(f64::from(*v).into()),
            MetaValue::Bool(v) => Some((*v).into()),
            MetaValue::Text(v) => Some(v.as_str().into()),
            MetaValue::Texts(_) | MetaValue::Integers(_) | MetaValue::Floats(_) | MetaValue::Raw(..) => None,
        }
    }

    /// The type's number and the bytes.
    fn append(&self, out: &mut Vec<u8>) {
        fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        }
        let mut scalar = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            MetaValue::U32(v) => scalar(4, &v.to_le_bytes()),
            MetaValue::F32(v) => scalar(6, &v.to_le_bytes()),
            MetaValue::Bool(v) => scalar(7, &[u8::from(*v)]),
            MetaValue::Raw(kind, bytes) => scalar(*kind, bytes),
            MetaValue::Text(text) => {
                out.extend(8u32.to_le_bytes());
                append_text(out, text);
            }
            MetaValue::Texts(texts) => {
                array(out, 8, texts.len());
                texts.iter().for_each(|text| append_text(out, text));
            }
            MetaValue::Integers(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|v| out.extend(v.to_le_bytes()));
            }
            MetaValue::Floats(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|v| out.extend(v.to_le_bytes()));
            }
        }
    }
}

fn append_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the file.
    pub name: String,
    /// How the bytes are to be read.
    pub stored: Stored,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the tensor; `None` for rows that are no whole blocks.
    pub(crate) fn bytes(&self) -> Option<usize> {
        byte_size(self.stored, &self.shape).ok()
    }
}

/// A GGUF file in the making. Tensors may come in any order; nothing is at `path` before [`Writer::finish`].
#[derive(Debug)]
pub struct Writer {
    file: AtomicFile,
    places: HashMap<String, Place>,
    /// Bytes before the tensors.
    header_len: usize,
    data_len: usize,
}

#[derive(Debug)]
struct Place {
    /// From the start of the data.
    begin: usize,
    size: usize,
    written: usize,
}

impl Writer {
    /// Begins the file: metadata in the order given, tensors in the order of `specs`. Errors: Io, Format for a name given
    /// twice, a type that GGUF does not have or rows that are no whole blocks.
    pub fn create(path: impl Into<PathBuf>, metadata: &[(String, MetaValue)], specs: &[TensorSpec]) -> Result<Writer> {
        let path = path.into();
        let fail = |message: String| Error::format(&path, message);
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((specs.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        let mut keys = HashSet::new();
        for (key, value) in metadata {
            if !keys.insert(key) {
                return Err(fail(format!("the metadata key {key} is given twice")));
            }
            append_text(&mut header, key);
            value.append(&mut header);
        }
        let mut places = HashMap::new();
        let mut end = 0usize;
        for TensorSpec { name, stored, shape } in specs {
            let fail = |message: String| Error::format(&path, format!("tensor {name}: {message}"));
            let kind = kind_of(*stored).ok_or_else(|| fail(format!("GGUF has no type for {stored}")))?;
            let size = byte_size(*stored, shape).map_err(fail)?;
            let begin = end.next_multiple_of(ALIGNMENT);
            let limit = isize::MAX as usize - ALIGNMENT;
            let sum = begin.checked_add(size).filter(|&sum| sum < limit);
            end = sum.ok_or_else(|| fail(format!("{shape:?} is too much for one file")))?;
            append_text(&mut header, name);
            header.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&extent| header.extend((extent as u64).to_le_bytes()));
            header.extend(kind.to_le_bytes());
            header.extend((begin as u64).to_le_bytes());
            if places.insert(name.clone(), Place { begin, size, written: 0 }).is_some() {
                return Err(fail("it is given twice".into()));
            }
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        let mut writer = Writer { file: AtomicFile::create(&path)?, places, header_len: header.len(), data_len: end };
        writer.write_at(0, &header)?;
        Ok(writer)
    }

    /// Writes a tensor's next bytes. Errors: Io, Format for a name that was not announced, Shape for too many bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(place) = self.places.get_mut(name) else {
            return Err(Error::format(self.file.path(), format!("tensor {name} was not announced")));
        };
        let at = self.header_len + place.begin + place.written;
        let left = place.size - place.written;
        if bytes.len() > left {
            let op = format!("{}: tensor {name}", self.file.path().display());
            return Err(Error::shape(op, format!("{left} more bytes"), bytes.len()));
        }
        place.written += bytes.len();
        self.write_at(at, bytes)
    }

    /// Syncs and renames. Errors: Io, MissingTensor for one that was announced and is not all there.
    pub fn finish(mut self) -> Result<()> {
        if let Some((name, place)) = self.places.iter().find(|(_, place)| place.written < place.size) {
            let hint = Some(format!("it was announced with {} bytes, {} were written", place.size, place.written));
            return Err(Error::MissingTensor { path: self.file.path().into(), name: name.clone(), hint });
        }
        // Readers may want the data's end at the alignment too; the gaps between tensors are holes, which read as zeros.
        let len = self.header_len + self.data_len.next_multiple_of(ALIGNMENT);
        let path = self.file.path().to_owned();
        self.file.file().set_len(len as u64).map_err(Error::io(path))?;
        self.file.commit()
    }

    fn write_at(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let path = self.file.path().to_owned();
        let file = self.file.file();
        let done = file.seek(SeekFrom::Start(at as u64)).and_then(|_| file.write_all(bytes));
        done.map_err(Error::io(path))
    }
}
