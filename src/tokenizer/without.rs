//! What is left of this room without the feature `tokenizer`: the turns that rows hold, and the name of what is not there, so
//! that functions which may be given a tokenizer are the same with and without the feature.

mod message;

pub use message::{ChatContext, Message};

use crate::{Error, Result, format::gguf::MetaValue};
use std::path::Path;

/// No tokenizer: that needs the feature `tokenizer`. Where one may be given, `None` is.
#[derive(Debug)]
pub enum Tokenizer {}

/// A vocabulary in GGUF's words, of which there is none either.
pub(crate) enum GgufVocab {}

/// What functions that write models ask for; whatever takes a [`Tokenizer`] is never called.
impl Tokenizer {
    /// Errors: Unsupported, always: a model's tokenizer is not left behind without a word.
    pub(crate) fn open(model: impl AsRef<Path>) -> Result<Option<Tokenizer>> {
        let what = format!("the tokenizer of {}", model.as_ref().display());
        Err(Error::unsupported(what, "a build without the feature `tokenizer`", "one with it"))
    }

    /// Errors: as [`Tokenizer::open`].
    pub(crate) fn with_adapter(model: impl AsRef<Path>, _: impl AsRef<Path>) -> Result<Option<Tokenizer>> {
        Tokenizer::open(model)
    }

    pub(crate) fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>> {
        match *self {}
    }

    pub(crate) fn token(&self, _: u32) -> Option<String> {
        match *self {}
    }

    pub(crate) fn expect_rows(&self, _: &str, _: &[u32], _: usize) -> Result<()> {
        match *self {}
    }

    pub(crate) fn save(&self, _: impl AsRef<Path>) -> Result<()> {
        match *self {}
    }

    pub(crate) fn eos_ids(&self) -> &[u32] {
        match *self {}
    }

    pub(crate) fn gguf_vocab(&self, _: usize) -> Result<GgufVocab> {
        match *self {}
    }
}

impl GgufVocab {
    pub(crate) fn metadata(&self) -> Vec<(String, MetaValue)> {
        match *self {}
    }
}
