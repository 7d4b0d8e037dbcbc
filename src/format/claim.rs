//! One writer for an output: a lock beside it, the end of what an earlier writer left when it was killed, and whether there is room.

use super::atomic;
use crate::{Error, Result};
use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Component, Path, PathBuf},
};

/// An output that this process alone writes, as long as this lives. Taken before the work, it shows in time that the output cannot
/// be written.
#[derive(Debug)]
pub struct Claim {
    /// `.NAME.lock` beside the output; gone with the claim. None where the folder above takes no files.
    lock: Option<(PathBuf, File)>,
    output: PathBuf,
}

impl Claim {
    /// Claims a file or folder, which need not exist; the folders above it are made. Temporary files that a killed run of the same
    /// output left are removed. Errors: Config where another process writes it, Io where it cannot be written.
    pub fn of(output: impl AsRef<Path>) -> Result<Claim> {
        let output = output.as_ref();
        let above = atomic::parent(output);
        fs::create_dir_all(above).map_err(Error::io(above))?;
        // By its own name, also where it is `.` or behind a link.
        let lock = lock(&resolved(output), output)?;
        if output.is_dir() {
            // Where the folder is there, its files are what is written.
            tempfile::tempfile_in(output).map_err(Error::io(output))?;
            remove_leftovers(output, None)?;
        } else if lock.is_none() {
            tempfile::tempfile_in(above).map_err(Error::io(output))?;
        }
        remove_leftovers(above, output.file_name().map(OsString::from))?;
        Ok(Claim { lock, output: output.to_owned() })
    }

    /// A path for what belongs to the output until it is whole: `NAME.suffix` beside it, or `suffix` in it where nothing can lie beside.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        let output = resolved(&self.output);
        if atomic::workplace(&output) == output {
            return output.join(suffix);
        }
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(suffix);
        output.with_file_name(name)
    }

    /// Errors: Io where fewer than so many bytes are free for the output, as far as the system tells.
    pub fn expect_room(&self, bytes: u64) -> Result<()> {
        let free = match fs4::available_space(atomic::workplace(&self.output)) {
            Ok(free) => free,
            Err(error) => {
                log::debug!("{}: how much is free is not known: {error}", self.output.display());
                return Ok(());
            }
        };
        if bytes <= free {
            return Ok(());
        }
        let message = format!("{bytes} bytes are to be written, {free} are free");
        Err(Error::Io { path: self.output.clone(), source: io::Error::new(io::ErrorKind::StorageFull, message) })
    }
}

/// Whether two paths are one file or folder, also by way of links, hard links, and folders that do not exist yet.
pub fn is_same(a: &Path, b: &Path) -> bool {
    resolved(a) == resolved(b) || same_file::is_same_file(a, b).unwrap_or(false)
}

/// The path without links, `.` and `..`, of which the end need not exist.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut resolved = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => {
                resolved.pop();
            }
            part => resolved.push(part),
        }
        // What does not exist is no link.
        resolved = resolved.canonicalize().unwrap_or(resolved);
    }
    resolved
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
        let names = [".tmp-out-abcdef123456", ".tmp-other-abcdef123456", ".tmp-mine", "kept"];
        names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        fs::create_dir(output.join(".tmp-checkpoint-4-abcdef123456")).unwrap();
        fs::write(output.join(".tmp-checkpoint-4-abcdef123456/run.json"), "").unwrap();
        fs::write(output.join(".tmp-nested-abcdef123456"), "").unwrap();
        let nested = Claim::of(output.join("nested")).unwrap();
        fs::write(output.join(".tmp-nested-abcdef123456"), "").unwrap();
        drop(Claim::of(&output).unwrap());
        let left = |of: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(of).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(left(folder.path()), [".tmp-mine", ".tmp-other-abcdef123456", "kept", "out"]);
        assert_eq!(left(&output), [".nested.lock", ".tmp-nested-abcdef123456"], "another run writes there");
        drop(nested);
    }

    #[test]
    fn room_is_asked_for_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::of(folder.path().join("out")).unwrap();
        claim.expect_room(1).unwrap();
        let message = claim.expect_room(u64::MAX).unwrap_err().to_string();
        assert!(message.contains("out: 18446744073709551615 bytes are to be written, "), "{message}");
    }

    #[test]
    fn one_folder_is_known_by_all_its_names() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("model")).unwrap();
        fs::write(at("model/weights"), "w").unwrap();
        for other in ["model", "./model/", "absent/../model", "model/../absent/.././model", "model/x/.."] {
            assert!(is_same(&at("model"), &at(other)), "{other}");
        }
        fs::hard_link(at("model/weights"), at("hard")).unwrap();
        assert!(is_same(&at("model/weights"), &at("hard")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("model"), at("link")).unwrap();
            assert!(is_same(&at("link"), &at("model")) && is_same(&at("link/new"), &at("model/new")));
        }
        assert!(!is_same(&at("model"), &at("model/model")) && !is_same(&at("absent"), &at("model")));
    }

    #[cfg(unix)]
    #[test]
    fn an_output_that_cannot_be_written_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(matches!(Claim::of(folder.path().join("file/out")), Err(Error::Io { .. })));
    }
}
