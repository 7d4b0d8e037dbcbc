//! `fourbit evaluate`

use crate::args::{Global, ModelArgs, QuantArgs};
use crate::interrupt;
use crate::measure::{Convention, MeasureArgs, Measured};
use crate::progress::Progress;
use fourbit::{
    DType, Error, Result, evaluate,
    format::{
        self, Claim,
        safetensors::{TensorSpec, write_file},
    },
    model::{Model, Source},
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Measure loss and perplexity of a text, or of what is learned from rows
///
/// Prose (.txt, .md, and files that hold no rows) is cut into windows. Rows (.jsonl, .json, .parquet, and files that hold rows) are read as
/// finetune reads them, template and all, and the loss is that of the tokens that finetune learns. A perplexity can be compared
/// only with one of the same convention: over the same 2682 tokens SmolLM2-135M has 18.75 in windows of 512 and 14.58 by
/// llama.cpp's llama-perplexity, which predicts the second half of each window alone; `--convention llama.cpp` gives 14.53.
#[derive(clap::Args)]
pub struct Evaluate {
    #[command(flatten)]
    model: ModelArgs,
    /// Text, or rows as finetune takes them
    #[arg(long, value_name = "FILE", required_unless_present = "input_ids")]
    data: Option<PathBuf>,
    /// Token ids instead of a text: a JSON array of them, or of arrays of which each is a text
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "data")]
    input_ids: Option<PathBuf>,
    /// Write the logits of the first window, [tokens, vocab] f32, to a safetensors file
    #[arg(long, value_name = "FILE", hide = true)]
    logits: Option<PathBuf>,
    #[command(flatten)]
    quant: QuantArgs,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Which tokens of a text are predicted, and from what
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    convention: Convention,
}

/// What `--input-ids` may hold.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Ids {
    One(Vec<u32>),
    Several(Vec<Vec<u32>>),
}

impl Evaluate {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let base = self.model.base()?;
        let source = Source::open(&base.path)?;
        let load_options = self.quant.options(&source)?;
        let measured = self.measured(global, &base.path, &source)?;
        let _claim = self.logits.as_ref().map(Claim::of).transpose()?;

        let gpu = global.gpu()?;
        let mut model = Model::from_source(&gpu, &source, &load_options)?;
        if let Some(folder) = &self.model.adapter {
            model.load_adapter(folder, false)?;
        }
        let mut progress = Progress::new(measured.tokens() as u64, "tokens");
        let result = evaluate::loss(&model, &measured.sequences, |done| {
            progress.advance(done as u64);
            interrupt::go_on()
        })?;
        progress.finish();
        if let Some(path) = &self.logits {
            write_logits(&model, &measured.sequences[0].input_ids, path)?;
        }
        let evaluate::Evaluation { loss, perplexity, tokens } = result;
        let convention = match (measured.kind, self.convention) {
            ("rows", _) => "rows",
            (_, Convention::Windows) => "windows",
            (_, Convention::LlamaCpp) => "llama.cpp",
        };
        let Measured { what, kind, .. } = &measured;
        let by = if convention == "llama.cpp" { ", as llama.cpp counts" } else { "" };
        out.line(format_args!("loss {loss:.4}  perplexity {perplexity:.3}  ({tokens} predicted tokens: {what}{by})"));
        out.result(&json!({
            "loss": loss,
            "perplexity": perplexity,
            "tokens": tokens,
            "measured": kind,
            "convention": convention,
            "sequences": measured.sequences.len(),
        }));
        Ok(())
    }

    /// What is to be predicted. Errors: those of [`MeasureArgs::read`] and [`MeasureArgs::ids`].
    fn measured(&self, global: &Global, model: &Path, source: &Source) -> Result<Measured> {
        if let Some(data) = &self.data {
            return self.measure.read(global, model, source, data, self.convention);
        }
        let texts = match &self.input_ids {
            Some(path) => match read_ids(path)? {
                Ids::One(ids) => vec![ids],
                Ids::Several(lists) => lists,
            },
            None => Vec::new(),
        };
        self.measure.ids(texts, model, source, self.convention)
    }
}

/// Token ids as JSON, out of a file or a pipe. Errors: Io, Format.
fn read_ids(path: &Path) -> Result<Ids> {
    serde_json::from_str(&format::read_text(path)?)
        .map_err(|error| Error::format(path, format!("expected lists of token ids: {error}")))
}

fn write_logits(model: &Model, ids: &[u32], path: &Path) -> Result<()> {
    let logits = evaluate::logits(model, ids)?;
    let spec = TensorSpec::new("logits", DType::F32, [ids.len(), model.arch().vocab_size]);
    write_file(path, &[(spec, bytemuck::cast_slice(&logits))])
}
