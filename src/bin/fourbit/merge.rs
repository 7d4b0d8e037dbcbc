//! `fourbit merge`

use crate::args::{Global, ModelArgs, QuantArgs};
use crate::calibration::{CalibrationArgs, tell_compared};
use crate::export;
use crate::interrupt::go_on;
use crate::measure::{Convention, MeasureArgs};
use crate::output::{Output, note};
use crate::progress::Progress;
use fourbit::{
    Error, Result,
    adapter::Adapter,
    evaluate,
    export::{Export, is_gguf, suited},
    format::{Claim, is_same},
    gpu::Gpu,
    method::{Compared, Kept, LayerMethod, Merge as Merged, Method, PipelineOptions, Recipe, quantize_model},
    model::{LoadOptions, Model, Quantization, Source, load_adapter},
    quant::{BlockSize, Scheme, gcd},
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Merge an adapter into its base and quantize the sum, losing as little of what was learned as can be
///
/// An adapter's update is smaller than the steps of 4 bits, so that rounding the merged weights to nearest loses much of it. The
/// default method, gptq, rounds such that the outputs of the layers stay what they were on a calibration text: take one like
/// what the adapter was trained on. With `--data` the perplexity of that text is measured for the base with its adapter, for the merged
/// weights rounded to nearest, and for what is written. What rounding left of each layer's update is measured, and a warning names the
/// layers that lost more than half of it. `--scheme bf16 --method rtn` writes a model that is not quantized.
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
    /// Text, or rows as finetune takes them, whose perplexity shows what merging costs
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Folder to write, or a file whose name ends in .gguf
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

/// Layers that a warning names.
const NAMED: usize = 4;

/// What all models that are measured are made of.
struct Job<'a> {
    gpu: Gpu,
    source: &'a Source,
    adapter: &'a Path,
    /// The same in device memory.
    loaded: Adapter,
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
        self.check_calibrated(&recipe)?;
        if is_same(adapter, &self.output) {
            return Err(Error::config("--output", "is the adapter's folder; choose another one"));
        }
        let export = Export::open(&base.path, Some(adapter), &recipe, &self.output)?;
        let claim = Claim::of(&self.output)?;
        claim.expect_room(export.bytes()?)?;
        let read = |data: &PathBuf| self.measure.read(global, &base.path, &source, data, Convention::Windows);
        let measured = self.data.as_ref().map(read).transpose()?;
        let gpu = global.gpu()?;
        let loaded = load(&gpu, &source, adapter, quantization)?;
        // What cannot be merged is refused before anything is measured.
        Merged::new(recipe.build()?, &loaded)?;
        let samples = self.calibration.samples(global, std::slice::from_ref(&recipe), &base.path, &source)?;
        if let Some(text) = &self.data {
            self.calibration.note_same(&[recipe], text);
        }
        let job = Job { gpu, source: &source, adapter, loaded, base: quantization, samples };

        let mut told = serde_json::Map::new();
        let mut tell = |what: &str, name: String, model: &Model| -> Result<()> {
            let Some(measured) = &measured else { return Ok(()) };
            let measured = evaluate::loss(model, &measured.sequences, |_| go_on())?;
            out.line(format_args!("{name:44} loss {:.4}  perplexity {:.3}", measured.loss, measured.perplexity));
            told.insert(what.to_owned(), json!({ "loss": measured.loss, "perplexity": measured.perplexity }));
            go_on()
        };
        if let Some(measured) = &measured {
            out.line(format_args!("measured: {}", measured.what));
            tell("before", "before: base and adapter".to_owned(), &job.unmerged()?)?;
            let nearest = Recipe { activations: recipe.activations, ..Recipe::new(Method::Rtn, recipe.scheme) };
            if nearest.build().is_err() {
                out.line(format_args!("naive merge: none, since rounding to nearest cannot make {}", recipe.scheme));
            } else if nearest != recipe {
                tell("naive", format!("naive merge: {nearest}"), &job.merged(&nearest)?.0)?;
            }
        }
        let (model, kept, compared) = job.merged(&recipe)?;
        tell("merged", format!("this merge: {recipe}"), &model)?;
        self.tell_kept(out, &recipe, kept, &mut told);
        tell_compared(out, &recipe, &compared, &mut told);
        let summary = export.write_model(&model, &mut |_| go_on())?;
        export::tell(out, &self.output, &recipe, &summary, told);
        Ok(())
    }

    /// Errors: Config where the method needs a text and has none, naming what needs none.
    fn check_calibrated(&self, recipe: &Recipe) -> Result<()> {
        if self.calibration.is_given() || !recipe.build()?.needs().any() {
            return Ok(());
        }
        let message = format!(
            "{} needs a text to look at, best one like what the adapter was trained on (--data FILE tells what the merge costs); \
             without one, --method rtn --scheme bf16, or --scheme q8_0 in a .gguf file, rounds finely enough to keep an adapter",
            recipe.method.name()
        );
        Err(Error::config("--calibration", message))
    }

    /// Reports what rounding left of the adapter's updates, and warns where that is less than half.
    fn tell_kept(&self, out: Output, recipe: &Recipe, kept: Vec<Kept>, told: &mut serde_json::Map<String, Value>) {
        let Some(worst) = kept.iter().min_by(|a, b| a.share.total_cmp(&b.share)) else { return };
        let mean = kept.iter().map(|kept| kept.share).sum::<f64>() / kept.len() as f64;
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let (mean_text, worst_text) = (percent(mean), percent(worst.share));
        out.line(format_args!("kept of the update: {mean_text} on average, least {worst_text} ({})", worst.layer));
        let lost: Vec<&Kept> = kept.iter().filter(|kept| kept.share < 0.5).collect();
        if !lost.is_empty() {
            let name = |kept: &&Kept| format!("{} {}", kept.layer, percent(kept.share));
            let more = lost.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let names = lost.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
            let finer = if is_gguf(&self.output) { "--scheme q8_0" } else { "--scheme bf16" };
            let remedy = match recipe.build().is_ok_and(|method| method.needs().any()) {
                true => format!("take {finer}"),
                false => format!("take --method gptq with --calibration, or {finer}"),
            };
            note(format_args!(
                "warning: {recipe} rounds away more than half of the update in {} of {} layers ({names}{more}), so that they answer \
                 much as the base does; {remedy}",
                lost.len(),
                kept.len()
            ));
        }
        let lost: Vec<&str> = lost.iter().map(|kept| kept.layer.as_str()).collect();
        told.insert(
            "update_kept".to_owned(),
            json!({ "mean": mean, "least": worst.share, "below_half": lost, "layers": kept }),
        );
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

    fn merged(&self, recipe: &Recipe) -> Result<(Model, Vec<Kept>, Vec<Compared>)> {
        let method = Merged::new(recipe.build()?, &self.loaded)?;
        let options = PipelineOptions { base: self.base, ..recipe.pipeline() };
        let mut progress = Progress::new(self.source.arch().linear_count() as u64, "layers");
        let model = quantize_model(&self.gpu, self.source, &method, &options, &self.samples, |_| {
            progress.advance(1);
            go_on()
        })?;
        progress.finish();
        Ok((model, method.kept(), method.compared()))
    }
}

