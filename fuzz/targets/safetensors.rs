//! `safetensors` of `tests/fuzzing`.
#![cfg_attr(not(feature = "afl"), no_main)]

const NAME: &str = "safetensors";
include!("../entry.rs");
