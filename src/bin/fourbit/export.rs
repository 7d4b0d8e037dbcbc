//! Where quantized models go: a folder in the layout of a method, or a GGUF file, each with its tokenizer.

use crate::interrupt;
use crate::output::{Output, bytes};
use fourbit::{
    Error, Result,
    format::atomic::{self, AtomicFolder},
    gpu::Gpu,
    method::{Method, Recipe},
    model::{GgufFile, Model, QuantizedFolder, Source},
    quant::{Scheme, ggml},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A model, or a file of tensors, and where it is to be written.
pub struct Export {
    to: To,
    recipe: Recipe,
    input: PathBuf,
    /// The adapter that is merged into the model.
    adapter: Option<PathBuf>,
    output: PathBuf,
}

enum To {
    Folder(Box<QuantizedFolder>),
    Gguf(Box<GgufFile>),
}

/// What was written.
struct Summary {
    quantized: usize,
    /// Weights in another GGUF type, since their rows are no whole blocks.
    fallbacks: usize,
    others: usize,
    bytes: u64,
    source_bytes: u64,
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

impl Export {
    /// Checks that the input is whole and that the output can hold the recipe's numbers, a [`suited`] one's. With an adapter that
    /// is merged, what stands beside it and what it has learned as ends of answers go along.
    /// Errors: Io, Format, MissingTensor, Shape, Unsupported, Config.
    pub fn open(input: &Path, adapter: Option<&Path>, recipe: &Recipe, output: &Path) -> Result<Export> {
        let to = match is_gguf(output) {
            true => To::Gguf(Box::new(gguf(input, adapter, recipe, output)?)),
            false => To::Folder(Box::new(QuantizedFolder::open(input, recipe.scheme, recipe.layout()?, output)?)),
        };
        let adapter = adapter.map(Path::to_owned);
        Ok(Export { to, recipe: *recipe, input: input.to_owned(), adapter, output: output.to_owned() })
    }

    /// The model that is read; `None` for a file of tensors.
    pub fn source(&self) -> Option<&Source> {
        match &self.to {
            To::Folder(folder) => folder.source(),
            To::Gguf(file) => Some(file.source()),
        }
    }

    /// Tensors.
    pub fn len(&self) -> usize {
        match &self.to {
            To::Folder(folder) => folder.len(),
            To::Gguf(file) => file.len(),
        }
    }

    /// Rounds to nearest, one tensor at a time, and writes. `gpu` opens the device where one is used.
    /// Errors: those of the two formats.
    pub fn round(
        &self,
        out: Output,
        gpu: impl FnOnce() -> Result<Gpu>,
        mut on_tensor: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let summary = match &self.to {
            To::Folder(folder) => self.commit(folder, folder.write(&gpu()?, |_| on_tensor())?)?,
            To::Gguf(file) => of_gguf(file.write(|_| on_tensor())?),
        };
        self.tell(out, &summary, serde_json::Map::new());
        Ok(())
    }

    /// Writes what a method made of the source; `told` is added to the result. Errors: those of the two formats.
    pub fn write_model(&self, out: Output, model: &Model, told: serde_json::Map<String, Value>) -> Result<()> {
        let go_on = |_: &str| go_on();
        let summary = match &self.to {
            To::Folder(folder) => self.commit(folder, folder.write_model(model, go_on)?)?,
            To::Gguf(file) => of_gguf(file.write_model(model, go_on)?),
        };
        self.tell(out, &summary, told);
        Ok(())
    }

    fn commit(
        &self,
        job: &QuantizedFolder,
        (folder, summary): (AtomicFolder, fourbit::model::QuantizedSummary),
    ) -> Result<Summary> {
        if job.is_model() {
            match &self.adapter {
                Some(adapter) => write_merged_tokenizer(&self.input, adapter, folder.folder())?,
                None => write_tokenizer(&self.input, folder.folder())?,
            }
        }
        folder.commit()?;
        let fourbit::model::QuantizedSummary { quantized, copied, source_bytes, bytes } = summary;
        Ok(Summary { quantized, fallbacks: 0, others: copied, bytes, source_bytes })
    }

    fn tell(&self, out: Output, summary: &Summary, mut told: serde_json::Map<String, Value>) {
        let fallbacks = match summary.fallbacks {
            0 => String::new(),
            n => format!(", {n} in a type with smaller blocks, since their rows are no multiple of 256"),
        };
        out.line(format_args!(
            "{}: {} tensors in {}{fallbacks}, {} others; {} (from {})",
            self.output.display(),
            summary.quantized,
            self.recipe,
            summary.others,
            bytes(summary.bytes),
            bytes(summary.source_bytes),
        ));
        let result = json!({
            "output": self.output.display().to_string(),
            "recipe": self.recipe.to_string(),
            "quantized": summary.quantized,
            "fallbacks": summary.fallbacks,
            "others": summary.others,
            "bytes": summary.bytes,
            "source_bytes": summary.source_bytes,
        });
        told.extend(result.as_object().cloned().unwrap_or_default());
        out.result(&Value::Object(told));
    }
}

/// Errors: Interrupted, where the user has asked to stop before a file has its name.
pub fn go_on() -> Result<()> {
    interrupt::go_on("nothing was written")
}

fn of_gguf(summary: fourbit::model::GgufSummary) -> Summary {
    let fourbit::model::GgufSummary { quantized, fallbacks, others, source_bytes, bytes } = summary;
    Summary { quantized, fallbacks, others, bytes, source_bytes }
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
            let rows = file.source().arch.vocab_size;
            file.with_metadata(tokenizer.gguf_vocab(rows)?.metadata())
        }
        None => file,
    })
}

