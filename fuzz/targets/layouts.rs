//! `layouts` of `tests/fuzzing`.
#![cfg_attr(not(feature = "afl"), no_main)]

const NAME: &str = "layouts";
include!("../entry.rs");
