//! Quantize, fine-tune and run language models on any GPU that wgpu reaches, with hand-written WGSL.
//!
//! ```no_run
//! use fourbit::{Gpu, LoraConfig, Model, TrainConfig, Trainer, model::LoadOptions};
//!
//! # fn run(batches: Vec<fourbit::data::Batch>) -> fourbit::Result<()> {
//! let gpu = Gpu::new()?;
//! let mut model = Model::load(&gpu, "path/to/model", &LoadOptions::default())?;
//! model.add_adapter(LoraConfig::default(), true)?;
//! let mut trainer = Trainer::new(model, TrainConfig { max_steps: batches.len(), ..TrainConfig::default() })?;
//! for batch in batches {
//!     println!("loss {:.4}", trainer.step(&[batch])?.loss);
//! }
//! trainer.into_model().save_adapter("output", None)
//! # }
//! ```
//!
//! Features, all on by default: `tokenizer` reads tokenizers and chat templates, `parquet` data files in Parquet, `cli` is the
//! command. Without them the library trains on [`data::Batch`]es and generates from token ids.
//!
//! `graph` and `kernels` are the engine: they are open to this crate's own tests and benches, and no part of what its versions
//! promise.
#![deny(missing_docs)]
#![deny(unreachable_pub)]

pub mod adapter;
pub mod arch;
#[cfg(feature = "bench")]
pub mod bench;
mod cancel;
pub mod compare;
pub mod data;
mod dtype;
mod error;
pub mod evaluate;
pub mod export;
pub mod format;
pub mod generate;
pub mod gpu;
#[doc(hidden)]
pub mod graph;
#[doc(hidden)]
pub mod kernels;
pub mod method;
pub mod model;
pub mod nn;
pub mod ops;
pub mod quant;
mod random;
mod run;
mod shape;
#[cfg(feature = "tokenizer")]
pub mod tokenizer;
#[cfg(not(feature = "tokenizer"))]
#[path = "tokenizer/without.rs"]
pub mod tokenizer;
pub mod train;

pub use adapter::{AdaLoraConfig, Ia3Config, LoraConfig, PeftConfig, PromptTuningConfig};
pub use dtype::DType;
pub use error::{Error, Plain, Result};
pub use gpu::{Gpu, Tensor};
pub use kernels::QuantizedTensor;
pub use model::Model;
pub use shape::Shape;
pub use tokenizer::Tokenizer;
pub use train::{TrainConfig, Trainer};
