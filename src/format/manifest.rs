//! `fourbit_manifest.json`: which files of a folder belong together, by size and digest, so that no two halves are taken for one.
//!
//! A folder holds at most one set of each kind, and whatever else its owner puts there.

use super::atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

/// The manifest's own name.
pub const MANIFEST: &str = "fourbit_manifest.json";
/// Bytes at each end of a file that a loader compares; all of a file that is not longer than both.
const END: u64 = 1 << 20;

/// What files that are written together are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// An adapter, as PEFT has it, and perhaps its training's records.
    Adapter,
    /// A model with its configuration and tokenizer.
    Model,
    /// A checkpoint of a run.
    Checkpoint,
}

/// A file as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    size: u64,
    /// Of all its bytes.
    blake3: String,
    /// Of its first and last MiB: what a loader compares.
    ends: String,
}

impl Entry {
    fn of(path: &Path) -> Result<Entry> {
        let io = Error::io(path);
        let read = || -> std::io::Result<Entry> {
            let mut file = File::open(path)?;
            let size = file.metadata()?.len();
            let mut all = blake3::Hasher::new();
            all.update_reader(&mut file)?;
            Ok(Entry { size, blake3: all.finalize().to_string(), ends: ends(&mut file, size)? })
        };
        read().map_err(io)
    }

    /// Whether size and ends are those of a file.
    fn is_like(&self, path: &Path) -> Result<bool> {
        let read = || -> std::io::Result<bool> {
            let mut file = File::open(path)?;
            let size = file.metadata()?.len();
            Ok(size == self.size && ends(&mut file, size)? == self.ends)
        };
        read().map_err(Error::io(path))
    }
}

fn ends(file: &mut File, size: u64) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    file.seek(SeekFrom::Start(0))?;
    hasher.update_reader(Read::by_ref(file).take(END))?;
    file.seek(SeekFrom::Start(END.min(size).max(size.saturating_sub(END))))?;
    hasher.update_reader(file)?;
    Ok(hasher.finalize().to_string())
}

/// The sets of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    sets: BTreeMap<Set, BTreeMap<String, Entry>>,
}

/// How a file stands to its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was written.
    Same,
    /// Other bytes.
    Changed,
    /// Gone.
    Missing,
}

