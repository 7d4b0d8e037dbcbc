//! GGUF files (versions 2 and 3): metadata, then tensors in blocks, all little-endian.
//!
//! | part | contents |
//! |---|---|
//! | header | `GGUF`, u32 version, u64 tensors, u64 metadata entries |
//! | metadata | key, u32 type, value; strings are u64 length and UTF-8; arrays u32 type, u64 count, elements |
//! | tensor infos | name, u32 number of extents, u64 extents (innermost first), u32 type, u64 offset |
//! | data | from the next multiple of `general.alignment`; offsets count from here |
//!
//! Arrays (a vocabulary has a hundred thousand strings) stay in the mapping and are read on demand.

use crate::format::{self, Mapped, Stored, TensorView, fields::Fields};
use crate::quant::{Scheme, ggml::BlockType};
use crate::{DType, Error, Result, Shape};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

mod split;
mod write;

pub use write::{ALIGNMENT, MetaValue, TensorSpec, Writer};

const MAGIC: &[u8; 4] = b"GGUF";
/// What llama.cpp allows.
const MAX_EXTENTS: u32 = 4;
/// Arrays of arrays are legal; nobody writes deeper ones than this.
const MAX_DEPTH: usize = 4;

/// Whether a file begins as GGUF files do. Errors: Io.
pub fn is_gguf(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(4).read_to_end(&mut magic).map_err(Error::io(path))?;
    Ok(magic == MAGIC)
}

/// A mapped GGUF file whose header has been checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mapped,
    version: u32,
    metadata: BTreeMap<String, Entry>,
    tensors: BTreeMap<String, Info>,
    /// The further files of a model in several.
    others: Vec<(PathBuf, Mapped)>,
}

/// A metadata value and the bytes it comes from: the type's number, then the value.
#[derive(Debug)]
struct Entry {
    value: Value,
    begin: usize,
    end: usize,
}

/// A metadata value; strings and arrays are places in the mapping.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// start, length
    Text(usize, usize),
    Array {
        kind: u32,
        count: usize,
        start: usize,
    },
}

#[derive(Debug)]
struct Info {
    /// Outermost extent first.
    shape: Vec<usize>,
    kind: u32,
    /// `None` for a type that cannot be loaded.
    stored: Option<Stored>,
    begin: usize,
    end: usize,
    /// 0, or one more than the number in [`Gguf::others`].
    part: usize,
}

impl Gguf {
    /// Maps a file and checks its header; of a model in several files all of them, whichever is given.
    /// Errors: Io, Format, Unsupported version.
    pub fn open(path: impl Into<PathBuf>) -> Result<Gguf> {
        split::join(Gguf::open_part(path.into())?)
    }

