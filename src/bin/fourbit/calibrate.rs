//! `fourbit calibrate`

use crate::args::Global;
use crate::calibration::CalibrationArgs;
use crate::interrupt::go_on;
use crate::output::Output;
use crate::progress::Progress;
use fourbit::{
    Error, Result,
    format::{Claim, atomic},
    method::{
        ActivationScales, LayerFigures, LayerMethod, Method, Observer, PipelineOptions, Recipe, Stored, quantize_model,
    },
    model::Source,
};
use serde::Serialize;
use std::path::PathBuf;

/// Show what quantization costs each layer: ranges, shares of clipped numbers and signal-to-noise ratios
///
/// The calibration text is read, weights are rounded by --method, and the input of each layer to 8 bits with the scale that
/// --observer chooses; nothing is written but the report. Ratios are in dB: 6 dB more are one bit more.
#[derive(clap::Args)]
pub struct Calibrate {
    /// Hugging Face folder or GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Method and scheme of the weights, as compare takes them; rtn:f32 leaves them as they are. `stored` reports on a
    /// quantized model as it is, with its own rounding of inputs
    #[arg(long, value_name = "METHOD[:SCHEME]", default_value = "rtn:int8-channel-sym-f32")]
    method: String,
    /// What chooses the scale of each layer's input: minmax, moving-average, percentile, mse or entropy, with a parameter
    /// such as percentile-99.9; dynamic for one scale per token; none to leave inputs as they are [default: the method's, or
    /// else minmax; none for llm-int8 and quip]
    #[arg(long, value_name = "NAME")]
    observer: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Print only so many layers: those whose output suffers most
    #[arg(long, value_name = "N")]
    worst: Option<usize>,
    /// Save the report as JSON here
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The method that changes nothing.
const STORED: &str = "stored";

/// What is saved.
#[derive(Serialize)]
struct Report {
    model: String,
    recipe: String,
    calibration: String,
    layers: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    figures: LayerFigures,
}

impl Calibrate {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let recipe = self.recipe()?;
        self.calibration.options().check_taken(recipe.as_slice())?;
        let source = Source::open(&self.model)?;
        let _claim = self.output.as_ref().map(Claim::of).transpose()?;
        let method: Box<dyn LayerMethod + '_> = match &recipe {
            Some(recipe) => recipe.build()?,
            None => Box::new(Stored::new(&source)),
        };
        let options = recipe.as_ref().map_or_else(PipelineOptions::default, Recipe::pipeline);
        let options = PipelineOptions { report: true, ..options };
        let samples = self.calibration.load(global, "calibrate", &self.model, &source)?;
        self.calibration.warn_of_few(recipe.as_slice(), &samples, &source);
        let gpu = global.gpu()?;
        let mut report = Report {
            model: self.model.display().to_string(),
            recipe: recipe.map_or(STORED.to_owned(), |recipe| recipe.to_string()),
            calibration: self.calibration.text(),
            layers: Vec::new(),
        };
        let mut progress = Progress::new(source.arch().linear_count() as u64, "layers");
        quantize_model(&gpu, &source, &*method, &options, &samples, |layer| {
            progress.advance(1);
            if let Some(figures) = layer.figures {
                report.layers.push(Line { name: layer.name.clone(), figures });
            }
            go_on()
        })?;
        progress.finish();
        print(out, &report, self.worst);
        let value = serde_json::to_value(&report).map_err(|e| Error::config("calibrate", e.to_string()))?;
        if let Some(path) = &self.output {
            atomic::write_json(path, &value)?;
        }
        out.result(&value);
        Ok(())
    }

    /// The method with the activations that are asked for; `None` for the model as it is stored. Errors: Unsupported, Config.
    fn recipe(&self) -> Result<Option<Recipe>> {
        let fixed = self.method == STORED || self.method.contains('+');
        if fixed && self.observer.is_some() {
            let message = format!("{} says already how inputs are rounded", self.method);
            return Err(Error::config("--observer", message));
        }
        if self.method == STORED {
            return Ok(None);
        }
        let recipe: Recipe = self.method.parse()?;
        let activations = match self.observer.as_deref() {
            Some("none") => None,
            Some("dynamic") => Some(ActivationScales::Dynamic),
            Some(name) => Some(ActivationScales::Static(name.parse()?)),
            // The one has its own way, the other's inputs are seen before its Hadamard transforms alone.
            None if matches!(recipe.method, Method::LlmInt8 | Method::Quip) => None,
            None => recipe.activations.or(Some(ActivationScales::Static(Observer::MinMax))),
        };
        let recipe = Recipe { activations, options: self.calibration.options(), ..recipe };
        recipe.build().map(|_| Some(recipe))
    }
}

/// A table: all layers in order, or the worst.
fn print(out: Output, report: &Report, worst: Option<usize>) {
    let mut lines: Vec<&Line> = report.layers.iter().collect();
    if let Some(count) = worst {
        let ratio = |line: &Line| line.figures.output_sqnr.unwrap_or(f64::INFINITY);
        lines.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        lines.truncate(count);
    }
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0).max(5);
    out.line(format_args!(
        "{:width$} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "layer", "low", "high", "held", "clipped", "input dB", "w range", "w clip", "weight dB", "output dB"
    ));
    let decibels = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
    for Line { name, figures } in lines {
        let (input, weight) = (&figures.input, &figures.weight);
        out.line(format_args!(
            "{name:width$} {:>9.3} {:>9.3} {:>9} {:>7.3}% {:>8} {:>8.3} {:>7.3}% {:>9} {:>9}",
            input.low,
            input.high,
            input.clip.map_or("-".to_owned(), |clip| format!("{clip:.3}")),
            100.0 * input.clipped,
            decibels(input.sqnr),
            weight.high.max(-weight.low),
            100.0 * weight.clipped,
            decibels(weight.sqnr),
            decibels(figures.output_sqnr),
        ));
    }
}
