//! `fourbit devices`: numbers, drivers that die, and the report.

use super::{Done, command, fourbit, support};
use serde_json::{Value, json};
use std::{ffi::OsString, fs, path::Path, process::Command};

#[test]
fn devices_are_numbered() {
    if support::gpu().is_none() {
        return;
    }
    let list = fourbit(&["devices", "--json"]).json();
    let first = &list["devices"][0];
    assert_eq!(first["index"], 0);
    let name = first["name"].as_str().unwrap();
    let text = fourbit(&["devices"]).stdout;
    assert!(text.starts_with(&format!("0: {name}")), "{text}");
    assert!(text.contains("kernels: products ") && text.contains("shaders compiled by "), "{text}");
    let plan = fourbit(&["plan", "--device", name, "--json"]).json();
    assert_eq!(plan["device"], name);
}

#[test]
fn the_backend_asked_for_is_opened_and_no_other() {
    if support::gpu().is_none() || !cfg!(target_os = "linux") {
        return;
    }
    let list = fourbit(&["devices", "--backend", "vulkan", "--json"]).json();
    assert_eq!(list["devices"][0]["backend"], "vulkan");
    for words in [["devices", "--backend", "metal"], ["plan", "--backend", "dx12"]] {
        let done = fourbit(&words);
        assert!(done.error().contains("on this system; it has vulkan"), "{}", done.error());
    }
    let output = command(&["plan"]).env("WGPU_BACKEND", "gl").output().unwrap();
    assert!(Done::of(output).error().contains("unsupported backend: gl; supported: vulkan, metal, dx12"));
    let output = command(&["devices"]).env("WGPU_DX12_COMPILER", "gcc").output().unwrap();
    assert!(Done::of(output).error().contains("staticdxc"));
}

/// A Vulkan driver that ends the process as soon as the loader talks to it.
const STUB: &str = r#"
#include <stdlib.h>
void *vk_icdGetInstanceProcAddr(void *instance, const char *name) { abort(); }
int vk_icdNegotiateLoaderICDInterfaceVersion(unsigned *version) { abort(); }
"#;

/// Builds the stub in `folder` and returns its manifest.
fn stub(folder: &Path) -> std::path::PathBuf {
    let (source, library, manifest) = (folder.join("stub.c"), folder.join("libstub.so"), folder.join("stub.json"));
    fs::write(&source, STUB).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(status.expect("cc is what Rust links with").success());
    let driver = json!({ "library_path": library, "api_version": "1.3.0" });
    fs::write(&manifest, json!({ "file_format_version": "1.0.0", "ICD": driver }).to_string()).unwrap();
    manifest
}

/// The drivers in use, and one more.
fn with_driver(manifest: &Path) -> (&'static str, OsString) {
    let given = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find_map(|name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        let files: Vec<_> = std::env::split_paths(&value).chain([manifest.to_owned()]).collect();
        Some((name, std::env::join_paths(files).unwrap()))
    });
    given.unwrap_or_else(|| ("VK_ADD_DRIVER_FILES", manifest.into()))
}

#[test]
fn a_driver_that_dies_is_listed_and_the_others_answer() {
    if support::gpu().is_none() || !cfg!(target_os = "linux") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let manifest = stub(folder.path());
    let (name, value) = with_driver(&manifest);
    let list = |more: Vec<(String, String)>| {
        Done::of(command(&["devices", "--json"]).env(name, &value).envs(more).output().unwrap()).json()
    };
    let healthy = fourbit(&["devices", "--json"]).json();
    assert_eq!(healthy["dead"], json!([]));
    let answers = list(Vec::new());
    assert_eq!(answers["devices"], healthy["devices"]);
    let dead = answers["dead"].as_array().unwrap();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["driver"], manifest.to_str().unwrap());
    assert!(dead[0]["end"].as_str().unwrap().contains("signal: 6"), "{dead:?}");

    // What is advised keeps the dead driver away from everything.
    let remedy = answers["environment"].as_object().unwrap();
    let remedy = remedy.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    assert_eq!(list(remedy), healthy);

    // People see it too; alone it is an error that names it.
    let done = Done::of(command(&["devices"]).env(name, &value).output().unwrap());
    assert!(done.stdout.contains(&format!("dead: vulkan driver {}", manifest.display())), "{}", done.stdout);
    let alone = command(&["devices"]).env("VK_DRIVER_FILES", &manifest).output().unwrap();
    let alone = Done::of(alone);
    assert!(alone.error().contains("no driver survived") && alone.error().contains("stub.json"), "{}", alone.error());
}

#[test]
fn the_report_has_what_a_maintainer_asks_for() {
    let Some(gpu) = support::gpu() else { return };
    let done = fourbit(&["devices", "--report"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    for part in
        ["# fourbit devices --report", "- fourbit ", "wgpu 30.", gpu.caps().name.as_str(), "`fourbit finetune`: loss "]
    {
        assert!(done.stdout.contains(part), "no {part:?} in {}", done.stdout);
    }
    let json = done.stdout.split("```json").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(json).unwrap()["index"], 0);
    if let Some(home) = std::env::var_os("HOME").filter(|home| home.len() > 1) {
        assert!(!done.stdout.contains(home.to_str().unwrap()), "the home folder is named");
    }
}
