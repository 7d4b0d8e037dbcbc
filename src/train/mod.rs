//! Training: schedule, optimizer step, trainer, and what a run writes.

mod config;
mod metrics;
mod schedule;
mod trainer;

pub use crate::model::BUCKET;
pub use config::TrainConfig;
pub use metrics::{Change, Course, StepMetrics, TrainerState};
pub use schedule::{Schedule, Warmup};
pub use trainer::Trainer;
