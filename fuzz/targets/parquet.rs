//! `parquet` of `tests/fuzzing`.
#![cfg_attr(not(feature = "afl"), no_main)]

const NAME: &str = "parquet";
include!("../entry.rs");
