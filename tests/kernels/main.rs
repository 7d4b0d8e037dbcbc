//! Every kernel against f64 references on awkward shapes.

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod attention;
mod awq;
mod codebook;
mod columns;
mod dense;
mod dequantize;
mod diagonal;
mod dora;
mod double_quantize;
mod dropout;
mod elementwise;
mod embedding;
mod fake_quantize;
mod glu;
mod gptq;
mod hadamard;
mod hqq;
mod importance;
mod kv_cache;
mod lattice;
mod logits;
mod loss;
mod norm;
mod observe;
mod optimizer;
mod permute;
mod preference;
mod product;
mod product_int8;
mod quantize;
mod quantize_rows;
mod random;
mod reduce;
mod roofline;
mod rope;
mod sample;
mod squared_error;
mod statistics;
