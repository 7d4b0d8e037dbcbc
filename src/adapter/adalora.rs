//! What AdaLoRA is, in PEFT's words, and how many ranks it may keep at each step.

use super::config::{check_targets, means};
use crate::{Error, Result, arch::Architecture};
use serde::Serialize;

/// An AdaLoRA adapter's configuration, with PEFT's field names (Zhang et al. 2023).
///
/// All layers begin with `init_r` ranks. From step `tinit` on the budget of all layers together falls, as a cubic, to `target_r` ranks
/// a layer on average, which it has `tfinal` steps before the end; every `delta_t` steps the ranks that matter least to the loss are set to
/// zero. In the last `tfinal` steps nothing is allocated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdaLoraConfig {
    /// Rank of each layer at first.
    pub init_r: usize,
    /// Rank of each layer at the end, on average.
    pub target_r: usize,
    /// Steps before the first rank goes.
    pub tinit: usize,
    /// Steps behind the last one.
    pub tfinal: usize,
    /// Steps from one allocation to the next.
    #[serde(rename = "deltaT")]
    pub delta_t: usize,
    /// Decay rate of the sensitivity of each number.
    pub beta1: f64,
    /// Decay rate of its uncertainty.
    pub beta2: f64,
    /// Weight of the term that keeps A's rows and B's columns orthonormal.
    pub orth_reg_weight: f64,
    /// Steps of the run.
    pub total_step: usize,
    /// The update is scaled by `lora_alpha / (init_r + 1e-5)`; where it is not above 0, by `init_r` in its place.
    pub lora_alpha: f64,
    /// Chance that an input element of the update is dropped in training.
    pub lora_dropout: f64,
    /// Layers that get an update, as in [`LoraConfig::target_modules`](super::LoraConfig::target_modules).
    pub target_modules: Vec<String>,
    /// Seed of the initial values of A and B.
    pub seed: u64,
}

impl AdaLoraConfig {
    /// PEFT's defaults for a run of so many steps, on all linear layers but the head, with alpha 16: 12 ranks that become 8, allocated at
    /// each step from the first on.
    pub fn new(total_step: usize) -> AdaLoraConfig {
        AdaLoraConfig {
            init_r: 12,
            target_r: 8,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: vec!["all-linear".to_owned()],
            seed: 42,
        }
    }

    /// alpha / (init_r + 1e-5), whatever ranks were taken away: PEFT's scale, rounded as PEFT rounds it.
    pub fn scale(&self) -> f32 {
        let alpha = if self.lora_alpha > 0.0 { self.lora_alpha } else { self.init_r as f64 };
        alpha as f32 / (self.init_r as f32 + 1e-5)
    }

    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, rank) in [("init_r", self.init_r), ("target_r", self.target_r)] {
            if !(1..=1024).contains(&rank) {
                return Err(Error::config(field, format!("expected 1 to 1024, got {rank}")));
            }
        }
        if self.tinit.saturating_add(self.tfinal) >= self.total_step {
            let message = format!(
                "{} steps, and {} of tfinal behind them, leave none of {} for the allocation of ranks; lower them, or train longer",
                self.tinit, self.tfinal, self.total_step
            );
            return Err(Error::config("tinit", message));
        }
        if self.delta_t == 0 {
            return Err(Error::config("delta_t", "expected at least 1, got 0"));
        }
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(Error::config(field, format!("expected a number between 0 and 1, got {beta}")));
            }
        }
        if !(self.orth_reg_weight.is_finite() && self.orth_reg_weight >= 0.0) {
            return Err(Error::config("orth_reg_weight", format!("expected 0 or more, got {}", self.orth_reg_weight)));
        }
        if !self.lora_alpha.is_finite() {
            return Err(Error::config("lora_alpha", format!("expected a finite number, got {}", self.lora_alpha)));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config("lora_dropout", format!("expected 0 up to below 1, got {}", self.lora_dropout)));
        }
        match self.target_modules.is_empty() {
            true => Err(Error::config("target_modules", "names no layer")),
            false => Ok(()),
        }
    }

    /// Errors: Config for what a file may say, and no training can do: more ranks at the end than at first.
    pub(crate) fn validate_training(&self) -> Result<()> {
        self.validate()?;
        if self.target_r > self.init_r {
            let message =
                format!("{} is more than init_r ({}); ranks are taken away, none is added", self.target_r, self.init_r);
            return Err(Error::config("target_r", message));
        }
        Ok(())
    }

    /// Names and shapes (out, in) of the layers of a model that get an update, in the model's order. Errors: Config, also for a target
    /// that is none of them.
    pub fn layers(&self, arch: &Architecture) -> Result<Vec<(String, [usize; 2])>> {
        self.validate_training()?;
        check_targets("target_modules", &self.target_modules, arch)?;
        let targets = |name: &String| self.target_modules.iter().any(|target| means(target, name));
        Ok(arch.linear_layers().filter(|(name, _)| targets(name)).collect())
    }

    /// What is done after step `step`, from 0 on, of `layers` layers. Zhang et al. 2023, equation 12, as PEFT's allocator is called.
    pub fn after(&self, step: usize, layers: usize) -> Allocated {
        let last = self.total_step - self.tfinal;
        if step > last {
            return Allocated { scores: false, ranks: Ranks::AsBefore };
        }
        let (first, target) = (self.init_r * layers, self.target_r * layers);
        let ranks = match step <= self.tinit {
            true => Ranks::All,
            false => {
                let left = 1.0 - (step - self.tinit) as f64 / (last - self.tinit) as f64;
                let budget = (first - target) as f64 * left.powi(3) + target as f64;
                match step == last || step.is_multiple_of(self.delta_t) {
                    true => Ranks::Budget(budget as usize),
                    false => Ranks::All,
                }
            }
        };
        Allocated { scores: step < last, ranks }
    }
}

