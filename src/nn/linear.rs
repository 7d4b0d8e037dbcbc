//! A frozen linear layer over a weight in any scheme.

use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{QuantizedTensor, dense, elementwise, product},
    nn::{InputRounding, Transform},
};

pub use crate::kernels::product::LowRank;

/// y = U(Q(T(x)) · Wᵀ) + bias
///
/// x: [tokens, in]; W: [out, in] in its storage scheme; y: [tokens, out]; T, U: the transforms of the input and of the
/// product, mostly none; Q: rounding to 8 bits, mostly none. The weight is frozen, so the backward pass gives dx alone and
/// saves nothing.
#[derive(Clone)]
pub struct Linear {
    /// [out, in]
    pub weight: QuantizedTensor,
    /// [out]
    pub bias: Option<Tensor>,
    /// What the weight expects to be done to x, and to the product.
    pub transform: Option<Transform>,
    /// How the transformed input is rounded before the product. The backward pass takes rounding for the identity.
    pub rounding: Option<InputRounding>,
}

impl Linear {
    /// A layer whose input is neither transformed nor rounded.
    pub fn new(weight: QuantizedTensor, bias: Option<Tensor>) -> Linear {
        Linear { weight, bias, transform: None, rounding: None }
    }

    /// U(Q(T(x)) · Wᵀ) + bias, plus the low-rank product `scale * xa · Bᵀ` where given, plus `add`. A low-rank update is one of the
    /// layer as a whole: its xa comes from x itself, which is not rounded. Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, update: Option<LowRank<'_>>, add: Option<&Value>) -> Result<Value> {
        if let (None, None, None) = (&self.transform, &self.rounding, &self.bias) {
            return product::matmul(g, x, &self.weight, update, None, add);
        }
        // With a bias, the sum and a low-rank update would be more buffers than WebGPU binds.
        let y = self.product(g, x, update)?;
        match add {
            Some(add) => elementwise::add(g, add, &y, 1.0),
            None => Ok(y),
        }
    }

    fn product(&self, g: &mut Graph, x: &Value, update: Option<LowRank<'_>>) -> Result<Value> {
        let bias = self.bias.as_ref().map(|b| g.import(b));
        let transformed = self.transform.as_ref().map(|t| t.forward(g, x)).transpose()?;
        let x = transformed.as_ref().unwrap_or(x);
        let Some(output) = self.transform.as_ref().and_then(Transform::output) else {
            let Some(rounding) = &self.rounding else {
                return product::matmul(g, x, &self.weight, update, bias.as_ref(), None);
            };
            let y = rounding.product(g, x, &self.weight, bias.as_ref())?;
            add_low_rank(g, &y, update)?;
            return Ok(y);
        };
        let z = match &self.rounding {
            None => product::matmul(g, x, &self.weight, None, None, None)?,
            Some(rounding) => rounding.product(g, x, &self.weight, None)?,
        };
        let y = output.backward(g, &z)?;
        if let Some(bias) = &bias {
            elementwise::add_row(g, &y, bias)?;
        }
        add_low_rank(g, &y, update)?;
        Ok(y)
    }

    /// dx = Tᵀ(Uᵀ(dy) · W), the gradient as if nothing were rounded (straight through, Bengio et al. 2013), plus
    /// the low-rank product `scale * dxa · A` where given, plus `add`. Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        dy: &Value,
        update: Option<LowRank<'_>>,
        add: Option<&Value>,
    ) -> Result<Value> {
        let Some(transform) = &self.transform else {
            return product::matmul_dx(g, dy, &self.weight, update, add);
        };
        let dy = match transform.output() {
            Some(output) => &output.forward(g, dy)?,
            None => dy,
        };
        let dz = product::matmul_dx(g, dy, &self.weight, None, None)?;
        let dx = transform.backward(g, &dz)?;
        // Neither of these went through the transform.
        if let Some(update) = update {
            let through = dense::x_w(g, update.xa, update.factor, update.scale)?;
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

    /// Bytes of the weight, and of what its transform and its rounding hold, on the device.
    pub fn bytes(&self) -> u64 {
        let rounding = self.rounding.as_ref().map_or(0, InputRounding::bytes);
        self.weight.bytes() + self.transform.as_ref().map_or(0, Transform::bytes) + rounding
    }
}

/// y += scale · xa · Bᵀ, of an update that went neither through the transforms nor through the rounding.
fn add_low_rank(g: &mut Graph, y: &Value, update: Option<LowRank<'_>>) -> Result<()> {
    let Some(update) = update else { return Ok(()) };
    let through = dense::x_wt(g, update.xa, update.factor)?;
    elementwise::accumulate(g, y, &through, update.scale)
}
