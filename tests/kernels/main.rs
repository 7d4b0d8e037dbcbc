//! Every kernel against f64 references on awkward shapes.

#[path = "../support/mod.rs"]
mod support;

mod elementwise;
