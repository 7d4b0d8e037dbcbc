//! `fourbit quantize`

use crate::args::{Global, shaped};
use crate::calibration::CalibrationArgs;
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::progress::Progress;
use fourbit::{
    Error, Result,
    format::atomic::AtomicFolder,
    method::{Method, Recipe, quantize_model},
    model::{GgufFile, QuantizedFolder, QuantizedSummary, Source},
    quant::{PER_CHANNEL, Scheme},
    tokenizer::Tokenizer,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write a quantized model in the layout that other tools load for the method
///
/// With an output that ends in `.gguf` a GGUF file is written, in one of its own types, for llama.cpp and others.
///
/// The linear layers of the blocks are quantized; embedding, head, norms and biases stay floats. The folder gets config.json and
/// the tokenizer too. Of a single safetensors file every 2-D float tensor is rounded to nearest.
#[derive(clap::Args)]
pub struct Quantize {
    /// Hugging Face folder, GGUF file, or one safetensors file of plain tensors
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// How numbers are chosen: rtn, hqq, gptq, awq, smoothquant, llm-int8, quip or aqlm
    #[arg(long, value_name = "NAME", default_value = "rtn")]
    method: String,
    /// How numbers are stored, such as nf4, fp4, int4-g64, int8-channel-sym, q4_k [default: the method's: nf4 for rtn (q4_k in
    /// a .gguf file), int4-g64 for hqq, gptq and awq]
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<String>,
    /// Bits of integers, 2 to 8
    #[arg(long, value_name = "N", conflicts_with = "scheme")]
    bits: Option<u8>,
    /// Elements that share a scale; -1 for a row [default: 64]
    #[arg(long, visible_alias = "block-size", value_name = "N", allow_negative_numbers = true)]
    group_size: Option<i64>,
    /// Integers without zero point
    #[arg(long)]
    symmetric: bool,
    /// nf4 and fp4: hold the block scales in 8 bits too
    #[arg(long)]
    double_quant: bool,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Folder to write, or a file whose name ends in .gguf
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

impl Quantize {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let recipe = self.recipe()?;
        if self.is_gguf() {
            return self.gguf(out, &recipe);
        }
        let job = QuantizedFolder::open(&self.input, recipe.scheme, recipe.layout()?, &self.output)?;
        let (folder, summary) = match job.source() {
            // Rounding looks at one tensor at a time.
            Some(source) if recipe.method != Method::Rtn => self.by_method(global, &recipe, &job, source)?,
            None if recipe.method != Method::Rtn => {
                let message = format!("{} looks at a model, and {} is none", self.method, self.input.display());
                return Err(Error::config("--method", message));
            }
            _ => {
                let mut progress = Progress::new(job.len() as u64, "tensors");
                job.write(&global.gpu()?, |_| {
                    progress.advance(1);
                    go_on()
                })?
            }
        };
        if job.is_model() {
            write_tokenizer(job.input(), folder.folder())?;
        }
        folder.commit()?;
        out.line(format_args!(
            "{}: {} tensors in {}, {} as they were; {} (from {})",
            self.output.display(),
            summary.quantized,
            recipe,
            summary.copied,
            bytes(summary.bytes),
            bytes(summary.source_bytes),
        ));
        out.result(&json!({
            "output": self.output.display().to_string(),
            "recipe": recipe.to_string(),
            "quantized": summary.quantized,
            "copied": summary.copied,
            "bytes": summary.bytes,
            "source_bytes": summary.source_bytes,
        }));
        Ok(())
    }
}

impl Quantize {
    /// Method, scheme and options. Errors: Config, Unsupported.
    fn recipe(&self) -> Result<Recipe> {
        let method: Method = self.method.parse()?;
        let mut scheme = match &self.scheme {
            Some(text) => text.parse::<Scheme>()?,
            None if self.is_gguf() => Scheme::Q4K,
            None => method.default_scheme(),
        };
        if let Some(bits) = self.bits {
            // SmoothQuant's bytes have f32 scales; all other integers have halves.
            scheme = if bits == 8 && method == Method::SmoothQuant {
                scheme
            } else {
                Scheme::int(bits, scheme.block_size())
            };
        }
        let mut group_size = None;
        if let Some(size) = self.group_size {
            let size = match size {
                -1 => PER_CHANNEL,
                size => usize::try_from(size).ok().filter(|&n| n > 0).ok_or_else(|| {
                    Error::config("--group-size", format!("expected a positive number or -1, got {size}"))
                })?,
            };
            group_size = Some(size);
        }
        scheme = shaped(scheme, group_size, self.double_quant)?;
        if self.symmetric {
            if scheme.symmetric() == scheme && !matches!(scheme, Scheme::Int { .. }) {
                return Err(Error::config("--symmetric", format!("{scheme} has no zero point to leave out")));
            }
            scheme = scheme.symmetric();
        }
        Ok(Recipe { options: self.calibration.options(), ..Recipe::new(method, scheme) })
    }

    fn is_gguf(&self) -> bool {
        self.output.extension().is_some_and(|extension| extension == "gguf")
    }

    /// Errors: Config for another method than rounding, Unsupported for a scheme that GGUF does not have, Io, Format.
    fn gguf(&self, out: Output, recipe: &Recipe) -> Result<()> {
        if recipe.method != Method::Rtn {
            let message = format!("{} does not choose numbers of GGUF's types; rtn does", self.method);
            return Err(Error::config("--method", message));
        }
        let file = GgufFile::open(&self.input, recipe.scheme, &self.output)?;
        // A GGUF file brings its tokenizer along.
        let file = match self.input.is_dir().then(|| Tokenizer::open(&self.input)).transpose()?.flatten() {
            Some(tokenizer) => {
                let rows = file.source().config.vocab_size;
                file.with_metadata(tokenizer.gguf_vocab(rows)?.metadata())
            }
            None => file,
        };
        let mut progress = Progress::new(file.len() as u64, "tensors");
        let summary = file.write(|_| {
            progress.advance(1);
            go_on()
        })?;
        progress.finish();
        let fallbacks = match summary.fallbacks {
            0 => String::new(),
            n => format!(", {n} in a type with smaller blocks, since their rows are no multiple of 256"),
        };
        out.line(format_args!(
            "{}: {} tensors in {}{fallbacks}, {} others; {} (from {})",
            self.output.display(),
            summary.quantized,
            recipe.scheme,
            summary.others,
            bytes(summary.bytes),
            bytes(summary.source_bytes),
        ));
        out.result(&json!({
            "output": self.output.display().to_string(),
            "recipe": recipe.to_string(),
            "quantized": summary.quantized,
            "fallbacks": summary.fallbacks,
            "others": summary.others,
            "bytes": summary.bytes,
            "source_bytes": summary.source_bytes,
        }));
        Ok(())
    }

    fn by_method(
        &self,
        global: &Global,
        recipe: &Recipe,
        job: &QuantizedFolder,
        source: &Source,
    ) -> Result<(AtomicFolder, QuantizedSummary)> {
        let samples = self.calibration.samples(std::slice::from_ref(recipe), &self.input, source)?;
        let gpu = global.gpu()?;
        let mut progress = Progress::new(7 * source.config.layers as u64, "layers");
        let method = recipe.build()?;
        let model = quantize_model(&gpu, source, &*method, &recipe.pipeline(), &samples, |_| {
            progress.advance(1);
            go_on()
        })?;
        progress.finish();
        job.write_model(&model, |_| go_on())
    }
}

/// Errors: Config where the user has asked to stop.
fn go_on() -> Result<()> {
    match interrupt::pending() {
        true => Err(Error::config("quantize", "interrupted; nothing was written")),
        false => Ok(()),
    }
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

/// The tokenizer of a folder as it is, or that of a GGUF file as transformers would write it.
pub fn write_tokenizer(model: &Path, folder: &Path) -> Result<()> {
    if model.is_dir() {
        for name in FILES.iter().filter(|name| model.join(name).is_file()) {
            std::fs::copy(model.join(name), folder.join(name)).map_err(Error::io(folder.join(name)))?;
        }
        return Ok(());
    }
    match Tokenizer::open(model)? {
        Some(tokenizer) => tokenizer.save(folder),
        None => Ok(()),
    }
}
