//! QuIP#'s weight, whose two sign vectors become real numbers that are trained while its codes stay.

use super::Parameter;
use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{dense, diagonal},
};

/// W = diag(left) · inner · diag(right), the weight of a layer between two Hadamard transforms with the signs of these taken out
/// (Tseng et al. 2024, section 5).
pub struct Signs {
    /// [out, in] f32
    inner: Tensor,
    /// Of the output's transform. [out]
    left: Parameter,
    /// Of the input's transform. [in]
    right: Parameter,
}

impl Signs {
    /// inner: of [`crate::ops::hadamard::unsigned`]; left, right: what took the place of the signs of the layer's output and input.
    pub fn new(inner: Tensor, left: Parameter, right: Parameter) -> Signs {
        Signs { inner, left, right }
    }

    pub(super) fn gradients(&self, g: &mut Graph, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
        let (Some(dl), Some(dr)) = (&self.left.grads, &self.right.grads) else { return Ok(()) };
        let dw = dense::xt_w(g, dy, x)?;
        let [inner, l, r, dl, dr] = [&self.inner, &self.left.values, &self.right.values, dl, dr].map(|t| g.import(t));
        diagonal::left(g, &dw, &inner, &r, &dl, accumulate)?;
        diagonal::right(g, &dw, &inner, &l, &dr, accumulate)
    }
}
