//! Writes every variant of every shader in every form that wgpu hands on, for compilers and analysers outside this project.
//!
//! `cargo run --release --example write_shaders DIR [FORM...]`
//!
//! Each form has a folder of numbered files and a list, DIR/FORM.list: file, entry point, what it needs (`baseline`, `subgroups`, `f16`),
//! whether it is the longest text of its entry point (`longest`, `-`), and the variant; separated by tabs. `scripts/portability.sh` reads
//! them. It overwrites files, and removes none.

use fourbit::kernels::variants;
use std::{collections::HashMap, error::Error, fmt::Write, fs, path::PathBuf};
use written::{FORMS, Form, Language, Variant, Written};

#[path = "../tests/shaders/written.rs"]
mod written;

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<_> = FORMS.iter().map(|form| form.name).collect();
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or_else(|| format!("usage: write_shaders DIR [{}]", names.join("|")))?);
    let chosen: Vec<_> = args.collect();
    if let Some(wrong) = chosen.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("{wrong}: expected one of {}", names.join(", ")).into());
    }
    let kernels = variants();
    let all: Vec<_> = kernels.iter().map(Variant::of).collect();
    for form in FORMS.iter().filter(|form| chosen.is_empty() || chosen.iter().any(|name| name == form.name)) {
        let count = write_form(&dir, form, &all)?;
        println!("{}: {count} of {} variants", form.name, all.len());
    }
    Ok(())
}

fn write_form(dir: &std::path::Path, form: &Form, all: &[Variant]) -> Result<usize, Box<dyn Error>> {
    let extension = match form.language {
        Language::Wgsl => "wgsl",
        Language::Spirv(..) => "spv",
        Language::Hlsl(_) => "hlsl",
        Language::Msl(..) => "metal",
    };
    fs::create_dir_all(dir.join(form.name))?;
    let mut longest: HashMap<_, (usize, usize)> = HashMap::new();
    let mut rows = Vec::new();
    for (number, variant) in all.iter().enumerate().filter(|(_, variant)| form.can_express(variant.kernel)) {
        let (kernel, Written { bytes, entry }) = (variant.kernel, variant.write(form));
        let file = format!("{}/{number:04}.{extension}", form.name);
        let best = longest.entry((kernel.shader, kernel.entry)).or_insert((bytes.len(), number));
        if bytes.len() > best.0 {
            *best = (bytes.len(), number);
        }
        fs::write(dir.join(&file), bytes)?;
        rows.push((number, file, entry, kernel));
    }
    let mut list = String::new();
    for (number, file, entry, kernel) in &rows {
        let needs = if kernel.needs_subgroups() { "subgroups" } else { "baseline" };
        let mark = if longest[&(kernel.shader, kernel.entry)].1 == *number { "longest" } else { "-" };
        writeln!(list, "{file}\t{entry}\t{needs}\t{mark}\t{}", kernel.label())?;
    }
    fs::write(dir.join(format!("{}.list", form.name)), list)?;
    Ok(rows.len())
}
