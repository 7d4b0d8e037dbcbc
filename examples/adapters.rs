//! The kinds of adapters beside each other: what they train, and how far a few equal steps bring them.
//!
//! `cargo run --release --example adapters [-- STEPS]`

use fourbit::{
    AdaLoraConfig, Error, Gpu, Ia3Config, LoraConfig, Model, PeftConfig, Result, Tokenizer, TrainConfig, Trainer,
    data::{DataLoader, DataOptions, Dataset, LoaderOptions},
    model::{LoadOptions, Quantization},
    quant::Scheme,
    train::Schedule,
};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");

fn main() -> Result<()> {
    let steps = std::env::args().nth(1).map_or(Ok(20), |n| n.parse());
    let steps = steps.map_err(|_| Error::config("STEPS", "is a number"))?;
    let lora = LoraConfig { r: 8, lora_alpha: 16.0, ..LoraConfig::default() };
    // A learning rate for each kind: vectors that scale take larger steps than matrices.
    let ada = AdaLoraConfig::new(steps);
    let kinds: [(&str, PeftConfig, f64); 4] = [
        ("LoRA: W + s B A", lora.clone().into(), 3e-3),
        ("DoRA: and a magnitude a row", LoraConfig { use_dora: true, ..lora }.into(), 3e-3),
        ("AdaLoRA: ranks by need", ada.into(), 1e-2),
        ("IA3: a factor a channel", Ia3Config::default().into(), 3e-2),
    ];
    let gpu = Gpu::new()?;
    let tokenizer = Tokenizer::open(MODEL)?.ok_or_else(|| Error::config("model", "it has no tokenizer"))?;
    let scheme = Scheme::Nf4 { block_size: 64, double_quant: true };
    println!("{steps} steps of 4 rows on a base in {scheme}");
    println!("{:30} {:>10} {:>8} {:>8} {:>8}", "adapter", "trained", "of all", "first", "last");
    for (name, config, learning_rate) in kinds {
        let mut model = Model::load(&gpu, MODEL, &LoadOptions { quantization: Quantization::To(scheme) })?;
        let all: usize = model.linears().map(|linear| linear.base.weight.len()).sum();
        model.add_adapter(config, true)?;
        let trained = model.store().parameters();
        let dataset = Dataset::load(
            format!("{MODEL}/train.jsonl"),
            Some(&tokenizer),
            &DataOptions::new(128, model.arch().vocab_size),
        )?;
        let options = LoaderOptions { batch_size: 4, pad_id: tokenizer.pad_id(), ..LoaderOptions::default() };
        let mut loader = DataLoader::new(dataset, options)?;
        let config = TrainConfig {
            learning_rate,
            lr_scheduler_type: Schedule::Cosine,
            max_steps: steps,
            batch_size: 4,
            max_seq_length: 128,
            ..TrainConfig::default()
        };
        let mut trainer = Trainer::new(model, config)?;
        let losses: Vec<f64> =
            (0..steps).map(|_| Ok(trainer.step(&[loader.next_batch()?])?.loss)).collect::<Result<_>>()?;
        // Means over four steps, which see different rows.
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..4.min(steps)]), mean(&losses[steps.saturating_sub(4)..]));
        println!("{name:30} {trained:10} {:7.2}% {first:8.4} {last:8.4}", 100.0 * trained as f64 / all as f64);
        assert!(steps < 8 || last < first, "{name} learns");
    }
    Ok(())
}
