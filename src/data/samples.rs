//! Samples of a text or of rows, for methods that look at a model's activations.

use super::{DataOptions, Dataset, holds_rows};
use crate::{
    error::{Error, Result},
    format,
    tokenizer::Tokenizer,
};
use std::path::Path;

/// What [`samples`] takes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOptions {
    /// Samples at most.
    pub samples: usize,
    /// Tokens of a sample, at most.
    pub length: usize,
    /// Tokens that the model knows.
    pub vocab_size: usize,
    /// Of rows: as [`DataOptions::max_row_bytes`].
    pub max_row_bytes: usize,
}

/// Token ids of the first samples of a file: its rows as training reads them, each cut to `length`, or the pieces of that length of a
/// plain text, without special tokens. Those of fewer than 2 tokens are left out. Errors: Config for options that give none, for a
/// text without a tokenizer, and where nothing is left; Io, Format, Data.
pub fn samples(path: &Path, tokenizer: Option<&Tokenizer>, options: &SampleOptions) -> Result<Vec<Vec<u32>>> {
    let SampleOptions { samples: count, length, vocab_size, max_row_bytes } = *options;
    if count == 0 {
        return Err(Error::config("calibration_samples", "expected at least 1"));
    }
    if length < 2 {
        return Err(Error::config("calibration_length", "expected samples of at least 2 tokens"));
    }
    let mut samples: Vec<Vec<u32>> = match holds_rows(path)? {
        true => {
            let options = DataOptions { completion_only: false, max_row_bytes, ..DataOptions::new(length, vocab_size) };
            let data = Dataset::load(path, tokenizer, &options)?;
            data.iter().take(count).map(|row| Ok(row?.input_ids)).collect::<Result<_>>()?
        }
        false => {
            let missing = || Error::config("calibration", format!("{} needs a tokenizer", path.display()));
            let tokenizer = tokenizer.ok_or_else(missing)?;
            let ids = tokenizer.encode(&format::read_text(path)?, false)?;
            tokenizer.expect_rows("calibration", &ids, vocab_size)?;
            ids.chunks(length).take(count).map(<[u32]>::to_vec).collect()
        }
    };
    samples.retain(|ids| ids.len() >= 2);
    match samples.is_empty() {
        true => Err(Error::config("calibration", format!("{} has no sample of two tokens", path.display()))),
        false => Ok(samples),
    }
}
