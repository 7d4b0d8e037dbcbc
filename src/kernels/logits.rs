//! What a family makes of the products with its head.

use crate::{
    Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

/// z = factor · x, then soft_cap · tanh(z / soft_cap) where there is a cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitShape {
    /// 1 in most families.
    pub factor: f32,
    /// No logit lies beyond it.
    pub soft_cap: Option<f32>,
}

impl LogitShape {
    /// The products as they are.
    pub const PLAIN: LogitShape = LogitShape { factor: 1.0, soft_cap: None };

    /// A shape of each kind, for lists of kernels.
    pub(super) const KINDS: [LogitShape; 3] = [
        LogitShape::PLAIN,
        LogitShape { factor: 0.5, soft_cap: None },
        LogitShape { factor: 1.0, soft_cap: Some(1.0) },
    ];

    /// The snippet that reads a logit.
    pub(super) fn snippet(self) -> &'static str {
        match self {
            LogitShape::PLAIN => "logits",
            LogitShape { soft_cap: None, .. } => "logits_scaled",
            LogitShape { soft_cap: Some(_), .. } => "logits_soft_cap",
        }
    }
}

crate::graph::params! {
    struct Params {
        len: u32,
        factor: f32,
        soft_cap: f32,
    }
}

fn kernel(shape: LogitShape) -> Kernel {
    Kernel::new("logits", "shape").import("logits", shape.snippet())
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    LogitShape::KINDS.into_iter().filter(|shape| *shape != LogitShape::PLAIN).map(kernel).collect()
}

/// logits ← what `shape` makes of each; nothing is done where that is the same
///
/// logits: any shape, f32. Errors: none but those of the graph. Soft caps: Gemma 2, Riviere et al. 2024.
pub fn shape(g: &mut Graph, logits: &Value, shape: LogitShape) -> Result<()> {
    if shape == LogitShape::PLAIN {
        return Ok(());
    }
    let len = logits.shape().len();
    let params = Params { len: len as u32, factor: shape.factor, soft_cap: shape.soft_cap.unwrap_or(0.0) };
    g.dispatch(kernel(shape), &params, &[logits], len.div_ceil(256), 12.0 * len as f64)
}