/// The adapter of a folder on this base. Errors: those of [`load_adapter`].
fn load(gpu: &Gpu, source: &Source, folder: &Path, base: Quantization) -> Result<Adapter> {
    let floats = |name: &str| {
        let weight = format!("{name}.weight");
        let held = source.scheme(&weight)?.is_float() && matches!(base, Quantization::AsStored);
        held.then(|| Ok(source.packed(&weight, source.shape(&weight)?)?.dequantize())).transpose()
    };
    load_adapter(gpu, source.arch(), folder, false, &floats)
}

/// The scheme that all of the base's linear layers can be written in again: their own. Errors: MissingTensor, Format.
fn held(source: &Source, quantization: Quantization) -> Result<Scheme> {
    if let Quantization::To(scheme) = quantization {
        return Ok(scheme);
    }
    let layers: Vec<(Scheme, usize)> = (source.arch().linear_layers())
        .map(|(name, [_, cols])| Ok((source.scheme(&format!("{name}.weight"))?, cols)))
        .collect::<Result<_>>()?;
    let scheme = shared(&layers).unwrap_or(Scheme::F32);
    let longest = layers.iter().filter_map(|&(of, cols)| of.block_size([1, cols])).max();
    if let (Some(longest), Some(BlockSize::Elements(size)), true) = (longest, scheme.block(), is_cut(&layers, scheme)) {
        note(format_args!(
            "the layers' groups of up to {longest} do not all fill their rows: {} is written in groups of {size}",
            scheme.name(),
        ));
    }
    Ok(scheme)
}

