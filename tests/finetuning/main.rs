//! Fine-tuning of blocks after AQLM and QuIP#.
#![cfg(feature = "tokenizer")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod gradients;
mod models;
