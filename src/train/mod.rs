//! Training: schedule, optimizer step, trainer, and what a run writes.

mod allocation;
mod checkpoint;
mod config;
mod finetune;
mod log;
mod metrics;
mod micro;
mod objective;
mod reduce;
mod schedule;
mod trainer;

pub use crate::model::BUCKET;
pub use checkpoint::checkpoints;
pub use config::TrainConfig;
pub use finetune::{Finetune, SaveOptions, Watch};
pub use metrics::{Change, Course, PreferenceMetrics, StepMetrics, TrainerState};
pub use objective::Objective;
pub use reduce::{OneProcess, Reduce};
pub use schedule::{Schedule, Warmup};
pub use trainer::Trainer;
