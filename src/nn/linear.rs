//! A frozen linear layer over a weight in any scheme.

use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{QuantizedTensor, elementwise, lora, matmul},
    nn::Transform,
};

pub use crate::kernels::matmul::LowRank;

/// y = U(T(x) · Wᵀ) + bias
///
/// x: [tokens, in]; W: [out, in] in its storage scheme; y: [tokens, out]; T, U: the transforms of the input and of the
/// product, mostly none. The weight is frozen, so the backward pass gives dx alone and saves nothing.
pub struct Linear {
    /// [out, in]
    pub weight: QuantizedTensor,
    /// [out]
    pub bias: Option<Tensor>,
    /// What the weight expects to be done to x, and to the product.
    pub input: Option<Transform>,
}

impl Linear {
    /// U(T(x) · Wᵀ) + bias, plus the low-rank product `scale * xa · Bᵀ` where given. A low-rank update is one of the layer as
    /// a whole: its xa comes from x itself. Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, update: Option<LowRank<'_>>) -> Result<Value> {
        let bias = self.bias.as_ref().map(|b| g.import(b));
        let transformed = self.input.as_ref().map(|t| t.forward(g, x)).transpose()?;
        let x = transformed.as_ref().unwrap_or(x);
        let Some(output) = self.input.as_ref().and_then(Transform::output) else {
            return matmul::matmul(g, x, &self.weight, update, bias.as_ref());
        };
        // What U undoes: U's own transpose of the bias, so that it comes out as it is.
        let bias = bias.map(|b| g.reshape(&b, [1, self.outputs()])).transpose()?;
        let bias = bias.map(|b| output.forward(g, &b)).transpose()?;
        let z = matmul::matmul(g, x, &self.weight, None, bias.as_ref())?;
        let y = output.backward(g, &z)?;
        // This did not go through either transform.
        if let Some(update) = update {
            let through = lora::down(g, update.xa, update.factor)?;
            elementwise::accumulate(g, &y, &through, update.scale)?;
        }
        Ok(y)
    }

    /// dx = Tᵀ(Uᵀ(dy) · W), plus the low-rank product `scale * dxa · A` where given, plus `add`. Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        dy: &Value,
        update: Option<LowRank<'_>>,
        add: Option<&Value>,
    ) -> Result<Value> {
        let Some(transform) = &self.input else {
            return matmul::matmul_dx(g, dy, &self.weight, update, add);
        };
        let dy = match transform.output() {
            Some(output) => &output.forward(g, dy)?,
            None => dy,
        };
        let dz = matmul::matmul_dx(g, dy, &self.weight, None, None)?;
        let dx = transform.backward(g, &dz)?;
        // Neither of these went through the transform.
        if let Some(update) = update {
            let through = lora::up_backward(g, update.xa, update.factor, update.scale)?;
            elementwise::accumulate(g, &dx, &through, 1.0)?;
        }
        if let Some(add) = add {
            elementwise::accumulate(g, &dx, add, 1.0)?;
        }
        Ok(dx)
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Bytes of the weight, and of what its transform holds, on the device.
    pub fn bytes(&self) -> u64 {
        self.weight.bytes() + self.input.as_ref().map_or(0, Transform::bytes)
    }
}
