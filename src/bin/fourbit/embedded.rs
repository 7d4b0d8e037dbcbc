//! The model and data set that are compiled into the binary, so that a first run needs no file.

use fourbit::{Error, Result};
use std::path::PathBuf;
use tempfile::TempDir;

/// Optimizer steps of a run without options.
pub const STEPS: usize = 60;
/// Its rows a micro-batch.
pub const BATCH_SIZE: usize = 4;

macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded/", $name)).as_slice())
    };
}

const MODEL: [(&str, &[u8]); 4] =
    [asset!("config.json"), asset!("model.safetensors"), asset!("tokenizer.json"), asset!("tokenizer_config.json")];
const DATA: (&str, &[u8]) = asset!("train.jsonl");
const QUESTIONS: (&str, &[u8]) = asset!("questions.json");

/// The files, unpacked to a temporary folder that goes when this is dropped.
pub struct Embedded {
    folder: TempDir,
}

impl Embedded {
    /// Errors: Io.
    pub fn unpack() -> Result<Embedded> {
        let folder = tempfile::Builder::new().prefix("fourbit-").tempdir().map_err(Error::io(std::env::temp_dir()))?;
        for (name, bytes) in MODEL.into_iter().chain([DATA]) {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).map_err(Error::io(path))?;
        }
        Ok(Embedded { folder })
    }

    /// The model folder.
    pub fn model(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The rows.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join(DATA.0)
    }
}

/// Questions whose answers show the change; none of them is a row of the data set.
pub fn questions() -> Vec<String> {
    serde_json::from_slice(QUESTIONS.1).expect("the file is part of the binary and a test reads it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_whole_and_small() {
        assert!(questions().len() >= 3);
        let bytes: usize = MODEL.iter().chain([&DATA, &QUESTIONS]).map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 4 << 20, "{bytes}");
        let embedded = Embedded::unpack().unwrap();
        assert!(embedded.data().is_file());
        assert!(fourbit::model::Source::open(embedded.model()).unwrap().contains("model.norm.weight"));
    }
}
