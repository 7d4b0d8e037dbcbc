//! `fourbit evaluate`

use crate::args::{Global, ModelArgs, QuantArgs, max_seq_length, text_ids};
use crate::progress::Progress;
use fourbit::{
    DType, Error, Result, evaluate,
    format::{
        self,
        safetensors::{TensorSpec, write_file},
    },
    model::{Model, Source},
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Measure the perplexity of a text: the mean over independent windows, without a token in front
#[derive(clap::Args)]
pub struct Evaluate {
    #[command(flatten)]
    model: ModelArgs,
    /// Text file
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
    /// Tokens of the text that are read, from its beginning [default: all]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens of a window [default: 1024, or the model's positions where they are fewer]
    #[arg(long, value_name = "N")]
    max_seq_length: Option<usize>,
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
        let window = max_seq_length(self.max_seq_length, &source)?;
        let texts = self.texts(&base.path)?;

        let gpu = global.gpu()?;
        let mut model = Model::from_source(&gpu, &source, &load_options)?;
        if let Some(folder) = &self.model.adapter {
            model.load_adapter(folder, false)?;
        }
        let mut progress = Progress::new(texts.iter().map(|ids| ids.len() as u64).sum(), "tokens");
        let (mut sum, mut tokens) = (0.0, 0);
        for ids in &texts {
            let part = evaluate::perplexity(&model, ids, window, |done| progress.advance(done as u64))?;
            sum += part.loss * part.tokens as f64;
            tokens += part.tokens;
        }
        progress.finish();
        if let Some(path) = &self.logits {
            write_logits(&model, &texts[0][..texts[0].len().min(window)], path)?;
        }
        let loss = sum / tokens as f64;
        let perplexity = loss.exp();
        out.line(format_args!("loss {loss:.4}  perplexity {perplexity:.3}  ({tokens} predicted tokens)"));
        out.result(&json!({ "loss": loss, "perplexity": perplexity, "tokens": tokens }));
        Ok(())
    }

    /// Token ids of what is to be predicted: at least one text, each of two tokens or more.
    fn texts(&self, model: &Path) -> Result<Vec<Vec<u32>>> {
        if let Some(path) = &self.data {
            return Ok(vec![text_ids(model, path, self.max_tokens)?]);
        }
        let mut texts = match &self.input_ids {
            Some(path) => match format::read_json(path)? {
                Ids::One(ids) => vec![ids],
                Ids::Several(lists) => lists,
            },
            None => Vec::new(),
        };
        let mut left = self.max_tokens.unwrap_or(usize::MAX);
        for text in &mut texts {
            text.truncate(left);
            left -= text.len();
        }
        texts.retain(|ids| ids.len() >= 2);
        match texts.is_empty() {
            true => Err(Error::config("--input-ids", "no text has two tokens; nothing can be predicted")),
            false => Ok(texts),
        }
    }
}

fn write_logits(model: &Model, ids: &[u32], path: &Path) -> Result<()> {
    let logits = evaluate::logits(model, ids)?;
    let spec = TensorSpec::new("logits", DType::F32, [ids.len(), model.config.vocab_size]);
    write_file(path, &[(spec, bytemuck::cast_slice(&logits))])
}
