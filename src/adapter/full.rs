//! Full fine-tuning: which weights are trained themselves.

use crate::{Error, Result, arch::Architecture};
use serde::Serialize;

/// Which weights of a model are trained, in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FullConfig {
    /// So many of the last blocks, the final norm, and the head where it is not the embedding; `None`: all weights.
    pub last_layers: Option<usize>,
}

impl FullConfig {
    /// The first block that is trained. Errors: Config for more blocks than there are, or none.
    pub fn first(&self, arch: &Architecture) -> Result<usize> {
        let blocks = arch.blocks.len();
        match self.last_layers {
            None => Ok(0),
            Some(last) if (1..=blocks).contains(&last) => Ok(blocks - last),
            Some(last) => Err(Error::config("last_layers", format!("expected 1 to {blocks}, got {last}"))),
        }
    }
}
