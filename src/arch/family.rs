//! What a family of models is.

use super::{Architecture, LinearId};
use crate::{
    Result,
    format::{fields::Fields, gguf::MetaValue},
};
use serde_json::Value;

/// A family of models: how the programs of the field call it, and who reads its configuration.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Its class in transformers.
    pub class: &'static str,
    /// Linear layers that have a bias whatever the configuration says.
    pub biased: &'static [LinearId],
    /// Whether queries, keys and values are one linear layer, and gate and up another.
    pub fused: bool,
    /// Reads config.json. Errors: Format, Unsupported.
    pub read: fn(&Fields<'_>) -> Result<Architecture>,
    /// Its GGUF files.
    pub gguf: GgufFamily,
}

/// How llama.cpp has a family.
#[derive(Debug)]
pub struct GgufFamily {
    /// `general.architecture`.
    pub name: &'static str,
    /// Whether files have the rows of queries and keys in llama.cpp's own rotary order ([`super::Rows::Rotated`]).
    pub rotated: bool,
    /// The tensors of a file that the rotary frequencies are divided by, where it has them: one for all texts, or one for those of up
    /// to `rope.scaling.original_context_length` tokens and one for longer ones.
    pub rope_divisors: &'static [&'static str],
    /// Whether windows are told.
    pub windows: bool,
    /// Whether a file holds a head.
    pub head: GgufHead,
    /// Linear layers whose bias is added where a file has one.
    pub biased: &'static [LinearId],
    /// The family's own keys, into the words of config.json. Errors: Format, Unsupported.
    pub read: fn(&Fields<'_>, &mut Value) -> Result<()>,
    /// The inverse: keys without the family's name.
    pub write: fn(&Architecture) -> Vec<(&'static str, MetaValue)>,
}

/// The head of a family in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufHead {
    /// The embedding serves where there is none.
    Either,
    /// Must be there.
    Own,
    /// The embedding serves always.
    Embedding,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.model_type == other.model_type
    }
}
