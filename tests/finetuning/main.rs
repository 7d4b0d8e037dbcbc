//! Fine-tuning of blocks after AQLM and QuIP#.

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod gradients;
mod models;
