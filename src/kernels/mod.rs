//! One host file per shader family: checks shapes, picks a variant, records the dispatch.
//!
//! Every file offers recording functions over [`crate::graph::Value`]s and a `variants()` list of every specialisation it
//! can record, which the shader tests validate for SPIR-V, MSL, HLSL and wgpu's noop device.
// A scheme, or a type of numbers, that is new must not fall through to what another one means.
#![warn(clippy::wildcard_enum_match_arm)]

pub mod attention;
pub mod awq;
pub mod codebook;
pub mod columns;
mod decode;
pub mod dense;
pub mod dequantize;
pub mod diagonal;
pub mod dora;
pub mod double_quantize;
pub mod dropout;
mod element;
pub mod elementwise;
pub mod embedding;
pub mod fake_quantize;
pub mod glu;
pub mod gptq;
pub mod hadamard;
pub mod hqq;
pub mod importance;
pub mod kv_cache;
pub mod lattice;
pub mod logits;
pub mod loss;
pub mod norm;
pub mod observe;
pub mod optimizer;
pub mod permute;
pub mod preference;
pub mod product;
pub mod product_int8;
pub mod quantize;
pub mod quantize_rows;
mod quantized;
pub mod random;
pub mod reduce;
pub mod roofline;
pub mod rope;
pub mod sample;
pub mod squared_error;
pub mod statistics;

pub use quantized::{QuantizedTensor, Shard};

use crate::{
    DType, Error, Result,
    gpu::{Caps, Kernel},
    graph::Value,
};

/// Errors: Shape, where `value` is not an f32 matrix of this shape (leading extents folded).
fn expect(op: &str, what: &str, value: &Value, shape: [usize; 2]) -> Result<()> {
    let (rows, cols) = value.rows_cols();
    if [rows, cols] == shape && value.dtype() == DType::F32 {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} {shape:?} {}", DType::F32), format!("{} {}", value.shape(), value.dtype())))
}

/// Which design of each heavy kernel runs on a device: (what it computes, the design).
pub fn designs(caps: &Caps) -> Vec<(&'static str, &'static str)> {
    /// A head as long as those of most models.
    const HEAD_DIM: usize = 64;
    let by = |subgroups: bool| if subgroups { "by subgroup shuffles" } else { "through workgroup memory" };
    vec![
        ("products", by(product::prefers_subgroups(caps))),
        ("attention", by(matches!(attention::Design::of(caps, HEAD_DIM), attention::Design::Lanes { .. }))),
        ("int8 products", if caps.packed_dot { "by packed dot products" } else { "by shifts" }),
    ]
}

/// Every kernel that this crate may run.
pub fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    all.extend(elementwise::variants());
    all.extend(columns::variants());
    all.extend(norm::variants());
    all.extend(observe::variants());
    all.extend(hadamard::variants());
    all.extend(hqq::variants());
    all.extend(lattice::variants());
    all.extend(glu::variants());
    all.extend(rope::variants());
    all.extend(logits::variants());
    all.extend(loss::variants());
    all.extend(optimizer::variants());
    all.extend(embedding::variants());
    all.extend(gptq::variants());
    all.extend(awq::variants());
    all.extend(permute::variants());
    all.extend(preference::variants());
    all.extend(reduce::variants());
    all.extend(dropout::variants());
    all.extend(sample::variants());
    all.extend(statistics::variants());
    all.extend(squared_error::variants());
    all.extend(codebook::variants());
    all.extend(diagonal::variants());
    all.extend(dora::variants());
    all.extend(importance::variants());
    all.extend(quantize::variants());
    all.extend(quantize_rows::variants());
    all.extend(random::variants());
    all.extend(dequantize::variants());
    all.extend(fake_quantize::variants());
    all.extend(double_quantize::variants());
    all.extend(product::variants());
    all.extend(product_int8::variants());
    all.extend(roofline::variants());
    all.extend(attention::variants());
    all.extend(kv_cache::variants());
    all
}
