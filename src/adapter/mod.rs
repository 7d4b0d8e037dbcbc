//! What is trained of a frozen model: low-rank adapters in PEFT's words, or weights through rounding (quantization-aware training);
//! the memory it lies in, and the linear layer that it is attached to.

mod config;
mod latent;
mod linear;
mod memory;
mod qat;
mod store;

pub use config::{LINEAR_MODULES, LoraConfig};
pub use latent::{Float, Latent, Merged};
pub use linear::{AdaptedLinear, Lora, Saved, StepValues};
pub use memory::{Chunk, Trained, Training};
pub use qat::{InputScales, Qat, QatConfig, Ranges};
pub use store::{Adapter, Module};
