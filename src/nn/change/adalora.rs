//! A low-rank update in the form of a singular value decomposition.

use super::{Kept, Lora, Parameter};
use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{dense, diagonal, elementwise},
    nn::{Linear, StepValues, linear::LowRank},
};

/// y = x · Wᵀ + bias + scale · ((drop(x) · Aᵀ) ∘ E) · Bᵀ (AdaLoRA, Zhang et al. 2023)
///
/// x: [tokens, in]; y: [tokens, out]. The rows of A and the columns of B are kept near to orthonormal by a term of the loss, and E, which
/// plays the singular values, is set to zero where an allocator takes a rank away.
#[derive(Clone)]
pub struct AdaLora {
    /// A and B. Its scale is alpha / (r + 1e-5) with the rank that training began with, as PEFT has it.
    pub lora: Lora,
    /// E. [r, 1]
    pub singular: Parameter,
    /// 1 where a rank is kept, 0 where it was taken away. \[r\]
    pub mask: Tensor,
}

impl AdaLora {
    fn vector(&self, g: &mut Graph, of: &Tensor) -> Result<Value> {
        Ok(g.import(&of.slice(0, [of.shape().len()])?))
    }

    /// y, plus `add`. Errors: Shape.
    pub(super) fn forward(
        &self,
        g: &mut Graph,
        base: &Linear,
        x: &Value,
        add: Option<&Value>,
        step: Option<&StepValues>,
    ) -> Result<(Value, Kept)> {
        let (a, b) = (g.import(&self.lora.a.values), g.import(&self.lora.b.values));
        let e = self.vector(g, &self.singular.values)?;
        let dropped = step.map_or(Ok(None), |step| self.lora.drop(g, x, step))?;
        let xa = dense::x_wt(g, dropped.as_ref().unwrap_or(x), &a)?;
        let scaled = elementwise::scaled_columns(g, &xa, &e)?;
        let update = LowRank { xa: &scaled, factor: &b, scale: self.lora.scale };
        let y = base.forward(g, x, Some(update), add)?;
        Ok((y, Kept { xa: Some(xa), product: Some(scaled) }))
    }

    /// dxa = scale · (dy · B) ∘ E, with dB = scale · dyᵀ · (xa ∘ E), dE = Σ scale · (dy · B) ∘ xa over tokens and dA = dxaᵀ · drop(x)
    /// written where they are trained. scaled: xa ∘ E, [tokens, r]. Errors: Shape.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        (x, xa, scaled): (&Value, &Value, &Value),
        dy: &Value,
        step: &StepValues,
    ) -> Result<Value> {
        let (b, e) = (g.import(&self.lora.b.values), self.vector(g, &self.singular.values)?);
        let dxa = dense::x_w(g, dy, &b, self.lora.scale)?;
        if let Some(grads) = &self.singular.grads {
            let grads = self.vector(g, grads)?;
            diagonal::columns(g, &dxa, xa, 1.0, &grads, &step.accumulate)?;
        }
        elementwise::scale_columns(g, &dxa, &e)?;
        self.lora.write_gradients(g, (x, scaled), (dy, &dxa), step)?;
        Ok(dxa)
    }

    /// dx = dy · W + drop(dxa · A), plus `add`, and the gradients of what is trained. Errors: Shape.
    pub(super) fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        saved: (&Value, &Value, &Value),
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        let dxa = self.gradients(g, saved, dy, step)?;
        self.lora.through(g, base, &dxa, dy, add, step)
    }
}
