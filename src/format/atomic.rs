//! Files that appear whole or not at all: written under a temporary name beside the target, synced, then renamed.

use crate::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{
    LazyLock,
    atomic::{AtomicUsize, Ordering},
};
use tempfile::{Builder, NamedTempFile, TempDir};

/// How temporary names begin; the name that is meant and [`RANDOM`] letters follow, a dash between them.
const PREFIX: &str = ".tmp-";
const RANDOM: usize = 6;

fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(PREFIX);
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push("-");
    prefix
}

/// The name that a temporary file or folder was to get; `None` for any other.
pub(super) fn target_of(temporary: &OsStr) -> Option<OsString> {
    let rest = temporary.to_str()?.strip_prefix(PREFIX)?;
    let (name, random) = rest.rsplit_once('-')?;
    (random.len() == RANDOM && !name.is_empty()).then(|| name.into())
}

/// A file that takes its name when [`AtomicFile::commit`] is called and vanishes when it is dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins a file that will be `path`; its folder must exist. Errors: Io.
    pub fn create(path: impl Into<PathBuf>) -> Result<AtomicFile> {
        let path = path.into();
        let prefix = prefix(&path);
        let mut builder = Builder::new();
        builder.prefix(&prefix).rand_bytes(RANDOM);
        #[cfg(unix)]
        {
            // Temporary files are private by default; the finished file should be as readable as any other.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(parent(&path)).map_err(Error::io(&path))?;
        Ok(AtomicFile { file, path })
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to write to.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Syncs the file and gives it its name, replacing what was there. Errors: Io.
    pub fn commit(self) -> Result<()> {
        self.file.as_file().sync_all().map_err(Error::io(&self.path))?;
        may_die();
        self.file.persist(&self.path).map_err(|e| Error::Io { path: self.path.clone(), source: e.error })?;
        sync_folder(parent(&self.path));
        Ok(())
    }
}

/// Writes `bytes` to `path`. Errors: Io.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    file.file().write_all(bytes.as_ref()).map_err(Error::io(path))?;
    file.commit()
}

/// Writes a value as indented JSON with a newline at the end. Errors: Io, Format where it has no JSON form.
pub fn write_json(path: impl AsRef<Path>, value: &impl serde::Serialize) -> Result<()> {
    let path = path.as_ref();
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    text.push('\n');
    write(path, text)
}

/// A folder of files that appears whole: filled under a temporary name beside the target, then renamed.
///
/// Where the target exists already, its other files stay and the new ones replace theirs one by one.
#[derive(Debug)]
pub struct AtomicFolder {
    folder: TempDir,
    path: PathBuf,
    /// Whether an older folder goes as a whole.
    replaces: bool,
}

impl AtomicFolder {
    /// Begins a folder that will be `path`, making the folders above it. Errors: Io, Config where a file is in the way.
    pub fn create(path: impl Into<PathBuf>) -> Result<AtomicFolder> {
        let path = path.into();
        if path.exists() && !path.is_dir() {
            return Err(Error::config("output", format!("{} is a file, a folder is needed", path.display())));
        }
        let above = parent(&path);
        fs::create_dir_all(above).map_err(Error::io(above))?;
        let prefix = prefix(&path);
        let mut builder = Builder::new();
        builder.prefix(&prefix).rand_bytes(RANDOM);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let folder = builder.tempdir_in(above).map_err(Error::io(&path))?;
        Ok(AtomicFolder { folder, path, replaces: false })
    }

    /// The same, where a folder that is there goes as a whole, with all that it holds. Errors: Io, Config where a file is in the way.
    pub fn replacing(path: impl Into<PathBuf>) -> Result<AtomicFolder> {
        Ok(AtomicFolder { replaces: true, ..AtomicFolder::create(path)? })
    }

    /// The temporary folder, to write files into.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name. Errors: Io.
    pub fn commit(self) -> Result<()> {
        let temporary = self.folder.path();
        let old = match self.replaces && self.path.exists() {
            true => Some(bury(&self.path)?),
            false => None,
        };
        if self.path.exists() {
            for entry in fs::read_dir(temporary).map_err(Error::io(temporary))? {
                let entry = entry.map_err(Error::io(temporary))?;
                let target = self.path.join(entry.file_name());
                may_die();
                fs::rename(entry.path(), &target).map_err(Error::io(target))?;
            }
        } else {
            may_die();
            fs::rename(temporary, &self.path).map_err(Error::io(&self.path))?;
            // The name is gone, so there is nothing left to remove.
            let _ = self.folder.keep();
        }
        sync_folder(&self.path);
        sync_folder(parent(&self.path));
        old.map_or(Ok(()), |old| old.close().map_err(Error::io(&self.path)))
    }
}

/// Removes a folder as a whole: it loses its name first, so that nobody meets a half of it. Errors: Io.
pub fn remove_folder(path: &Path) -> Result<()> {
    let grave = bury(path)?;
    may_die();
    grave.close().map_err(Error::io(path))
}

/// Takes a folder's name from it: it lies in a temporary one, and goes with it. Errors: Io.
fn bury(path: &Path) -> Result<TempDir> {
    let grave = Builder::new().prefix(&prefix(path)).rand_bytes(RANDOM).tempdir_in(parent(path));
    let grave = grave.map_err(Error::io(path))?;
    may_die();
    fs::rename(path, grave.path().join("removed")).map_err(Error::io(path))?;
    Ok(grave)
}

/// Ends the process as a kill would, where a test asks for it: `FOURBIT_DIE_AT=N` is the N-th time that a file or folder is about
/// to take or lose its name.
fn may_die() {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    static AT: LazyLock<Option<usize>> = LazyLock::new(|| std::env::var("FOURBIT_DIE_AT").ok()?.parse().ok());
    if AT.is_some_and(|at| TIMES.fetch_add(1, Ordering::Relaxed) + 1 == at) {
        std::process::abort();
    }
}

/// The folder that holds `path`; "." for a bare name.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes renames in a folder durable where the system can; failing to is no error, since the files are in place.
fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_abandoned_file_leaves_nothing_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.file().write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(listing(folder.path()), ["a.txt"]);
        write(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_folder_appears_at_commit_and_merges_into_an_old_one() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("above/out");
        let folder = AtomicFolder::create(&target).unwrap();
        write(folder.folder().join("one"), "1").unwrap();
        assert!(!target.exists());
        folder.commit().unwrap();
        assert_eq!(listing(&target), ["one"]);
        let again = AtomicFolder::create(&target).unwrap();
        write(again.folder().join("two"), "2").unwrap();
        again.commit().unwrap();
        assert_eq!(listing(&target), ["one", "two"]);
        drop(AtomicFolder::create(&target).unwrap());
        assert_eq!(listing(&root.path().join("above")), ["out"]);
        assert!(AtomicFolder::create(target.join("one")).is_err());
    }
}
