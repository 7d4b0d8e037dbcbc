//! What a run reports: one record a step, in TRL's words, and `trainer_state.json`.

use crate::{Result, format::atomic};
use serde::Serialize;
use std::path::Path;

/// One optimizer step, or the mean over the steps since the last record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Sum of the negative log-likelihoods of all micro-batches over the tokens predicted in them.
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Passes through the data so far.
    pub epoch: f64,
    /// Tokens read so far, padding left out.
    pub num_tokens: u64,
    /// Share of the predicted tokens that were the likeliest.
    pub mean_token_accuracy: f64,
    /// Tokens read a second of wall time.
    pub tokens_per_second: f64,
    /// Most bytes of device memory in use so far.
    pub peak_bytes: u64,
}

/// `trainer_state.json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TrainerState {
    /// Steps taken.
    pub global_step: usize,
    /// Steps planned.
    pub max_steps: usize,
    /// Passes through the data.
    pub epoch: f64,
    /// Rows of a micro-batch.
    pub train_batch_size: usize,
    /// Steps between records.
    pub logging_steps: usize,
    /// The records.
    pub log_history: Vec<StepMetrics>,
}

impl TrainerState {
    /// Adds the mean of `steps`, which are those since the last record.
    pub fn record(&mut self, steps: &[StepMetrics]) {
        let Some(last) = steps.last() else { return };
        let mean = |field: fn(&StepMetrics) -> f64| steps.iter().map(field).sum::<f64>() / steps.len() as f64;
        self.global_step = last.step;
        self.epoch = last.epoch;
        self.log_history.push(StepMetrics {
            loss: mean(|s| s.loss),
            mean_token_accuracy: mean(|s| s.mean_token_accuracy),
            tokens_per_second: mean(|s| s.tokens_per_second),
            ..last.clone()
        });
    }

    /// Writes `trainer_state.json` into `folder`. Errors: Io.
    pub fn save(&self, folder: &Path) -> Result<()> {
        atomic::write_json(folder.join("trainer_state.json"), self)
    }
}
