//! Layers: `forward(g, x) -> (y, Saved)` and `backward(g, saved, dy) -> dx`, written by hand.
//!
//! `Saved` is what the backward pass needs; each field states its shape, and together they are the memory budget of
//! training. A layer records dispatches and never runs anything.

pub mod adapted;
pub mod attention;
pub mod change;
pub mod context;
pub mod feed_forward;
pub mod input_rounding;
pub mod linear;
pub mod norm;
mod parameter;
pub mod projections;
pub mod transform;

pub use adapted::Adapted;
pub use attention::{Attention, KvCache};
pub(crate) use change::weight_alone;
pub use change::{AdaLora, Change, Dora, Float, Ia3, Latent, Lora, Merged, Weight};
pub use context::{Context, Keys, Pass, StepValues};
pub use feed_forward::FeedForward;
pub use input_rounding::InputRounding;
pub use linear::Linear;
pub use norm::RmsNorm;
pub use parameter::Parameter;
pub use projections::Projections;
pub use transform::{Permutation, Transform};
