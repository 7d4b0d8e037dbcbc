//! What is trained of a frozen model: adapters in PEFT's words, weights themselves, or weights through rounding (quantization-aware
//! training);
//! by name, in flat memory, and how an optimizer steps it.

mod adalora;
mod chunk;
mod config;
mod full;
mod module;
mod optimizer;
mod qat;
mod store;

pub(crate) use adalora::kept;
pub use adalora::{AdaLoraConfig, Allocated, Ranks};
pub use chunk::{Chunk, Training};
pub use config::{Ia3Config, LoraConfig, PeftConfig};
pub use full::FullConfig;
pub(crate) use module::modules;
pub use module::{Adapter, Module};
pub use optimizer::Optimizer;
pub use qat::{InputScales, Qat, QatConfig, Ranges};
pub use store::Store;
