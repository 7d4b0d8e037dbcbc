//! `fourbit quantize`

use crate::args::Global;
use crate::interrupt;
use crate::output::bytes;
use crate::progress::Progress;
use clap::ValueEnum;
use fourbit::{Error, Result, model::QuantizedFolder, quant::Scheme, tokenizer::Tokenizer};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write a model in 4 bits, in the layout of bitsandbytes that transformers loads
///
/// The linear layers of the blocks are quantized; embedding, head, norms and biases stay floats. The folder gets config.json and
/// the tokenizer too. Of a single safetensors file every 2-D float tensor is quantized.
#[derive(clap::Args)]
pub struct Quantize {
    /// Hugging Face folder, GGUF file, or one safetensors file of plain tensors
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The 4-bit numbers
    #[arg(long, value_enum, default_value = "nf4")]
    scheme: SchemeName,
    /// Hold the block scales in 8 bits too
    #[arg(long)]
    double_quant: bool,
    /// Elements that share a scale: a power of two from 32 to 4096
    #[arg(long, value_name = "N", default_value_t = 64)]
    block_size: usize,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// The choices of `--scheme`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemeName {
    /// NormalFloat-4 of QLoRA
    Nf4,
    /// 4-bit floats of bitsandbytes
    Fp4,
}

impl Quantize {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let (block_size, double_quant) = (self.block_size, self.double_quant);
        let scheme = match self.scheme {
            SchemeName::Nf4 => Scheme::Nf4 { block_size, double_quant },
            SchemeName::Fp4 => Scheme::Fp4 { block_size, double_quant },
        };
        let job = QuantizedFolder::open(&self.input, scheme, &self.output)?;
        let gpu = global.gpu()?;
        let mut progress = Progress::new(job.len() as u64, "tensors");
        let (folder, summary) = job.write(&gpu, |_| {
            progress.advance(1);
            match interrupt::pending() {
                true => Err(Error::config("quantize", "interrupted; nothing was written")),
                false => Ok(()),
            }
        })?;
        if job.is_model() {
            write_tokenizer(job.input(), folder.folder())?;
        }
        folder.commit()?;
        progress.finish();
        out.line(format_args!(
            "{}: {} tensors in {}, {} as they were; {} (from {})",
            self.output.display(),
            summary.quantized,
            scheme.name(),
            summary.copied,
            bytes(summary.bytes),
            bytes(summary.source_bytes),
        ));
        out.result(&json!({
            "output": self.output.display().to_string(),
            "quantized": summary.quantized,
            "copied": summary.copied,
            "bytes": summary.bytes,
            "source_bytes": summary.source_bytes,
        }));
        Ok(())
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
fn write_tokenizer(model: &Path, folder: &Path) -> Result<()> {
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
