//! A real model, SmolLM2-135M-Instruct: the short form of what `scripts/verify.sh` compares with Python at length.
//!
//! `FOURBIT_SMOLLM2` names its GGUF file, which `scripts/test.sh` fetches.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::{
    LoraConfig, Model, Tokenizer, TrainConfig, Trainer,
    data::{DataOptions, Dataset, Row},
    evaluate,
    generate::{Generator, Sampling},
    gpu::Gpu,
    model::{LoadOptions, Quantization},
    quant::Scheme,
    tokenizer::Message,
    train::Schedule,
};
use support::gpu;

const NF4: Scheme = Scheme::Nf4 { block_size: 64, double_quant: true };

/// The device and the file, or a line that says what is missing.
fn model_file() -> Option<(Gpu, String)> {
    let gpu = gpu()?;
    match std::env::var("FOURBIT_SMOLLM2") {
        Ok(path) => Some((gpu, path)),
        Err(_) => {
            eprintln!("skipped: FOURBIT_SMOLLM2 does not name the model's GGUF file (scripts/models.sh fetches it)");
            None
        }
    }
}

fn load(gpu: &Gpu, path: &str, quantization: Quantization) -> Model {
    Model::load(gpu, path, &LoadOptions { quantization }).unwrap()
}

#[test]
fn it_answers_in_plain_english_from_the_stored_blocks() {
    let Some((gpu, path)) = model_file() else { return };
    let model = load(&gpu, &path, Quantization::AsStored);
    let tokenizer = Tokenizer::open(&path).unwrap().expect("the file has a tokenizer");
    let question = Message::new("user", "What is the capital of France? Answer in one sentence.");
    let prompt = tokenizer.apply_chat_template(&[question], true).unwrap();
    let ids = tokenizer.encode(&prompt, false).unwrap();
    let sampling = Sampling { max_new_tokens: 16, ..Sampling::default() };
    let mut generator = Generator::new(&model, 128).unwrap();
    let answer = generator.generate(&ids, &sampling, tokenizer.eos_ids(), |_| Ok(true)).unwrap();
    // What transformers answers with the same file in f32.
    assert_eq!(tokenizer.decode(&answer, true).unwrap().trim(), "The capital of France is Paris.");
}

#[test]
fn four_bits_cost_little_and_qlora_learns() {
    let Some((gpu, path)) = model_file() else { return };
    let tokenizer = Tokenizer::open(&path).unwrap().expect("the file has a tokenizer");
    let text = include_str!("../CONTRIBUTING.md");
    let ids: Vec<u32> = tokenizer.encode(text, false).unwrap().into_iter().take(256).collect();
    let stored = load(&gpu, &path, Quantization::AsStored);
    let before = evaluate::perplexity(&stored, &ids, 256, |_| Ok(())).unwrap();
    drop(stored);
    let mut model = load(&gpu, &path, Quantization::To(NF4));
    let after = evaluate::perplexity(&model, &ids, 256, |_| Ok(())).unwrap();
    // On longer texts NF4 costs this file 0.2 of loss; a decoding error costs several.
    assert!((0.0..0.6).contains(&(after.loss - before.loss)), "{} as stored, {} in nf4", before.loss, after.loss);

    model.add_adapter(LoraConfig::default(), true).unwrap();
    let options = DataOptions::new(128, model.arch().vocab_size);
    let chat = vec![Message::new("user", "Who are you?"), Message::new("assistant", "Arr! I be a pirate, matey!")];
    let dataset = Dataset::from_rows(&[Row::Chat(chat.into())], Some(&tokenizer), &options).unwrap();
    let batch = fourbit::data::Batch::collate(&[&dataset.example(0).unwrap()], tokenizer.pad_id());
    let config = TrainConfig {
        learning_rate: 1e-3,
        lr_scheduler_type: Schedule::Constant,
        max_seq_length: 128,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(model, config).unwrap();
    let losses: Vec<f64> = (0..5).map(|_| trainer.step(std::slice::from_ref(&batch)).unwrap().loss).collect();
    assert!(losses[4] < 0.7 * losses[0], "{losses:?}");
}
