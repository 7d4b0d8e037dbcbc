//! `trainer_log.jsonl`: a run's records while it goes on, one line each.

use super::StepMetrics;
use crate::{Error, Result, format::atomic};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// The file, which begins with a run's first record: until then that of an earlier run stays.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
}

impl Log {
    /// Makes the folder. Errors: Io.
    pub(super) fn create(folder: &Path) -> Result<Log> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Log { path: folder.join("trainer_log.jsonl"), file: None })
    }

    /// Begins anew with these records, of a run that goes on. Errors: Io.
    pub(super) fn restart(&mut self, records: &[StepMetrics]) -> Result<()> {
        let lines: Vec<u8> = records.iter().map(line).collect::<Result<Vec<_>>>()?.concat();
        atomic::write(&self.path, lines)?;
        self.file = Some(OpenOptions::new().append(true).open(&self.path).map_err(Error::io(&self.path))?);
        Ok(())
    }

    /// Adds a record. It is not synced: a checkpoint has the records too. Errors: Io.
    pub(super) fn append(&mut self, record: &StepMetrics) -> Result<()> {
        if self.file.is_none() {
            self.restart(&[])?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(&line(record)?).map_err(Error::io(&self.path))
    }
}

fn line(record: &StepMetrics) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record).map_err(|error| Error::config("record", error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}
