//! `fourbit quantize`

use crate::args::{Global, shaped};
use crate::calibration::{CalibrationArgs, tell_compared};
use crate::export::tell;
use crate::interrupt::go_on;
use crate::output::{Output, note};
use crate::progress::Progress;
use fourbit::{
    Error, Result,
    export::{BlockFolder, Export, is_gguf, suited},
    format::Claim,
    method::{ActivationScales, DoneBlocks, Method, Observer, PipelineOptions, Recipe, Tuned, quantize_model},
    quant::{BlockSize, Scheme, ggml},
};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Write a quantized model in the layout that other tools load for the method
///
/// With an output that ends in `.gguf` a GGUF file is written for llama.cpp and others: rtn makes all of its types, the methods
/// that choose integers make q4_0, q5_0 and q8_0.
///
/// The linear layers of the blocks are quantized; embedding, head, norms and biases stay floats. The folder gets config.json and
/// the tokenizer too. Of a single safetensors file every 2-D float tensor is rounded to nearest.
///
/// Methods that are shown a text keep each block that is done in OUTPUT.blocks, until the model is written. A run that was stopped or
/// killed goes on behind them with the same command and --resume, and ends with the same bytes; other methods begin anew
#[derive(clap::Args)]
pub struct Quantize {
    /// Hugging Face folder, GGUF file, or one safetensors file of plain tensors
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// How numbers are chosen: rtn, hqq, gptq, awq, smoothquant, llm-int8, quip or aqlm
    #[arg(long, value_name = "NAME", default_value = "rtn")]
    method: String,
    /// How numbers are stored, such as nf4, fp4, int4-g64, int8-channel-sym, q4_k [default: the method's: nf4 for rtn (q4_k in
    /// a .gguf file), int4-g64 for hqq, gptq and awq (q4_0 in a .gguf file, which hqq cannot fill)]
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<String>,
    /// Bits of integers, 2 to 8; of a .gguf file 4, 5 or 8 (q4_0, q5_0, q8_0)
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
    /// Round the layers' inputs to 8 bits too: a8 with one scale per token; a8-static, a8-mse, a8-entropy, a8-percentile,
    /// a8-moving-average with one per layer, chosen from the calibration text [default: a8 for smoothquant, else not at all]
    #[arg(long, value_name = "NAME")]
    activations: Option<String>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Folder to write, or a file whose name ends in .gguf
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Go on with the blocks that a run of the same command has kept, and from the start where there are none
    #[arg(long)]
    resume: bool,
}

impl Quantize {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let recipe = suited(self.recipe()?, &self.output)?;
        recipe.options.check_taken(&[recipe])?;
        let export = Export::open(&self.input, None, &recipe, &self.output)?;
        let claim = Claim::of(&self.output)?;
        let method = recipe.build()?;
        // Blocks that are kept take about what they take in the output; those of an earlier run are there already.
        let (bytes, blocks) = (export.bytes()?, method.needs().any().then(|| claim.beside("blocks")));
        let kept = blocks.as_deref().map(|folder| bytes.saturating_sub(BlockFolder::bytes(folder)));
        claim.expect_room(bytes.saturating_add(kept.unwrap_or(0)))?;
        let asking = asks_for_a_model(&recipe);
        let Some(source) = export.source().filter(|_| asking.is_some()) else {
            if let Some(option) = asking {
                return Err(Error::config(option, format!("needs a model, and {} is none", self.input.display())));
            }
            let mut progress = Progress::new(export.tensors() as u64, "tensors");
            let summary = export.round(&|| global.gpu(), &mut |_| {
                progress.advance(1);
                go_on()
            })?;
            progress.finish();
            tell(out, &self.output, &recipe, &summary, Map::new());
            return Ok(());
        };
        let samples = self.calibration.samples(global, std::slice::from_ref(&recipe), &self.input, source)?;
        let kept =
            blocks.map(|folder| BlockFolder::open(folder, &recipe, source, &samples, self.resume)).transpose()?;
        let gpu = global.gpu()?;
        let mut progress = Progress::new(source.arch().linear_count() as u64, "layers");
        let mut tuned = Vec::new();
        let options = PipelineOptions { done: kept.as_ref().map(|kept| kept as &dyn DoneBlocks), ..recipe.pipeline() };
        let model = quantize_model(&gpu, source, &*method, &options, &samples, |report| {
            progress.advance(1);
            tuned.extend(report.tuned.map(|tuned| (report.name.clone(), tuned)));
            go_on()
        });
        let model = model.inspect_err(|_| leave(kept.as_ref()))?;
        progress.finish();
        let mut told = finetuned(out, &tuned);
        tell_compared(out, &recipe, &method.compared(), &mut told);
        let summary = export.write_model(&model, &mut |_| go_on()).inspect_err(|_| leave(kept.as_ref()))?;
        if let Some(kept) = &kept {
            kept.remove()?;
        }
        tell(out, &self.output, &recipe, &summary, told);
        Ok(())
    }
}

