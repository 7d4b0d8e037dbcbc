//! Round to nearest: each number by itself.

use super::{Layer, LayerMethod};
use crate::{Result, gpu::Gpu, kernels::quantize, nn::Linear, quant::Scheme};

/// Every number becomes the nearest one its block can hold; nothing is calibrated.
#[derive(Clone, Copy, Debug)]
pub struct Rtn {
    /// How the numbers are stored.
    pub scheme: Scheme,
}

impl LayerMethod for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let name = layer.weight_name();
        Ok(layer.done(quantize::quantize(gpu, &name, &layer.weight, layer.shape(), self.scheme)?))
    }
}
