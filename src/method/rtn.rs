//! Round to nearest: each number by itself.

use super::{Layer, LayerMethod};
use crate::{
    Result,
    gpu::Gpu,
    kernels::{QuantizedTensor, quantize},
    nn::Linear,
    quant::{Packed, Scheme},
};

/// Every number becomes the nearest one its block can hold; nothing is calibrated.
///
/// GGUF's blocks and NVFP4, whose scales are searched for, are made on the host; rows that are no whole blocks of GGUF take
/// [`Scheme::fitting`].
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
        let (shape, scheme) = (layer.shape(), self.scheme.fitting(layer.shape()[1]));
        if !quantize::rounds(scheme) {
            if gpu.is_dry() {
                return Ok(layer.done(QuantizedTensor::zeros(gpu, &name, scheme, shape)?));
            }
            let values: Vec<f32> = layer.weight.read()?;
            let packed = Packed::quantize(scheme, shape, &values).map_err(|error| error.of_tensor(&name))?;
            return Ok(layer.done(QuantizedTensor::upload(gpu, &name, &packed)?));
        }
        Ok(layer.done(quantize::quantize(gpu, &name, &layer.weight, shape, scheme)?))
    }
}
