//! Reading: every offset and extent is checked when the file is opened, so that views can be handed out freely.

use super::HEADER_LIMIT;
use crate::format::{self, Mapped, Stored, TensorView};
use crate::{DType, Error, Result, Shape};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A mapped safetensors file whose header has been checked.
#[derive(Debug)]
pub struct Safetensors {
    path: PathBuf,
    map: Mapped,
    tensors: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    /// The name of a dtype that cannot be read, where it has one: nobody may want the tensor.
    dtype: Result<DType, String>,
    shape: Vec<usize>,
    /// From the start of the file.
    begin: usize,
    end: usize,
}

impl Safetensors {
    /// Maps a file and checks its header. Errors: Io, Format.
    pub fn open(path: impl Into<PathBuf>) -> Result<Safetensors> {
        let path = path.into();
        let map = Mapped::open(&path)?;
        let (data_start, header) = parse_header(&path, &map)?;
        let tensors = check_entries(&path, header.entries, data_start, map.len())?;
        Ok(Safetensors { path, map, tensors, metadata: header.metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name. Errors: MissingTensor, Unsupported dtype.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            return Err(format::missing(&self.path, name, self.names()));
        };
        let dtype = entry.dtype.as_ref().copied().map_err(|got| {
            let supported = DTYPES.map(DType::name).join(", ");
            Error::unsupported(format!("dtype of tensor {name} in {}", self.path.display()), got, supported)
        })?;
        Ok(TensorView {
            path: &self.path,
            name,
            stored: Stored::Plain(dtype),
            shape: &entry.shape,
            bytes: self.map.tensor(entry.begin..entry.end)?,
        })
    }

    /// The free text of the header (`format`, ...).
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }
}

#[derive(Default)]
struct Header {
    metadata: HashMap<String, String>,
    /// In the header's order; a name may come twice here.
    entries: Vec<(String, RawEntry)>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        let entry = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name}: {e}")))?;
                        header.entries.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Where the data starts, and the header.
fn parse_header(path: &Path, bytes: &[u8]) -> Result<(usize, Header)> {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(Error::format(path, format!("{} bytes are too few for a safetensors file", bytes.len())));
    };
    let len = u64::from_le_bytes(*len);
    let header = usize::try_from(len).ok().filter(|&len| len <= HEADER_LIMIT).and_then(|len| rest.get(..len));
    let header = header.ok_or_else(|| {
        let message = "is truncated, or no safetensors file";
        Error::format(path, format!("a header of {len} bytes in a file of {} bytes: the file {message}", bytes.len()))
    })?;
    let parsed = serde_json::from_slice(header).map_err(|e| Error::format(path, format!("safetensors header: {e}")))?;
    Ok((8 + header.len(), parsed))
}

fn check_entries(
    path: &Path,
    raw: Vec<(String, RawEntry)>,
    data_start: usize,
    file_len: usize,
) -> Result<BTreeMap<String, Entry>> {
    let data_len = file_len - data_start;
    let mut ranges = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, entry) in raw {
        let fail = |message: String| Err(Error::format(path, format!("tensor {name}: {message}")));
        let dtype = parse_dtype(&entry.dtype).ok_or(entry.dtype);
        let [begin, end] = entry.data_offsets;
        let len = Shape::from(&entry.shape[..]).checked_len();
        let size = match &dtype {
            Ok(dtype) => len.and_then(|len| len.checked_mul(dtype.size())),
            // Its elements have a size that is not known.
            Err(_) => len.and(end.checked_sub(begin)),
        };
        let Some(size) = size else {
            return fail(format!("the shape {:?} overflows, or the offsets {begin}..{end} do", entry.shape));
        };
        if end > data_len {
            return fail(format!("ends at byte {end} of the data, but the file has {data_len}: it is truncated"));
        }
        if end.checked_sub(begin) != Some(size) {
            let dtype = dtype.as_ref().map_or("", |dtype| dtype.name());
            return fail(format!("{dtype} {:?} takes {size} bytes, the offsets are {begin}..{end}", entry.shape));
        }
        ranges.push((begin, end, name.clone()));
        let (begin, end) = (data_start + begin, data_start + end);
        if tensors.insert(name.clone(), Entry { dtype, shape: entry.shape, begin, end }).is_some() {
            return fail("is listed twice".into());
        }
    }
    check_cover(path, ranges, data_len)?;
    Ok(tensors)
}

/// The format allows neither gaps nor overlaps: both are ways to hide something.
fn check_cover(path: &Path, mut ranges: Vec<(usize, usize, String)>, data_len: usize) -> Result<()> {
    ranges.sort_unstable();
    let mut at = 0;
    for (begin, end, name) in &ranges {
        if *begin != at {
            let what = if *begin < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(Error::format(path, format!("tensor {name}: {what} (expected offset {at}, got {begin})")));
        }
        at = *end;
    }
    if at != data_len {
        return Err(Error::format(path, format!("the tensors end at byte {at} of the data, the file at {data_len}")));
    }
    Ok(())
}

/// Element types that are read.
const DTYPES: [DType; 11] = {
    use DType::*;
    [F64, F32, F16, BF16, I64, I32, I16, I8, U32, U8, Bool]
};

fn parse_dtype(name: &str) -> Option<DType> {
    DTYPES.into_iter().find(|dtype| dtype.name() == name)
}
