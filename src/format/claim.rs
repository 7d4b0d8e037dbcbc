//! One writer for an output: a lock beside it, and the end of what an earlier writer left when it was killed.

use super::atomic;
use crate::{Error, Result};
use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

/// An output that this process alone writes, as long as this lives. Taken before the work, it shows in time that the output cannot
/// be written.
#[derive(Debug)]
pub struct Claim {
    /// `.NAME.lock` beside the output; gone with the claim. None where the folder above takes no files.
    lock: Option<(PathBuf, File)>,
}

impl Claim {
    /// Claims a file or folder, which need not exist; the folders above it are made. Temporary files that a killed run of the same
    /// output left are removed. Errors: Config where another process writes it, Io where it cannot be written.
    pub fn of(output: impl AsRef<Path>) -> Result<Claim> {
        let output = output.as_ref();
        let above = atomic::parent(output);
        fs::create_dir_all(above).map_err(Error::io(above))?;
        // By its own name, also where it is `.` or behind a link.
        let own = match output.canonicalize() {
            Ok(own) => own,
            Err(_) => above.canonicalize().map_err(Error::io(above))?.join(output.file_name().unwrap_or_default()),
        };
        let lock = lock(&own, output)?;
        if output.is_dir() {
            // Where the folder is there, its files are what is written.
            tempfile::tempfile_in(output).map_err(Error::io(output))?;
            remove_leftovers(output, None)?;
        } else if lock.is_none() {
            tempfile::tempfile_in(above).map_err(Error::io(output))?;
        }
        remove_leftovers(above, output.file_name().map(OsString::from))?;
        Ok(Claim { lock })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.lock {
            // While it is held: whoever waits for the name makes a new file.
            let _ = fs::remove_file(path);
        }
    }
}

/// The lock file of an output.
fn lock_path(output: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(output.file_name().unwrap_or_default());
    name.push(".lock");
    atomic::parent(output).join(name)
}

fn lock(own: &Path, output: &Path) -> Result<Option<(PathBuf, File)>> {
    let path = lock_path(own);
    loop {
        let file = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(file) => file,
            // An existing folder may be written where the one above may not.
            Err(error) if output.is_dir() => {
                log::debug!("{}: no lock: {error}", path.display());
                return Ok(None);
            }
            Err(source) => return Err(Error::Io { path: output.to_owned(), source }),
        };
        match file.try_lock() {
            Ok(()) if is_at(&file, &path) => return Ok(Some((path, file))),
            // Its holder took it away in between.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message =
                    format!("{} is being written by another process; choose another, or wait", output.display());
                return Err(Error::config("output", message));
            }
            Err(TryLockError::Error(error)) => {
                log::debug!("{}: no lock: {error}", path.display());
                return Ok(Some((path, file)));
            }
        }
    }
}

/// Whether the file still has its name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(id), fs::metadata(path).map(id)), (Ok(held), Ok(named)) if held == named)
}

/// Whether the file still has its name: while it is open, nobody else can give the name away.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Removes what was on its way to be `name` in `folder`, or to be anything there that nobody writes now.
fn remove_leftovers(folder: &Path, name: Option<OsString>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let Some(target) = atomic::target_of(&entry.file_name()) else { continue };
        let meant = match &name {
            Some(name) => *name == target,
            None => !is_claimed(&folder.join(&target)),
        };
        if !meant {
            continue;
        }
        let path = entry.path();
        log::info!("{}: left by a run that was killed; removed", path.display());
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io(path))?;
    }
    Ok(())
}

/// Whether a process has claimed this output.
fn is_claimed(output: &Path) -> bool {
    let held = |file: File| matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    File::open(lock_path(output)).is_ok_and(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_has_one_writer_and_its_lock_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("above/out");
        let claim = Claim::of(&output).unwrap();
        let message = Claim::of(&output).unwrap_err().to_string();
        assert!(message.contains("out is being written by another process"), "{message}");
        Claim::of(folder.path().join("above/other")).unwrap();
        drop(claim);
        let claim = Claim::of(&output).unwrap();
        fs::create_dir(&output).unwrap();
        let through = folder.path().join("above/../above/out");
        assert!(Claim::of(through).is_err(), "the same folder by another name");
        drop(claim);
        assert_eq!(fs::read_dir(folder.path().join("above")).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        fs::create_dir(&output).unwrap();
        let names = [".tmp-out-abc123", ".tmp-other-abc123", ".tmp-mine", "kept"];
        names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        fs::create_dir(output.join(".tmp-checkpoint-4-abc123")).unwrap();
        fs::write(output.join(".tmp-checkpoint-4-abc123/run.json"), "").unwrap();
        fs::write(output.join(".tmp-nested-abc123"), "").unwrap();
        let nested = Claim::of(output.join("nested")).unwrap();
        fs::write(output.join(".tmp-nested-abc123"), "").unwrap();
        drop(Claim::of(&output).unwrap());
        let left = |of: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(of).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(left(folder.path()), [".tmp-mine", ".tmp-other-abc123", "kept", "out"]);
        assert_eq!(left(&output), [".nested.lock", ".tmp-nested-abc123"], "another run writes there");
        drop(nested);
    }

    #[cfg(unix)]
    #[test]
    fn an_output_that_cannot_be_written_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(Claim::of(folder.path().join("file/out")), Err(Error::Io { .. })));
    }
}
