//! Lists every file under `shaders/` as `(name, source)`, so that adding a kernel needs no second registration. A shader of a
//! family is named with its folder: `product/tiles`.

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-changed=shaders");
    println!("cargo::rerun-if-changed=shaders/lib");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut out = String::new();
    for (table, dir) in [("SHADERS", "shaders"), ("SNIPPETS", "shaders/lib")] {
        let dir = Path::new(&root).join(dir);
        let mut files = wgsl(&dir);
        if table == "SHADERS" {
            let folders = entries(&dir).filter(|path| path.is_dir() && !path.ends_with("lib"));
            files.extend(folders.flat_map(|folder| wgsl(&folder)));
        }
        files.sort();
        writeln!(out, "pub(super) const {table}: &[(&str, &str)] = &[").expect("writing to a String");
        for file in files {
            let name = file.strip_prefix(&dir).expect("it lies in the folder").with_extension("");
            let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
            writeln!(out, "    ({:?}, include_str!({:?})),", parts.join("/"), file.display().to_string())
                .expect("writing to a String");
        }
        writeln!(out, "];").expect("writing to a String");
    }
    let path = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("shaders.rs");
    fs::write(path, out).expect("OUT_DIR is writable");
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).expect("the shaders folder is part of the package");
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

fn wgsl(dir: &Path) -> Vec<PathBuf> {
    entries(dir).filter(|path| path.extension().is_some_and(|extension| extension == "wgsl")).collect()
}
