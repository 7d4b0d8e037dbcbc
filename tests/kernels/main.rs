//! Every kernel against f64 references on awkward shapes.

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod activation;
mod elementwise;
mod loss;
mod norm;
mod optimizer;
mod rope;
