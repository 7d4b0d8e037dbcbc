//! A frozen linear layer over a weight in any scheme.

use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{QuantizedTensor, matmul},
};

pub use crate::kernels::matmul::LowRank;

/// y = x · Wᵀ + bias
///
/// x: [tokens, in]; W: [out, in] in its storage scheme; y: [tokens, out]. The weight is frozen, so the backward pass gives
/// dx alone and saves nothing.
pub struct Linear {
    /// [out, in]
    pub weight: QuantizedTensor,
    /// [out]
    pub bias: Option<Tensor>,
}

impl Linear {
    /// x · Wᵀ + bias, plus the low-rank product `scale * xa · Bᵀ` where given. Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, update: Option<LowRank<'_>>) -> Result<Value> {
        let bias = self.bias.as_ref().map(|b| g.import(b));
        matmul::matmul(g, x, &self.weight, update, bias.as_ref())
    }

    /// dx = dy · W, plus the low-rank product `scale * dxa · A` where given, plus `add`. Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        dy: &Value,
        update: Option<LowRank<'_>>,
        add: Option<&Value>,
    ) -> Result<Value> {
        matmul::matmul_dx(g, dy, &self.weight, update, add)
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }
}
