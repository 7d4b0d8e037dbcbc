//! Activations in 8 bits on top of any way to quantize weights.

use super::{Layer, LayerMethod, Needs, Observer, fold::finite, observer::LEVELS};
use crate::{
    DType, Error, Result,
    gpu::Gpu,
    nn::{InputRounding, Linear, Transform},
};
use std::{fmt, str::FromStr};

/// Where the scales of activations come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActivationScales {
    /// From each token, while the model runs.
    Dynamic,
    /// From the calibration text: one scale per layer, for the range that an observer chooses.
    Static(Observer),
}

impl FromStr for ActivationScales {
    type Err = Error;

    /// `a8`, `a8-static`, `a8-mse` and so on. Errors: Unsupported, Config.
    fn from_str(text: &str) -> Result<ActivationScales> {
        let observer = match text {
            "a8" => return Ok(ActivationScales::Dynamic),
            "a8-static" => Some(Observer::MinMax),
            _ => text.strip_prefix("a8-").map_or(Ok(None), Observer::named)?,
        };
        observer.map(ActivationScales::Static).ok_or_else(|| {
            let names = Observer::ALL.map(|observer| format!("a8-{observer}")).join(", ");
            Error::unsupported("activations", text, format!("a8, a8-static, {names}"))
        })
    }
}

impl fmt::Display for ActivationScales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ActivationScales::Dynamic => f.write_str("a8"),
            ActivationScales::Static(Observer::MinMax) => f.write_str("a8-static"),
            ActivationScales::Static(observer) => write!(f, "a8-{observer}"),
        }
    }
}

/// W8A8: what `method` makes of each layer, with the layer's input rounded to 8 bits.
///
/// With [`SmoothQuant`](super::SmoothQuant) this is the paper's method, with [`Rtn`](super::Rtn) the naive one it is compared
/// with. Products are sums of integers where the method stores rows of
/// [`Scheme::int8`](crate::quant::Scheme::int8).
pub struct W8A8 {
    /// How the weights are chosen.
    pub method: Box<dyn LayerMethod>,
    /// Where the scales of the activations come from.
    pub activations: ActivationScales,
}

impl LayerMethod for W8A8 {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn wrapped(&self) -> Option<&dyn LayerMethod> {
        Some(&*self.method)
    }

    fn needs(&self) -> Needs {
        let needs = self.method.needs();
        match self.activations {
            ActivationScales::Dynamic => needs,
            // Channels are known before the block is folded and scaled along: no pass more over the text.
            ActivationScales::Static(Observer::MinMax) => Needs { channels: true, ..needs },
            ActivationScales::Static(observer) => Needs { observer: Some(observer), ..needs },
        }
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let linear = self.method.quantize(gpu, layer)?;
        let activation = match self.activations {
            ActivationScales::Dynamic => InputRounding::Dynamic,
            ActivationScales::Static(observer) => fixed(gpu, layer, &linear, observer)?,
        };
        Ok(Linear { rounding: Some(activation), ..linear })
    }
}

/// The scale by which the largest magnitude that is to be held becomes code 127.
fn fixed(gpu: &Gpu, layer: &Layer<'_>, linear: &Linear, observer: Observer) -> Result<InputRounding> {
    if let Some(Transform::Hadamard { .. }) = linear.transform {
        let message =
            "static scales are known of the input as it is, not between Hadamard transforms: use dynamic ones";
        return Err(Error::config(layer.name, message));
    }
    let missing = |what: &str| Error::config(layer.name, format!("static scales need {what}"));
    let clip = match (&layer.stats.channels, &layer.stats.observed) {
        _ if gpu.is_dry() => 0.0,
        (Some(channels), _) if observer == Observer::MinMax => {
            finite(layer.name, channels.absmax.read::<f32>()?)?.into_iter().fold(0.0, f32::max)
        }
        (_, Some(observed)) => observed.clip(layer.name)?,
        _ if observer == Observer::MinMax => return Err(missing("the ranges of the channels")),
        _ => return Err(missing("what the observer saw")),
    };
    let scale = (clip / LEVELS as f32).max(f32::EPSILON);
    Ok(InputRounding::Static { scale: gpu.tensor(layer.name, [1], DType::F32, &[scale])? })
}