/// The option that asks for more than rounding, which looks at one tensor at a time.
fn asks_for_a_model(recipe: &Recipe) -> Option<&'static str> {
    match recipe.activations {
        _ if recipe.method != Method::Rtn => Some("--method"),
        _ if recipe.options.weights != Observer::MinMax => Some("--weight-observer"),
        Some(ActivationScales::Static(_)) => Some("--activations"),
        _ => None,
    }
}

/// Reports what fine-tuning did, in a line for people; returns it for the result.
fn finetuned(out: Output, tuned: &[(String, Tuned)]) -> serde_json::Map<String, Value> {
    let mut told = serde_json::Map::new();
    if tuned.is_empty() {
        return told;
    }
    let falls = tuned.iter().map(|(_, t)| if t.before > 0.0 { t.after / t.before } else { 1.0 });
    let mean = 100.0 * falls.sum::<f64>() / tuned.len() as f64;
    out.line(format_args!("fine-tuned {} times: a block's error falls to {mean:.0} % on average", tuned.len()));
    let one = |(name, t): &(String, Tuned)| json!({ "after_layer": name, "error_before": t.before, "error_after": t.after, "epochs": t.epochs });
    told.insert("finetuned".to_owned(), tuned.iter().map(one).collect());
    told
}

/// What a run that ends before its time leaves, which is said.
fn leave(kept: Option<&BlockFolder>) {
    let Some(kept) = kept else { return };
    let folder = kept.folder().display();
    match kept.count() {
        // Nothing is lost with it.
        0 => drop(kept.remove()),
        count => {
            note(format_args!("blocks kept in {folder}: {count}; the same command with --resume goes on behind them"));
        }
    }
}

/// The blocks of a GGUF file that hold integers without zero points.
const BLOCKS: [Scheme; 3] = [Scheme::Q4_0, Scheme::Q5_0, Scheme::Q8_0];

impl Quantize {
    /// What `--bits` stands for, where `default` is the scheme without it. Errors: Unsupported.
    fn integers(&self, method: Method, default: Scheme, bits: u8) -> Result<Scheme> {
        let own = method.default_scheme();
        if method.has_one_scheme() {
            return match own.code_bits() == usize::from(bits) {
                true => Ok(own),
                false => Err(Error::unsupported(format!("bits for {}", method.name()), bits, own.code_bits())),
            };
        }
        if is_gguf(&self.output) {
            let block = BLOCKS.into_iter().find(|block| block.code_bits() == usize::from(bits));
            let (widths, names) = (BLOCKS.map(|b| b.code_bits().to_string()), BLOCKS.map(Scheme::name));
            let (widths, names) = (widths.join(", "), names.join(", "));
            let supported = format!("{widths} ({names}); rtn has others by --scheme, such as q3_k");
            return block.ok_or_else(|| Error::unsupported("bits for a .gguf file", bits, supported));
        }
        Ok(match method {
            // SmoothQuant's bytes have f32 scales; all other integers have halves.
            Method::SmoothQuant if bits == 8 => own,
            _ => Scheme::int_per(bits, default.block().unwrap_or(BlockSize::Elements(64))),
        })
    }

    /// Method, scheme and options. Errors: Config, Unsupported.
    fn recipe(&self) -> Result<Recipe> {
        let method: Method = self.method.parse()?;
        let mut scheme = match &self.scheme {
            Some(text) => text.parse::<Scheme>()?,
            None if is_gguf(&self.output) && method == Method::Rtn => Scheme::Q4_K,
            None if is_gguf(&self.output) => Scheme::Q4_0,
            None => method.default_scheme(),
        };
        if let Some(bits) = self.bits {
            scheme = self.integers(method, scheme, bits)?;
        }
        let mut group_size = None;
        if let Some(size) = self.group_size {
            let size = match size {
                -1 => BlockSize::Row,
                size => BlockSize::Elements(usize::try_from(size).ok().filter(|&n| n > 0).ok_or_else(|| {
                    Error::config("--group-size", format!("expected a positive number or -1, got {size}"))
                })?),
            };
            group_size = Some(size);
        }
        scheme = shaped(scheme, group_size, self.double_quant)?;
        if self.symmetric {
            let has_none = matches!(scheme, Scheme::Int { .. }) || ggml::integers(scheme).is_some();
            if scheme.symmetric() == scheme && !has_none {
                return Err(Error::config("--symmetric", format!("{scheme} has no zero point to leave out")));
            }
            scheme = scheme.symmetric();
        }
        let recipe = Recipe { options: self.calibration.options(), ..Recipe::new(method, scheme) };
        match &self.activations {
            Some(activations) => Ok(Recipe { activations: Some(activations.parse()?), ..recipe }),
            None => Ok(recipe),
        }
    }
}
