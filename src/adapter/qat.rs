//! Quantization-aware training: what is trained, and the memory it lies in.

use super::Store;
use crate::{
    Error, Result, Shape,
    gpu::Gpu,
    kernels::quantize,
    nn::{Adapted, Change, Float, Latent, Merged, Parameter},
    quant::Scheme,
};
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
    /// One per layer: the largest magnitude seen by `Model::observe_inputs`, trained from there on
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

/// Quantization-aware training of a model: what it rounds to, and how far it is.
pub struct Qat {
    /// What is rounded to.
    pub config: QatConfig,
    /// Whether the scales of static activations are known.
    pub observed: bool,
}

impl Qat {
    /// Memory for training `layers` through rounding, and each layer's part of it: that of its adapter where it has one;
    /// where no layer has, the weights are trained as a whole. The weights are not rounded yet. Names: `NAME.weight`, and of trained
    /// steps `NAME.step` \[blocks\] and `NAME.input_step` \[1\]. Errors: Config; Unsupported, also for layers behind a transform;
    /// Shape for a weight that one binding cannot hold as f32; OutOfMemory.
    pub fn prepare(gpu: &Gpu, config: QatConfig, layers: &[&Adapted], trainable: bool) -> Result<(Store, Vec<Latent>)> {
        config.validate()?;
        layers.iter().try_for_each(|layer| check(gpu, layer))?;
        let whole = layers.iter().all(|layer| layer.change.lora().is_none());
        let learned = config.ranges == Ranges::Learned;
        let trains = |layer: &Adapted| whole || layer.change.lora().is_some();
        let mut weights: Vec<(String, Shape)> = Vec::new();
        let mut steps: Vec<(String, Shape)> = Vec::new();
        for layer in layers {
            let (weight, shape) = (&layer.base.weight, layer.base.weight.shape());
            if whole {
                weights.push((layer.weight_name(), shape.into()));
            }
            if learned && trains(layer) {
                let scheme = config.scheme;
                scheme.validate_for(shape).map_err(|error| Error::config(&layer.name, error.to_string()))?;
                let blocks = scheme.block_size(shape).map_or(0, |block| weight.len().div_ceil(block));
                steps.push((format!("{}.step", layer.name), [blocks].into()));
            }
        }
        if learned && config.activations == Some(InputScales::Static) {
            steps.extend(layers.iter().map(|layer| (format!("{}.input_step", layer.name), [1].into())));
        }
        let mut store = Store::new(gpu, "weights in f32", &weights, trainable, true)?;
        store.append(Store::new(gpu, "steps", &steps, trainable, false)?);
        let mut latents = Vec::with_capacity(layers.len());
        for layer in layers {
            let of = |what: &str| -> Option<Parameter> { store.get(&format!("{}.{what}", layer.name)).cloned() };
            let float = match (layer.change.lora(), of("weight")) {
                (Some(lora), _) => {
                    Float::Merged(Box::new(Merged { frozen: layer.base.weight.clone(), lora: lora.clone() }))
                }
                (None, Some(weight)) => Float::Whole(weight),
                (None, None) => Float::Fixed,
            };
            latents.push(Latent::new(gpu, float, of("step"), of("input_step"))?);
        }
        Ok((store, latents))
    }
}

/// Errors: Config, Unsupported, Shape where a layer cannot be trained through rounding.
fn check(gpu: &Gpu, layer: &Adapted) -> Result<()> {
    if layer.base.transform.is_some() {
        let (got, supported) = ("columns in another order or Hadamard", "layers without a transform");
        return Err(Error::unsupported(format!("training through rounding of {}", layer.name), got, supported));
    }
    let other = match &layer.change {
        Change::Dora(_) => Some("an adapter with use_dora"),
        Change::AdaLora(_) => Some("an adapter of AdaLoRA"),
        Change::Ia3(_) => Some("an adapter of IA3"),
        _ => None,
    };
    if let Some(got) = other {
        return Err(Error::unsupported(
            format!("training through rounding of {}", layer.name),
            got,
            "plain LoRA, or none",
        ));
    }
    if layer.change.lora().is_some_and(|lora| lora.dropout > 0.0) {
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
