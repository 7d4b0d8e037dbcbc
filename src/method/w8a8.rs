//! Activations in 8 bits on top of any way to quantize weights.

use super::{BlockStats, Layer, LayerMethod, Needs, fold::finite};
use crate::{
    DType, Error, Result,
    gpu::Gpu,
    model::Block,
    nn::{Activations, Linear, Transform},
};

/// Where the scales of activations come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationScales {
    /// From each token, while the model runs.
    Dynamic,
    /// From the largest magnitude in the calibration text: one scale a layer.
    Static,
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

    fn needs(&self) -> Needs {
        let needs = self.method.needs();
        Needs { channels: needs.channels || self.activations == ActivationScales::Static, ..needs }
    }

    fn prepare(&self, gpu: &Gpu, block: &Block) -> Result<()> {
        self.method.prepare(gpu, block)
    }

    fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
        self.method.fold(gpu, block, stats)
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let linear = self.method.quantize(gpu, layer)?;
        let activation = match self.activations {
            ActivationScales::Dynamic => Activations::Dynamic,
            ActivationScales::Static => fixed(gpu, layer, &linear)?,
        };
        Ok(Linear { activation: Some(activation), ..linear })
    }
}

/// The scale by which the largest magnitude seen becomes code 127.
fn fixed(gpu: &Gpu, layer: &Layer<'_>, linear: &Linear) -> Result<Activations> {
    if let Some(Transform::Hadamard { .. }) = linear.input {
        let message =
            "static scales are known of the input as it is, not between Hadamard transforms: use dynamic ones";
        return Err(Error::config(layer.name, message));
    }
    let channels = layer.stats.channels.as_ref();
    let channels =
        channels.ok_or_else(|| Error::config(layer.name, "static scales need the ranges of the channels"))?;
    let absmax = match gpu.is_dry() {
        true => 0.0,
        false => finite(layer.name, channels.absmax.read::<f32>()?)?.into_iter().fold(0.0, f32::max),
    };
    let scale = (absmax / 127.0).max(f32::EPSILON);
    Ok(Activations::Static { scale: gpu.tensor(layer.name, [1], DType::F32, &[scale])? })
}
