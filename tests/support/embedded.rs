//! The model that is compiled into the binary, and the rows that it learned.

use fourbit::{
    Gpu, Tokenizer,
    data::{DataOptions, Dataset},
    method::{LayerMethod, PipelineOptions, quantize_model},
    model::{LoadOptions, Model, Quantization, Source},
};

/// The model's folder.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");
/// The rows, as JSON lines.
pub const ROWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded/train.jsonl");

pub fn tokenizer() -> Tokenizer {
    Tokenizer::open(FOLDER).unwrap().expect("the folder has one")
}

pub fn source() -> Source {
    Source::open(FOLDER).unwrap()
}

pub fn load(gpu: &Gpu, quantization: Quantization) -> Model {
    Model::load(gpu, FOLDER, &LoadOptions { quantization }).unwrap()
}

/// The rows with their labels, cut after so many tokens.
pub fn rows(max_seq_length: usize, completion_only: bool) -> Dataset {
    let options = DataOptions { completion_only, ..DataOptions::new(max_seq_length, 1024) };
    Dataset::load(ROWS, Some(&tokenizer()), &options).unwrap()
}

/// The file of the rows as one text, in samples of 64 tokens.
pub fn samples(count: usize) -> Vec<Vec<u32>> {
    let ids = tokenizer().encode(&std::fs::read_to_string(ROWS).unwrap(), false).unwrap();
    let samples: Vec<_> = ids.chunks_exact(64).take(count).map(<[u32]>::to_vec).collect();
    assert_eq!(samples.len(), count);
    samples
}

/// What a method makes of the model.
pub fn quantized(gpu: &Gpu, method: &dyn LayerMethod, options: &PipelineOptions, samples: &[Vec<u32>]) -> Model {
    quantize_model(gpu, &source(), method, options, samples, |_| Ok(())).unwrap()
}
