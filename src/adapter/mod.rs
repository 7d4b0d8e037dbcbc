//! What is trained of a frozen model: adapters in PEFT's words, weights themselves, or weights through rounding (quantization-aware
//! training);
//! by name, in flat memory, and how an optimizer steps it.

mod adalora;
mod chunk;
mod config;
mod full;
mod module;
mod optimizer;
mod prompt;
mod qat;
mod store;

pub(crate) use adalora::kept;
pub use adalora::{AdaLoraConfig, Allocated, Ranks};
pub use chunk::{Chunk, Training};
pub use config::{Ia3Config, LoraConfig, PeftConfig};
pub use full::FullConfig;
pub use module::{Adapter, Module};
pub(crate) use module::{PROMPT, modules};
pub use optimizer::Optimizer;
pub use prompt::{PromptInit, PromptTuningConfig};
pub use qat::{InputScales, Qat, QatConfig, Ranges};
pub use store::Store;