/// What transformers reads beside the weights: copied as it is.
const FILES: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Chat templates by name, as transformers writes them.
const TEMPLATES: &str = "additional_chat_templates";

/// What of it training may leave beside an adapter.
const BESIDE: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", TEMPLATES];

/// The tokenizer of a base with what stands beside the adapter, and `generation_config.json` with every token that ends an answer:
/// those of the base, and the one after which the chat template, by which adapters learn, closes an answer.
fn write_merged_tokenizer(model: &Path, adapter: &Path, folder: &Path) -> Result<()> {
    let tokenizer = Tokenizer::with_adapter(model, adapter)?;
    let Some(tokenizer) = tokenizer else { return write_tokenizer(model, folder) };
    match BESIDE.iter().any(|name| adapter.join(name).exists()) {
        true => tokenizer.save(folder)?,
        false => write_tokenizer(model, folder)?,
    }
    let path = model.join("generation_config.json");
    let mut config = match std::fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|e| Error::format(&path, format!("expected a JSON object: {e}")))?
        }
        Err(_) if !path.exists() => serde_json::Map::new(),
        Err(e) => return Err(Error::io(&path)(e)),
    };
    let ids = match tokenizer.eos_ids() {
        [] => return Ok(()),
        [id] => json!(id),
        ids => json!(ids),
    };
    config.insert("eos_token_id".to_owned(), ids);
    atomic::write_json(folder.join("generation_config.json"), &config)
}

/// The tokenizer of a folder as it is, or that of a GGUF file as transformers would write it.
pub fn write_tokenizer(model: &Path, folder: &Path) -> Result<()> {
    if model.is_dir() {
        for name in FILES.iter().filter(|name| model.join(name).is_file()) {
            std::fs::copy(model.join(name), folder.join(name)).map_err(Error::io(folder.join(name)))?;
        }
        let templates = model.join(TEMPLATES);
        for entry in templates
            .is_dir()
            .then(|| std::fs::read_dir(&templates))
            .transpose()
            .map_err(Error::io(&templates))?
            .into_iter()
            .flatten()
        {
            let from = entry.map_err(Error::io(&templates))?.path();
            let to = folder.join(TEMPLATES);
            std::fs::create_dir_all(&to).map_err(Error::io(&to))?;
            std::fs::copy(&from, to.join(from.file_name().unwrap_or_default())).map_err(Error::io(&from))?;
        }
        return Ok(());
    }
    match Tokenizer::open(model)? {
        Some(tokenizer) => tokenizer.save(folder),
        None => Ok(()),
    }
}
