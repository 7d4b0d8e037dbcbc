//! What a run reports: one record per step, in TRL's words, and `trainer_state.json`.

use super::Objective;
use crate::{
    Result,
    format::{atomic, read_json},
};
use serde::{Deserialize, Serialize};
use std::path::Path;

const STATE: &str = "trainer_state.json";

/// One optimizer step, or the mean over the steps since the last record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Sum of the negative log-likelihoods of all micro-batches over the tokens predicted in them.
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Passes through the data so far, as transformers' Trainer counts them: in batches.
    pub epoch: f64,
    /// Tokens read so far, padding left out.
    pub num_tokens: u64,
    /// Share of the predicted tokens that were the likeliest.
    pub mean_token_accuracy: f64,
    /// Tokens read a second of wall time.
    pub tokens_per_second: f64,
    /// Most bytes of device memory in use so far.
    pub peak_bytes: u64,
    /// Of a step that learned from pairs of answers.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceMetrics>,
}

/// What a step learned from pairs of answers, in TRL's words: means over the pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceMetrics {
    /// β times how much likelier the preferred answer is than by the reference; of ORPO β times its mean log p of a token.
    #[serde(rename = "rewards/chosen")]
    pub rewards_chosen: f64,
    /// The same of the other answer.
    #[serde(rename = "rewards/rejected")]
    pub rewards_rejected: f64,
    /// Share of the pairs whose preferred answer has the larger reward.
    #[serde(rename = "rewards/accuracies")]
    pub rewards_accuracies: f64,
    /// By how much the rewards differ.
    #[serde(rename = "rewards/margins")]
    pub rewards_margins: f64,
    /// log p of the preferred answer: the sum over its tokens, of ORPO their mean.
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    /// The same of the other answer.
    #[serde(rename = "logps/rejected")]
    pub logps_rejected: f64,
    /// ORPO's −log p of all tokens of the preferred rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll_loss: Option<f64>,
    /// ORPO's log σ of the log odds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_odds_ratio: Option<f64>,
    /// ORPO's log odds of the preferred answer over the other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_odds_chosen: Option<f64>,
}

impl PreferenceMetrics {
    /// (loss, share of right tokens, metrics) of the sums of [`weigh`](crate::kernels::preference::weigh).
    pub(super) fn of(objective: Objective, sums: &[f32]) -> (f64, f64, PreferenceMetrics) {
        let sum = |at: usize| f64::from(sums[at]);
        let mean = |at: usize| sum(at) / sum(3).max(1.0);
        let is_orpo = matches!(objective, Objective::Orpo { .. });
        let nll = is_orpo.then(|| sum(9) / sum(10).max(1.0));
        let metrics = PreferenceMetrics {
            rewards_chosen: mean(4),
            rewards_rejected: mean(5),
            rewards_accuracies: mean(6),
            rewards_margins: mean(4) - mean(5),
            logps_chosen: mean(7),
            logps_rejected: mean(8),
            nll_loss: nll,
            log_odds_ratio: is_orpo.then(|| mean(12)),
            log_odds_chosen: is_orpo.then(|| mean(11)),
        };
        (mean(0) + nll.unwrap_or(0.0), sum(1) / sum(2).max(1.0), metrics)
    }

    /// The mean of some, which are of one run.
    fn mean(all: &[&PreferenceMetrics]) -> Option<PreferenceMetrics> {
        let count = all.len() as f64;
        let mean = |of: fn(&PreferenceMetrics) -> f64| all.iter().map(|m| of(m)).sum::<f64>() / count;
        let some = |of: fn(&PreferenceMetrics) -> Option<f64>| {
            all.iter().map(|m| of(m)).sum::<Option<f64>>().map(|sum| sum / count)
        };
        (!all.is_empty()).then(|| PreferenceMetrics {
            rewards_chosen: mean(|m| m.rewards_chosen),
            rewards_rejected: mean(|m| m.rewards_rejected),
            rewards_accuracies: mean(|m| m.rewards_accuracies),
            rewards_margins: mean(|m| m.rewards_margins),
            logps_chosen: mean(|m| m.logps_chosen),
            logps_rejected: mean(|m| m.logps_rejected),
            nll_loss: some(|m| m.nll_loss),
            log_odds_ratio: some(|m| m.log_odds_ratio),
            log_odds_chosen: some(|m| m.log_odds_chosen),
        })
    }
}

