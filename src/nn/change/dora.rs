//! A low-rank update of a weight's directions beside a magnitude for each of its rows.

use super::{Kept, Lora, Parameter};
use crate::{
    DType, Error, Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{dense, diagonal, dora, elementwise},
    nn::{Linear, StepValues, linear::LowRank},
};

/// y = m/‖V‖ ∘ (x · Vᵀ) + bias with V = W + scale · B · A (DoRA, Liu et al. 2024)
///
/// x: [tokens, in]; y: [tokens, out]; ‖V‖: the Euclidean norm of each row, [out]. As the paper proposes (section 4.3) and PEFT does, the
/// gradient takes ‖V‖ for a constant. Where inputs of the update are dropped, d = drop(x), PEFT's rule holds:
/// y = x · Wᵀ + (m/‖V‖ − 1) ∘ (d · Wᵀ) + m/‖V‖ ∘ scale · (d · Aᵀ) · Bᵀ + bias.
#[derive(Clone)]
pub struct Dora {
    /// A and B.
    pub lora: Lora,
    /// m. [out]
    pub magnitude: Parameter,
    /// Of the frozen W the squared norm of each row. [out]
    pub(crate) squares: Tensor,
    /// 1/‖V‖ as it was when [`Dora::renew`] last ran. [out]
    inverse: Tensor,
}

impl Dora {
    /// squares: of the frozen weight the squared norm of each row, \[out\]. The norms that are divided by are zero until [`Dora::renew`].
    /// Errors: Shape, OutOfMemory.
    pub fn new(lora: Lora, magnitude: Parameter, squares: Tensor) -> Result<Dora> {
        let (rows, magnitudes) = (lora.b.values.shape()[0], magnitude.values.shape());
        for shape in [magnitudes, squares.shape()] {
            if shape.dims() != [rows] {
                return Err(Error::shape("DoRA", format!("a number for each of {rows} rows"), shape));
            }
        }
        let inverse = squares.gpu().zeros("inverse norms", squares.shape().clone(), DType::F32)?;
        Ok(Dora { lora, magnitude, squares, inverse })
    }

    /// Records 1/‖V‖ of A and B as they are now: training does so after each optimizer step, so that forward passes, their repetitions and
    /// generation read it.
    ///
    /// ‖V‖² = ‖W‖² + 2 · scale · B ∘ (W · Aᵀ) + scale² · B ∘ (B · A · Aᵀ), summed along rows: W is read as products read it, and never lies
    /// in memory as floats. Errors: Shape.
    pub fn renew(&self, g: &mut Graph, base: &Linear) -> Result<()> {
        let Lora { a, b, scale, .. } = &self.lora;
        let (a, b) = (g.import(&a.values), g.import(&b.values));
        let seen = weight_alone(base).forward(g, &a, None, None)?;
        let gram = dense::x_wt(g, &a, &a)?;
        let through = dense::x_wt(g, &b, &gram)?;
        let (squares, inverse) = (g.import(&self.squares), g.import(&self.inverse));
        dora::inverse_norms(g, &squares, &b, &seen, &through, *scale, &inverse)
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
        let (inverse, magnitude) = (g.import(&self.inverse), g.import(&self.magnitude.values));
        let dropped = step.map_or(Ok(None), |step| self.lora.drop(g, x, step))?;
        let Some(dropped) = dropped else {
            let (direction, xa) = self.lora.of(g, &without_bias(base), x, x, None)?;
            elementwise::scale_columns(g, &direction, &inverse)?;
            let y = elementwise::scaled_columns(g, &direction, &magnitude)?;
            if let Some(bias) = &base.bias {
                let bias = g.import(bias);
                elementwise::add_row(g, &y, &bias)?;
            }
            if let Some(add) = add {
                elementwise::accumulate(g, &y, add, 1.0)?;
            }
            return Ok((y, Kept { xa: Some(xa), product: Some(direction) }));
        };
        // (x - d) · Wᵀ + bias is what of the base no magnitude scales.
        let (direction, xa) = self.lora.of(g, &without_bias(base), &dropped, &dropped, None)?;
        elementwise::scale_columns(g, &direction, &inverse)?;
        let rest = elementwise::add(g, x, &dropped, -1.0)?;
        let y = base.forward(g, &rest, None, add)?;
        let scaled = elementwise::scaled_columns(g, &direction, &magnitude)?;
        elementwise::accumulate(g, &y, &scaled, 1.0)?;
        Ok((y, Kept { xa: Some(xa), product: Some(direction) }))
    }

    /// dv = m/‖V‖ ∘ dy, with dm = Σ dy ∘ (direction's product) and the gradients of A and B written where they are trained; and dxa.
    /// direction: [tokens, out], as the forward pass kept it. Errors: Shape.
    fn trained(
        &self,
        g: &mut Graph,
        (x, xa, direction): (&Value, &Value, &Value),
        dy: &Value,
        step: &StepValues,
    ) -> Result<(Value, Value)> {
        if let Some(grads) = &self.magnitude.grads {
            let grads = g.import(grads);
            diagonal::columns(g, dy, direction, 1.0, &grads, &step.accumulate)?;
        }
        let (inverse, magnitude) = (g.import(&self.inverse), g.import(&self.magnitude.values));
        let dv = elementwise::scaled_columns(g, dy, &magnitude)?;
        elementwise::scale_columns(g, &dv, &inverse)?;
        let dxa = self.lora.gradients(g, (x, xa), &dv, step)?;
        Ok((dv, dxa))
    }

    /// The gradients of what is trained. Errors: Shape.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        saved: (&Value, &Value, &Value),
        dy: &Value,
        step: &StepValues,
    ) -> Result<()> {
        self.trained(g, saved, dy, step).map(|_| ())
    }

    /// dx = dv · W + dxa · A, plus `add`, and the gradients of what is trained; where inputs are dropped
    /// dx = dy · W + drop((dv − dy) · W + dxa · A). Errors: Shape.
    pub(super) fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        saved: (&Value, &Value, &Value),
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        let (dv, dxa) = self.trained(g, saved, dy, step)?;
        let a = g.import(&self.lora.a.values);
        let through = LowRank { xa: &dxa, factor: &a, scale: 1.0 };
        if self.lora.dropout == 0.0 {
            return base.backward(g, &dv, Some(through), add);
        }
        let beyond = elementwise::add(g, &dv, dy, -1.0)?;
        let through = base.backward(g, &beyond, Some(through), None)?;
        let dropped = self.lora.drop(g, &through, step)?;
        let dx = base.backward(g, dy, None, add)?;
        elementwise::accumulate(g, &dx, dropped.as_ref().unwrap_or(&through), 1.0)?;
        Ok(dx)
    }
}

fn without_bias(base: &Linear) -> Linear {
    Linear { bias: None, ..base.clone() }
}

/// The weight with its transforms, and neither bias nor rounding of inputs.
pub(crate) fn weight_alone(base: &Linear) -> Linear {
    Linear { bias: None, rounding: None, ..base.clone() }
}
