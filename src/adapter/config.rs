//! What a LoRA adapter is: PEFT's words and PEFT's rules.

use crate::{Error, Result, arch::Architecture};
use serde::Serialize;
use std::collections::BTreeMap;

/// A LoRA adapter's configuration, with PEFT's field names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraConfig {
    /// Rank of the update, where `ranks` has no other.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Chance that an input element of the update is dropped in training.
    pub lora_dropout: f64,
    /// Rank-stabilized scaling (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Layers that get an update: the last part of their names (`q_proj`), or more of it up to the full name. `all-linear` stands for
    /// all of them.
    pub target_modules: Vec<String>,
    /// Ranks of layers that have another, by their full names (`model.layers.0.self_attn.q_proj`).
    pub ranks: BTreeMap<String, usize>,
    /// Alphas of layers that have another, by their full names.
    pub alphas: BTreeMap<String, f64>,
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
            ranks: BTreeMap::new(),
            alphas: BTreeMap::new(),
            seed: 42,
        }
    }
}

impl LoraConfig {
    /// The rank of a layer, by its full name.
    pub fn rank(&self, module: &str) -> usize {
        self.ranks.get(module).copied().unwrap_or(self.r)
    }

    /// The alpha of a layer, by its full name.
    pub fn alpha(&self, module: &str) -> f64 {
        self.alphas.get(module).copied().unwrap_or(self.lora_alpha)
    }

    /// alpha / r, or alpha / sqrt(r), of a layer by its full name.
    pub fn scale(&self, module: &str) -> f32 {
        let r = self.rank(module) as f64;
        (self.alpha(module) / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// Whether a linear layer of a block, by its full name, gets an update.
    pub fn targets(&self, module: &str) -> bool {
        let meant = |target: &String| {
            target == "all-linear"
                || module.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.target_modules.iter().any(meant)
    }

    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        let field = |field: &str, module: Option<&String>| match module {
            None => field.to_owned(),
            Some(module) => format!("{field} of {module}"),
        };
        let ranks = self.ranks.iter().map(|(module, r)| (Some(module), r));
        for (module, r) in std::iter::once((None, &self.r)).chain(ranks) {
            if !(1..=1024).contains(r) {
                return Err(Error::config(field("lora_r", module), format!("expected 1 to 1024, got {r}")));
            }
        }
        let alphas = self.alphas.iter().map(|(module, alpha)| (Some(module), alpha));
        for (module, alpha) in std::iter::once((None, &self.lora_alpha)).chain(alphas) {
            if !alpha.is_finite() {
                return Err(Error::config(
                    field("lora_alpha", module),
                    format!("expected a finite number, got {alpha}"),
                ));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config("lora_dropout", format!("expected 0 up to below 1, got {}", self.lora_dropout)));
        }
        if self.target_modules.is_empty() {
            return Err(Error::config("target_modules", "names no layer"));
        }
        Ok(())
    }

    /// Names and shapes (out, in) of the layers of a model that get an update, in the model's order. Errors: Config, also for a
    /// target that is none of them.
    pub fn layers(&self, arch: &Architecture) -> Result<Vec<(String, [usize; 2])>> {
        self.validate()?;
        for target in &self.target_modules {
            let alone = LoraConfig { target_modules: vec![target.clone()], ..LoraConfig::default() };
            if arch.linear_layers().any(|(name, _)| alone.targets(&name)) {
                continue;
            }
            let known: Vec<&str> = arch.linears.iter().map(|linear| last(linear.name)).collect();
            let message = match known.contains(&last(target)) {
                true => format!("{target} is no layer of this model"),
                false => format!("{target} is none of {} or all-linear", known.join(", ")),
            };
            return Err(Error::config("target_modules", message));
        }
        Ok(arch.linear_layers().filter(|(name, _)| self.targets(name)).collect())
    }
}

/// The last part of a module's name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
