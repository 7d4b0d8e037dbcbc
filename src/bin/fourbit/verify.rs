//! `fourbit verify`

use crate::args::Global;
use fourbit::{
    Error, Result,
    format::{
        Manifest,
        manifest::{MANIFEST, State},
    },
    train,
};
use serde_json::json;
use std::path::PathBuf;

/// Check every byte of what fourbit wrote into a folder, and of the checkpoints in it, against fourbit_manifest.json
#[derive(clap::Args)]
pub struct Verify {
    /// The folder of an adapter, a model or a run
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Verify {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let checkpoints = train::checkpoints(&self.folder)?.into_iter().map(|(_, folder)| folder);
        let (mut files, mut found) = (Vec::new(), false);
        for folder in std::iter::once(self.folder.clone()).chain(checkpoints) {
            if let Some(manifest) = Manifest::read(&folder)? {
                found = true;
                files.extend(manifest.verify(&folder)?);
            }
        }
        if !found {
            let message = format!(
                "has no {MANIFEST}: other tools or an older fourbit wrote it, and nothing says what it should be"
            );
            return Err(Error::format(&self.folder, message));
        }
        let word = |state: State| match state {
            State::Same => "ok",
            State::Changed => "changed",
            State::Missing => "missing",
        };
        for (path, state) in &files {
            out.line(format_args!("{:8} {}", word(*state), path.display()));
        }
        let list = files.iter().map(|(path, state)| json!({"file": path.display().to_string(), "state": word(*state)}));
        out.result(&json!({"files": list.collect::<Vec<_>>()}));
        match files.iter().filter(|(_, state)| *state != State::Same).count() {
            0 => Ok(()),
            bad => {
                let message =
                    format!("{bad} of {} files are not as they were written; write the folder again", files.len());
                Err(Error::format(&self.folder, message))
            }
        }
    }
}
