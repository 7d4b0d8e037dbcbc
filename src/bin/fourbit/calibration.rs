//! The texts that methods calibrate with, and the methods' own options.

use crate::args::Global;
use crate::output::{Output, note};
use clap::Args;
use fourbit::{
    Error, Result, data,
    format::is_same,
    method::{Compared, Method, MethodOptions, Observer, Recipe},
    model::Source,
    tokenizer::Tokenizer,
};
use serde_json::{Map, Value, json};
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
    /// gptq, awq: hold every fourth sample back, and round a layer to nearest where that loses less of their outputs; each is named
    #[arg(long)]
    keep_better: bool,
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
        let OptionArgs { weight_observer, finetune_epochs, finetune_blocks, finetune_lr, keep_better, .. } =
            self.options;
        MethodOptions {
            act_order: !no_act_order,
            damping,
            clip: !no_clip,
            alpha,
            threshold,
            seed: method_seed,
            weights: weight_observer,
            keep_better,
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
        if let Some(path) = self.calibration.as_deref().filter(|path| shown && is_same(path, data)) {
            let path = path.display();
            note(format_args!("note: {path} is both --calibration and --data: take different texts to compare fairly"));
        }
    }

    /// Token ids of the samples, where one of `recipes` needs them. Errors: Config where no file was given or it holds too
    /// little; Io, Format, Data.
    pub fn samples(&self, global: &Global, recipes: &[Recipe], model: &Path, source: &Source) -> Result<Vec<Vec<u32>>> {
        let mut needing = None;
        for recipe in recipes {
            if recipe.build()?.needs().any() {
                needing = Some(recipe.method.name());
            }
        }
        let samples = needing.map_or(Ok(Vec::new()), |method| self.load(global, method, model, source))?;
        self.warn_of_few(recipes, &samples, source);
        Ok(samples)
    }

    /// Warns where `samples` are too few tokens for one of `recipes`, with how many samples are enough.
    pub fn warn_of_few(&self, recipes: &[Recipe], samples: &[Vec<u32>], source: &Source) {
        let Some(recipe) = recipes.iter().find(|recipe| recipe.method.fits_columns()) else { return };
        let widest = source.arch().linear_layers().map(|(_, [_, inputs])| inputs).max().unwrap_or(0);
        let (count, tokens) = (samples.len(), samples.iter().map(Vec::len).sum::<usize>());
        let needs = recipe.build().map(|method| method.needs()).unwrap_or_default();
        let shown = samples.iter().enumerate().filter(|(number, _)| !needs.holds_back(*number, count));
        let shown: usize = shown.map(|(_, ids)| ids.len()).sum();
        let enough = Method::TOKENS_PER_COLUMN * widest;
        if shown >= enough || tokens == 0 {
            return;
        }
        let held_back =
            if shown < tokens { format!(" ({} more are held back)", tokens - shown) } else { String::new() };
        let samples = (count * enough).div_ceil(shown.max(1));
        let remedy = match count < self.calibration_samples {
            true => format!("the text holds no more than {count} samples: take one of about {samples} such samples"),
            false => format!("take --calibration-samples {samples}"),
        };
        note(format_args!(
            "warning: {shown} tokens of calibration{held_back} are few for {}: layers of {widest} columns need about {enough}, and with \
             fewer rounding to nearest can be better on other texts; {remedy}",
            recipe.method.name()
        ));
    }

    /// Token ids of the samples, for `method`. Errors: as [`CalibrationArgs::samples`].
    pub fn load(&self, global: &Global, method: &str, model: &Path, source: &Source) -> Result<Vec<Vec<u32>>> {
        let path = self.calibration.as_ref();
        let path = path.ok_or_else(|| Error::config("--calibration", format!("{method} needs a text to look at")))?;
        let length = self.calibration_length.min(source.arch().max_positions);
        let tokenizer = Tokenizer::open(model)?;
        let options = global.data_options(length, source);
        data::samples(path, tokenizer.as_ref(), self.calibration_samples, &options)
    }
}

/// Names the layers that `--keep-better` rounds to nearest, a line each; all that were compared go into the result.
pub fn tell_compared(out: Output, recipe: &Recipe, compared: &[Compared], told: &mut Map<String, Value>) {
    if compared.is_empty() {
        return;
    }
    let method = recipe.method.name();
    let rounded: Vec<&Compared> = compared.iter().filter(|layer| layer.keeps_rounding()).collect();
    out.line(format_args!("kept rounding in {} of {} layers", rounded.len(), compared.len()));
    for Compared { layer, method: lost, rounding } in &rounded {
        out.line(format_args!(
            "  {layer}: loses {rounding:.3e} of the output on samples held back, {method} {lost:.3e}"
        ));
    }
    let names: Vec<&str> = rounded.iter().map(|layer| layer.layer.as_str()).collect();
    told.insert("kept_rounding".to_owned(), json!(names));
    told.insert("held_back".to_owned(), json!(compared));
}
