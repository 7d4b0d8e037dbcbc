//! Root-mean-square normalization with a frozen weight.

use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{diagonal, norm},
};

/// y[r, c] = x[r, c] * rstd[r] * w[c], rstd[r] = 1 / sqrt(mean_c(x[r, c]²) + eps)
///
/// x, y: [rows, cols] f32; w: [cols]. RMSNorm, Zhang & Sennrich 2019.
pub struct RmsNorm {
    /// [cols]
    pub weight: Tensor,
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
        let w = g.import(&self.weight);
        let (y, rstd) = norm::rms_norm(g, x, &w, self.eps)?;
        Ok((y, Saved { x: x.clone(), rstd }))
    }

    /// dx from dy, plus `residual`: the gradient that came past the layer. Errors: Shape.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: &Value, residual: Option<&Value>) -> Result<Value> {
        let w = g.import(&self.weight);
        norm::rms_norm_backward(g, dy, &saved.x, &w, &saved.rstd, residual)
    }

    /// out[c] ← accumulate · out[c] + Σ_r dy[r, c] · x[r, c] · rstd[r], where somebody trains the weight
    ///
    /// dy: [rows, cols]; out: [cols]; accumulate: [1], f32. Errors: Shape.
    pub fn weight_gradient(g: &mut Graph, saved: &Saved, dy: &Value, out: &Value, accumulate: &Value) -> Result<()> {
        diagonal::right(g, dy, &saved.x, &saved.rstd, out, accumulate)
    }
}
