//! A layer's own weight in f32, trained as a whole.

use super::Parameter;
use crate::{
    Result,
    graph::{Graph, Value},
    kernels::dense,
};

/// dW = dyᵀ · x. Errors: Shape.
pub(super) fn gradients(g: &mut Graph, weight: &Parameter, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
    let Some(grads) = &weight.grads else { return Ok(()) };
    let grads = g.import(grads);
    dense::xt_w_into(g, dy, x, 1.0, &grads, accumulate)
}
