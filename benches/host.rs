//! What the host does by itself: `cargo bench --bench host [-- FILTER]`

use divan::{Bencher, black_box, counter::BytesCount};
use fourbit::{
    arch::Architecture,
    gpu::{Gpu, GpuOptions},
    model::Model,
    quant::{Packed, Scheme, ggml},
    tokenizer::Tokenizer,
    train::{TrainConfig, Trainer},
};
use std::path::Path;

const SHAPE: [usize; 2] = [512, 1024];

fn main() {
    divan::main();
}

fn numbers() -> Vec<f32> {
    let len = SHAPE[0] * SHAPE[1];
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

/// Rounding on the host: the specification of the kernels, and where scales are searched for.
#[divan::bench(args = [Scheme::int(4, 64), Scheme::Q4_1, Scheme::Q8_0, Scheme::Q4_K, Scheme::Q6_K])]
fn quantize(bencher: Bencher<'_, '_>, scheme: Scheme) {
    let values = numbers();
    bencher
        .counter(BytesCount::of_slice(&values))
        .bench(|| Packed::quantize(scheme, SHAPE, black_box(&values)).unwrap());
}

/// GGUF's blocks into the device layout, as a file is loaded.
#[divan::bench(args = [Scheme::Q4_0, Scheme::Q4_K, Scheme::Q6_K])]
fn unpack(bencher: Bencher<'_, '_>, scheme: Scheme) {
    let Scheme::Ggml(block) = scheme else { unreachable!("all of these are") };
    let bytes = block.encode(&numbers()).unwrap();
    let unpack = || ggml::unpack_blocks("bench", scheme, SHAPE, black_box(&bytes)).unwrap();
    bencher.counter(BytesCount::of_slice(&bytes)).bench(unpack);
}

/// A step of a model recorded and planned, as `fourbit plan` does.
#[divan::bench(args = ["smollm2-135m", "llama-2-7b"])]
fn plan(bencher: Bencher<'_, '_>, shape: &str) {
    let arch = Architecture::of_shape(shape).unwrap();
    let gpu = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
    bencher.bench(|| {
        let mut model = Model::of_shape(&gpu, &arch, Scheme::int(4, 64), 0).unwrap();
        model.add_adapter(fourbit::LoraConfig::default(), true).unwrap();
        Trainer::new(model, TrainConfig { max_seq_length: 256, ..TrainConfig::default() }).unwrap().activation_bytes()
    });
}

/// Text to tokens.
#[divan::bench]
fn encode(bencher: Bencher<'_, '_>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/embedded");
    let tokenizer = Tokenizer::open(folder).unwrap().expect("the embedded model has one");
    let text = include_str!("../README.md");
    bencher.counter(BytesCount::of_str(text)).bench(|| tokenizer.encode(black_box(text), true).unwrap());
}