    fn open_part(path: PathBuf) -> Result<Gguf> {
        let map = Mapped::open(&path)?;
        let mut reader = Reader { path: &path, bytes: &map, at: 0 };
        if reader.take(4, "the magic")? != MAGIC {
            return Err(Error::format(&path, "no GGUF file: it does not begin with \"GGUF\""));
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            let big = version.swap_bytes() < 16;
            let got = if big { "a big-endian file".to_string() } else { format!("version {version}") };
            return Err(Error::unsupported(
                format!("GGUF file {}", path.display()),
                got,
                "little-endian, versions 2 and 3",
            ));
        }
        let tensor_count = reader.count("tensors", 24)?;
        let entries = reader.count("metadata entries", 13)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.string("a metadata key")?.to_string();
            let begin = reader.at;
            let value = reader.entry(&key)?;
            let entry = Entry { value, begin, end: reader.at };
            if metadata.insert(key.clone(), entry).is_some() {
                return Err(Error::format(&path, format!("the metadata key {key} comes twice")));
            }
        }
        let alignment = alignment(&path, &metadata)?;
        let tensors = read_infos(&mut reader, tensor_count, alignment)?;
        Ok(Gguf { version, metadata, tensors, path, map, others: Vec::new() })
    }

    /// The file, or the first of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name. Errors: MissingTensor, Unsupported for a block type that cannot be loaded.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, info)) = self.tensors.get_key_value(name) else {
            return Err(format::missing(&self.path, name, self.names()));
        };
        let (path, map) = match info.part.checked_sub(1) {
            None => (&self.path, &self.map),
            Some(other) => (&self.others[other].0, &self.others[other].1),
        };
        let stored = info.stored.ok_or_else(|| {
            let what = format!("type of tensor {name} in {}", path.display());
            Error::unsupported(what, type_name(info.kind), supported_types())
        })?;
        Ok(TensorView { path, name, stored, shape: &info.shape, bytes: map.tensor(info.begin..info.end)? })
    }

    /// The keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// An integer of the metadata; `None` where the key is absent. Errors: Format for another type or a negative one.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.value(key) {
            None => Ok(None),
            Some(&Value::Unsigned(v)) => Ok(Some(v)),
            Some(&Value::Signed(v)) if v >= 0 => Ok(Some(v as u64)),
            Some(&Value::Bool(v)) => Ok(Some(v.into())),
            Some(other) => Err(self.wrong_type(key, "an unsigned integer", other)),
        }
    }

    /// A number of the metadata; `None` where the key is absent. Errors: Format for another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(&Value::Float(v)) => Ok(Some(v)),
            Some(&Value::Unsigned(v)) => Ok(Some(v as f64)),
            Some(&Value::Signed(v)) => Ok(Some(v as f64)),
            Some(other) => Err(self.wrong_type(key, "a number", other)),
        }
    }

    /// A truth value of the metadata; `None` where the key is absent. Errors: Format for another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(&Value::Bool(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, "true or false", other)),
        }
    }

    /// A text of the metadata; `None` where the key is absent. Errors: Format for another type or no UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(&Value::Text(start, len)) => self.utf8(key, &self.map[start..start + len]).map(Some),
            Some(other) => Err(self.wrong_type(key, "a text", other)),
        }
    }

    /// An array of texts; `None` where the key is absent. Errors: Format for another type or no UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let &Value::Array { kind: 8, count, start } = value else {
            return Err(self.wrong_type(key, "an array of texts", value));
        };
        let mut reader = self.reader(start);
        let texts = (0..count).map(|_| self.utf8(key, reader.raw_string(key)?));
        texts.collect::<Result<_>>().map(Some)
    }

    /// An array of numbers (or truth values) as f64; `None` where the key is absent. Errors: Format for another type.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let &Value::Array { kind: kind @ (0..=7 | 10..=12), count, start } = value else {
            return Err(self.wrong_type(key, "an array of numbers", value));
        };
        let mut reader = self.reader(start);
        let number = |_| {
            Ok(match reader.value(kind, key, 0)? {
                Value::Unsigned(v) => v as f64,
                Value::Signed(v) => v as f64,
                Value::Float(v) => v,
                Value::Bool(v) => v.into(),
                other => return Err(self.wrong_type(key, "a number", &other)),
            })
        };
        (0..count).map(number).collect::<Result<_>>().map(Some)
    }

    /// The entries whose keys begin with `prefix`, without it. Numbers that are none (NaN, infinite) are texts. Arrays of numbers are
    /// kept where they are no longer than a list with one number per block may be. Errors: Format for texts that are no UTF-8.
    pub fn fields(&self, prefix: &str) -> Result<Fields<'_>> {
        const MOST: usize = 1 << 16;
        let float = |v: f64| serde_json::Number::from_f64(v).map_or_else(|| v.to_string().into(), Json::Number);
        let mut map = serde_json::Map::new();
        for (key, entry) in &self.metadata {
            let Some(name) = key.strip_prefix(prefix) else { continue };
            let value = match entry.value {
                Value::Unsigned(v) => v.into(),
                Value::Signed(v) => v.into(),
                Value::Float(v) => float(v),
                Value::Bool(v) => v.into(),
                Value::Text(start, len) => self.utf8(key, &self.map[start..start + len])?.into(),
                Value::Array { kind: 0..=7 | 10..=12, count: 0..=MOST, .. } => {
                    let numbers = self.numbers(key)?.unwrap_or_default();
                    Json::Array(
                        numbers
                            .into_iter()
                            .map(|v| if v.fract() == 0.0 { (v as i64).into() } else { float(v) })
                            .collect(),
                    )
                }
                Value::Array { .. } => "an array".into(),
            };
            map.insert(name.to_owned(), value);
        }
        Ok(Fields::owned(map, &self.path).within(prefix.trim_end_matches('.')))
    }

    /// A metadata entry as the file has it, to be written to another; `None` where the key is absent.
    pub fn raw(&self, key: &str) -> Option<MetaValue> {
        let entry = self.metadata.get(key)?;
        let (kind, value) = self.map[entry.begin..entry.end].split_first_chunk()?;
        Some(MetaValue::Raw(u32::from_le_bytes(*kind), value.to_vec()))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key).map(|entry| &entry.value)
    }

    fn reader(&self, at: usize) -> Reader<'_> {
        Reader { path: &self.path, bytes: &self.map, at }
    }

    fn utf8<'a>(&self, key: &str, bytes: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(bytes).map_err(|e| Error::format(&self.path, format!("metadata {key}: no UTF-8: {e}")))
    }

    fn wrong_type(&self, key: &str, expected: &str, got: &Value) -> Error {
        let got = match got {
            Value::Unsigned(v) => v.to_string(),
            Value::Signed(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::Text(..) => "a text".into(),
            Value::Array { kind, count, .. } => format!("an array of {count} elements of type {kind}"),
        };
        Error::format(&self.path, format!("metadata {key}: expected {expected}, got {got}"))
    }
}

