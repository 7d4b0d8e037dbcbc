//! What must hold in every commit, read from the sources: who imports whom, the three files of a kernel, sizes, and that
//! nothing is left open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` with one of these extensions, in order.
fn files(dir: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|&x| e == x)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    let dirs = ["src", "shaders", "tests", "examples", "benches", "scripts", "findings", "fuzz/targets"];
    let mut all: Vec<_> = dirs.iter().flat_map(|dir| files(dir, &["rs", "wgsl", "py", "sh", "c", "mjs"])).collect();
    all.push(root().join("build.rs"));
    all
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Who may import whom, apart from what follows: whoever may import a room may import what that room may.
const ROOMS: &[(&str, &[&str])] = &[
    ("bench", &["method", "train", "generate"]),
    ("train", &["model", "adapter", "nn", "data", "kernels", "format", "run"]),
    ("generate", &["model", "adapter", "nn", "data", "kernels", "format"]),
    ("evaluate", &["model", "adapter", "nn", "data", "kernels", "format"]),
    ("compare", &["method", "evaluate", "generate"]),
    ("export", &["method", "model", "tokenizer", "run"]),
    ("method", &["model", "adapter", "nn", "kernels", "format"]),
    ("model", &["adapter", "nn", "ops", "format", "quant"]),
    ("adapter", &["arch", "nn"]),
    ("arch", &["kernels", "format"]),
    ("nn", &["kernels"]),
    ("ops", &["kernels"]),
    ("kernels", &["graph", "quant"]),
    ("graph", &["gpu"]),
    ("gpu", &["cancel", "error", "dtype", "shape"]),
    ("format", &["quant"]),
    ("quant", &["error", "dtype", "random", "shape"]),
    ("data", &["cancel", "random", "tokenizer"]),
    ("tokenizer", &["format", "error"]),
    ("cancel", &["error"]),
    ("run", &["error"]),
    ("random", &[]),
    ("shape", &[]),
    ("dtype", &[]),
    ("error", &[]),
];

fn may_import() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut all: BTreeMap<&str, BTreeSet<&str>> =
        ROOMS.iter().map(|(room, others)| (*room, others.iter().copied().collect())).collect();
    for _ in ROOMS {
        for (room, _) in ROOMS {
            let reached: Vec<&str> = all[room].iter().flat_map(|other| all[other].iter().copied()).collect();
            all.get_mut(room).unwrap().extend(reached);
        }
    }
    all
}

/// The room that a name at the root of the crate comes from.
fn room_of(name: &str, exports: &BTreeMap<String, String>) -> Option<String> {
    if ROOMS.iter().any(|(room, _)| *room == name) { Some(name.to_owned()) } else { exports.get(name).cloned() }
}

