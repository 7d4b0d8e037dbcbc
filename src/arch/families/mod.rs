//! The families: the only files that know one by its name.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod smollm3;

use super::{Architecture, LinearId};
use crate::{Result, format::fields::Fields};

/// A family of models: how the programs of the field call it, and who reads its configuration.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Its class in transformers.
    pub class: &'static str,
    /// `general.architecture` in GGUF files.
    pub gguf: &'static str,
    /// Linear layers that have a bias whatever the configuration says.
    pub biased: &'static [LinearId],
    /// Whether GGUF files have the rows of queries and keys in llama.cpp's own rotary order ([`super::Rows::Rotated`]).
    pub rotated: bool,
    /// Whether llama.cpp divides its rotary frequencies by a file's `rope_freqs.weight`.
    pub rope_freqs: bool,
    /// Reads config.json. Errors: Format, Unsupported.
    pub read: fn(&Fields<'_>) -> Result<Architecture>,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.model_type == other.model_type
    }
}

/// All of them. Of those that share a name in GGUF files the first reads them.
pub const FAMILIES: [&Family; 5] = [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &smollm3::FAMILY];
