//! Training: schedule, optimizer step, trainer, and what a run writes.

mod config;
mod finetune;
mod metrics;
mod reduce;
mod schedule;
mod trainer;

pub use crate::model::BUCKET;
pub use config::TrainConfig;
pub use finetune::{Finetune, Watch};
pub use metrics::{Change, Course, StepMetrics, TrainerState};
pub use reduce::{OneProcess, Reduce};
pub use schedule::{Schedule, Warmup};
pub use trainer::Trainer;
