//! Writing, one tensor at a time: the header's room is set aside first, so that no more than one tensor is ever in memory.

use super::HEADER_LIMIT;
use crate::format::atomic::AtomicFile;
use crate::{DType, Error, Result, Shape};
use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

/// Name, dtype and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the file.
    pub name: String,
    /// The dtype in the file.
    pub dtype: DType,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// Whether `shape` is an upper bound, to be settled when the bytes come: texts alone.
    text: bool,
}

impl TensorSpec {
    /// A tensor whose shape is known.
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<usize>>) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.into(), text: false }
    }

    /// A text held as U8, whose length is known only when it is written: at most `limit` bytes.
    pub fn text(name: impl Into<String>, limit: usize) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: DType::U8, shape: vec![limit], text: true }
    }

    /// Bytes of the tensor; `None` where that overflows.
    pub(crate) fn bytes(&self) -> Option<usize> {
        Shape::from(&self.shape[..]).checked_len()?.checked_mul(self.dtype.size())
    }
}

/// A safetensors file in the making. Tensors may come in any order, each once; nothing is at `path` before
/// [`Writer::finish`].
#[derive(Debug)]
pub struct Writer {
    file: AtomicFile,
    /// In file order: largest alignment first, then by name, texts last.
    specs: Vec<TensorSpec>,
    /// begin and end of each, from the start of the data; `None` until it is written.
    ranges: Vec<Option<(usize, usize)>>,
    /// Where the tensors of known size begin.
    planned: Vec<usize>,
    index: HashMap<String, usize>,
    /// Bytes of the header without its length field.
    header_len: usize,
    data_len: usize,
}

impl Writer {
    /// Begins the file. Errors: Io, Format for a name given twice or too much for one file.
    pub fn create(path: impl Into<PathBuf>, mut specs: Vec<TensorSpec>) -> Result<Writer> {
        let path = path.into();
        specs.sort_by(|a, b| {
            (a.text, std::cmp::Reverse(rank(a.dtype)), &a.name).cmp(&(
                b.text,
                std::cmp::Reverse(rank(b.dtype)),
                &b.name,
            ))
        });
        let mut index = HashMap::new();
        let mut planned = Vec::with_capacity(specs.len());
        let (mut at, mut data_len) = (0usize, 0);
        for (i, spec) in specs.iter().enumerate() {
            if index.insert(spec.name.clone(), i).is_some() || spec.name == "__metadata__" {
                return Err(Error::format(&path, format!("two tensors named {}", spec.name)));
            }
            planned.push(at);
            let end = spec.bytes().and_then(|bytes| at.checked_add(bytes)).filter(|&end| end < isize::MAX as usize);
            at =
                end.ok_or_else(|| Error::format(&path, format!("tensor {}: {:?} overflows", spec.name, spec.shape)))?;
            if !spec.text {
                data_len = at;
            }
        }
        // Offsets of texts only shrink from here, so this header is the longest there can be.
        let upper: Vec<_> = specs.iter().zip(&planned).map(|(s, &b)| (b, b + s.bytes().unwrap_or(0))).collect();
        let header_len = header(&specs, &upper).len().next_multiple_of(8);
        if header_len > HEADER_LIMIT {
            return Err(Error::format(&path, format!("{} tensors are too many for one file", specs.len())));
        }
        let file = AtomicFile::create(path)?;
        let ranges = vec![None; specs.len()];
        Ok(Writer { file, specs, ranges, planned, index, header_len, data_len })
    }

    /// Writes a tensor's bytes. Errors: Io, Format for a name that was not announced or comes twice, Shape.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(&i) = self.index.get(name) else {
            return Err(Error::format(self.file.path(), format!("tensor {name} was not announced")));
        };
        if self.ranges[i].is_some() {
            return Err(Error::format(self.file.path(), format!("tensor {name} is written twice")));
        }
        let limit = self.specs[i].bytes().expect("create checked every size");
        let text = self.specs[i].text;
        if bytes.len() > limit || (bytes.len() < limit && !text) {
            let op = format!("{}: tensor {name}", self.file.path().display());
            return Err(Error::shape(op, format!("{limit} bytes"), bytes.len()));
        }
        let begin = if text { self.data_len } else { self.planned[i] };
        if text {
            self.specs[i].shape = vec![bytes.len()];
            self.data_len += bytes.len();
        }
        self.ranges[i] = Some((begin, begin + bytes.len()));
        self.write_at(8 + self.header_len + begin, bytes)
    }

    /// Writes the header, syncs and renames. Errors: Io, MissingTensor for one that was announced and never came.
    pub fn finish(mut self) -> Result<()> {
        let mut ranges = Vec::with_capacity(self.specs.len());
        for (spec, range) in self.specs.iter().zip(&self.ranges) {
            let hint = Some("it was announced and never written".into());
            let missing = || Error::MissingTensor { path: self.file.path().into(), name: spec.name.clone(), hint };
            ranges.push(range.ok_or_else(missing)?);
        }
        let mut bytes = (self.header_len as u64).to_le_bytes().to_vec();
        bytes.extend(header(&self.specs, &ranges).into_bytes());
        bytes.resize(8 + self.header_len, b' ');
        self.write_at(0, &bytes)?;
        self.file.commit()
    }

    fn write_at(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let path = self.file.path().to_path_buf();
        let file = self.file.file();
        file.seek(SeekFrom::Start(at as u64)).and_then(|_| file.write_all(bytes)).map_err(Error::io(path))
    }
}

/// Writes a whole file of tensors that are in memory: (name, dtype, shape, bytes). Errors: as [`Writer`].
pub fn write_file(path: impl Into<PathBuf>, tensors: &[(TensorSpec, &[u8])]) -> Result<()> {
    let mut writer = Writer::create(path, tensors.iter().map(|(spec, _)| spec.clone()).collect())?;
    for (spec, bytes) in tensors {
        writer.write(&spec.name, bytes)?;
    }
    writer.finish()
}

/// The reference writer's order of dtypes: a file of the same tensors comes out byte for byte the same.
fn rank(dtype: DType) -> usize {
    use DType::*;
    let order = [Bool, U8, I8, I16, F16, BF16, I32, U32, F32, F64, I64];
    order.iter().position(|&d| d == dtype).expect("every dtype is in the list")
}

fn header(specs: &[TensorSpec], ranges: &[(usize, usize)]) -> String {
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    for (spec, (begin, end)) in specs.iter().zip(ranges) {
        let name = serde_json::Value::from(spec.name.as_str());
        let shape = spec.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        text +=
            &format!(r#",{name}:{{"dtype":"{}","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#, spec.dtype.name());
    }
    text.push('}');
    text
}
