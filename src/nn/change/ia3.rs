//! A vector that scales what a layer gives, or what it reads.

use super::{Kept, Parameter};
use crate::{
    Result,
    graph::{Graph, Value},
    kernels::{diagonal, elementwise},
    nn::{Linear, StepValues},
};

/// y = l ∘ (x · Wᵀ + bias), or of a feed-forward layer y = (l ∘ x) · Wᵀ + bias ((IA)³, Liu et al. 2022)
///
/// x: [tokens, in]; y: [tokens, out]. In the feed-forward part the paper scales what the activation gives: the input of the layer behind it.
#[derive(Clone)]
pub struct Ia3 {
    /// l, as PEFT shapes it. [out, 1], of a feed-forward layer [1, in]
    pub scaling: Parameter,
    /// Whether it scales the input.
    pub feedforward: bool,
}

impl Ia3 {
    fn vector(&self, g: &mut Graph) -> Result<Value> {
        let len = self.scaling.values.shape().len();
        Ok(g.import(&self.scaling.values.slice(0, [len])?))
    }

    /// dl ← accumulate · dl + Σ over tokens of a ∘ b. Errors: Shape.
    fn gradient(&self, g: &mut Graph, a: &Value, b: &Value, step: &StepValues) -> Result<()> {
        let Some(grads) = &self.scaling.grads else { return Ok(()) };
        let grads = g.import(&grads.slice(0, [grads.shape().len()])?);
        diagonal::columns(g, a, b, 1.0, &grads, &step.accumulate)
    }

    /// y, plus `add`. Errors: Shape.
    pub(super) fn forward(
        &self,
        g: &mut Graph,
        base: &Linear,
        x: &Value,
        add: Option<&Value>,
    ) -> Result<(Value, Kept)> {
        let l = self.vector(g)?;
        if self.feedforward {
            let scaled = elementwise::scaled_columns(g, x, &l)?;
            return Ok((base.forward(g, &scaled, None, add)?, Kept::default()));
        }
        let product = base.forward(g, x, None, None)?;
        let y = elementwise::scaled_columns(g, &product, &l)?;
        if let Some(add) = add {
            elementwise::accumulate(g, &y, add, 1.0)?;
        }
        Ok((y, Kept { xa: None, product: Some(product) }))
    }

    /// dl = Σ dy ∘ (x · Wᵀ + bias), or Σ (dy · W) ∘ x of a feed-forward layer. product: as the forward pass kept it. Errors: Shape.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        base: &Linear,
        (x, product): (&Value, Option<&Value>),
        dy: &Value,
        step: &StepValues,
    ) -> Result<()> {
        match product {
            Some(product) => self.gradient(g, dy, product, step),
            None if self.scaling.grads.is_none() => Ok(()),
            None => {
                let dx = base.backward(g, dy, None, None)?;
                self.gradient(g, &dx, x, step)
            }
        }
    }

    /// dx = (l ∘ dy) · W, or l ∘ (dy · W) of a feed-forward layer, plus `add`, and the gradient of l. Errors: Shape.
    pub(super) fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        (x, product): (&Value, Option<&Value>),
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        let l = self.vector(g)?;
        if let Some(product) = product {
            self.gradient(g, dy, product, step)?;
            let scaled = elementwise::scaled_columns(g, dy, &l)?;
            return base.backward(g, &scaled, None, add);
        }
        let dx = base.backward(g, dy, None, None)?;
        self.gradient(g, &dx, x, step)?;
        elementwise::scale_columns(g, &dx, &l)?;
        if let Some(add) = add {
            elementwise::accumulate(g, &dx, add, 1.0)?;
        }
        Ok(dx)
    }
}
