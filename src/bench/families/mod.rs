//! What is measured: one file for each family, one line in the table.

mod adapter;
mod attention;
mod layers;
mod loss;
mod method;
mod optimizer;
mod product;
mod quantize;
mod rounding;

use super::Case;
use crate::arch::Architecture;

/// A family of cases.
pub struct Family {
    /// In front of its cases' names.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// Its cases at the layers of these shapes.
    pub cases: fn(&[Architecture]) -> Vec<Case>,
}

/// All of them.
pub const FAMILIES: [Family; 9] = [
    Family { name: "product", about: "y = x·Wᵀ and dx = dy·W with W in every scheme", cases: product::cases },
    Family {
        name: "adapter",
        about: "what adapters add: products of LoRA, norms of DoRA, scores of AdaLoRA",
        cases: adapter::cases,
    },
    Family { name: "attention", about: "attention, its backward pass, and reading a cache", cases: attention::cases },
    Family { name: "layers", about: "norms, rotations, gates, sums, copies of parts", cases: layers::cases },
    Family { name: "loss", about: "embedding, cross-entropy, the likeliest token", cases: loss::cases },
    Family { name: "optimizer", about: "AdamW and the norm of gradients", cases: optimizer::cases },
    Family { name: "quantize", about: "rounding to schemes and back", cases: quantize::cases },
    Family { name: "rounding", about: "what calibration and training through rounding add", cases: rounding::cases },
    Family { name: "method", about: "a layer quantized by each method, host's part included", cases: method::cases },
];

/// Rows (tokens) at which what a model does is measured: one generated token, a few, a short text, a long one.
const ROWS: [usize; 4] = [1, 16, 256, 1024];

/// The shape's distinct linear layers: (out, in), largest first.
fn layers(shape: &Architecture) -> Vec<[usize; 2]> {
    let mut layers: Vec<[usize; 2]> = shape.linears.iter().map(|linear| linear.shape).collect();
    layers.sort_unstable_by_key(|&[out, width]| (std::cmp::Reverse(out * width), out));
    layers.dedup();
    layers
}

/// Distinct numbers of the shapes.
fn distinct<T: Ord + Copy>(shapes: &[Architecture], of: impl Fn(&Architecture) -> T) -> Vec<T> {
    let mut all: Vec<T> = shapes.iter().map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}
