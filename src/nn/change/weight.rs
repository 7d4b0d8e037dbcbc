//! A layer's own weight in f32, trained as a whole.

use super::Parameter;
use crate::{
    Result,
    graph::{Graph, Value},
    kernels::{dense, diagonal},
};

/// The layer's weight, which its products read, and its bias.
#[derive(Clone)]
pub struct Weight {
    /// [out, in] f32
    pub weight: Parameter,
    /// [out]; none where the layer has none, or it is not trained.
    pub bias: Option<Parameter>,
}

impl Weight {
    /// dW = dyᵀ · x, dbias = Σ dy over tokens. Errors: Shape.
    pub(super) fn gradients(&self, g: &mut Graph, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
        if let Some(grads) = &self.weight.grads {
            let grads = g.import(grads);
            dense::xt_w_into(g, dy, x, 1.0, &grads, accumulate)?;
        }
        if let Some(grads) = self.bias.as_ref().and_then(|bias| bias.grads.as_ref()) {
            let grads = g.import(grads);
            diagonal::shifts(g, dy, &grads, accumulate)?;
        }
        Ok(())
    }
}
