//! The families: the only files that know one by its name.

mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use super::family::{Family, GgufFamily, GgufHead};

/// All of them. Of those that share a name in GGUF files the first reads them.
pub const FAMILIES: [&Family; 11] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &smollm3::FAMILY,
    &granite::FAMILY,
    &olmo2::FAMILY,
    &phi3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
];
