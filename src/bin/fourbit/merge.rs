//! `fourbit merge`

use crate::args::{Global, ModelArgs, QuantArgs, max_seq_length, text_ids};
use crate::calibration::CalibrationArgs;
use crate::export::{Export, go_on, is_gguf, suited};
use crate::progress::Progress;
use fourbit::{
    Error, Result, evaluate,
    gpu::Gpu,
    method::{Merge as Merged, Method, PipelineOptions, Recipe, quantize_model},
    model::{LoadOptions, Model, Quantization, Source, load_adapter},
    quant::Scheme,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Merge an adapter into its base and quantize the sum, losing as little of what was learned as can be
///
/// An adapter's update is smaller than the steps of 4 bits, so that rounding the merged weights to nearest loses much of it. The
/// default method, gptq, rounds such that the outputs of the layers stay what they were on a calibration text: take one like
/// what the adapter was trained on. With `--data` the perplexity of that text is told for the base with its adapter, for the merged
/// weights rounded to nearest, and for what is written. `--scheme bf16 --method rtn` writes a model that is not quantized.
#[derive(clap::Args)]
pub struct Merge {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    base: QuantArgs,
    /// How numbers are chosen: gptq, rtn, hqq, awq and more, as `fourbit quantize` takes them
    #[arg(long, value_name = "NAME", default_value = "gptq")]
    method: String,
    /// How numbers are stored [default: as the base's are held, without double quantization, where the method can; else the
    /// method's own scheme]
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Text whose perplexity tells what merging costs
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Tokens of that text that are read, from its beginning [default: all]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens of a window [default: 1024, or the model's positions where they are fewer]
    #[arg(long, value_name = "N")]
    max_seq_length: Option<usize>,
    /// Folder to write, or a file whose name ends in .gguf
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

/// What all models that are measured are made of.
struct Job<'a> {
    gpu: Gpu,
    source: &'a Source,
    adapter: &'a Path,
    base: Quantization,
    samples: Vec<Vec<u32>>,
}

impl Merge {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let adapter = self.model.adapter.as_deref();
        let adapter =
            adapter.ok_or_else(|| Error::config("--adapter", "is needed: the folder that is to be merged"))?;
        let base = self.model.base()?;
        let source = Source::open(&base.path)?;
        let LoadOptions { quantization } = self.base.options(&source)?;
        let recipe = self.recipe(held(&source, quantization)?)?;
        recipe.options.check_taken(&[recipe])?;
        let export = Export::open(&base.path, &recipe, &self.output)?;
        let window = max_seq_length(self.max_seq_length, &source)?;
        let ids = self.data.as_ref().map(|text| text_ids(&base.path, text, self.max_tokens)).transpose()?;
        let samples = self.calibration.samples(std::slice::from_ref(&recipe), &base.path, &source)?;
        if let Some(text) = &self.data {
            self.calibration.note_same(&[recipe], text);
        }
        let job = Job { gpu: global.gpu()?, source: &source, adapter, base: quantization, samples };

        let mut told = serde_json::Map::new();
        let mut tell = |what: &str, name: String, model: &Model| -> Result<()> {
            let Some(ids) = &ids else { return Ok(()) };
            let measured = evaluate::perplexity(model, ids, window, |_| {})?;
            out.line(format_args!("{name:44} loss {:.4}  perplexity {:.3}", measured.loss, measured.perplexity));
            told.insert(what.to_owned(), json!({ "loss": measured.loss, "perplexity": measured.perplexity }));
            go_on()
        };
        if ids.is_some() {
            tell("before", "before: base and adapter".to_owned(), &job.unmerged()?)?;
            let nearest = Recipe { activations: recipe.activations, ..Recipe::new(Method::Rtn, recipe.scheme) };
            if nearest.build().is_err() {
                out.line(format_args!("naive merge: none, since rounding to nearest cannot make {}", recipe.scheme));
            } else if nearest != recipe {
                tell("naive", format!("naive merge: {nearest}"), &job.merged(&nearest)?)?;
            }
        }
        let model = job.merged(&recipe)?;
        tell("merged", format!("this merge: {recipe}"), &model)?;
        export.write_model(out, &model, told)
    }

    /// Errors: Config, Unsupported.
    fn recipe(&self, held: Scheme) -> Result<Recipe> {
        let method: Method = self.method.parse()?;
        let recipe = |scheme| Recipe { options: self.calibration.options(), ..Recipe::new(method, scheme) };
        if let Some(text) = &self.scheme {
            return suited(recipe(text.parse()?), &self.output);
        }
        let plain = match held {
            Scheme::Nf4 { block_size, .. } => Scheme::Nf4 { block_size, double_quant: false },
            Scheme::Fp4 { block_size, .. } => Scheme::Fp4 { block_size, double_quant: false },
            other => other,
        };
        if is_gguf(&self.output) {
            let same = suited(recipe(plain), &self.output);
            return same.or_else(|_| suited(recipe(Scheme::Q4_0), &self.output));
        }
        let same = recipe(plain);
        match !plain.is_float() && same.build().is_ok() && same.layout().is_ok() {
            true => Ok(same),
            false => Ok(recipe(method.default_scheme())),
        }
    }
}

impl Job<'_> {
    /// The base with its adapter beside it.
    fn unmerged(&self) -> Result<Model> {
        let mut model = Model::from_source(&self.gpu, self.source, &LoadOptions { quantization: self.base })?;
        model.load_adapter(self.adapter, false)?;
        Ok(model)
    }

    fn merged(&self, recipe: &Recipe) -> Result<Model> {
        let floats = |name: &str| {
            let weight = format!("{name}.weight");
            let held = self.source.scheme(&weight)?.is_float() && matches!(self.base, Quantization::AsStored);
            held.then(|| Ok(self.source.packed(&weight, self.source.shape(&weight)?)?.dequantize())).transpose()
        };
        let adapter = load_adapter(&self.gpu, &self.source.config, self.adapter, false, &floats)?;
        let method = Merged { method: recipe.build()?, adapter };
        let options = PipelineOptions { base: self.base, ..recipe.pipeline() };
        let mut progress = Progress::new(7 * self.source.config.layers as u64, "layers");
        let model = quantize_model(&self.gpu, self.source, &method, &options, &self.samples, |_| {
            progress.advance(1);
            go_on()
        })?;
        progress.finish();
        Ok(model)
    }
}

/// The scheme of the base's layers. Errors: MissingTensor, Format.
fn held(source: &Source, quantization: Quantization) -> Result<Scheme> {
    match quantization {
        Quantization::To(scheme) => Ok(scheme),
        Quantization::AsStored => source.scheme(&format!("model.layers.0.{}.weight", source.config.linears()[0].0)),
    }
}