/// Code without comments; good enough for sources that keep `//` out of paths.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// The first segments of `prefix::name`, `prefix::{a::b, c}` in `code`.
fn first_segments(code: &str, prefix: &str) -> Vec<String> {
    let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(ident(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && depth == 0 && !c.is_whitespace() => {
                    found.push(ident(&group[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Names that lib.rs exports, with their rooms: `pub use gpu::{Gpu, Tensor};`.
fn exports() -> BTreeMap<String, String> {
    let text = code(&fs::read_to_string(root().join("src/lib.rs")).unwrap());
    let mut found = BTreeMap::new();
    for statement in text.split("pub use ").skip(1) {
        let statement = &statement[..statement.find(';').unwrap()];
        let room: String = statement.chars().take_while(|c| *c != ':').collect();
        let names = statement.rsplit("::").next().unwrap();
        for name in names.trim_matches(['{', '}', ' ', '\n']).split(',') {
            let name = name.split(" as ").last().unwrap().trim_matches(['{', '}', ' ', '\n']);
            found.insert(name.to_owned(), room.clone());
        }
    }
    found
}

#[test]
fn rooms_import_what_they_may() {
    let (allowed, exports) = (may_import(), exports());
    for (room, others) in &allowed {
        assert!(!others.contains(room), "{room} is in a circle");
    }
    let mut checked = 0;
    for path in files("src", &["rs"]) {
        let name = short(&path);
        let inside = name.strip_prefix("src/").unwrap();
        let room = inside.split(['/', '.']).next().unwrap();
        if matches!(room, "lib" | "bin") {
            continue;
        }
        let others = allowed.get(room).unwrap_or_else(|| panic!("{name}: {room} is in no row of the table above"));
        for import in first_segments(&code(&fs::read_to_string(&path).unwrap()), "crate::") {
            let from =
                room_of(&import, &exports).unwrap_or_else(|| panic!("{name}: where does crate::{import} come from?"));
            let fine = from == room || others.contains(from.as_str());
            assert!(fine, "{name} imports {from} (as {import}); {room} may import {others:?}");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked} imports");
}

/// `a, b -> c, d` in ARCHITECTURE.md: a row of the table above for each of a and b.
#[test]
fn the_map_shows_who_imports_whom() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut shown = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("    ")) {
        let Some((rooms, others)) = line.split_once(" -> ") else { continue };
        let others: BTreeSet<&str> = others.trim().split(", ").collect();
        shown.extend(rooms.trim().split(", ").map(|room| (room, others.clone())));
    }
    let known = ROOMS.iter().filter(|(_, others)| !others.is_empty());
    let known: BTreeSet<_> = known.map(|(room, others)| (*room, others.iter().copied().collect())).collect();
    assert_eq!(shown, known, "the diagram of ARCHITECTURE.md and ROOMS");
}

#[test]
fn imports_are_read_as_written() {
    let text =
        "use crate::{DType, gpu::{Gpu, Kernel},\n  graph::Graph};\nlet x = crate::quant::NF4; $crate::no; mycrate::no";
    assert_eq!(first_segments(text, "crate::"), ["DType", "gpu", "graph", "quant"]);
}

/// What a panic prints is the program's to say: a library that takes the hook takes it from everyone.
#[test]
fn the_library_leaves_the_panic_hook_alone() {
    for path in files("src", &["rs"]) {
        let name = short(&path);
        let own = name.starts_with("src/bin/");
        assert!(own || !code(&fs::read_to_string(&path).unwrap()).contains("set_hook"), "{name} sets the panic hook");
    }
}

#[test]
fn only_the_gpu_room_names_wgpu() {
    for path in files("src", &["rs"]).into_iter().chain(files("examples", &["rs"])) {
        let name = short(&path);
        if !name.starts_with("src/gpu/") {
            assert!(!code(&fs::read_to_string(&path).unwrap()).contains("wgpu::"), "{name} names wgpu");
        }
    }
}

/// Where what a feature switches on may be named: an app that leaves the feature out does not compile it.
const OPTIONAL: &[(&str, &str)] = &[
    ("clap", "src/bin/"),
    ("dirs", "src/bin/"),
    ("signal-hook", "src/bin/"),
    ("env_logger", "src/bin/"),
    ("indicatif", "src/bin/"),
    ("plotters", "src/bin/"),
    ("parquet", "src/data/parquet.rs"),
    ("minijinja", "src/tokenizer/"),
    ("minijinja-contrib", "src/tokenizer/"),
    ("tokenizers", "src/tokenizer/"),
];

#[test]
fn what_a_feature_brings_is_named_in_its_room_alone() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = |name: &str| manifest.split(&format!("\n[{name}]\n")).nth(1).unwrap().split("\n[").next().unwrap();
    let optional = section("dependencies").lines().filter(|line| line.contains("optional = true"));
    let names: BTreeSet<&str> = optional.map(|line| line.split_once(" = ").unwrap().0).collect();
    assert_eq!(names, OPTIONAL.iter().map(|(name, _)| *name).collect(), "Cargo.toml, and the table above");
    let naga = section("dependencies").lines().find(|line| line.starts_with("naga = ")).unwrap();
    assert!(naga.ends_with(r#"features = ["wgsl-in"] }"#), "naga's writers are for tests alone: {naga}");
    for path in files("src", &["rs"]) {
        let (name, text) = (short(&path).replace('\\', "/"), code(&fs::read_to_string(&path).unwrap()));
        for (dependency, room) in OPTIONAL.iter().filter(|(_, room)| !name.starts_with(room)) {
            let path = format!("{}::", dependency.replace('-', "_"));
            // `crate::data::parquet` and `super::parquet` are our own.
            let own = |at: usize| text[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            let found = text.match_indices(&path).find(|&(at, _)| !own(at));
            assert!(found.is_none(), "{name} names {dependency}, which is for {room} alone");
        }
    }
}

/// Hosts without a shader: what all kernels share, and what records the dispatches of others. In a family's folder: `spec` and
/// `choose`.
const WITHOUT_SHADER: &[&str] = &[
    "mod",
    "quantized",
    "decode",
    "element",
    "dense",
    "product/spec",
    "product/choose",
    "attention/spec",
    "product_int8/spec",
];

/// Shaders whose tests are those of their family: its first design.
const FIRST_DESIGNS: &[&str] = &["attention/tiles", "product_int8/tiles"];

/// `norm`, and `product/tiles` in a folder.
fn kernels_in(dir: &str, extension: &str) -> BTreeSet<String> {
    let root = root().join(dir);
    let name =
        |path: PathBuf| path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace('\\', "/");
    files(dir, &[extension]).into_iter().map(name).filter(|name| !name.starts_with("lib/")).collect()
}

#[test]
fn a_kernel_is_three_files_with_one_name() {
    let (shaders, mut hosts) = (kernels_in("shaders", "wgsl"), kernels_in("src/kernels", "rs"));
    hosts.retain(|name| !WITHOUT_SHADER.contains(&name.as_str()) && !name.ends_with("/mod"));
    assert_eq!(shaders, hosts, "shaders/**/*.wgsl and src/kernels/**/*.rs");
    assert!(shaders.len() > 3);
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (all, tested, tests) =
        (read("src/kernels/mod.rs"), read("tests/kernels/main.rs"), kernels_in("tests/kernels", "rs"));
    for name in &shaders {
        let Some((family, design)) = name.split_once('/') else {
            assert!(all.contains(&format!("({name}::variants()")), "src/kernels/mod.rs lists no variants of {name}");
            assert!(tests.contains(name), "tests/kernels/{name}.rs is missing");
            assert!(tested.contains(&format!("mod {name};")), "tests/kernels/main.rs leaves {name} out");
            continue;
        };
        assert!(all.contains(&format!("({family}::variants()")), "src/kernels/mod.rs lists no variants of {family}");
        let hosts = kernels_in(&format!("src/kernels/{family}"), "rs");
        let lists =
            |host: &String| read(&format!("src/kernels/{family}/{host}.rs")).contains(&format!("{design}::variants("));
        assert!(hosts.iter().any(lists), "{family} lists no variants of {design}");
        let test = if FIRST_DESIGNS.contains(&name.as_str()) { format!("{family}/mod") } else { name.clone() };
        assert!(tests.contains(&test), "tests/kernels/{test}.rs is missing");
    }
}

/// Kernels record, and so do layers. What submits, waits or reads back is an op.
#[test]
fn kernels_and_layers_never_submit() {
    for path in files("src/kernels", &["rs"]).into_iter().chain(files("src/nn", &["rs"])) {
        let text = shipped(&path);
        for submits in ["Graph::new", ".run()", ".wait()", ".build(", ".read()", ".read::<", ".download()"] {
            assert!(!text.contains(submits), "{}: {submits} belongs into src/ops", short(&path));
        }
    }
}

/// A design knows what its family computes, and none of the others: choosing among them is done on top of all.
#[test]
fn designs_of_a_family_do_not_import_each_other() {
    for name in kernels_in("shaders", "wgsl") {
        let Some((family, design)) = name.split_once('/') else { continue };
        let text = code(&fs::read_to_string(root().join(format!("src/kernels/{name}.rs"))).unwrap());
        for import in first_segments(&text, "super::") {
            assert!(import == "spec", "{family}/{design}.rs imports super::{import}");
        }
    }
}

/// Code without the tests inside it.
fn shipped(path: &Path) -> String {
    let text = code(&fs::read_to_string(path).unwrap());
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// A family's name and its modules' names stand in its own file, and in what it shares with others of its kind.
#[test]
fn only_families_know_families() {
    let families = fs::read_to_string(root().join("src/arch/families/mod.rs")).unwrap();
    let names: Vec<String> = families
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';').map(|name| format!("\"{name}\"")))
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "attn_q", "ffn_up"];
    let mut families = 0;
    for path in files("src", &["rs"]) {
        let (name, text) = (short(&path), shipped(&path));
        if name.starts_with("src/arch/families/") {
            families += 1;
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 80, "{name}: {lines} lines; what families share belongs beside them");
            continue;
        }
        for family in &names {
            // GGUF's kinds of tokenizers have such names too, whatever family has them.
            let elsewhere = name.starts_with("src/tokenizer/");
            assert!(elsewhere || !text.contains(family.as_str()), "{name} knows the family {family}");
        }
        let shared = name == "src/arch/config_json.rs" || name.starts_with("src/bin/");
        for module in modules {
            assert!(shared || !text.contains(module), "{name} knows the module {module}");
        }
    }
    assert!(families > 3, "{families} files of families");
}

/// A block is described by its architecture: nobody counts its linear layers.
#[test]
fn nobody_counts_the_layers_of_a_block() {
    for path in files("src", &["rs"]) {
        let text = shipped(&path);
        for counted in ["7 * source", "7 * layers", "7 * self", "; 7] {", "&Value; 7]", "Adapted; 7]"] {
            assert!(!text.contains(counted), "{}: {counted}", short(&path));
        }
    }
}

#[test]
fn every_snippet_is_imported() {
    let text: String = sources().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for path in files("shaders/lib", &["wgsl"]) {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let used = text.contains(&format!("import {stem}\n")) || text.contains(&format!("\"{stem}\""));
        assert!(used, "nothing imports {}", short(&path));
    }
}

/// Metal compiles with fast math, and WGSL lets every compiler assume that there are no NaN: what is compared with itself may
/// be folded away. NaN and infinity are recognized by their bits.
#[test]
fn no_shader_tells_nan_by_comparing_a_value_with_itself() {
    let operand = |text: &str, forward: bool| -> String {
        let part = |c: &char| c.is_alphanumeric() || "_.[]".contains(*c);
        let trimmed = text.trim();
        match forward {
            true => trimmed.chars().take_while(part).collect(),
            false => trimmed.chars().rev().take_while(part).collect::<Vec<_>>().into_iter().rev().collect(),
        }
    };
    let with_itself = |line: &str| {
        ["!=", "=="].iter().any(|sign| {
            let sides = line.split_once(sign).map(|(a, b)| (operand(a, false), operand(b, true)));
            sides.is_some_and(|(a, b)| !a.is_empty() && a == b)
        })
    };
    assert!(with_itself("if (x[i] != x[i]) {") && with_itself("select(a, b, v.x == v.x)"));
    assert!(!with_itself("if (x != xs) {") && !with_itself("a.x == b.x"));
    let shaders = files("shaders", &["wgsl"]);
    assert!(shaders.len() > 50);
    for path in shaders {
        for (i, line) in code(&fs::read_to_string(&path).unwrap()).lines().enumerate() {
            assert!(!with_itself(line), "{}:{}: {line}", short(&path), i + 1);
        }
    }
}

#[test]
fn files_stay_readable() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= 600, "{}: {lines} lines; split it by what it does", short(&path));
    }
}

#[test]
fn files_begin_with_what_they_are_for() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let expected = match path.extension().unwrap().to_str().unwrap() {
            "rs" if !path.starts_with(root().join("tests")) => "//!",
            "wgsl" if path.parent().is_some_and(|p| p.ends_with("shaders")) => "//",
            _ => continue,
        };
        assert!(text.starts_with(expected), "{} does not begin with {expected}", short(&path));
    }
}

