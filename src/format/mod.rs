//! Bytes on disk to named tensors and back: safetensors, GGUF, the layouts in which other tools keep quantized weights
//! ([`checkpoint`]), PEFT adapters.
//!
//! Files are mapped, never read whole: a [`TensorView`] borrows its bytes from the mapping. Every length and count in a
//! file is checked against the file's size before anything is allocated for it. Files are written under a temporary
//! name and renamed when complete ([`atomic`]). This module knows nothing of models or of the GPU.
//!
//! A mapped file must not be changed by another process while it is open. One that was cut is found at the next tensor; one that is
//! cut while a tensor is copied ends the process on most systems.

mod aqlm;
pub mod atomic;
mod awq;
pub mod bitsandbytes;
pub mod checkpoint;
pub mod choices;
mod claim;
mod compressed_tensors;
pub mod fields;
mod foreign;
pub mod gguf;
mod gptq;
mod groups;
mod hqq;
pub mod llm_int8;
pub mod manifest;
pub mod peft;
mod plain;
mod quip;
pub mod safetensors;
mod view;

pub use checkpoint::Checkpoint;
pub(crate) use claim::resolved;
pub use claim::{Claim, is_same};
pub use gguf::Gguf;
pub use manifest::Manifest;
pub use safetensors::Safetensors;
pub use view::{Stored, TensorView};

use crate::quant::Packed;
use crate::{DType, Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The file that lists the shards of a folder.
pub const INDEX: &str = "model.safetensors.index.json";
/// The file of a folder with a single shard.
pub const SINGLE: &str = "model.safetensors";

/// What kind of place the weights came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder with `config.json` and safetensors files.
    Folder,
    /// One GGUF file.
    Gguf,
    /// One safetensors file.
    Safetensors,
}

/// All tensors of a model folder, a GGUF file or a safetensors file, by the names they have there.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// promised: the file in which the index says that a tensor is.
    Folder {
        shards: Vec<Safetensors>,
        shard_of: BTreeMap<String, usize>,
        promised: BTreeMap<String, String>,
    },
    Gguf(Gguf),
    Safetensors(Safetensors),
}

impl Weights {
    /// Maps the files at `path` and checks their headers: a folder, a `.gguf` file or a safetensors file (told apart by
    /// their contents). Errors: Io, Format, MissingTensor, Unsupported.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        let is_folder = std::fs::metadata(path).map_err(Error::io(path))?.is_dir();
        let source = if is_folder {
            manifest::check(path)?;
            open_folder(path)?
        } else if gguf::is_gguf(path)? {
            Source::Gguf(Gguf::open(path)?)
        } else {
            let mut begin = Vec::new();
            let file = File::open(path).map_err(Error::io(path))?;
            file.take(64).read_to_end(&mut begin).map_err(Error::io(path))?;
            foreign::refuse_known(path, &begin)?;
            Source::Safetensors(Safetensors::open(path)?)
        };
        Ok(Weights { path: path.into(), source })
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of place this is.
    pub fn kind(&self) -> Kind {
        match self.source {
            Source::Folder { .. } => Kind::Folder,
            Source::Gguf(_) => Kind::Gguf,
            Source::Safetensors(_) => Kind::Safetensors,
        }
    }

    /// The GGUF file with its metadata, where this is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            _ => None,
        }
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.source {
            Source::Folder { shard_of, .. } => Box::new(shard_of.keys().map(String::as_str)),
            Source::Gguf(gguf) => Box::new(gguf.names()),
            Source::Safetensors(file) => Box::new(file.names()),
        }
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Folder { shard_of, .. } => shard_of.contains_key(name),
            Source::Gguf(gguf) => gguf.contains(name),
            Source::Safetensors(file) => file.contains(name),
        }
    }

    /// The tensor of this name, borrowed from the mapping. Errors: MissingTensor, Unsupported block type.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        match &self.source {
            Source::Folder { shards, shard_of, promised } => match (shard_of.get(name), promised.get(name)) {
                (Some(&shard), _) => shards[shard].get(name),
                (None, Some(file)) => {
                    let hint = Some(format!("{INDEX} says that it is there"));
                    Err(Error::MissingTensor { path: self.path.join(file), name: name.to_owned(), hint })
                }
                (None, None) => Err(self.missing(name)),
            },
            Source::Gguf(gguf) => gguf.get(name),
            Source::Safetensors(file) => file.get(name),
        }
    }

    /// A weight as it is stored, in the device layout, with the dtype it had before it was quantized: plain floats, GGUF
    /// blocks and bitsandbytes' 4-bit layout. Errors: as [`Weights::get`] and [`bitsandbytes::read`].
    pub fn packed(&self, name: &str) -> Result<(Packed, DType)> {
        if bitsandbytes::is_quantized(self, name) {
            return bitsandbytes::read(self, name);
        }
        let view = self.get(name)?;
        let dtype = match view.stored {
            Stored::Plain(dtype) => dtype,
            Stored::Ggml(_) => DType::F16,
        };
        Ok((view.packed()?, dtype))
    }

    fn missing(&self, name: &str) -> Error {
        missing(&self.path, name, self.names())
    }
}

