//! What is fuzzed: one function per target, which makes files of an input and reads them. Every input ends in `Ok` or `Err`: no
//! panic, no more than [`memory::MOST`], no endless loop.
//!
//! The same functions serve cargo-fuzz (`fuzz/`, see `scripts/fuzz.sh`) and `tests/corpus.rs`, which replays what is kept. An input
//! is a file as it is, or a few bytes that say how a good file is changed ([`input::Input`]), so that checks of lengths and offsets
//! are passed and what lies behind them is reached. Nothing here needs a device.
#![allow(dead_code, reason = "each fuzzer uses one target")]

mod adapter;
mod gguf;
mod input;
pub mod memory;
mod model;
mod parquet;
mod tensors;
mod text;

use fourbit::gpu::{Gpu, GpuOptions};
use std::{fs, path::Path};

/// Reads files made of an input.
pub type Target = fn(&[u8]);

/// All targets by name; each has a file in `fuzz/targets` and a folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 10] = [
    ("adapter", adapter::adapter),
    ("config", model::config),
    ("gguf", gguf::gguf),
    ("index", tensors::index),
    ("layouts", model::layouts),
    ("parquet", parquet::parquet),
    ("rows", text::rows),
    ("safetensors", tensors::safetensors),
    ("template", text::template),
    ("tokenizer", text::tokenizer),
];

/// One input to the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(of, _)| *of == name).expect("a target of this name");
    target(data);
}

/// For fuzzers, which take every panic for a find: one that the library catches and returns as an error is none.
pub fn pass_over_caught_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !fourbit::gpu::is_catching() {
            told(info);
        }
    }));
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("room for a folder");
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("room for a file");
    }
    folder
}

/// What was read is used, so that no compiler leaves it out.
fn used<T>(value: T) {
    std::hint::black_box(value);
}

/// The device that only counts.
fn dry() -> Gpu {
    thread_local!(static DRY: Gpu = {
        Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).expect("the noop device is always there")
    });
    DRY.with(Gpu::clone)
}

/// A model's files: every weight is read, and the model laid out on a device that only counts.
fn load(path: &Path) -> fourbit::Result<()> {
    use fourbit::model::{LoadOptions, Model, Quantization, Source};
    let source = Source::open(path)?;
    for name in source.names() {
        used((source.scheme(&name).is_ok(), source.dtype(&name).is_ok(), source.rounding(&name).is_ok()));
        let Ok(shape) = source.shape(&name) else { continue };
        used(source.plain(&name).is_ok());
        used(source.vector(&name, shape[1]).is_ok());
        if let Ok(packed) = source.packed(&name, shape) {
            used(packed.dequantize());
        }
        used(source.for_each_piece(&name, shape, 4096, |_, piece| {
            used(piece.len());
            Ok(())
        }))
    }
    for quantization in
        [Quantization::AsStored, Quantization::To(fourbit::quant::Scheme::Nf4 { block_size: 64, double_quant: true })]
    {
        Model::from_source(&dry(), &source, &LoadOptions { quantization })?;
    }
    Ok(())
}
