//! Answers a question, token by token, with the adapter of the `finetune` example where it is there.
//!
//! `cargo run --release --example generate [-- QUESTION [MODEL [ADAPTER]]]`

use fourbit::{
    Error, Gpu, Model, Result, Tokenizer,
    generate::{Generator, Sampling},
    model::LoadOptions,
    tokenizer::Message,
};
use std::io::Write;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let question = arguments.next().unwrap_or_else(|| "What does a baker do?".to_owned());
    let path = arguments.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded").to_owned());
    let adapter = arguments.next().unwrap_or_else(|| "target/example-adapter".to_owned());

    let gpu = Gpu::new()?;
    let mut model = Model::load(&gpu, &path, &LoadOptions::default())?;
    if std::path::Path::new(&adapter).is_dir() {
        model.load_adapter(&adapter, false)?;
    }
    let tokenizer = Tokenizer::open(&path)?.ok_or_else(|| Error::config("model", "it has no tokenizer"))?;

    let prompt = tokenizer.apply_chat_template(&[Message::new("user", question.as_str())], true)?;
    let prompt = tokenizer.encode(&prompt, false)?;
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, seed: 1, max_new_tokens: 64, ..Sampling::default() };

    let mut generator = Generator::new(&model, prompt.len() + sampling.max_new_tokens)?;
    let mut text = tokenizer.stream(true);
    println!("{question}");
    generator.generate(&prompt, &sampling, tokenizer.eos_ids(), |id| {
        print!("{}", text.push(id)?);
        let _ = std::io::stdout().flush();
        Ok(true)
    })?;
    println!("{}", text.finish()?);
    Ok(())
}
