//! The causal language model: its blocks, its weights from and to files, what is attached to it.

mod accounting;
mod adapter_files;
mod block;
mod causal_lm;
mod gguf_file;
mod gguf_metadata;
mod initial;
mod load;
mod qat;
mod quantized_folder;
mod source;

pub use adapter_files::{BaseWeights, load_adapter};
pub use block::{Block, Saved};
pub use causal_lm::{BUCKET, Inputs, LossValues, Model};
pub use gguf_file::{GgufFile, GgufSummary};
pub use load::{LoadOptions, Quantization};
pub use quantized_folder::{QuantizedFolder, QuantizedSummary};
pub use source::Source;
