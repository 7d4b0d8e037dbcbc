//! Llama-family models: configuration, blocks, the causal language model and its weights.

mod accounting;
mod adapter_files;
mod block;
mod causal_lm;
mod config;
mod config_fields;
mod gguf;
mod gguf_file;
mod gguf_metadata;
mod initial;
mod load;
mod qat;
mod quantized_folder;
mod source;

pub use adapter_files::{BaseWeights, load_adapter};
pub use block::{Block, Context, Site, WeightGradients};
pub use causal_lm::{BUCKET, Inputs, KvCache, LossValues, Model};
pub use config::{Config, FAMILIES, RopeScaling};
pub use gguf_file::{GgufFile, GgufSummary};
pub use load::{LoadOptions, Quantization};
pub use quantized_folder::{QuantizedFolder, QuantizedSummary};
pub use source::Source;
