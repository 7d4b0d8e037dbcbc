//! A tensor of a layer that may be trained.

use crate::gpu::Tensor;

/// Values, and where their gradient goes. Cloning shares the memory.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// f32 where it is trained.
    pub values: Tensor,
    /// Of the values' shape; `None` where it is not trained.
    pub grads: Option<Tensor>,
}

impl Parameter {
    /// Values that are not trained.
    pub fn frozen(values: Tensor) -> Parameter {
        Parameter { values, grads: None }
    }
}
