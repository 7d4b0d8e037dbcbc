//! Prompt tuning: what stands in front of each text.

use crate::{Error, Result, arch::Architecture};
use serde::Serialize;

/// The configuration of prompt tuning (Lester et al. 2021), with PEFT's field names: the embeddings of virtual tokens, which stand in front
/// of each text, are trained; the model is as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptTuningConfig {
    /// Virtual tokens in front of each text.
    pub num_virtual_tokens: usize,
    /// Numbers of each of them; `None` stands for the width of the model that it is attached to.
    pub token_dim: Option<usize>,
    /// What they begin as.
    pub prompt_tuning_init: PromptInit,
    /// Seed of what is drawn.
    pub seed: u64,
}

/// What virtual tokens begin as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptInit {
    /// Numbers of a normal distribution of deviation 1.
    #[default]
    Random,
    /// The embeddings of tokens drawn from the vocabulary.
    SampleVocab,
    /// The embeddings of a text's tokens, from its first one again where they are too few.
    Text(Vec<u32>),
}

impl Default for PromptTuningConfig {
    /// 20 virtual tokens of random numbers.
    fn default() -> Self {
        PromptTuningConfig { num_virtual_tokens: 20, token_dim: None, prompt_tuning_init: PromptInit::Random, seed: 42 }
    }
}

impl PromptTuningConfig {
    /// Virtual tokens, at most.
    pub const MOST_TOKENS: usize = 1 << 16;

    /// The same with the model's width.
    pub(super) fn named(self, arch: &Architecture) -> PromptTuningConfig {
        PromptTuningConfig { token_dim: self.token_dim.or(Some(arch.hidden_size)), ..self }
    }

    /// Errors: Config naming the field.
    pub fn validate(&self) -> Result<()> {
        let (count, most) = (self.num_virtual_tokens, Self::MOST_TOKENS);
        if !(1..=most).contains(&count) {
            return Err(Error::config("num_virtual_tokens", format!("expected 1 to {most}, got {count}")));
        }
        match &self.prompt_tuning_init {
            PromptInit::Text(ids) if ids.is_empty() => {
                Err(Error::config("prompt_tuning_init_text", "has no token to begin from"))
            }
            _ => Ok(()),
        }
    }

    /// [virtual tokens, width]. Errors: Config where the width is not known.
    pub(super) fn shape(&self) -> Result<[usize; 2]> {
        match self.token_dim {
            Some(width) if width > 0 => Ok([self.num_virtual_tokens, width]),
            other => Err(Error::config("token_dim", format!("expected the model's width, got {other:?}"))),
        }
    }
}
