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

use super::{
    LinearId,
    family::{Family, GgufFamily, GgufHead},
};

impl GgufFamily {
    /// A family that llama.cpp reads as Llama's.
    const LLAMA: GgufFamily = GgufFamily {
        name: "llama",
        rotated: true,
        rope_divisors: &["rope_freqs.weight"],
        windows: false,
        head: GgufHead::Either,
        biased: LinearId::ALL,
        read: |_, _| Ok(()),
        write: |_| vec![],
    };

    /// A family of this name with rows as in transformers, and with nothing that Llama has not.
    const fn plain(name: &'static str) -> GgufFamily {
        GgufFamily { name, rotated: false, rope_divisors: &[], biased: &[], ..GgufFamily::LLAMA }
    }

    /// The same, and longer texts may have other rotations.
    const fn by_length(name: &'static str) -> GgufFamily {
        let rope_divisors = &["rope_factors_short.weight", "rope_factors_long.weight"];
        GgufFamily { rope_divisors, ..GgufFamily::plain(name) }
    }
}

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