fn alignment(path: &Path, metadata: &BTreeMap<String, Entry>) -> Result<usize> {
    match metadata.get("general.alignment").map(|entry| &entry.value) {
        None => Ok(32),
        Some(&Value::Unsigned(v)) if v.is_power_of_two() && v <= 1 << 20 => Ok(v as usize),
        Some(other) => Err(Error::format(path, format!("general.alignment: expected a power of two, got {other:?}"))),
    }
}

fn read_infos(reader: &mut Reader, count: usize, alignment: usize) -> Result<BTreeMap<String, Info>> {
    let path = reader.path;
    let mut infos = BTreeMap::new();
    for _ in 0..count {
        let name = reader.string("a tensor's name")?.to_string();
        let fail = |message: String| Error::format(path, format!("tensor {name}: {message}"));
        let extents = reader.u32(&name)?;
        if extents > MAX_EXTENTS {
            return Err(fail(format!("{extents} extents, at most {MAX_EXTENTS} are allowed")));
        }
        let mut shape = Vec::new();
        for _ in 0..extents {
            let extent = reader.u64(&name)?;
            shape.push(usize::try_from(extent).map_err(|_| fail(format!("the extent {extent} is too large")))?);
        }
        shape.reverse();
        let kind = reader.u32(&name)?;
        let offset = reader.u64(&name)?;
        let offset = usize::try_from(offset).ok().filter(|o| o.is_multiple_of(alignment));
        let begin = offset.ok_or_else(|| fail(format!("its offset is no multiple of the alignment {alignment}")))?;
        let stored = stored(kind);
        let size = match stored {
            Some(stored) => byte_size(stored, &shape).map_err(fail)?,
            None => 0,
        };
        let end = begin.checked_add(size).ok_or_else(|| fail("its offset overflows".into()))?;
        let info = Info { shape, kind, stored, begin, end, part: 0 };
        if infos.insert(name.clone(), info).is_some() {
            return Err(Error::format(path, format!("tensor {name} is listed twice")));
        }
    }
    // The data's start is known only now: make offsets count from the start of the file.
    let data = reader.at.next_multiple_of(alignment);
    let available = reader.bytes.len().saturating_sub(data);
    for (name, info) in &mut infos {
        if info.end > available {
            let message =
                format!("ends at byte {} of the data, but the file has {available}: it is truncated", info.end);
            return Err(Error::format(path, format!("tensor {name}: {message}")));
        }
        // An unsupported tensor has no size here, and an empty one may sit where a file without data ends.
        let len = info.end - info.begin;
        info.begin = (info.begin + data).min(reader.bytes.len() - len);
        info.end = info.begin + len;
    }
    Ok(infos)
}

