//! Files that appear whole or not at all: written under a temporary name beside the target, synced, then renamed.

use super::manifest::{MANIFEST, Manifest, Set};
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
const RANDOM: usize = 12;

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

/// A folder of files that appears whole: filled under a temporary name beside the target, or in it where nothing can be renamed
/// into it from there, then renamed, with a [`Manifest`].
///
/// Where the target exists already, its files of the same [`Set`] are replaced as a set and its other files stay. A folder that holds
/// nothing else changes in one instant where the system can exchange two names; else the files are renamed one by one and the
/// manifest comes last, so that a loader that finds a mixture knows it.
#[derive(Debug)]
pub struct AtomicFolder {
    folder: TempDir,
    path: PathBuf,
    set: Set,
}

impl AtomicFolder {
    /// Begins a folder that will be `path`, making the folders above it. Errors: Io, Config where a file is in the way.
    pub fn create(path: impl Into<PathBuf>, set: Set) -> Result<AtomicFolder> {
        let path = path.into();
        if path.exists() && !path.is_dir() {
            return Err(Error::config("output", format!("{} is a file, a folder is needed", path.display())));
        }
        // What a link names is written, and the link stays.
        let path = if path.is_symlink() { path.canonicalize().map_err(Error::io(&path))? } else { path };
        let above = parent(&path);
        fs::create_dir_all(above).map_err(Error::io(above))?;
        let workplace = workplace(&path);
        let prefix = prefix(&path);
        let mut builder = Builder::new();
        builder.prefix(&prefix).rand_bytes(RANDOM);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let folder = builder.tempdir_in(workplace).map_err(Error::io(&path))?;
        Ok(AtomicFolder { folder, path, set })
    }

    /// The temporary folder, to write files into.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name. Errors: Io, Format for an older manifest that cannot be read.
    pub fn commit(self) -> Result<()> {
        let temporary = self.folder.path();
        let names = names(temporary)?;
        let manifest = Manifest::of(self.set, temporary, &names)?;
        let older = Manifest::read(&self.path)?;
        if !self.path.exists() {
            manifest.write(temporary)?;
            may_die();
            fs::rename(temporary, &self.path).map_err(Error::io(&self.path))?;
            // The name is gone, so there is nothing left to remove.
            let _ = self.folder.keep();
        } else {
            let listed: Vec<&str> = older.iter().flat_map(|older| older.unchanged(self.set, &self.path)).collect();
            let known = |name: &String| names.contains(name) || listed.contains(&name.as_str());
            // Nobody's working folder is taken away from below them, as far as it is known.
            let inside = std::env::current_dir().is_ok_and(|at| at.starts_with(super::resolved(&self.path)));
            let alone = !inside && self::names(&self.path).is_ok_and(|there| there.iter().all(known));
            if alone {
                manifest.write(temporary)?;
            }
            may_die();
            if !(alone && exchange(temporary, &self.path)) {
                self.rename_each(&names, manifest, older)?;
            }
        }
        sync_folder(&self.path);
        sync_folder(parent(&self.path));
        Ok(())
    }

    /// The files into a folder that holds others. From the first rename to the last there is a manifest that is at odds with them.
    fn rename_each(&self, names: &[String], manifest: Manifest, older: Option<Manifest>) -> Result<()> {
        let there = |name: &&String| self.path.join(name).is_file();
        let unlisted = |name: &&String| older.iter().flat_map(Manifest::all_names).all(|old| old != name.as_str());
        let old: Vec<String> = names.iter().filter(there).filter(unlisted).cloned().collect();
        if !old.is_empty() {
            let listed = Manifest::of(self.set, &self.path, &old)?;
            older.as_ref().map_or(listed.clone(), |older| listed.beside(older)).write(&self.path)?;
        }
        for name in names {
            let target = self.path.join(name);
            fs::create_dir_all(parent(&target)).map_err(Error::io(&target))?;
            may_die();
            fs::rename(self.folder.path().join(name), &target).map_err(Error::io(target))?;
        }
        sync_folder(&self.path);
        let older = older.unwrap_or_default();
        manifest.beside(&older).write(&self.path)?;
        // What this set no longer has would be read with it; what was changed since is the user's.
        for stale in older.unchanged(self.set, &self.path).filter(|old| names.iter().all(|name| name != old)) {
            let stale = self.path.join(stale);
            fs::remove_file(&stale).map_err(Error::io(stale))?;
        }
        Ok(())
    }
}

