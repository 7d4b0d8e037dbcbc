//! Options of training weights themselves, through rounding or as floats, and the folder that it leaves.

use crate::adapter_args::AdapterArgs;
use crate::args::{ModelArgs, QuantArgs};
use clap::Args;
use fourbit::{
    Error, Result,
    adapter::{FullConfig, InputScales, QatConfig, Ranges},
    data::Dataset,
    export::{ModelWriter, QuantizedFolder, write_tokenizer},
    method::{ActivationScales, Method, Observer, Recipe},
    model::{LoadOptions, Model, Source},
    quant::Scheme,
    train::{TrainConfig, TrainerState},
};
use std::path::Path;

/// How to train through rounding.
#[derive(Args)]
pub struct QatArgs {
    /// Train through rounding to this scheme (quantization-aware training), such as int3-g64 or nf4; --output then gets the
    /// quantized model instead of an adapter. Weights begin as they are stored, unless --quantization says otherwise
    #[arg(long, value_name = "SCHEME")]
    pub qat: Option<String>,
    /// Round the inputs of the layers to 8 bits too: none, dynamic (one scale per token) or static (one per layer, observed on the
    /// first rows) [default: none]
    #[arg(long, value_name = "NAME", requires = "qat")]
    pub qat_activations: Option<String>,
    /// Ranges of the codes: observed (from the weights, each step) or learned (trained steps, LSQ; static activations' too)
    /// [default: observed]
    #[arg(long, value_name = "NAME", requires = "qat")]
    pub qat_ranges: Option<String>,
    /// Train weights instead of an adapter on them: with --qat those of the blocks' linear layers, through rounding; without it all there
    /// are, as floats (full fine-tuning: 16 bytes of device memory a value), and --output gets the model
    #[arg(long)]
    pub full: bool,
    /// With --full: train the last N blocks alone, with the final norm, and the head where it is not the embedding
    #[arg(long, value_name = "N", requires = "full", conflicts_with = "qat")]
    pub last_layers: Option<usize>,
}

/// Rows from whose inputs the scales of static activations are taken.
const OBSERVED_ROWS: usize = 16;

impl QatArgs {
    /// What to round to; `None` without `--qat`. Errors: Config, Unsupported.
    pub fn config(&self) -> Result<Option<QatConfig>> {
        let Some(scheme) = &self.qat else { return Ok(None) };
        let scheme: Scheme = scheme.parse()?;
        let activations = match self.qat_activations.as_deref() {
            None | Some("none") => None,
            Some("dynamic") => Some(InputScales::Dynamic),
            Some("static") => Some(InputScales::Static),
            Some(other) => return Err(Error::unsupported("--qat-activations", other, "none, dynamic, static")),
        };
        let ranges = self.qat_ranges.as_deref().map_or(Ok(Ranges::Observed), str::parse)?;
        let config = QatConfig { scheme, ranges, activations };
        config.validate()?;
        Ok(Some(config))
    }

    /// How to load the source: what is trained through rounding begins as it is stored. Errors: those of
    /// [`QuantArgs::options`].
    pub fn load_options(&self, quant: &QuantArgs, source: &Source) -> Result<LoadOptions> {
        if self.full && self.qat.is_none() && quant.is_given() {
            let message =
                "is no option of --full, which trains floats; leave it out, or train through rounding with --qat";
            return Err(Error::config("--quantization", message));
        }
        match self.is_given() && !quant.is_given() {
            true => Ok(LoadOptions::default()),
            false => quant.options(source),
        }
    }

    /// Whether weights are trained, through rounding or as floats.
    pub fn is_given(&self) -> bool {
        self.qat.is_some() || self.full
    }

    /// Which weights are trained as floats, where some are.
    fn full_config(&self) -> Option<FullConfig> {
        (self.full && self.qat.is_none()).then_some(FullConfig { last_layers: self.last_layers })
    }

    /// Whether an adapter is to be trained. Errors: Config where options of one come with `--full`.
    pub fn trains_adapter(&self, adapter: &AdapterArgs, model: &ModelArgs) -> Result<bool> {
        if self.full && (adapter.is_given() || model.adapter.is_some()) {
            return Err(Error::config("--full", "trains the weights themselves; leave the options of the adapter out"));
        }
        Ok(!self.full)
    }

    /// Puts what is trained on a model on a dry device, to count it. Errors: those of [`AdapterArgs::attach`] and [`Model::add_qat`].
    pub fn count(
        &self,
        model: &mut Model,
        adapter: &AdapterArgs,
        chosen: &ModelArgs,
        train: &TrainConfig,
    ) -> Result<()> {
        if self.trains_adapter(adapter, chosen)? {
            adapter.attach(model, chosen.adapter.as_deref(), train, None)?;
        }
        self.config()?.map_or(Ok(()), |qat| model.add_qat(qat, true))?;
        self.full_config().map_or(Ok(()), |full| model.add_full(full, true))
    }

    /// Begins the training of weights on a model with its adapter, where that was asked for. Errors: those of [`Model::add_qat`],
    /// [`Model::observe_inputs`] and [`Model::add_full`].
    pub fn begin(&self, model: &mut Model, rows: &Dataset) -> Result<()> {
        if let Some(full) = self.full_config() {
            return model.add_full(full, true);
        }
        let Some(config) = self.config()? else { return Ok(()) };
        model.add_qat(config, true)?;
        if config.activations == Some(InputScales::Static) {
            let rows = rows.iter().take(OBSERVED_ROWS).map(|row| Ok(row?.input_ids));
            model.observe_inputs(&rows.collect::<Result<Vec<_>>>()?)?;
        }
        Ok(())
    }

    /// The folder that the model will be written to, checked before anything runs, where weights are trained: in the layout of bitsandbytes
    /// or compressed-tensors, or in the floats that the model is stored in. Errors: those of [`QuantizedFolder::open`], Unsupported for a scheme without a layout.
    pub fn folder(&self, source: &Source, model: &Path, output: &Path) -> Result<Option<QuantizedFolder>> {
        match (self.config()?, self.full_config()) {
            (Some(config), _) => folder(model, &config, output).map(Some),
            (None, Some(_)) => folder(model, &QatConfig::new(stored_floats(source)?), output).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The floats that the blocks' first linear layer is stored in; f32 where those are none. Errors: MissingTensor, Format.
fn stored_floats(source: &Source) -> Result<Scheme> {
    let Some((name, _)) = source.arch().linear_layers().next() else { return Ok(Scheme::F32) };
    let stored = source.scheme(&format!("{name}.weight"))?;
    Ok(if stored.is_float() { stored } else { Scheme::F32 })
}

fn folder(model: &Path, config: &QatConfig, output: &Path) -> Result<QuantizedFolder> {
    let activations = config.activations.map(|scales| match scales {
        InputScales::Dynamic => ActivationScales::Dynamic,
        InputScales::Static => ActivationScales::Static(Observer::MinMax),
    });
    let recipe = Recipe { activations, ..Recipe::new(Method::Rtn, config.scheme) };
    QuantizedFolder::open(model, config.scheme, recipe.layout()?, output)
}

/// Converts the model and writes it with its tokenizer and the run's records. Errors: Io, Config, Device.
pub fn save(model: &mut Model, folder: &QuantizedFolder, state: &TrainerState) -> Result<()> {
    if model.qat().is_some() {
        model.convert_qat()?;
    }
    let written = folder.write_model(model, &mut |_| Ok(()))?;
    if let Some(files) = written.folder() {
        write_tokenizer(folder.input(), files)?;
        state.save(files)?;
    }
    written.commit().map(|_| ())
}
