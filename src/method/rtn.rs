//! Round to nearest: each number by itself.

use super::{Layer, LayerMethod, Observer};
use crate::{
    Result,
    gpu::Gpu,
    graph::Graph,
    kernels::{
        QuantizedTensor,
        gptq::{self, BlockRange, Grid},
    },
    nn::Linear,
    ops::quantize,
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
            let packed = Packed::quantize_named(&format!("tensor {name}"), scheme, shape, &values)?;
            return Ok(layer.done(QuantizedTensor::upload(gpu, &name, &packed)?));
        }
        Ok(layer.done(quantize::quantize(gpu, &name, &layer.weight, shape, scheme)?))
    }
}

/// Rounding to nearest within the range of each block that an observer chooses. What lies beyond is clipped; nothing is
/// calibrated.
#[derive(Clone, Copy, Debug)]
pub struct RtnObserved {
    scheme: Scheme,
    range: BlockRange,
}

impl RtnObserved {
    /// `scheme`: integers, or a table with one absmax per block, in blocks that divide a row. Errors: Unsupported for others, and
    /// for observers that do not choose ranges of blocks ([`Observer::of_blocks`]).
    pub fn new(scheme: Scheme, observer: Observer) -> Result<RtnObserved> {
        let range = observer.of_blocks()?;
        scheme.expect("scheme for observed ranges of weights", Grid::serves)?;
        Ok(RtnObserved { scheme, range })
    }
}

impl LayerMethod for RtnObserved {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let (name, [rows, cols]) = (layer.weight_name(), layer.shape());
        let grid = Grid { range: self.range, ..Grid::of(&name, self.scheme, [rows, cols])? };
        let scheme = grid.scheme;
        let target = QuantizedTensor::zeros(gpu, &name, scheme, [rows, cols])?;
        if gpu.is_dry() {
            return Ok(layer.done(target));
        }
        // The weight has more bits than its codes, and both must fit a binding.
        let limit = gpu.caps().max_binding / 32 * scheme.code_bits() as u64;
        for shard in target.shards_within(limit) {
            let status = gptq::status(gpu)?;
            let mut g = Graph::new(gpu);
            let [w, found] =
                [&layer.weight.slice(shard.row0 * cols, [shard.rows, cols])?, &status].map(|tensor| g.import(tensor));
            let scales = g.import(shard.scales.as_ref().expect("every grid has scales"));
            let grid = Grid { first_block: shard.first_block, ..grid };
            gptq::scales(&mut g, &grid, &w, &scales, &found, 0..cols / grid.group)?;
            g.run()?;
            gptq::report(&name, shard.row0, &status.read()?)?;
        }
        quantize::encode(gpu, &name, &layer.weight, &target)?;
        Ok(layer.done(target))
    }
}
