//! `rows` of `tests/fuzzing`.
#![cfg_attr(not(feature = "afl"), no_main)]

const NAME: &str = "rows";
include!("../entry.rs");
