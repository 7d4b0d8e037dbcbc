//! Layers: `forward(g, x) -> (y, Saved)` and `backward(g, saved, dy) -> dx`, written by hand.
//!
//! `Saved` is what the backward pass needs; each field tells its shape, and together they are the memory budget of
//! training. A layer records dispatches and never runs anything.

pub mod activations;
pub mod linear;
pub mod norm;
pub mod transform;

pub use activations::Activations;
pub use linear::Linear;
pub use norm::RmsNorm;
pub use transform::{Permutation, Transform};
