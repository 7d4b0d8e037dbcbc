//! Quantization-aware training: a layer's gradients against an f64 reference, and what training promises of a model: it learns
//! what rounding lost, in the same bits every time, and what comes out is what it saw.
#![cfg(feature = "tokenizer")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod layer;
mod training;
