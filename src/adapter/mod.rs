//! What is trained of a frozen model: low-rank adapters in PEFT's words, or weights through rounding (quantization-aware training);
//! by name, in flat memory, and how an optimizer steps it.

mod chunk;
mod config;
mod lora;
mod optimizer;
mod qat;
mod store;

pub use chunk::{Chunk, Training};
pub use config::LoraConfig;
pub use lora::Adapter;
pub(crate) use lora::pairs;
pub use optimizer::Optimizer;
pub use qat::{InputScales, Qat, QatConfig, Ranges};
pub use store::Store;
