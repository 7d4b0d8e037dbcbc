//! What an adapter is: PEFT's words and PEFT's rules.

use super::{AdaLoraConfig, PromptTuningConfig};
use crate::{
    Error, Result,
    arch::{Architecture, LinearId},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The configuration of an adapter of any kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "peft_type")]
pub enum PeftConfig {
    /// A low-rank update, also DoRA's.
    #[serde(rename = "LORA")]
    Lora(LoraConfig),
    /// A low-rank update whose ranks are allocated while it learns.
    #[serde(rename = "ADALORA")]
    AdaLora(AdaLoraConfig),
    /// Vectors that scale outputs and inputs.
    #[serde(rename = "IA3")]
    Ia3(Ia3Config),
    /// Virtual tokens in front of each text.
    #[serde(rename = "PROMPT_TUNING")]
    PromptTuning(PromptTuningConfig),
}

impl From<LoraConfig> for PeftConfig {
    fn from(config: LoraConfig) -> PeftConfig {
        PeftConfig::Lora(config)
    }
}

impl From<AdaLoraConfig> for PeftConfig {
    fn from(config: AdaLoraConfig) -> PeftConfig {
        PeftConfig::AdaLora(config)
    }
}

impl From<Ia3Config> for PeftConfig {
    fn from(config: Ia3Config) -> PeftConfig {
        PeftConfig::Ia3(config)
    }
}

impl From<PromptTuningConfig> for PeftConfig {
    fn from(config: PromptTuningConfig) -> PeftConfig {
        PeftConfig::PromptTuning(config)
    }
}

impl PeftConfig {
    /// That of LoRA or DoRA, where it is one.
    pub fn lora(&self) -> Option<&LoraConfig> {
        match self {
            PeftConfig::Lora(config) => Some(config),
            PeftConfig::AdaLora(_) | PeftConfig::Ia3(_) | PeftConfig::PromptTuning(_) => None,
        }
    }

    /// The same, with layers that a default stands for by the names that they have in this model, and with its width.
    pub fn named(self, arch: &Architecture) -> PeftConfig {
        match self {
            PeftConfig::Lora(_) | PeftConfig::AdaLora(_) => self,
            PeftConfig::Ia3(config) => PeftConfig::Ia3(config.named(arch)),
            PeftConfig::PromptTuning(config) => PeftConfig::PromptTuning(config.named(arch)),
        }
    }

    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        match self {
            PeftConfig::Lora(config) => config.validate(),
            PeftConfig::AdaLora(config) => config.validate(),
            PeftConfig::Ia3(config) => config.validate(),
            PeftConfig::PromptTuning(config) => config.validate(),
        }
    }

    /// Names and shapes (out, in) of the layers of a model that it changes, in the model's order; none of prompt
    /// tuning. Errors: Config, also for a target that is none of them.
    pub fn layers(&self, arch: &Architecture) -> Result<Vec<(String, [usize; 2])>> {
        match self {
            PeftConfig::Lora(config) => config.layers(arch),
            PeftConfig::AdaLora(config) => config.layers(arch),
            PeftConfig::Ia3(config) => config.layers(arch),
            PeftConfig::PromptTuning(config) => config.validate().map(|()| Vec::new()),
        }
    }
}

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
    /// A magnitude beside the update for each row of the weight (DoRA, Liu et al. 2024).
    pub use_dora: bool,
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
            use_dora: false,
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
        self.target_modules.iter().any(|target| means(target, module))
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
        match self.target_modules.is_empty() {
            true => Err(Error::config("target_modules", "names no layer")),
            false => Ok(()),
        }
    }

    /// Names and shapes (out, in) of the layers of a model that get an update, in the model's order. Errors: Config, also for a
    /// target that is none of them.
    pub fn layers(&self, arch: &Architecture) -> Result<Vec<(String, [usize; 2])>> {
        self.validate()?;
        check_targets("target_modules", &self.target_modules, arch)?;
        Ok(arch.linear_layers().filter(|(name, _)| self.targets(name)).collect())
    }
}

/// An IA3 adapter's configuration, with PEFT's field names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ia3Config {
    /// Layers that get a vector, as in [`LoraConfig::target_modules`]; none stands for those of the paper in any family: what makes keys
    /// and values, and what reads the gated activations.
    pub target_modules: Vec<String>,
    /// Those of them whose vector scales the input, not the output; none where `target_modules` is: what reads the gated activations.
    pub feedforward_modules: Vec<String>,
}

impl Ia3Config {
    /// The layers of the paper by the names that they have in this model, where none are named. Fused layers that make other parts too are
    /// scaled as a whole.
    pub fn named(self, arch: &Architecture) -> Ia3Config {
        if !(self.target_modules.is_empty() && self.feedforward_modules.is_empty()) {
            return self;
        }
        let of = |ids: &[LinearId]| {
            let linears = arch.linears.iter().filter(|linear| ids.contains(&linear.id));
            linears.map(|linear| last(linear.name).to_owned()).collect::<Vec<_>>()
        };
        let ids = [LinearId::K, LinearId::V, LinearId::Qkv, LinearId::Down];
        Ia3Config { target_modules: of(&ids), feedforward_modules: of(&[LinearId::Down]) }
    }

    /// Whether a linear layer of a block, by its full name, gets a vector.
    pub fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| means(target, module))
    }

    /// Whether the vector of a layer that gets one scales its input.
    pub fn is_feedforward(&self, module: &str) -> bool {
        self.feedforward_modules.iter().any(|target| means(target, module))
    }

    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.target_modules.is_empty() && !self.feedforward_modules.is_empty() {
            let message = "needs target_modules too, which it names a part of";
            return Err(Error::config("feedforward_modules", message));
        }
        let targets = |name: &String| self.target_modules.iter().any(|target| means(target, name));
        match self.feedforward_modules.iter().find(|name| !targets(name)) {
            Some(name) => Err(Error::config(
                "feedforward_modules",
                format!("{name} is none of target_modules; name it there too"),
            )),
            None => Ok(()),
        }
    }

    /// Names and shapes (out, in) of the layers of a model that get a vector, in the model's order. Errors: Config, also for a target
    /// that is none of them.
    pub fn layers(&self, arch: &Architecture) -> Result<Vec<(String, [usize; 2])>> {
        self.validate()?;
        let named = self.clone().named(arch);
        check_targets("target_modules", &named.target_modules, arch)?;
        check_targets("feedforward_modules", &named.feedforward_modules, arch)?;
        Ok(arch.linear_layers().filter(|(name, _)| named.targets(name)).collect())
    }
}

/// Whether a target is this module, by its full name: `all-linear`, or the last parts of the name.
pub(super) fn means(target: &str, module: &str) -> bool {
    target == "all-linear" || module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Errors: Config for a target that is no layer of the model.
pub(super) fn check_targets(field: &str, targets: &[String], arch: &Architecture) -> Result<()> {
    for target in targets {
        if arch.linear_layers().any(|(name, _)| means(target, &name)) {
            continue;
        }
        let known: Vec<&str> = arch.linears.iter().map(|linear| last(linear.name)).collect();
        let message = match known.contains(&last(target)) {
            true => format!("{target} is no layer of this model"),
            false => format!("{target} is none of {} or all-linear", known.join(", ")),
        };
        return Err(Error::config(field, message));
    }
    Ok(())
}

/// The last part of a module's name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
