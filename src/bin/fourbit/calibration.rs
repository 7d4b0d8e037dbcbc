//! The texts that methods calibrate with, and the methods' own options.

use crate::output::note;
use clap::Args;
use fourbit::{
    Error, Result,
    data::{DataOptions, Dataset, holds_rows},
    format,
    method::{MethodOptions, Observer, Recipe},
    model::Source,
    tokenizer::Tokenizer,
};
use std::path::{Path, PathBuf};

/// What methods that look at activations are shown.
#[derive(Args)]
pub struct CalibrationArgs {
    /// Text for methods that look at activations (gptq, awq, smoothquant, quip, aqlm): a text file, or rows as `finetune` takes them
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Samples of that text
    #[arg(long, value_name = "N", default_value_t = 128)]
    calibration_samples: usize,
    /// Tokens of a sample at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    calibration_length: usize,
    #[command(flatten)]
    options: OptionArgs,
}

/// Options of single methods.
#[derive(Args)]
struct OptionArgs {
    /// gptq: round columns in the order they are stored, not those with large inputs first
    #[arg(long)]
    no_act_order: bool,
    /// gptq, quip, aqlm: what is added to the Hessian's diagonal, in parts of its mean
    #[arg(long, value_name = "D", default_value_t = 0.01)]
    damping: f64,
    /// awq: do not search for ranges to cut to
    #[arg(long)]
    no_clip: bool,
    /// smoothquant: how much of the difficulty moves from activations into weights, 0 to 1
    #[arg(long, value_name = "A", default_value_t = 0.5)]
    alpha: f32,
    /// llm-int8: columns of an input with a magnitude of at least this are not rounded to 8 bits
    #[arg(long, value_name = "T", default_value_t = 6.0)]
    threshold: f32,
    /// quip: seed of the random signs
    #[arg(long, value_name = "N", default_value_t = 0)]
    method_seed: u64,
    /// rtn, gptq: how the range of each block of weights is chosen: minmax, mse for the least squared
    /// error, or percentile-99 to clip one number in a hundred
    #[arg(long, value_name = "NAME", default_value_t = Observer::MinMax)]
    weight_observer: Observer,
    /// Calibrate each layer with what the layers before it in its block give once they are quantized; slower
    #[arg(long)]
    true_sequential: bool,
    /// quip, aqlm: let each block learn to undo its rounding, going through the calibration text this often at most
    #[arg(long, value_name = "N", default_value_t = 0)]
    finetune_epochs: usize,
    /// quip, aqlm: fine-tune this many blocks, from the first on [default: all]
    #[arg(long, value_name = "N")]
    finetune_blocks: Option<usize>,
    /// quip, aqlm: the step of fine-tuning, in parts of the size of what learns
    #[arg(long, value_name = "X", default_value_t = MethodOptions::default().finetune_lr)]
    finetune_lr: f64,
}

impl CalibrationArgs {
    /// The methods' options.
    pub fn options(&self) -> MethodOptions {
        let OptionArgs { no_act_order, damping, no_clip, alpha, threshold, method_seed, true_sequential, .. } =
            self.options;
        let OptionArgs { weight_observer, finetune_epochs, finetune_blocks, finetune_lr, .. } = self.options;
        MethodOptions {
            act_order: !no_act_order,
            damping,
            clip: !no_clip,
            alpha,
            threshold,
            seed: method_seed,
            weights: weight_observer,
            true_sequential,
            finetune_epochs,
            finetune_blocks: finetune_blocks.unwrap_or(usize::MAX),
            finetune_lr,
        }
    }

    /// Whether there is a text.
    pub fn is_given(&self) -> bool {
        self.calibration.is_some()
    }

    /// What methods are shown, in words.
    pub fn text(&self) -> String {
        let path = self.calibration.as_ref().map_or("nothing".to_owned(), |path| path.display().to_string());
        format!("{path}, {} samples of up to {} tokens", self.calibration_samples, self.calibration_length)
    }

    /// Says so where methods are shown the text that is measured: they then look better than they are.
    pub fn note_same(&self, recipes: &[Recipe], data: &Path) {
        let shown = recipes.iter().any(|recipe| recipe.build().is_ok_and(|method| method.needs().any()));
        let whole = |path: &Path| path.canonicalize().ok();
        if let Some(path) =
            self.calibration.as_deref().filter(|path| shown && whole(path).is_some_and(|p| Some(p) == whole(data)))
        {
            let path = path.display();
            note(format_args!("note: {path} is both --calibration and --data: take different texts to compare fairly"));
        }
    }

    /// Token ids of the samples, where one of `recipes` needs them. Errors: Config where no file was given or it holds too
    /// little; Io, Format, Data.
    pub fn samples(&self, recipes: &[Recipe], model: &Path, source: &Source) -> Result<Vec<Vec<u32>>> {
        let mut needing = None;
        for recipe in recipes {
            if recipe.build()?.needs().any() {
                needing = Some(recipe.method.name());
            }
        }
        needing.map_or(Ok(Vec::new()), |method| self.load(method, model, source))
    }

    /// Token ids of the samples, for `method`. Errors: as [`CalibrationArgs::samples`].
    pub fn load(&self, method: &str, model: &Path, source: &Source) -> Result<Vec<Vec<u32>>> {
        let path = self.calibration.as_ref();
        let path = path.ok_or_else(|| Error::config("--calibration", format!("{method} needs a text to look at")))?;
        let length = self.calibration_length.min(source.config.max_positions);
        if self.calibration_samples == 0 {
            return Err(Error::config("--calibration-samples", "expected at least 1"));
        }
        if length < 2 {
            return Err(Error::config("--calibration-length", "expected samples of at least 2 tokens"));
        }
        let tokenizer = Tokenizer::open(model)?;
        let mut samples = match holds_rows(path)? {
            true => {
                let vocab_size = source.config.vocab_size;
                let options = DataOptions { max_seq_length: length, completion_only: false, vocab_size };
                let data = Dataset::load(path, tokenizer.as_ref(), &options)?;
                data.examples().iter().take(self.calibration_samples).map(|row| row.input_ids.clone()).collect()
            }
            false => {
                let missing = || Error::config("--calibration", format!("{} has no tokenizer", model.display()));
                let ids = tokenizer.ok_or_else(missing)?.encode(&format::read_text(path)?, false)?;
                ids.chunks(length).take(self.calibration_samples).map(<[u32]>::to_vec).collect::<Vec<_>>()
            }
        };
        samples.retain(|ids| ids.len() >= 2);
        if samples.is_empty() {
            return Err(Error::config("--calibration", format!("{} has no sample of two tokens", path.display())));
        }
        Ok(samples)
    }
}
