//! Quantize, fine-tune and run language models on any GPU that wgpu reaches, with hand-written WGSL.
#![warn(missing_docs)]

pub mod adapter;
pub mod data;
pub mod dtype;
pub mod error;
pub mod evaluate;
pub mod format;
pub mod generate;
pub mod gpu;
pub mod graph;
pub mod kernels;
pub mod model;
pub mod nn;
pub mod quant;
pub mod shape;
pub mod tokenizer;
pub mod train;

pub use dtype::DType;
pub use error::{Error, Result};
pub use kernels::QuantizedTensor;
pub use shape::Shape;