/// Error::MissingTensor with the nearest names as a hint.
fn missing<'a>(path: &Path, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    // Names that end alike: a prefix such as `model.` is the usual difference.
    let tail = name.rsplitn(4, '.').take(3).map(str::len).sum::<usize>() + 2;
    let tail = name.get(name.len().saturating_sub(tail)..).unwrap_or(name);
    let near: Vec<&str> = names.filter(|n| n.ends_with(tail)).take(2).collect();
    let hint = (!near.is_empty()).then(|| format!("there is {}", near.join(", ")));
    Error::MissingTensor { path: path.into(), name: name.into(), hint }
}

/// As transformers does: a file with all tensors wins over an index, which may be older.
fn open_folder(folder: &Path) -> Result<Source> {
    let (index, single) = (folder.join(INDEX), folder.join(SINGLE));
    if single.exists() {
        if index.exists() {
            log::warn!("{}: {SINGLE} is read and {INDEX} is not, as transformers does", folder.display());
        }
        let file = Safetensors::open(&single)?;
        let shard_of = file.names().map(|name| (name.to_string(), 0)).collect();
        return Ok(Source::Folder { shards: vec![file], shard_of, promised: BTreeMap::new() });
    }
    if index.exists() { open_shards(folder, &index) } else { Err(foreign::no_weights(folder)) }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(folder: &Path, index_path: &Path) -> Result<Source> {
    let index: Index = read_json(index_path)?;
    let mut files: Vec<&String> = index.weight_map.values().collect();
    files.sort_unstable();
    files.dedup();
    let mut shards = Vec::new();
    let mut shard_of: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
            return Err(Error::format(index_path, format!("the shard {file:?} is no plain file name")));
        }
        let shard = Safetensors::open(folder.join(file))?;
        for name in shard.names() {
            if let Some(other) = shard_of.insert(name.into(), shards.len()) {
                let other: &Safetensors = &shards[other];
                let message = format!("the tensor {name} is in {} too", other.path().display());
                return Err(Error::format(shard.path(), message));
            }
        }
        shards.push(shard);
    }
    Ok(Source::Folder { shards, shard_of, promised: index.weight_map })
}

/// The largest text file that [`read_text`] takes; tokenizers reach a few tens of megabytes.
const TEXT_LIMIT: u64 = 512 << 20;

/// A text file, or what a pipe gives. Errors: Io, Format where it is not UTF-8 or beyond 512 MiB.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(TEXT_LIMIT + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > TEXT_LIMIT {
        return Err(Error::format(path, format!("more than {TEXT_LIMIT} bytes are too many for a text file")));
    }
    foreign::refuse_pointer(path, &bytes)?;
    String::from_utf8(bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))
}

/// A JSON file of a folder. Errors: Io, Format.
pub fn read_json<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    expect_file(path)?;
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::format(path, format!("not the JSON expected: {e}")))
}

/// A loader names files that a stranger may have put there: a pipe would never end, and a device might not. Links are followed, as
/// caches of hubs need it. Errors: Io; Format where it is no file.
pub(crate) fn expect_file(path: &Path) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(Error::io(path))?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(Error::format(path, "is a folder, a file is needed")),
        _ => Err(Error::format(path, "is a pipe or a device, a file is needed")),
    }
}

/// A mapped file.
#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    file: File,
    map: memmap2::Mmap,
}

impl Mapped {
    /// Maps a file for reading. Errors: Io, Format for an empty file and for what is none.
    fn open(path: &Path) -> Result<Mapped> {
        expect_file(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Err(Error::format(path, "the file is empty"));
        }
        // SAFETY: the mapping is read-only and private to us; the module's documentation asks that no other process changes
        // the file meanwhile, and files that this crate writes are replaced by renaming, never in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        foreign::refuse_pointer(path, &map)?;
        Ok(Mapped { path: path.to_owned(), file, map })
    }

    /// The bytes of a tensor. What lies behind the end of a file that was cut since ends the process when it is touched, so the
    /// length is asked for again, once for each tensor. Errors: Io; Format where the file was cut.
    fn tensor(&self, range: std::ops::Range<usize>) -> Result<&[u8]> {
        let (len, mapped) = (self.file.metadata().map_err(Error::io(&self.path))?.len(), self.map.len());
        match range.end as u64 > len {
            true => Err(Error::format(&self.path, format!("was cut from {mapped} to {len} bytes while it was read"))),
            false => Ok(&self.map[range]),
        }
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
