//! `template` of `tests/fuzzing`.
#![cfg_attr(not(feature = "afl"), no_main)]

const NAME: &str = "template";
include!("../entry.rs");