impl Manifest {
    /// The manifest of a folder; `None` where it has none. Errors: Io, Format.
    pub fn read(folder: &Path) -> Result<Option<Manifest>> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let manifest: Manifest = super::read_json(&path)?;
        // It may come from a stranger, and what it names is read, and removed when a newer set has it no longer.
        let below = |name: &str| {
            let mut parts = Path::new(name).components().peekable();
            parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
        };
        if let Some(name) = manifest.all_names().find(|name| !below(name)) {
            return Err(Error::format(&path, format!("names {name:?}, which is no file below its folder")));
        }
        Ok(Some(manifest))
    }

    /// A set of the files of these names, as they are now. Errors: Io.
    pub(super) fn of(set: Set, folder: &Path, names: &[String]) -> Result<Manifest> {
        let entry = |name: &String| Ok((name.clone(), Entry::of(&folder.join(name))?));
        let files = names.iter().map(entry).collect::<Result<_>>()?;
        Ok(Manifest { sets: [(set, files)].into() })
    }

    /// The other sets of `older` with those of this one.
    pub(super) fn beside(mut self, older: &Manifest) -> Manifest {
        for (set, files) in &older.sets {
            self.sets.entry(*set).or_insert_with(|| files.clone());
        }
        self
    }

    /// Names of a set's files that are there as they were written.
    pub(super) fn unchanged(&self, set: Set, folder: &Path) -> impl Iterator<Item = &str> {
        let same = |(_, entry): &(&String, &Entry), path: PathBuf| entry.is_like(&path).unwrap_or(false);
        let files = self.sets.get(&set).into_iter().flatten();
        files.filter(move |file| same(file, folder.join(file.0))).map(|(name, _)| name.as_str())
    }

    /// Names of all files.
    pub(super) fn all_names(&self) -> impl Iterator<Item = &str> {
        self.sets.values().flatten().map(|(name, _)| name.as_str())
    }

    /// Writes it into the folder. Errors: Io.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        atomic::write_json(folder.join(MANIFEST), self)
    }

    /// Looks at the ends of the files that are there, which is quick. Errors: Io; Format where one is not of the set.
    pub(super) fn check(&self, folder: &Path) -> Result<()> {
        for (name, entry) in self.sets.values().flatten() {
            let path = folder.join(name);
            if path.is_file() && !entry.is_like(&path)? {
                return Err(Error::format(
                    path,
                    format!(
                        "is not the file that {MANIFEST} names: a run was stopped while it replaced the files of this folder, or \
                         the file was changed since; write the folder again with the same command, or remove {MANIFEST} where you \
                         changed it yourself"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Looks at every byte. Errors: Io.
    pub fn verify(&self, folder: &Path) -> Result<Vec<(PathBuf, State)>> {
        let state = |(name, entry): (&String, &Entry)| {
            let path = folder.join(name);
            let state = match path.is_file() {
                false => State::Missing,
                true if Entry::of(&path)? == *entry => State::Same,
                true => State::Changed,
            };
            Ok((path, state))
        };
        self.sets.values().flatten().map(state).collect()
    }
}

/// Errors: Format where files of a folder that fourbit wrote do not belong together; Io.
pub(crate) fn check(folder: &Path) -> Result<()> {
    Manifest::read(folder)?.map_or(Ok(()), |manifest| manifest.check(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_manifest_names_files_below_its_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let entry = r#"{"size": 1, "blake3": "x", "ends": "x"}"#;
        for (name, ok) in
            [("a", true), ("a/b", true), ("../a", false), ("a/../../b", false), ("/a", false), ("", false)]
        {
            let text = format!(r#"{{"sets": {{"model": {{"{name}": {entry}}}}}}}"#);
            std::fs::write(folder.path().join(MANIFEST), text).unwrap();
            let read = Manifest::read(folder.path());
            assert_eq!(read.is_ok(), ok, "{name}");
            assert!(ok || read.unwrap_err().to_string().contains("no file below its folder"));
        }
    }

    #[test]
    fn a_change_is_found_at_the_ends_at_once_and_in_the_middle_by_all_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let names = ["small", "large"].map(str::to_owned);
        let large: Vec<u8> = (0..3 * END as u32 + 77).map(|i| (i % 251) as u8).collect();
        fs::write(at("small"), "abc").unwrap();
        fs::write(at("large"), &large).unwrap();
        Manifest::of(Set::Model, folder.path(), &names).unwrap().write(folder.path()).unwrap();
        check(folder.path()).unwrap();
        let states = || Manifest::read(folder.path()).unwrap().unwrap().verify(folder.path()).unwrap();
        assert!(states().iter().all(|(_, state)| *state == State::Same));
        for place in [0, large.len() - 1, END as usize, large.len() / 2] {
            let mut changed = large.clone();
            changed[place] ^= 1;
            fs::write(at("large"), changed).unwrap();
            let middle = (END as usize..large.len() - END as usize).contains(&place);
            assert_eq!(check(folder.path()).is_ok(), middle, "byte {place}");
            assert_eq!(states()[0], (at("large"), State::Changed));
        }
        fs::write(at("large"), &large).unwrap();
        fs::write(at("small"), "abcd").unwrap();
        let message = check(folder.path()).unwrap_err().to_string();
        assert!(message.contains("small: is not the file that fourbit_manifest.json names"), "{message}");
        fs::remove_file(at("small")).unwrap();
        check(folder.path()).unwrap();
        assert_eq!(states()[1].1, State::Missing);
    }
}
