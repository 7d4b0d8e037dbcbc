//! The tiny Llama of `tests/golden/tiny`, its batches, and the options of the runs that others recorded on it.

use fourbit::{
    data::Batch,
    format::Safetensors,
    gpu::Gpu,
    model::{LoadOptions, Model},
    train::{Schedule, TrainConfig},
};
use std::path::PathBuf;

/// A file or folder of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR")).into()
}

pub fn open(name: &str) -> Safetensors {
    Safetensors::open(golden(name)).unwrap()
}

pub fn floats(file: &Safetensors, name: &str) -> Vec<f32> {
    file.get(name).unwrap().to_f32().unwrap()
}

pub fn load(gpu: &Gpu, folder: &str) -> Model {
    Model::load(gpu, golden(folder), &LoadOptions::default()).unwrap()
}

/// Largest difference over the largest wanted value.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let worst = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs())).fold(0.0, f64::max);
    worst / largest.max(1e-30)
}

#[track_caller]
pub fn assert_relative(what: &str, got: &[f32], want: &[f32], most: f64) {
    let error = relative(got, want);
    assert!(error <= most, "{what}: largest difference over largest value is {error:e}, expected at most {most:e}");
}

/// Batch `index` of the four golden ones: [2, 24], the second row padded on the right.
pub fn batch(index: usize) -> Batch {
    let file = open("tiny/batch.safetensors");
    let read = |name: &str| file.get(name).unwrap().to_i64().unwrap()[index * 48..(index + 1) * 48].to_vec();
    let mask: Vec<u8> = read("attention_mask").into_iter().map(|v| v as u8).collect();
    Batch {
        batch: 2,
        seq_len: 24,
        input_ids: read("input_ids").into_iter().map(|v| v as u32).collect(),
        labels: read("labels").into_iter().map(|v| v as i32).collect(),
        segment_ids: mask.iter().map(|&m| m.into()).collect(),
        position_ids: (0..48).map(|i| i % 24).collect(),
        attention_mask: mask,
        pairs: Vec::new(),
        epoch: 0.0,
    }
}

/// Options of the golden runs: cosine with 3 warm-up steps of 20, whose first step has learning rate 0.
pub fn config() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        lr_scheduler_type: Schedule::Cosine,
        warmup_steps: 3,
        weight_decay: 0.01,
        max_steps: 20,
        batch_size: 2,
        max_seq_length: 24,
        ..TrainConfig::default()
    }
}
