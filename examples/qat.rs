//! Quantization-aware training beside rounding: which of them keeps more of what a model has learned, at few bits.
//!
//! `cargo run --release --example qat [-- SCHEME [STEPS [MODEL ROWS.jsonl]]]`. The rows are learned as texts; every fifth is
//! held out, and the loss is measured on those, each by itself: a model that learned rows alone knows nothing of what follows one.

use fourbit::{
    Error, Gpu, Model, Result, Tokenizer, TrainConfig, Trainer,
    adapter::{QatConfig, Ranges},
    data::{Batch, DataOptions, Dataset, Example},
    evaluate::perplexity,
    model::LoadOptions,
    quant::Scheme,
    train::Schedule,
};
use std::time::Instant;

const ROWS: usize = 4;

/// What all runs share.
struct Runs {
    gpu: Gpu,
    path: String,
    learned: Vec<Example>,
    held_out: Vec<Example>,
    longest: usize,
    steps: usize,
}

impl Runs {
    fn load(&self) -> Result<Model> {
        Model::load(&self.gpu, &self.path, &LoadOptions::default())
    }

    /// The model after training, as it is stored then.
    fn trained(&self, qat: QatConfig) -> Result<Model> {
        let mut model = self.load()?;
        model.add_qat(qat, true)?;
        let config = TrainConfig {
            learning_rate: 1e-3,
            lr_scheduler_type: Schedule::Cosine,
            warmup_steps: 2,
            max_steps: self.steps,
            batch_size: ROWS,
            max_seq_length: self.longest,
            ..TrainConfig::default()
        };
        let mut trainer = Trainer::new(model, config)?;
        let mut rows = self.learned.iter().cycle();
        for _ in 0..self.steps {
            let batch: Vec<&Example> = rows.by_ref().take(ROWS).collect();
            trainer.step(&[Batch::collate(&batch, 0)])?;
        }
        let mut model = trainer.into_model();
        model.convert_qat()?;
        Ok(model)
    }

    fn row(&self, name: &str, start: Instant, model: &Model) -> Result<()> {
        let (mut sum, mut tokens) = (0.0, 0);
        for row in &self.held_out {
            let row = perplexity(model, &row.input_ids, self.longest, |_| Ok(()))?;
            sum += row.loss * row.tokens as f64;
            tokens += row.tokens;
        }
        let loss = sum / tokens as f64;
        let scheme = model.linears().next().expect("a model has layers").base.weight.scheme().to_string();
        let bytes: u64 = model.linears().map(|l| l.base.weight.bytes()).sum();
        println!("{name:44} {scheme:10} {:7.2} {loss:8.4} {:7.1}", bytes as f64 / 1e6, start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Rounds the weights to nearest.
fn rounded(mut model: Model, scheme: Scheme) -> Result<Model> {
    model.add_qat(QatConfig::new(scheme), false)?;
    model.convert_qat()?;
    Ok(model)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let scheme: Scheme = arguments.next().as_deref().unwrap_or("int2-g64").parse()?;
    let steps = arguments.next().map_or(Ok(60), |n| n.parse()).map_err(|_| Error::config("STEPS", "is a number"))?;
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");
    let path = arguments.next().unwrap_or_else(|| embedded.to_owned());
    let rows = arguments.next().unwrap_or_else(|| format!("{embedded}/train.jsonl"));

    let gpu = Gpu::new()?;
    let tokenizer = Tokenizer::open(&path)?.ok_or_else(|| Error::config("model", "it has no tokenizer"))?;
    let vocab_size = Model::load(&gpu, &path, &LoadOptions::default())?.arch().vocab_size;
    let options = DataOptions { completion_only: false, ..DataOptions::new(128, vocab_size) };
    let dataset = Dataset::load(&rows, Some(&tokenizer), &options)?;
    let examples = dataset.iter().collect::<Result<Vec<_>>>()?.into_iter().enumerate();
    let (held, learned): (Vec<_>, Vec<_>) = examples.partition(|(n, _)| n % 5 == 0);
    let [held_out, learned] = [held, learned].map(|rows| rows.into_iter().map(|(_, row)| row).collect());
    let runs = Runs { gpu, path, learned, held_out, longest: dataset.longest(), steps };

    println!("{:44} {:10} {:>7} {:>8} {:>7}", "weights of the blocks", "scheme", "MB", "loss", "seconds");
    let start = Instant::now();
    runs.row("as stored", start, &runs.load()?)?;
    runs.row("as stored, rounded", start, &rounded(runs.load()?, scheme)?)?;
    let start = Instant::now();
    let float = runs.trained(QatConfig::new(Scheme::F32))?;
    runs.row(&format!("trained in floats, {steps} steps"), start, &float)?;
    runs.row("trained in floats, then rounded", start, &rounded(float, scheme)?)?;
    let learnable = matches!(scheme, Scheme::Int { .. });
    for ranges in [Ranges::Observed, Ranges::Learned].into_iter().take(1 + usize::from(learnable)) {
        let start = Instant::now();
        let model = runs.trained(QatConfig { ranges, ..QatConfig::new(scheme) })?;
        runs.row(&format!("trained through rounding, {ranges} ranges"), start, &model)?;
    }
    Ok(())
}
