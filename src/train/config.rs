//! How to train, in the words of transformers and TRL.

use super::{Objective, Schedule};
use crate::{Error, Result};
use serde::Serialize;

/// The options of a training run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainConfig {
    /// What is learned.
    pub objective: Objective,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub lr_scheduler_type: Schedule,
    /// Steps over which it rises from 0, where its course has a warm-up.
    pub warmup_steps: usize,
    /// AdamW's decoupled decay.
    pub weight_decay: f64,
    /// AdamW's beta1 and beta2.
    pub betas: (f64, f64),
    /// AdamW's epsilon.
    pub eps: f64,
    /// Gradients are scaled down to this global norm; 0 switches it off.
    pub max_grad_norm: f64,
    /// Steps in a row that may be left out because their loss or gradient is not finite; one more ends the run.
    pub max_bad_steps: usize,
    /// Optimizer steps of the run; the schedule ends there.
    pub max_steps: usize,
    /// Rows of a micro-batch; where rows are pairs of answers, pairs.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Keep block inputs only and compute the rest again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Longest row.
    pub max_seq_length: usize,
    /// Seed of shuffling and dropout.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            objective: Objective::NextToken,
            learning_rate: 2e-4,
            lr_scheduler_type: Schedule::default(),
            warmup_steps: 0,
            weight_decay: 0.0,
            betas: (0.9, 0.999),
            eps: 1e-8,
            max_grad_norm: 1.0,
            max_bad_steps: 3,
            max_steps: 100,
            batch_size: 1,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            max_seq_length: 1024,
            seed: 42,
        }
    }
}

impl TrainConfig {
    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        self.objective.validate()?;
        let positive = [
            ("max_steps", self.max_steps),
            ("batch_size", self.batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::config(*name, "expected at least 1, got 0"));
        }
        // All batches of a step are made before it is taken.
        const MOST: usize = 1 << 16;
        if self.gradient_accumulation_steps > MOST {
            let message = format!("expected at most {MOST}, got {}", self.gradient_accumulation_steps);
            return Err(Error::config("gradient_accumulation_steps", message));
        }
        if self.max_seq_length < 2 {
            return Err(Error::config("max_seq_length", format!("expected at least 2, got {}", self.max_seq_length)));
        }
        let numbers = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("eps", self.eps),
        ];
        match numbers.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            Some((name, value)) => Err(Error::config(*name, format!("expected 0 or more, got {value}"))),
            None => Ok(()),
        }
    }
}
