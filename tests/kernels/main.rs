//! Every kernel against f64 references on awkward shapes.

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod activation;
mod attention;
mod attention_cached;
mod attention_lanes;
mod awq;
mod codebook;
mod dequantize;
mod diagonal;
mod double_quantize;
mod dropout;
mod elementwise;
mod embedding;
mod fake_quantize;
mod gemv;
mod gemv_subgroup;
mod gptq;
mod hadamard;
mod hqq;
mod kv_cache;
mod lattice;
mod lora;
mod loss;
mod matmul;
mod matmul_int8;
mod matmul_int8_subgroup;
mod matmul_subgroup;
mod norm;
mod observe;
mod optimizer;
mod permute;
mod quantize;
mod quantize_rows;
mod reduce;
mod roofline;
mod rope;
mod sample;
mod squared_error;
mod statistics;
