//! An adapter that becomes part of the weights, which are then quantized.

use super::{BlockStats, FineTune, Layer, LayerMethod, Needs, float_tensor, fold::row_ranges};
use crate::{
    Result,
    adapter::{Adapter, Lora},
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{elementwise, lora},
    model::Block,
    nn::Linear,
};

/// W + scale · B · A, quantized as `method` does.
///
/// An adapter's update is small beside the steps of 4 bits, so that rounding the sum to nearest loses much of what was
/// learned. A method that minimises the error of the layer's *output* ([`Gptq`](super::Gptq)) keeps more of it: the Hessian is
/// that of the merged model's inputs. The base is what the adapter was trained on, as
/// [`PipelineOptions::base`](super::PipelineOptions) says.
pub struct Merge {
    /// How the sum is quantized.
    pub method: Box<dyn LayerMethod>,
    /// What is added; layers that it has no pair for stay as they are.
    pub adapter: Adapter,
}

impl LayerMethod for Merge {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn needs(&self) -> Needs {
        self.method.needs()
    }

    fn prepare(&self, gpu: &Gpu, block: &Block) -> Result<()> {
        for linear in block.linears() {
            if let Some(pair) = self.adapter.get(&linear.name) {
                add(gpu, &float_tensor(&linear.name, &linear.base.weight)?, pair)?;
            }
        }
        self.method.prepare(gpu, block)
    }

    fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
        self.method.fold(gpu, block, stats)
    }

    fn finetune(&self) -> Option<FineTune> {
        self.method.finetune()
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        self.method.quantize(gpu, layer)
    }
}

/// w += scale · B · A. w: [out, in] f32. Errors: Shape, Device.
fn add(gpu: &Gpu, w: &Tensor, pair: &Lora) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let r = pair.a.shape()[0];
    let mut g = Graph::new(gpu);
    let a = g.import(&pair.a);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        let b = g.import(&pair.b.slice(start * r, [count, r])?);
        let sum = lora::merged(&mut g, &part, &b, &a, pair.scale)?;
        elementwise::assign(&mut g, &part, &sum, 1.0)?;
    }
    g.run().map(|_| ())
}