/// "One X per Y": with two articles side by side a sentence has to be read twice.
#[test]
fn counts_are_said_with_per() {
    let counted =
        ["scale", "program", "thread", "row", "line", "list", "absmax", "bit", "group", "dispatch", "file", "report"];
    let each = [
        "token",
        "row",
        "layer",
        "block",
        "length",
        "lane",
        "thread",
        "workgroup",
        "shard",
        "column",
        "sample",
        "kernel",
    ];
    let prose = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name));
    for path in sources().into_iter().chain(files("docs", &["md"])).chain(prose) {
        let text = fs::read_to_string(&path).unwrap();
        // A sentence goes on behind the mark of the next comment line.
        let words: Vec<&str> = text.split_whitespace().filter(|w| !matches!(*w, "//" | "///" | "//!" | "#")).collect();
        let article = |word: &str| matches!(word.trim_start_matches('('), "a" | "A" | "an" | "An" | "one" | "One");
        for said in words.windows(4) {
            let last = said[3].trim_end_matches(|c: char| !c.is_alphanumeric());
            let twice = article(said[0]) && counted.contains(&said[1]) && ["a", "an"].contains(&said[2]);
            assert!(!(twice && each.contains(&last)), "{}: {}: say one ... per ...", short(&path), said.join(" "));
        }
    }
}

#[test]
fn nothing_is_left_open() {
    let markers = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("HA", "CK"),
        concat!("unimple", "mented!"),
        concat!("to", "do!("),
        concat!("dbg", "!("),
    ];
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in text.lines().enumerate() {
            for marker in markers {
                assert!(!line.contains(marker), "{}:{}: {marker}", short(&path), i + 1);
            }
        }
    }
}
