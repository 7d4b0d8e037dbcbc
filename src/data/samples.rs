//! Samples of a text or of rows, for methods that look at a model's activations.

use super::{DataOptions, Dataset, holds_rows};
use crate::{
    error::{Error, Result},
    format,
    tokenizer::Tokenizer,
};
use std::path::Path;

/// Token ids of the first `count` samples of a file: its rows as training reads them, all tokens of each, or the pieces of
/// `max_seq_length` tokens of a plain text, without special tokens. Those of fewer than 2 tokens are left out. Errors: Config for options
/// that give none, for a text without a tokenizer, and where nothing is left; Io, Format, Data, Interrupted.
pub fn samples(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    count: usize,
    options: &DataOptions,
) -> Result<Vec<Vec<u32>>> {
    if count == 0 {
        return Err(Error::config("calibration_samples", "expected at least 1"));
    }
    if options.max_seq_length < 2 {
        return Err(Error::config("calibration_length", "expected samples of at least 2 tokens"));
    }
    let mut samples: Vec<Vec<u32>> = match holds_rows(path)? {
        true => {
            let options = DataOptions { completion_only: false, ..options.clone() };
            let data = Dataset::load(path, tokenizer, &options)?;
            data.iter().take(count).map(|row| Ok(row?.input_ids)).collect::<Result<_>>()?
        }
        false => {
            let missing = || Error::config("calibration", format!("{} needs a tokenizer", path.display()));
            let tokenizer = tokenizer.ok_or_else(missing)?;
            let ids = tokenizer.encode(&format::read_text(path)?, false)?;
            tokenizer.expect_rows("calibration", &ids, options.vocab_size)?;
            ids.chunks(options.max_seq_length).take(count).map(<[u32]>::to_vec).collect()
        }
    };
    samples.retain(|ids| ids.len() >= 2);
    match samples.is_empty() {
        true => Err(Error::config("calibration", format!("{} has no sample of two tokens", path.display()))),
        false => Ok(samples),
    }
}
