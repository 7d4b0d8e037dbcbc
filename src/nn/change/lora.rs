//! A low-rank update beside a frozen layer.

use super::super::{Linear, Parameter, StepValues, linear::LowRank};
use crate::{
    Error, Result,
    graph::{Graph, Value},
    kernels::{dense, dropout, elementwise},
};

/// y = x · Wᵀ + bias + scale · (drop(x) · Aᵀ) · Bᵀ (Hu et al. 2021)
///
/// x: [tokens, in]; y: [tokens, out].
#[derive(Clone)]
pub struct Lora {
    /// [r, in]
    pub a: Parameter,
    /// [out, r]
    pub b: Parameter,
    /// alpha / r or alpha / sqrt(r).
    pub scale: f32,
    /// Chance that an input element of the update is dropped.
    pub dropout: f32,
    /// The layer's number: part of the key of its dropout mask.
    pub layer: u32,
}

impl Lora {
    /// y, plus `add`, and drop(x) · Aᵀ. Errors: Shape.
    pub(super) fn forward(
        &self,
        g: &mut Graph,
        base: &Linear,
        x: &Value,
        add: Option<&Value>,
        step: Option<&StepValues>,
    ) -> Result<(Value, Value)> {
        let dropped = step.map_or(Ok(None), |step| self.drop(g, x, step))?;
        self.of(g, base, x, dropped.as_ref().unwrap_or(x), add)
    }

    /// base(x) + scale · (d · Aᵀ) · Bᵀ, plus `add`, and d · Aᵀ. Errors: Shape.
    pub(super) fn of(
        &self,
        g: &mut Graph,
        base: &Linear,
        x: &Value,
        d: &Value,
        add: Option<&Value>,
    ) -> Result<(Value, Value)> {
        let (a, b) = (g.import(&self.a.values), g.import(&self.b.values));
        let xa = dense::x_wt(g, d, &a)?;
        let update = LowRank { xa: &xa, factor: &b, scale: self.scale };
        Ok((base.forward(g, x, Some(update), add)?, xa))
    }

    /// dxa = scale · dy · B, with dB = scale · dyᵀ · xa and dA = dxaᵀ · drop(x) written where they are trained. Errors: Shape.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        (x, xa): (&Value, &Value),
        dy: &Value,
        step: &StepValues,
    ) -> Result<Value> {
        let b = g.import(&self.b.values);
        let dxa = dense::x_w(g, dy, &b, self.scale)?;
        self.write_gradients(g, (x, xa), (dy, &dxa), step)?;
        Ok(dxa)
    }

    /// dB = scale · dyᵀ · xa, with xa what B was multiplied by, and dA = dxaᵀ · drop(x), where they are trained. Errors: Shape.
    pub(super) fn write_gradients(
        &self,
        g: &mut Graph,
        (x, xa): (&Value, &Value),
        (dy, dxa): (&Value, &Value),
        step: &StepValues,
    ) -> Result<()> {
        let (Some(grad_a), Some(grad_b)) = (&self.a.grads, &self.b.grads) else { return Ok(()) };
        let (grad_a, grad_b) = (g.import(grad_a), g.import(grad_b));
        dense::xt_w_into(g, dy, xa, self.scale, &grad_b, &step.accumulate)?;
        let dropped = self.drop(g, x, step)?;
        dense::xt_w_into(g, dxa, dropped.as_ref().unwrap_or(x), 1.0, &grad_a, &step.accumulate)
    }

    /// dx = dy · W + drop(dxa · A), plus `add`, and the gradients of A and B. Errors: Shape.
    pub(super) fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        (x, xa): (&Value, &Value),
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        let dxa = self.gradients(g, (x, xa), dy, step)?;
        self.through(g, base, &dxa, dy, add, step)
    }

    /// dx = dy · W + drop(dxa · A), plus `add`. Errors: Shape.
    pub(super) fn through(
        &self,
        g: &mut Graph,
        base: &Linear,
        dxa: &Value,
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        let a = g.import(&self.a.values);
        if self.dropout == 0.0 {
            return base.backward(g, dy, Some(LowRank { xa: dxa, factor: &a, scale: 1.0 }), add);
        }
        let dx = base.backward(g, dy, None, add)?;
        let through = dense::x_w(g, dxa, &a, 1.0)?;
        let dropped = self.drop(g, &through, step)?;
        elementwise::accumulate(g, &dx, dropped.as_ref().unwrap_or(&through), 1.0)?;
        Ok(dx)
    }

    /// drop(x), or `None` where nothing is dropped. Errors: Config without a seed for the mask.
    pub(super) fn drop(&self, g: &mut Graph, x: &Value, step: &StepValues) -> Result<Option<Value>> {
        if self.dropout == 0.0 {
            return Ok(None);
        }
        let seed = step.seed.as_ref();
        let seed = seed.ok_or_else(|| Error::config("lora_dropout", "the training step has no seed for its masks"))?;
        dropout::dropout(g, x, seed, self.layer, self.dropout).map(Some)
    }
}
