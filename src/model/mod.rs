//! The causal language model: its blocks, its weights from and to files, what is attached to it.

mod accounting;
mod adapter_files;
mod block;
mod causal_lm;
mod changes;
mod combine;
mod full;
mod initial;
mod load;
mod of_shape;
mod parts;
mod prompt;
mod qat;
mod ropes;
mod source;

pub use adapter_files::{BaseWeights, load_adapter};
pub use block::{Block, Saved};
pub use causal_lm::{BUCKET, Inputs, LossValues, Model, PairValues};
pub use combine::{Combination, combine_adapters};
pub use load::{LoadOptions, Quantization};
pub use ropes::Ropes;
pub(crate) use ropes::RopesOfSamples;
pub use source::Source;
pub(crate) use source::{PIECE, added_in_gguf, heads_in_gguf, rotated_row};
