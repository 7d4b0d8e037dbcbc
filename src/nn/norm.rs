//! Root-mean-square normalization.

use super::{Context, Parameter};
use crate::{
    Result,
    graph::{Graph, Value},
    kernels::{diagonal, norm},
};

/// y[r, c] = x[r, c] * rstd[r] * (offset + w[c]), rstd[r] = 1 / sqrt(mean_c(x[r, c]²) + eps)
///
/// x, y: [rows, cols] f32; w: [cols]. RMSNorm, Zhang & Sennrich 2019.
pub struct RmsNorm {
    /// [cols]
    pub weight: Parameter,
    /// Added to the weight: 0, or 1 where files hold differences from 1.
    pub offset: f32,
    /// Added to the mean square.
    pub eps: f32,
}

/// What [`RmsNorm::backward`] needs.
pub struct Saved {
    /// [rows, cols]
    x: Value,
    /// [rows]
    rstd: Value,
}

impl RmsNorm {
    /// Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value) -> Result<(Value, Saved)> {
        let w = g.import(&self.weight.values);
        let (y, rstd) = norm::rms_norm(g, x, &w, self.offset, self.eps)?;
        Ok((y, Saved { x: x.clone(), rstd }))
    }

    /// dx from dy, plus `residual`: the gradient that came past the layer; and the weight's where it is trained.
    /// Errors: Shape, Config in inference.
    pub fn backward(
        &self,
        g: &mut Graph,
        saved: &Saved,
        dy: &Value,
        residual: Option<&Value>,
        cx: &Context,
    ) -> Result<Value> {
        self.gradients(g, saved, dy, cx)?;
        let w = g.import(&self.weight.values);
        norm::rms_norm_backward(g, dy, &saved.x, &w, self.offset, &saved.rstd, residual)
    }

    /// dw\[c\] = Σ_r dy[r, c] · x[r, c] · rstd[r], where the weight is trained. Errors: Shape, Config in inference.
    pub fn gradients(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<()> {
        let Some(grads) = &self.weight.grads else { return Ok(()) };
        let grads = g.import(grads);
        diagonal::right(g, dy, &saved.x, &saved.rstd, &grads, &cx.pass.training_step()?.accumulate)
    }
}
