//! What fuzzing found, and small seeds: `fuzz/corpus/TARGET/*` through the functions that cargo-fuzz runs (`tests/fuzzing`), on a
//! stable compiler.
#![cfg(all(feature = "tokenizer", feature = "parquet"))]

mod fuzzing;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

#[global_allocator]
static BOUNDED: fuzzing::memory::Bounded = fuzzing::memory::Bounded;

/// Panics of other crates that were caught and returned as errors.
static CAUGHT: AtomicUsize = AtomicUsize::new(0);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn names(paths: &[PathBuf], end: &str) -> BTreeSet<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(name).filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect()
}

/// The package that is published has no `fuzz/`.
fn corpus() -> Option<PathBuf> {
    Some(root().join("fuzz/corpus")).filter(|_| root().join("fuzz").exists())
}

#[test]
fn every_target_has_a_fuzzer_and_a_corpus() {
    let Some(corpus) = corpus() else { return };
    let targets: BTreeSet<String> = fuzzing::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&entries(&corpus), ""), targets, "fuzz/corpus");
    assert_eq!(names(&entries(&root().join("fuzz/targets")), ".rs"), targets, "fuzz/targets");
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for name in targets {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "fuzz/Cargo.toml has no {name}");
        let text = fs::read_to_string(root().join("fuzz/targets").join(format!("{name}.rs"))).unwrap();
        assert!(
            text.contains(&format!("const NAME: &str = \"{name}\";")),
            "fuzz/targets/{name}.rs runs another target"
        );
    }
}

/// An input that makes another crate panic is none to hand out: what our guard does with it is tested in words of our own.
#[test]
fn what_is_kept_ends_in_ok_or_err_and_harms_no_other_crate() {
    let Some(corpus) = corpus() else { return };
    std::panic::set_hook(Box::new(|info| {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
        eprintln!("{info}");
    }));
    let mut bytes = 0;
    for (name, _) in fuzzing::TARGETS {
        let inputs = entries(&corpus.join(name));
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for path in inputs {
            let data = fs::read(&path).unwrap();
            bytes += data.len();
            // Names it should the process end here.
            eprintln!("{}: {} bytes", path.strip_prefix(root()).unwrap().display(), data.len());
            fuzzing::run(name, &data);
            assert_eq!(CAUGHT.load(Ordering::Relaxed), 0, "{}: another crate panics at it", path.display());
        }
    }
    assert!(bytes <= 200 << 10, "{bytes} bytes of inputs");
}
