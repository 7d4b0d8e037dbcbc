//! Low-rank adapters: configuration in PEFT's words, trainable memory, and the adapted linear layer.

mod config;
mod linear;
mod store;

pub use config::{LINEAR_MODULES, LoraConfig};
pub use linear::{AdaptedLinear, Lora, Saved, StepValues};
pub use store::{Adapter, Chunk, Module, Training};