/// Whether some layer's groups are longer than those of `scheme`, which all are written in.
fn is_cut(layers: &[(Scheme, usize)], scheme: Scheme) -> bool {
    layers.iter().any(|&(of, cols)| of.block_size([1, cols]) > scheme.block_size([1, cols]))
}

/// The scheme of the first of (scheme, columns); where all are integers of one kind, in blocks that all rows are made of: one per row
/// where each has one, else the largest that divides those of all. A row whose last group is shorter is read as blocks of the
/// groups' common divisor.
fn shared(layers: &[(Scheme, usize)]) -> Option<Scheme> {
    let &(first, _) = layers.first()?;
    let Scheme::Int { bits, symmetric, scale, .. } = first else { return Some(first) };
    let of_one_kind = |&(of, cols): &(Scheme, usize)| match of {
        Scheme::Int { block, .. } if of == (Scheme::Int { bits, block, symmetric, scale }) => {
            Some((block.size([1, cols]), cols))
        }
        _ => None,
    };
    let Some(sizes) = layers.iter().map(of_one_kind).collect::<Option<Vec<_>>>() else { return Some(first) };
    let block = match sizes.iter().all(|(size, cols)| size == cols) {
        true => BlockSize::Row,
        false => BlockSize::Elements(sizes.iter().fold(0, |divisor, &(size, _)| gcd(divisor, size))),
    };
    Some(first.with_block(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_kept_for_rows_of_all_lengths() {
        let of = |layers: &[(usize, usize)]| {
            let layers: Vec<_> = layers.iter().map(|&(block, cols)| (Scheme::int(4, block), cols)).collect();
            shared(&layers).unwrap().block().unwrap()
        };
        assert_eq!(of(&[(192, 192), (448, 448)]), BlockSize::Row);
        assert_eq!(of(&[(64, 64), (64, 128)]), BlockSize::Elements(64), "one group per row by chance");
        assert_eq!(of(&[(128, 128), (64, 448)]), BlockSize::Elements(64), "groups of 128, the last one of 64");
        assert_eq!(of(&[(96, 192), (64, 448)]), BlockSize::Elements(32));
        let mixed = [(Scheme::int8(192), 192), (Scheme::int(4, 64), 448)];
        assert_eq!(shared(&mixed), Some(Scheme::int8(192)), "layers of several widths: the first's");
        assert_eq!(shared(&[(Scheme::Q4_K, 256), (Scheme::Q6_K, 256)]), Some(Scheme::Q4_K));
        assert_eq!(shared(&[]), None);
    }

    #[test]
    fn groups_that_become_shorter_are_told() {
        let layers = |blocks: [usize; 2]| [(Scheme::int(4, blocks[0]), 128), (Scheme::int(4, blocks[1]), 448)];
        assert!(is_cut(&layers([128, 64]), Scheme::int(4, 64)));
        assert!(!is_cut(&layers([64, 64]), Scheme::int(4, 64)));
        assert!(!is_cut(&layers([128, 448]), Scheme::int_per(4, BlockSize::Row)));
    }
}
