//! The methods' own options, and which method takes which.

use super::{FineTune, Method, Observer, Recipe};
use crate::{Error, Result};
use serde::Serialize;

/// Options of the methods; each takes those that are its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MethodOptions {
    /// GPTQ: columns with large inputs first, in groups of neighbours all the same (static groups), so that nothing is stored
    /// of the order. Small models and short calibration texts lose much without it.
    pub act_order: bool,
    /// GPTQ: what is added to the Hessian's diagonal, in parts of its mean.
    pub damping: f64,
    /// AWQ: whether ranges are cut too.
    pub clip: bool,
    /// SmoothQuant: how much of the difficulty moves into the weights, 0 to 1.
    pub alpha: f32,
    /// LLM.int8(): columns of an input with a magnitude of at least this are not rounded to 8 bits.
    pub threshold: f32,
    /// QuIP#: the seed of the random signs.
    pub seed: u64,
    /// RTN, GPTQ: how the range of each block of weights is chosen ([`Observer::of_blocks`]).
    pub weights: Observer,
    /// GPTQ, AWQ: hold a quarter of the samples back, and round to nearest where that loses less of them ([`KeepBetter`](super::KeepBetter)).
    pub keep_better: bool,
    /// Calibrate each layer with what the layers before it in its block give once they are quantized.
    pub true_sequential: bool,
    /// QuIP#, AQLM: times that each block learns from the calibration text at most; 0 for no fine-tuning.
    pub finetune_epochs: usize,
    /// QuIP#, AQLM: how many blocks are fine-tuned, from the first on.
    pub finetune_blocks: usize,
    /// QuIP#, AQLM: the step of fine-tuning ([`FineTune::learning_rate`]).
    pub finetune_lr: f64,
}

impl Default for MethodOptions {
    fn default() -> MethodOptions {
        MethodOptions {
            act_order: true,
            damping: 0.01,
            clip: true,
            alpha: 0.5,
            threshold: 6.0,
            seed: 0,
            weights: Observer::MinMax,
            keep_better: false,
            true_sequential: false,
            finetune_epochs: FineTune::default().epochs,
            finetune_blocks: FineTune::default().blocks,
            finetune_lr: FineTune::default().learning_rate,
        }
    }
}

/// An option and who takes it.
struct Rule {
    /// The field.
    name: &'static str,
    differs: fn(&MethodOptions, &MethodOptions) -> bool,
    taken: fn(&Recipe) -> bool,
}

/// One rule per field of [`MethodOptions`].
const RULES: [Rule; 12] = [
    Rule { name: "act_order", differs: |a, b| a.act_order != b.act_order, taken: |r| r.method == Method::Gptq },
    Rule { name: "damping", differs: |a, b| a.damping != b.damping, taken: |r| r.method == Method::Gptq || learns(r) },
    Rule { name: "clip", differs: |a, b| a.clip != b.clip, taken: |r| r.method == Method::Awq },
    Rule { name: "alpha", differs: |a, b| a.alpha != b.alpha, taken: |r| r.method == Method::SmoothQuant },
    Rule { name: "threshold", differs: |a, b| a.threshold != b.threshold, taken: |r| r.method == Method::LlmInt8 },
    Rule { name: "seed", differs: |a, b| a.seed != b.seed, taken: |r| r.method == Method::Quip },
    Rule {
        name: "weights",
        differs: |a, b| a.weights != b.weights,
        taken: |r| matches!(r.method, Method::Rtn | Method::Gptq),
    },
    Rule {
        name: "keep_better",
        differs: |a, b| a.keep_better != b.keep_better,
        taken: |r| matches!(r.method, Method::Gptq | Method::Awq),
    },
    Rule { name: "true_sequential", differs: |a, b| a.true_sequential != b.true_sequential, taken: is_calibrated },
    Rule { name: "finetune_epochs", differs: |a, b| a.finetune_epochs != b.finetune_epochs, taken: learns },
    Rule { name: "finetune_blocks", differs: |a, b| a.finetune_blocks != b.finetune_blocks, taken: learns },
    Rule { name: "finetune_lr", differs: |a, b| a.finetune_lr != b.finetune_lr, taken: learns },
];

/// Whether blocks can be fine-tuned.
fn learns(recipe: &Recipe) -> bool {
    matches!(recipe.method, Method::Quip | Method::Aqlm)
}

/// Whether the method, or what rounds its activations, looks at a text.
fn is_calibrated(recipe: &Recipe) -> bool {
    Recipe { options: MethodOptions::default(), ..*recipe }.build().is_ok_and(|method| method.needs().any())
}

impl MethodOptions {
    /// Checks that each option that differs from its default is taken by one of `recipes`. Errors: Config, with the
    /// field's name and the methods that take it.
    pub fn check_taken(&self, recipes: &[Recipe]) -> Result<()> {
        let given = |rule: &&Rule| (rule.differs)(self, &MethodOptions::default());
        match RULES.iter().filter(given).find(|rule| !recipes.iter().any(rule.taken)) {
            None => Ok(()),
            Some(rule) => {
                let all = Method::ALL.map(|method| Recipe::new(method, method.default_scheme()));
                let takers: Vec<_> = all.iter().filter(|r| (rule.taken)(r)).map(|r| r.method.name()).collect();
                let mut asked: Vec<_> = recipes.iter().map(|recipe| recipe.method.name()).collect();
                asked.dedup();
                let asked = if asked.is_empty() { "what is asked for".to_owned() } else { asked.join(", ") };
                Err(Error::config(rule.name, format!("does nothing for {asked}; taken by {}", takers.join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_for_the_methods_that_take_them() {
        let default = MethodOptions::default();
        let changed = [
            MethodOptions { act_order: false, ..default },
            MethodOptions { damping: 0.1, ..default },
            MethodOptions { clip: false, ..default },
            MethodOptions { alpha: 0.7, ..default },
            MethodOptions { threshold: 5.0, ..default },
            MethodOptions { seed: 1, ..default },
            MethodOptions { weights: Observer::Mse, ..default },
            MethodOptions { keep_better: true, ..default },
            MethodOptions { true_sequential: true, ..default },
            MethodOptions { finetune_epochs: 1, ..default },
            MethodOptions { finetune_blocks: 1, ..default },
            MethodOptions { finetune_lr: 0.1, ..default },
        ];
        let takers = [
            "gptq",
            "gptq, quip, aqlm",
            "awq",
            "smoothquant",
            "llm-int8",
            "quip",
            "rtn, gptq",
            "gptq, awq",
            "gptq, awq, smoothquant, quip, aqlm",
            "quip, aqlm",
            "quip, aqlm",
            "quip, aqlm",
        ];
        let all = Method::ALL.map(|method| Recipe::new(method, method.default_scheme()));
        for ((options, takers), rule) in changed.iter().zip(takers).zip(&RULES) {
            for recipe in &all {
                let taken = takers.split(", ").any(|name| name == recipe.method.name());
                let checked = options.check_taken(&[*recipe]);
                assert_eq!(checked.is_ok(), taken, "{} {recipe}", rule.name);
                if let Err(error) = checked {
                    let expected =
                        format!("{}: does nothing for {}; taken by {takers}", rule.name, recipe.method.name());
                    assert_eq!(error.to_string(), expected);
                }
            }
            assert!(options.check_taken(&all).is_ok() && options.check_taken(&[]).is_err());
        }
        let observed: Recipe = "rtn:int8+a8-mse".parse().unwrap();
        assert!(changed[8].check_taken(&[observed]).is_ok(), "static scales are calibrated too");
    }
}
