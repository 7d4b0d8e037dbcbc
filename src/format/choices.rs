//! `kernels.json`: which of several kernels that compute the same a run took, to be repeated.

use super::{atomic, read_json};
use crate::Result;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// The file's name beside what a run leaves.
pub const KERNELS: &str = "kernels.json";

/// Choices, and what they were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelChoices {
    /// The version that measured them.
    pub fourbit: String,
    /// The adapter's name.
    pub adapter: String,
    /// Its driver, with the version.
    pub driver: String,
    /// By what is computed, such as `forward nf4 256x1536x576`.
    pub choices: BTreeMap<String, String>,
}

impl KernelChoices {
    /// Those of this version.
    pub fn new(adapter: &str, driver: &str, choices: BTreeMap<String, String>) -> KernelChoices {
        let fourbit = env!("CARGO_PKG_VERSION").to_owned();
        KernelChoices { fourbit, adapter: adapter.to_owned(), driver: driver.to_owned(), choices }
    }

    /// Errors: Io, Format.
    pub fn read(path: impl AsRef<Path>) -> Result<KernelChoices> {
        read_json(path)
    }

    /// Errors: Io.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        atomic::write_json(path, self)
    }

    /// Whether version, adapter and driver are the same.
    pub fn are_of(&self, other: &KernelChoices) -> bool {
        (&self.fourbit, &self.adapter, &self.driver) == (&other.fourbit, &other.adapter, &other.driver)
    }
}
