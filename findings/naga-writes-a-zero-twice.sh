#!/usr/bin/env bash
# naga writes HLSL that no compiler takes from a valid shader that spells one type in two ways.
#
# One would guess: `alias Out = vec4<f32>;` is another name for the same type, so a shader that says `Out()` here and
# `vec4<f32>()` there validates and is written like one that says the same name twice.
# What is real: naga 30.0.2 keeps the alias as a type of its own in its module. Its HLSL writer makes one function for each type
# whose zero is asked for, and names it by the type's shape, so two functions with one name and signature are written. FXC and
# DXC refuse the text as a redefinition; naga's validation and its SPIR-V are fine, so a shader that is only tried on Vulkan
# shows nothing.
#
# Seen 2026-11-28: naga 30.0.2. Needs Rust; builds naga in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir -p "$place/src"
cat >"$place/Cargo.toml" <<'TOML'
[package]
name = "twice"
version = "0.1.0"
edition = "2021"
[dependencies]
naga = { version = "=30.0.2", features = ["wgsl-in", "hlsl-out"] }
TOML
cat >"$place/src/main.rs" <<'RUST'
use naga::{back::hlsl, front::wgsl, valid::{Capabilities, ValidationFlags, Validator}};

fn written(first: &str) -> String {
    let source = format!(
        "alias Out = vec4<f32>;
         @group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
         @compute @workgroup_size(1) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
             if (id.x == 0u) {{ x[id.x] = {first}(); }} else {{ x[id.x] = vec4<f32>(); }}
         }}"
    );
    let module = wgsl::parse_str(&source).expect("it parses");
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).expect("it is valid");
    let (mut text, options, pipeline) = (String::new(), hlsl::Options::default(), hlsl::PipelineOptions::default());
    hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).expect("it is written");
    text
}

fn main() {
    let mut counts = Vec::new();
    for first in ["vec4<f32>", "Out"] {
        let text = written(first);
        let zeros: Vec<&str> = text.lines().filter(|line| line.starts_with("float4 ZeroValue")).collect();
        println!("naga 30.0.2, {first}() beside vec4<f32>(): {zeros:?}");
        counts.push(zeros.len());
    }
    std::process::exit(i32::from(counts != [1, 2]));
}
RUST
cargo run --quiet --manifest-path "$place/Cargo.toml" || { echo "this changed"; exit 1; }
