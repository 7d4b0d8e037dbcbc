//! A model's files, or its shape alone: what is planned and measured needs no more.

use crate::args::{Base, ModelArgs, QuantArgs};
use crate::qat::QatArgs;
use clap::Args;
use fourbit::{
    Error, Result,
    arch::Architecture,
    gpu::Gpu,
    model::{LoadOptions, Model, Quantization, Source},
    quant::Scheme,
};

/// Which model, or which shape.
#[derive(Args)]
pub struct ShapeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Instead of a model's files the shape of one, with random weights: smollm2-135m, llama-3.2-1b, llama-2-7b, qwen3-4b, ...
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "adapter"])]
    pub shape: Option<String>,
    /// Of the shape only so many blocks
    #[arg(long, value_name = "N", requires = "shape")]
    pub blocks: Option<usize>,
}

/// What was chosen.
pub enum Chosen {
    /// Files, opened.
    Files(Base, Box<Source>),
    /// A shape by its name.
    Shape(String, Box<Architecture>),
}

impl ShapeArgs {
    /// Errors: Unsupported for an unknown shape; those of [`Source::open`].
    pub fn choose(&self) -> Result<Chosen> {
        match &self.shape {
            Some(name) => Chosen::shape(name, self.blocks),
            None => {
                let base = self.model.base()?;
                let source = Source::open(&base.path)?;
                Ok(Chosen::Files(base, Box::new(source)))
            }
        }
    }
}

impl Chosen {
    /// The shape of that name, or its first blocks. Errors: Unsupported; Config for more blocks than there are, or none.
    pub fn shape(name: &str, blocks: Option<usize>) -> Result<Chosen> {
        let mut arch = Architecture::of_shape(name)?;
        let Some(count) = blocks else { return Ok(Chosen::Shape(name.to_owned(), Box::new(arch))) };
        if !(1..=arch.blocks.len()).contains(&count) {
            let message = format!("{name} has {} blocks, expected 1 to so many, got {count}", arch.blocks.len());
            return Err(Error::config("--blocks", message));
        }
        arch.blocks.truncate(count);
        Ok(Chosen::Shape(format!("{name}, {count} blocks"), Box::new(arch)))
    }

    /// The shape's name, or what files hold, without their path.
    pub fn short_name(&self) -> String {
        match self {
            Chosen::Shape(name, _) => name.clone(),
            Chosen::Files(_, source) => {
                let arch = source.arch();
                format!("{} of {:.1} M", arch.family.model_type, arch.parameters() as f64 / 1e6)
            }
        }
    }

    /// The shape.
    pub fn arch(&self) -> &Architecture {
        match self {
            Chosen::Files(_, source) => source.arch(),
            Chosen::Shape(_, arch) => arch,
        }
    }

    /// What it is called in a report.
    pub fn name(&self) -> String {
        match self {
            Chosen::Files(base, _) => base.name().unwrap_or_else(|| "embedded".to_owned()),
            Chosen::Shape(name, _) => format!("shape {name}"),
        }
    }

    /// The files. Errors: Config for a shape, with the option that wants them.
    pub fn files(&self, option: &str) -> Result<(&Base, &Source)> {
        match self {
            Chosen::Files(base, source) => Ok((base, source)),
            Chosen::Shape(..) => Err(Error::config(option, "needs a model's files: give --model instead of --shape")),
        }
    }

    /// How to load the files; a shape is as if they were bf16. Errors: those of [`QuantArgs::options`].
    pub fn options(&self, quant: &QuantArgs, qat: Option<&QatArgs>) -> Result<LoadOptions> {
        match (self, qat) {
            (Chosen::Files(_, source), Some(qat)) => qat.load_options(quant, source),
            (Chosen::Files(_, source), None) => quant.options(source),
            (Chosen::Shape(..), Some(qat)) if qat.is_given() && !quant.is_given() => Ok(LoadOptions::default()),
            (Chosen::Shape(..), _) => quant.of_floats(),
        }
    }

    /// The model on a device. Errors: those of [`Model::from_source`] and [`Model::of_shape`].
    pub fn model(&self, gpu: &Gpu, options: &LoadOptions) -> Result<Model> {
        match (self, options.quantization) {
            (Chosen::Files(_, source), _) => Model::from_source(gpu, source, options),
            (Chosen::Shape(_, arch), Quantization::To(scheme)) => Model::of_shape(gpu, arch, scheme, 0),
            (Chosen::Shape(_, arch), Quantization::AsStored) => Model::of_shape(gpu, arch, Scheme::BF16, 0),
        }
    }
}
