//! Half-quadratic quantization: zero points that suit most weights of a block, whatever its outliers.

use super::{Layer, LayerMethod};
use crate::{
    Result,
    gpu::Gpu,
    nn::Linear,
    ops::hqq::{self, HalfQuadratic},
    quant::Scheme,
};

/// HQQ (Badri & Shaji 2023): nothing is calibrated.
#[derive(Clone, Copy, Debug)]
pub struct Hqq {
    /// Asymmetric integers of 2 to 8 bits.
    pub scheme: Scheme,
    /// The solver's.
    pub options: HalfQuadratic,
}

impl Hqq {
    /// Integers of so many bits with f16 scales and zero points, by the package's defaults.
    pub fn new(bits: u8, block_size: usize) -> Hqq {
        Hqq { scheme: Scheme::int(bits, block_size), options: HalfQuadratic::default() }
    }
}

impl LayerMethod for Hqq {
    fn name(&self) -> &'static str {
        "hqq"
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let name = layer.weight_name();
        Ok(layer.done(hqq::hqq(gpu, &name, &layer.weight, layer.shape(), self.scheme, &self.options)?))
    }
}