impl StepMetrics {
    /// Whether the step changed nothing, because its loss or gradient was not finite.
    pub fn is_left_out(&self) -> bool {
        !(self.loss.is_finite() && self.grad_norm.is_finite())
    }
}

/// `trainer_state.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
    /// Steps between checkpoints; 0 for none.
    pub save_steps: usize,
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
            preference: PreferenceMetrics::mean(
                &steps.iter().filter_map(|s| s.preference.as_ref()).collect::<Vec<_>>(),
            ),
            ..last.clone()
        });
    }

    /// Writes `trainer_state.json` into `folder`. Errors: Io.
    pub fn save(&self, folder: &Path) -> Result<()> {
        atomic::write_json(folder.join(STATE), self)
    }

    /// Reads `trainer_state.json` of `folder`. Errors: Io, Format.
    pub fn read(folder: &Path) -> Result<TrainerState> {
        read_json(folder.join(STATE))
    }
}

/// The loss of each step of a run, to compare its beginning with its end: single steps see different rows, and cannot be compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Course {
    /// (loss, predicted tokens, epoch after the step)
    steps: Vec<(f64, usize, f64)>,
}

/// What a run changed: means over the predicted tokens of two spans of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Mean loss of the first span.
    pub first: f64,
    /// Mean loss of the last span.
    pub last: f64,
    /// Which spans, in words.
    pub over: String,
}

impl Course {
    /// Adds a step that predicted so many tokens.
    pub fn push(&mut self, step: &StepMetrics, predicted: usize) {
        self.steps.push((step.loss, predicted, step.epoch));
    }

    /// The first and the last whole epoch, which see the same rows; in less than two epochs, the first and last quarter of the
    /// steps. `None` where fewer than two steps were taken.
    pub fn change(&self) -> Option<Change> {
        let (&(_, _, end), count) = (self.steps.last()?, self.steps.len());
        if count < 2 {
            return None;
        }
        let whole = end.floor();
        let epoch = |n: f64| self.steps.iter().filter(move |step| n - 1.0 < step.2 && step.2 <= n);
        if whole >= 2.0 {
            let over = format!("epochs 1 and {whole}, the same rows");
            return Some(Change { first: mean(epoch(1.0)), last: mean(epoch(whole)), over });
        }
        let span = (count / 4).max(1);
        let over = match span {
            1 => "the first and the last step, other rows".to_owned(),
            _ => format!("the first and the last {span} steps"),
        };
        let [first, last] = [&self.steps[..span], &self.steps[count - span..]].map(|part| mean(part.iter()));
        Some(Change { first, last, over })
    }
}

/// Mean over predicted tokens.
fn mean<'a>(steps: impl Iterator<Item = &'a (f64, usize, f64)>) -> f64 {
    let (sum, tokens) = steps.fold((0.0, 0), |(sum, n), (loss, tokens, _)| (sum + loss * *tokens as f64, n + tokens));
    sum / tokens.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(steps: &[(f64, usize, f64)]) -> Course {
        Course { steps: steps.to_vec() }
    }

    #[test]
    fn whole_epochs_are_compared_by_their_tokens() {
        let steps = [(4.0, 30, 0.5), (2.0, 10, 1.0), (3.0, 30, 1.5), (1.0, 10, 2.0), (9.0, 30, 2.5)];
        let change = course(&steps).change().unwrap();
        assert_eq!((change.first, change.last), (3.5, 2.5), "(4 * 30 + 2 * 10) / 40 and (3 * 30 + 10) / 40");
        assert_eq!(change.over, "epochs 1 and 2, the same rows");
    }

    #[test]
    fn within_an_epoch_equal_spans_are_compared() {
        let steps: Vec<_> = (0..9).map(|i| (9.0 - f64::from(i), 1, f64::from(i + 1) / 9.0)).collect();
        let change = course(&steps).change().unwrap();
        assert_eq!((change.first, change.last), (8.5, 1.5));
        assert_eq!(change.over, "the first and the last 2 steps");
        assert!(course(&steps[..3]).change().unwrap().over.contains("other rows"));
        assert_eq!(course(&steps[..1]).change(), None);
        assert_eq!(course(&[]).change(), None);
    }
}