/// Names of the files in a folder and below it, sorted, as `FOLDER/FILE`; without the manifest. Errors: Io, Config for names that are
/// no text and for what is neither file nor folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let path = entry.path();
        let name = entry.file_name().into_string();
        let name =
            name.map_err(|_| Error::config("output", format!("{} has a name that is no text", path.display())))?;
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() {
            names.extend(self::names(&path)?.into_iter().map(|below| format!("{name}/{below}")));
        } else if !kind.is_file() {
            return Err(Error::config("output", format!("{} is no file and no folder", path.display())));
        } else if name != MANIFEST {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Exchanges the names of two folders in one instant; whether the system can.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

/// Exchanges the names of two folders in one instant; whether the system can.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// Removes a folder as a whole: it loses its name first, so that nobody meets a half of it. Errors: Io.
pub fn remove_folder(path: &Path) -> Result<()> {
    let grave = Builder::new().prefix(&prefix(path)).rand_bytes(RANDOM).tempdir_in(parent(path));
    let grave = grave.map_err(Error::io(path))?;
    may_die();
    fs::rename(path, grave.path().join("removed")).map_err(Error::io(path))?;
    may_die();
    grave.close().map_err(Error::io(path))
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

/// Where what is on its way to be `path` lies, so that it can be renamed into place: the folder above, but an existing folder itself
/// where nothing gets there from above, as into one that is mounted, or where the one above takes no files.
pub(super) fn workplace(path: &Path) -> &Path {
    let above = parent(path);
    if path.is_dir() && !leads_into(above, path) { path } else { above }
}

/// Whether a file can be renamed from one folder into another, which is tried.
fn leads_into(above: &Path, folder: &Path) -> bool {
    let Ok(file) = Builder::new().prefix(&prefix(folder)).rand_bytes(RANDOM).tempfile_in(above) else { return false };
    let Some(target) = file.path().file_name().map(|name| folder.join(name)) else { return false };
    let moved = fs::rename(file.path(), &target).is_ok();
    if moved {
        let _ = fs::remove_file(target);
    }
    moved
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
    use crate::format::manifest;

    fn listing(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_on_its_way_lies_where_it_can_be_renamed_from() {
        let folder = tempfile::tempdir().unwrap();
        let (there, absent) = (folder.path().join("there"), folder.path().join("absent"));
        fs::create_dir(&there).unwrap();
        assert_eq!((workplace(&there), workplace(&absent)), (folder.path(), folder.path()));
        assert_eq!(listing(folder.path()), ["there"]);
        assert!(listing(&there).is_empty());
        // Mounted on all Linux systems of today, in containers too.
        let mounted = Path::new("/dev/shm");
        if cfg!(target_os = "linux") && mounted.is_dir() {
            assert_eq!(workplace(mounted), mounted);
        }
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

    fn written(target: &Path, set: Set, files: &[(&str, &str)]) {
        let folder = AtomicFolder::create(target, set).unwrap();
        files.iter().for_each(|(name, text)| write(folder.folder().join(name), text).unwrap());
        folder.commit().unwrap();
    }

    fn text(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap()
    }

    #[test]
    fn a_folder_appears_at_commit_and_replaces_its_own_set() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("above/out");
        let folder = AtomicFolder::create(&target, Set::Model).unwrap();
        write(folder.folder().join("one"), "1").unwrap();
        assert!(!target.exists());
        folder.commit().unwrap();
        assert_eq!(listing(&target), [MANIFEST, "one"]);
        // Alone in its folder, a set goes as a whole, with what it no longer has.
        written(&target, Set::Model, &[("one", "1+"), ("two", "2")]);
        written(&target, Set::Model, &[("one", "1++")]);
        assert_eq!(
            (listing(&target), text(&target, "one")),
            (vec![MANIFEST.to_owned(), "one".to_owned()], "1++".into())
        );
        // Beside other files it is replaced by its own, and they stay; so does a file of its own that was changed since.
        written(&target, Set::Model, &[("one", "1"), ("two", "2")]);
        fs::write(target.join("mine"), "m").unwrap();
        fs::write(target.join("two"), "edited").unwrap();
        written(&target, Set::Model, &[("one", "1")]);
        assert_eq!(text(&target, "two"), "edited");
        fs::remove_file(target.join("two")).unwrap();
        written(&target, Set::Adapter, &[("adapter", "a")]);
        written(&target, Set::Model, &[("three", "3")]);
        assert_eq!(listing(&target), ["adapter", MANIFEST, "mine", "three"]);
        assert_eq!(text(&target, "mine") + &text(&target, "adapter"), "ma");
        let states = Manifest::read(&target).unwrap().unwrap().verify(&target).unwrap();
        assert_eq!(states.len(), 2);
        assert!(states.iter().all(|(_, state)| *state == manifest::State::Same));
        drop(AtomicFolder::create(&target, Set::Model).unwrap());
        assert_eq!(listing(&root.path().join("above")), ["out"]);
        assert!(AtomicFolder::create(target.join("three"), Set::Model).is_err());
    }

    /// Where a folder without a manifest is replaced file by file, the one that is written first knows the old files.
    #[test]
    fn a_mixture_is_known_wherever_it_ends() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        fs::create_dir(&target).unwrap();
        for name in ["config", "tensors", "mine"] {
            fs::write(target.join(name), "old").unwrap();
        }
        let folder = AtomicFolder::create(&target, Set::Adapter).unwrap();
        for name in ["config", "tensors"] {
            write(folder.folder().join(name), "new").unwrap();
        }
        // As a kill after the first rename leaves it.
        let names = ["config", "tensors"].map(str::to_owned);
        Manifest::of(Set::Adapter, &target, &names).unwrap().write(&target).unwrap();
        fs::rename(folder.folder().join("config"), target.join("config")).unwrap();
        assert!(manifest::check(&target).unwrap_err().to_string().contains("config: is not the file"));
        drop(folder);
        written(&target, Set::Adapter, &[("config", "new"), ("tensors", "new")]);
        manifest::check(&target).unwrap();
    }
}
