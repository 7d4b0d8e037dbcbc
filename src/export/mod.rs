//! Where quantized models go: a folder in the layout of another tool, or a GGUF file, each with its tokenizer.
//!
//! A kind of output is a [`ModelWriter`]; [`Export`] chooses it by the name of the output.

mod blocks;
mod floats;
mod folder;
mod gguf;
mod gguf_metadata;
mod tokenizer_files;

pub use blocks::BlockFolder;
pub use folder::QuantizedFolder;
pub use gguf::GgufFile;
pub use tokenizer_files::write_tokenizer;

use crate::{
    Error, Result,
    format::atomic::AtomicFolder,
    gpu::Gpu,
    method::{Method, Recipe},
    model::{Model, Source},
    quant::{Scheme, ggml},
    tokenizer::Tokenizer,
};
use std::path::{Path, PathBuf};

/// Called for each tensor that is done; its error ends the work, and nothing is left behind.
pub type OnTensor<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// A model that was checked to be whole and can be written in one kind of file.
pub trait ModelWriter {
    /// The model that is read; `None` for a file of tensors.
    fn source(&self) -> Option<&Source>;

    /// Tensors that will be written.
    fn tensors(&self) -> usize;

    /// Bytes of the tensors that will be written. Errors: as when it was opened.
    fn bytes(&self) -> Result<u64>;

    /// Rounds to nearest, one tensor at a time, and writes. `gpu` opens the device where one is used. Errors: Io, Format, Config for
    /// numbers that cannot be held, OutOfMemory, Device, those of `gpu` and `on_tensor`.
    fn round(&self, gpu: &dyn Fn() -> Result<Gpu>, on_tensor: OnTensor<'_>) -> Result<Written>;

    /// Writes the linear weights of `model`, which a method made out of the same source, and its norms and biases, which methods may
    /// change. Errors: as [`ModelWriter::round`]; Unsupported for a layer that the format cannot express.
    fn write_model(&self, model: &Model, on_tensor: OnTensor<'_>) -> Result<Written>;
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Weights in the scheme that was asked for.
    pub quantized: usize,
    /// Linear weights that took another type, since their rows are no whole blocks.
    pub fallbacks: usize,
    /// All other tensors.
    pub others: usize,
    /// Bytes of the tensors in the source.
    pub source_bytes: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Summary {
    /// Counts the bytes of the source and of the file that was written. Errors: Io.
    fn measured(self, source: &crate::format::Weights, file: &Path) -> Result<Summary> {
        let source_bytes = source.names().map(|name| source.get(name).map_or(0, |view| view.bytes.len() as u64)).sum();
        let bytes = std::fs::metadata(file).map_err(Error::io(file))?.len();
        Ok(Summary { source_bytes, bytes, ..self })
    }
}

/// A model that was written; a folder is not there yet until it is committed.
pub struct Written {
    /// What it is.
    pub summary: Summary,
    folder: Option<AtomicFolder>,
}

impl Written {
    /// Where else may be put into a folder before it is committed; `None` for a single file.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(AtomicFolder::folder)
    }

    /// Gives a folder its name. Errors: Io.
    pub fn commit(self) -> Result<Summary> {
        if let Some(folder) = self.folder {
            folder.commit()?;
        }
        Ok(self.summary)
    }
}

/// Whether a GGUF file is asked for.
pub fn is_gguf(output: &Path) -> bool {
    output.extension().is_some_and(|extension| extension == "gguf")
}

/// The recipe by which numbers of `recipe` can go into `output`: methods that choose integers make Q4_0, Q5_0 and Q8_0 as the
/// integers that these are. Errors: Config, Unsupported.
pub fn suited(recipe: Recipe, output: &Path) -> Result<Recipe> {
    let recipe = match is_gguf(output) && recipe.method != Method::Rtn {
        true => Recipe { scheme: ggml::integers(recipe.scheme).unwrap_or(recipe.scheme), ..recipe },
        false => recipe,
    };
    recipe.build().map(|_| recipe)
}

/// A model, or a file of tensors, and where it is to be written by a recipe.
pub struct Export {
    writer: Box<dyn ModelWriter>,
    input: PathBuf,
    /// The adapter that is merged into the model.
    adapter: Option<PathBuf>,
}

impl Export {
    /// Checks that the input is whole and that the output can hold the recipe's numbers, a [`suited`] one's. With an adapter that
    /// is merged, what stands beside it and what it has learned as ends of answers go along.
    /// Errors: Io, Format, MissingTensor, Shape, Unsupported, Config.
    pub fn open(input: &Path, adapter: Option<&Path>, recipe: &Recipe, output: &Path) -> Result<Export> {
        let writer: Box<dyn ModelWriter> = match is_gguf(output) {
            true => Box::new(gguf(input, adapter, recipe, output)?),
            false => Box::new(QuantizedFolder::open(input, recipe.scheme, recipe.layout()?, output)?),
        };
        Ok(Export { writer, input: input.to_owned(), adapter: adapter.map(Path::to_owned) })
    }

    /// The model that is read; `None` for a file of tensors.
    pub fn source(&self) -> Option<&Source> {
        self.writer.source()
    }

    /// Tensors that will be written.
    pub fn tensors(&self) -> usize {
        self.writer.tensors()
    }

    /// Bytes of the tensors that will be written. Errors: as when it was opened.
    pub fn bytes(&self) -> Result<u64> {
        self.writer.bytes()
    }

    /// Rounds to nearest, one tensor at a time, and writes. Errors: those of [`ModelWriter::round`].
    pub fn round(&self, gpu: &dyn Fn() -> Result<Gpu>, on_tensor: OnTensor<'_>) -> Result<Summary> {
        self.finish(self.writer.round(gpu, on_tensor)?)
    }

    /// Writes what a method made of the source. Errors: those of [`ModelWriter::write_model`].
    pub fn write_model(&self, model: &Model, on_tensor: OnTensor<'_>) -> Result<Summary> {
        self.finish(self.writer.write_model(model, on_tensor)?)
    }

    fn finish(&self, written: Written) -> Result<Summary> {
        if let (Some(folder), Some(_)) = (written.folder(), self.source()) {
            match &self.adapter {
                Some(adapter) => tokenizer_files::write_merged_tokenizer(&self.input, adapter, folder)?,
                None => write_tokenizer(&self.input, folder)?,
            }
        }
        written.commit()
    }
}

fn gguf(input: &Path, adapter: Option<&Path>, recipe: &Recipe, output: &Path) -> Result<GgufFile> {
    if let Some(activations) = recipe.activations {
        let message = format!("a .gguf file cannot tell that inputs are rounded ({activations})");
        return Err(Error::config("activations", message));
    }
    let block = |scheme: &Scheme| ggml::integers(*scheme) == Some(recipe.scheme);
    let scheme = [Scheme::Q4_0, Scheme::Q5_0, Scheme::Q8_0].into_iter().find(block).unwrap_or(recipe.scheme);
    let file = GgufFile::open(input, scheme, output)?;
    // A GGUF file brings its tokenizer along.
    let tokenizer = || match adapter {
        Some(adapter) => Tokenizer::with_adapter(input, adapter),
        None => Tokenizer::open(input),
    };
    Ok(match input.is_dir().then(tokenizer).transpose()?.flatten() {
        Some(tokenizer) => {
            let rows = file.input().arch.vocab_size;
            file.with_metadata(tokenizer.gguf_vocab(rows)?.metadata())
        }
        None => file,
    })
}
