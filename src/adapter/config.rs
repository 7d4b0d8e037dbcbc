//! What a LoRA adapter is: PEFT's words and PEFT's rules.

use crate::{Error, Result};

/// The linear layers of a block, by the names PEFT targets.
pub const LINEAR_MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// A LoRA adapter's configuration, with PEFT's field names.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Chance that an input element of the update is dropped in training.
    pub lora_dropout: f64,
    /// Rank-stabilized scaling (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Layers that get an update: names from [`LINEAR_MODULES`]. `all-linear` stands for all of them.
    pub target_modules: Vec<String>,
    /// Seed of the initial values of `lora_A`.
    pub seed: u64,
}

impl Default for LoraConfig {
    /// r 16, alpha 16, no dropout, all linear layers but the head.
    fn default() -> Self {
        LoraConfig {
            r: 16,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: vec!["all-linear".to_owned()],
            seed: 42,
        }
    }
}

impl LoraConfig {
    /// alpha / r, or alpha / sqrt(r).
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// The targeted names, in the order of [`LINEAR_MODULES`]. Errors: Config for names that no layer has.
    pub fn targets(&self) -> Result<Vec<&'static str>> {
        if self.target_modules.iter().any(|t| t == "all-linear") {
            return Ok(LINEAR_MODULES.to_vec());
        }
        if let Some(unknown) = self.target_modules.iter().find(|t| !LINEAR_MODULES.contains(&t.as_str())) {
            let known = LINEAR_MODULES.join(", ");
            return Err(Error::config("target_modules", format!("{unknown} is none of {known} or all-linear")));
        }
        Ok(LINEAR_MODULES.into_iter().filter(|m| self.target_modules.iter().any(|t| t == m)).collect())
    }

    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1024).contains(&self.r) {
            return Err(Error::config("lora_r", format!("expected 1 to 1024, got {}", self.r)));
        }
        if !self.lora_alpha.is_finite() {
            return Err(Error::config("lora_alpha", format!("expected a finite number, got {}", self.lora_alpha)));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config("lora_dropout", format!("expected 0 up to below 1, got {}", self.lora_dropout)));
        }
        if self.targets()?.is_empty() {
            return Err(Error::config("target_modules", "names no layer"));
        }
        Ok(())
    }
}