fn byte_size(stored: Stored, shape: &[usize]) -> Result<usize, String> {
    let overflow = || format!("the shape {shape:?} overflows");
    let len = Shape::from(shape).checked_len().ok_or_else(overflow)?;
    match stored {
        Stored::Plain(dtype) => len.checked_mul(dtype.size()).ok_or_else(overflow),
        Stored::Ggml(scheme) => {
            let cols = shape.last().copied().unwrap_or(1);
            let ty = BlockType::of(scheme).expect("stored() gives GGUF schemes");
            let block = ty.block_size();
            if !cols.is_multiple_of(block) {
                return Err(format!("{} needs rows of whole blocks of {block}, the shape is {shape:?}", scheme.name()));
            }
            (len / block).checked_mul(ty.block_bytes()).ok_or_else(overflow)
        }
    }
}

/// GGUF's numbers of the plain types.
const PLAIN: [(u32, DType); 8] = [
    (0, DType::F32),
    (1, DType::F16),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (30, DType::BF16),
];

fn stored(kind: u32) -> Option<Stored> {
    let plain = PLAIN.into_iter().find(|(number, _)| *number == kind).map(|(_, dtype)| Stored::Plain(dtype));
    plain.or_else(|| BlockType::from_kind(kind).map(|ty| Stored::Ggml(Scheme::Ggml(ty))))
}

/// The inverse of [`stored`].
fn kind_of(stored: Stored) -> Option<u32> {
    match stored {
        Stored::Plain(dtype) => PLAIN.into_iter().find(|(_, plain)| *plain == dtype).map(|(number, _)| number),
        Stored::Ggml(scheme) => BlockType::of(scheme).map(BlockType::kind),
    }
}

fn supported_types() -> String {
    let blocks: Vec<_> = BlockType::ALL.iter().map(|ty| ty.name()).collect();
    format!("F32, F16, BF16, {}", blocks.join(", "))
}

fn type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {kind}"),
    };
    name.into()
}

/// A place in the file; every step is checked against its end.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            let message =
                format!("{what}: {len} bytes at {}, the file has {}: it is truncated", self.at, self.bytes.len());
            Error::format(self.path, message)
        })?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("take gives N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `min_bytes` each.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / min_bytes;
        usize::try_from(count).ok().filter(|&count| count <= room).ok_or_else(|| {
            let message = format!("{count} {what}, but the rest of the file has room for {room} at most");
            Error::format(self.path, message)
        })
    }

    fn raw_string(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.count(&format!("bytes of {what}"), 1)?;
        self.take(len, what)
    }

    fn string(&mut self, what: &str) -> Result<&'a str> {
        let bytes = self.raw_string(what)?;
        std::str::from_utf8(bytes).map_err(|e| Error::format(self.path, format!("{what}: no UTF-8: {e}")))
    }

    /// A type and a value.
    fn entry(&mut self, key: &str) -> Result<Value> {
        let kind = self.u32(key)?;
        self.value(kind, key, 0)
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.array::<1>(key)? != [0]),
            8 => {
                let text = self.raw_string(key)?;
                Value::Text(self.at - text.len(), text.len())
            }
            9 => self.array_value(key, depth)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(Error::format(self.path, format!("metadata {key}: unknown value type {kind}"))),
        })
    }

    /// Steps over an array, so that reading it later cannot leave the file.
    fn array_value(&mut self, key: &str, depth: usize) -> Result<Value> {
        if depth == MAX_DEPTH {
            return Err(Error::format(self.path, format!("metadata {key}: arrays nested more than {MAX_DEPTH} deep")));
        }
        let kind = self.u32(key)?;
        let min_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => 12,
        };
        let count = self.count(&format!("elements of {key}"), min_bytes)?;
        let start = self.at;
        if matches!(kind, 8 | 9) || kind > 12 {
            for _ in 0..count {
                self.value(kind, key, depth + 1)?;
            }
        } else {
            self.take(count * min_bytes, key)?;
        }
        Ok(Value::Array { kind, count, start })
    }
}
