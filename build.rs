//! Lists every file under `shaders/` as `(name, source)`, so that adding a kernel needs no second registration.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=shaders");
    println!("cargo::rerun-if-changed=shaders/lib");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut out = String::new();
    for (table, dir) in [("SHADERS", "shaders"), ("SNIPPETS", "shaders/lib")] {
        let mut files: Vec<_> = fs::read_dir(Path::new(&root).join(dir))
            .expect("the shaders folder is part of the package")
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "wgsl"))
            .collect();
        files.sort();
        writeln!(out, "pub(super) const {table}: &[(&str, &str)] = &[").expect("writing to a String");
        for file in files {
            let name = file.file_stem().expect("a .wgsl file has a stem").to_string_lossy().into_owned();
            writeln!(out, "    ({name:?}, include_str!({:?})),", file.display().to_string())
                .expect("writing to a String");
        }
        writeln!(out, "];").expect("writing to a String");
    }
    let path = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("shaders.rs");
    fs::write(path, out).expect("OUT_DIR is writable");
}