/// What follows an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Whether the scores are smoothed with those of the step.
    pub scores: bool,
    /// Which ranks are set to zero.
    pub ranks: Ranks,
}

/// Which ranks stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// What there is: also those that were zero begin to learn again.
    All,
    /// So many of all layers together, those with the highest scores.
    Budget(usize),
    /// Those of the last allocation.
    AsBefore,
}

/// 1 where the score of a rank is above the lowest `scores.len() - budget` of all, else 0: ranks of one score go together.
pub(crate) fn kept(scores: &[f32], budget: usize) -> Vec<f32> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let threshold = scores.len().checked_sub(budget + 1).map(|_| sorted[scores.len() - budget - 1]);
    scores.iter().map(|score| if threshold.is_none_or(|threshold| *score > threshold) { 1.0 } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_falls_as_peft_has_it() {
        // 14 layers; recorded from PEFT 0.21.2.
        let config = AdaLoraConfig { init_r: 6, target_r: 2, tinit: 2, tfinal: 2, ..AdaLoraConfig::new(10) };
        let ranks: Vec<Ranks> = (0..10).map(|step| config.after(step, 14).ranks).collect();
        let budgets = [60, 44, 35, 30, 28, 28].map(Ranks::Budget);
        assert_eq!(ranks[..3], [Ranks::All; 3]);
        assert_eq!(ranks[3..9], budgets);
        assert_eq!(ranks[9], Ranks::AsBefore);
        assert!(config.after(7, 14).scores && !config.after(8, 14).scores);
        let seldom = AdaLoraConfig { delta_t: 3, ..config };
        let allocated: Vec<usize> =
            (0..10).filter(|&step| matches!(seldom.after(step, 14).ranks, Ranks::Budget(_))).collect();
        assert_eq!(allocated, [3, 6, 8], "and once at the end");
    }

    #[test]
    fn ranks_with_the_highest_scores_stay() {
        assert_eq!(kept(&[3.0, 1.0, 2.0, 4.0], 2), [1.0, 0.0, 0.0, 1.0]);
        assert_eq!(kept(&[3.0, 1.0, 2.0, 4.0], 4), [1.0; 4]);
        assert_eq!(kept(&[0.0, 0.0, 0.0, 1.0], 3), [0.0, 0.0, 0.0, 1.0], "as many as have the threshold's score go");
        assert!(kept(&[], 3).is_empty());
    }

    #[test]
    fn schedules_without_room_are_refused() {
        let message = |config: AdaLoraConfig| config.validate().unwrap_err().to_string();
        let ten = AdaLoraConfig::new(10);
        assert!(ten.validate().is_ok());
        assert!(message(AdaLoraConfig { tinit: 5, tfinal: 5, ..ten.clone() }).contains("leave none of 10"));
        let more = AdaLoraConfig { target_r: 13, ..ten.clone() };
        assert!(more.validate().is_ok(), "it can be read");
        assert!(more.validate_training().unwrap_err().to_string().contains("init_r (12)"));
        assert!(message(AdaLoraConfig { beta1: 1.0, ..ten.clone() }).contains("beta1"));
        assert!(message(AdaLoraConfig { delta_t: 0, ..ten.clone() }).contains("delta_t"));
        assert!((ten.scale() - 16.0 / 12.00001).abs() < 1e-6);
    }
}
