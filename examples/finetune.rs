//! Fine-tunes a model in 4 bits from a loop of one's own, and saves the adapter for PEFT.
//!
//! `cargo run --release --example finetune [-- MODEL ROWS.jsonl OUTPUT]`

use fourbit::{
    Error, Gpu, LoraConfig, Model, Result, Tokenizer, TrainConfig, Trainer,
    data::{DataLoader, DataOptions, Dataset, LoaderOptions},
    model::{LoadOptions, Quantization},
    quant::Scheme,
    train::Schedule,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");
    let path = arguments.next().unwrap_or_else(|| embedded.to_owned());
    let rows = arguments.next().unwrap_or_else(|| format!("{embedded}/train.jsonl"));
    let output = arguments.next().unwrap_or_else(|| "target/example-adapter".to_owned());

    let gpu = Gpu::new()?;
    let scheme = Scheme::Nf4 { block_size: 64, double_quant: true };
    let mut model = Model::load(&gpu, &path, &LoadOptions { quantization: Quantization::To(scheme) })?;
    model.add_adapter(LoraConfig { r: 16, lora_alpha: 16.0, ..LoraConfig::default() }, true)?;

    let tokenizer = Tokenizer::open(&path)?.ok_or_else(|| Error::config("model", "it has no tokenizer"))?;
    let options = DataOptions::new(128, model.arch().vocab_size);
    let dataset = Dataset::load(&rows, Some(&tokenizer), &options)?;
    let options = LoaderOptions { batch_size: 4, pad_id: tokenizer.pad_id(), ..LoaderOptions::default() };
    let mut loader = DataLoader::new(dataset, options)?;

    let config = TrainConfig {
        learning_rate: 3e-3,
        lr_scheduler_type: Schedule::Cosine,
        warmup_steps: 2,
        max_steps: 20,
        batch_size: 4,
        max_seq_length: 128,
        ..TrainConfig::default()
    };
    let steps = config.max_steps;
    let mut trainer = Trainer::new(model, config)?;
    for _ in 0..steps {
        let batch = loader.next_batch()?;
        let metrics = trainer.step(&[batch])?;
        println!(
            "step {:2}  loss {:.4}  grad_norm {:.3}  {:.0} tokens/s",
            metrics.step, metrics.loss, metrics.grad_norm, metrics.tokens_per_second
        );
    }
    trainer.into_model().save_adapter(&output, None)?;
    println!("adapter: {output}");
    Ok(())
}
