//! What is left of this room without the feature `tokenizer`: the turns that rows hold, and the name of what is not there, so
//! that functions which may be given a tokenizer are the same with and without the feature.

mod message;

pub use message::{ChatContext, Message};

/// No tokenizer: that needs the feature `tokenizer`. Where one may be given, `None` is.
#[derive(Debug)]
pub enum Tokenizer {}
