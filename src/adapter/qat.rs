//! Quantization-aware training: what is trained, and the memory it lies in.

use super::{AdaptedLinear, Chunk, Float, Latent, Merged, Trained, memory};
use crate::{Error, Result, Shape, gpu::Gpu, kernels::quantize, quant::Scheme};
use std::{fmt, str::FromStr};

/// Where the ranges that codes cover come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// From the smallest and largest number of each block, every step anew, as in rounding to nearest.
    #[default]
    Observed,
    /// The steps between codes are trained with the weights (LSQ, Esser et al. 2020); zero points stay.
    Learned,
}

impl FromStr for Ranges {
    type Err = Error;

    fn from_str(text: &str) -> Result<Ranges> {
        match text {
            "observed" => Ok(Ranges::Observed),
            "learned" => Ok(Ranges::Learned),
            other => Err(Error::unsupported("ranges", other, "observed, learned")),
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ranges::Observed => "observed",
            Ranges::Learned => "learned",
        })
    }
}

/// Where the scales of the layers' inputs come from, in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputScales {
    /// From each token, while the model runs.
    Dynamic,
    /// One a layer: the largest magnitude seen by `Model::observe_inputs`, trained from there on
    /// with learned ranges.
    Static,
}

/// What quantization-aware training rounds to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QatConfig {
    /// How the weights of the blocks' linear layers are stored afterwards. With [`Scheme::F32`] nothing is rounded: the
    /// weights are fine-tuned as floats.
    pub scheme: Scheme,
    /// Where the ranges of weights come from, and those of static activations.
    pub ranges: Ranges,
    /// How the layers' inputs are rounded; `None`: not at all.
    pub activations: Option<InputScales>,
}

impl QatConfig {
    /// Weights alone, with observed ranges.
    pub fn new(scheme: Scheme) -> QatConfig {
        QatConfig { scheme, ranges: Ranges::Observed, activations: None }
    }

    /// Errors: Config, Unsupported for schemes whose codes are searched for, and for learned ranges of tables.
    pub fn validate(&self) -> Result<()> {
        self.scheme.validate()?;
        quantize::records(self.scheme)?;
        if self.ranges == Ranges::Learned && !matches!(self.scheme, Scheme::Int { .. }) {
            return Err(Error::unsupported("scheme with learned ranges", self.scheme, "int2 to int8"));
        }
        Ok(())
    }
}

/// Quantization-aware training of a model: its configuration and memory.
pub struct Qat {
    /// What is rounded to.
    pub config: QatConfig,
    /// Weights and steps; with LoRA the weights' memory is the adapter's.
    pub chunks: Vec<Chunk>,
    /// Trained values, the adapter's not counted.
    pub parameters: usize,
    /// Whether the scales of static activations are known.
    pub observed: bool,
}

impl Qat {
    /// Memory for training `layers` through rounding, and each layer's part of it: that of its adapter where it has one;
    /// where no layer has, the weights are trained as a whole. The weights are not rounded yet. Errors: Config; Unsupported,
    /// also for layers behind a transform; Shape for a weight that one binding cannot hold as f32; OutOfMemory.
    pub fn new(gpu: &Gpu, config: QatConfig, layers: &[&AdaptedLinear], trainable: bool) -> Result<(Qat, Vec<Latent>)> {
        config.validate()?;
        layers.iter().try_for_each(|layer| check(gpu, layer))?;
        let whole = layers.iter().all(|layer| layer.lora.is_none());
        let learned = config.ranges == Ranges::Learned;
        let trains = |layer: &AdaptedLinear| whole || layer.lora.is_some();
        let shape = |layer: &AdaptedLinear| layer.base.weight.shape();
        let weights: Vec<_> =
            layers.iter().filter(|_| whole).map(|layer| (layer.name.clone(), shape(layer).into())).collect();
        let mut steps: Vec<(String, Shape)> = Vec::new();
        for layer in layers.iter().filter(|layer| learned && trains(layer)) {
            let scheme = config.scheme.resolve(shape(layer));
            scheme.validate_for(shape(layer)).map_err(|error| Error::config(&layer.name, error.to_string()))?;
            steps.push((layer.name.clone(), [layer.base.weight.len().div_ceil(scheme.block_size())].into()));
        }
        if learned && config.activations == Some(InputScales::Static) {
            steps.extend(layers.iter().map(|layer| (layer.name.clone(), [1].into())));
        }
        let parameters = weights.iter().chain(&steps).map(|(_, shape)| shape.len()).sum();
        let (mut chunks, whole_weights) = memory::allocate(gpu, "weights in f32", &weights, trainable, true)?;
        let (more, steps) = memory::allocate(gpu, "steps", &steps, trainable, false)?;
        chunks.extend(more);
        let (mut whole_weights, mut steps) = (whole_weights.into_iter(), steps.into_iter());
        let mut of_weights: Vec<Option<Trained>> = Vec::with_capacity(layers.len());
        for layer in layers {
            of_weights.push(if learned && trains(layer) { steps.next() } else { None });
        }
        let mut latents = Vec::with_capacity(layers.len());
        for (layer, of_weight) in layers.iter().zip(of_weights) {
            let float = match (&layer.lora, whole_weights.next()) {
                (Some(lora), _) => {
                    Float::Merged(Box::new(Merged { frozen: layer.base.weight.clone(), lora: lora.clone() }))
                }
                (None, Some(weight)) => Float::Whole(weight),
                (None, None) => Float::Fixed,
            };
            latents.push(Latent::new(gpu, float, of_weight, steps.next())?);
        }
        Ok((Qat { config, chunks, parameters, observed: false }, latents))
    }
}

/// Errors: Config, Unsupported, Shape where a layer cannot be trained through rounding.
fn check(gpu: &Gpu, layer: &AdaptedLinear) -> Result<()> {
    if layer.base.input.is_some() {
        let (got, supported) = ("columns in another order or Hadamard", "layers without a transform");
        return Err(Error::unsupported(format!("training through rounding of {}", layer.name), got, supported));
    }
    if layer.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0) {
        let message = "an update that is merged before rounding cannot drop inputs; set it to 0";
        return Err(Error::config("lora_dropout", format!("of {}: {message}", layer.name)));
    }
    // Where an adapter is merged first, W lies in memory that is passed on from layer to layer.
    let (most, weight) = (gpu.caps().max_binding, &layer.base.weight);
    if 4 * weight.len() as u64 > most {
        let expected =
            format!("a weight of at most {most} bytes as f32 on this device, to be trained through rounding");
        return Err(Error::shape(&layer.name, expected, format!("{:?}", weight.shape())));
    }
    Ok(())
}
