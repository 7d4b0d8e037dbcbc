//! Quantizes a model by several methods and prints what each costs in perplexity.
//!
//! `cargo run --release --example compare_methods [-- MODEL TEXT CALIBRATION]`; the texts are plain text files, and the
//! calibration text is not the one that is evaluated. Without them the embedded model is compared on chats of its data set.

use fourbit::{
    Error, Gpu, Result, Tokenizer,
    compare::{Measure, measure},
    data::{DataOptions, Dataset},
    evaluate,
    format::read_text,
    method::Recipe,
    model::Source,
};

const RECIPES: [&str; 10] = [
    "rtn:nf4",
    "hqq:int4-g64",
    "gptq:int4-g64",
    "awq:int4-g64",
    "rtn:int3-g64",
    "gptq:int3-g64",
    "smoothquant",
    "llm-int8",
    "quip",
    "aqlm",
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");
    let model = arguments.first().map_or(embedded, String::as_str);
    let source = Source::open(model)?;
    let tokenizer = Tokenizer::open(model)?.ok_or_else(|| Error::config("model", "it has no tokenizer"))?;
    let ids = |path: &str| -> Result<Vec<u32>> { tokenizer.encode(&read_text(path)?, false) };
    let (text, calibration) = match arguments.get(1..3) {
        Some([text, calibration]) => (ids(text)?, ids(calibration)?),
        _ => {
            let options = DataOptions { completion_only: false, ..DataOptions::new(128, source.arch().vocab_size) };
            let chats = Dataset::load(format!("{embedded}/train.jsonl"), Some(&tokenizer), &options)?;
            let mut text = chats.iter().map(|chat| Ok(chat?.input_ids)).collect::<Result<Vec<_>>>()?.concat();
            let calibration = text.split_off(text.len() / 2);
            (text, calibration)
        }
    };
    let samples: Vec<Vec<u32>> = calibration.chunks(128).take(32).map(<[u32]>::to_vec).collect();
    let text = &text[..text.len().min(2048)];

    let gpu = Gpu::new()?;
    let sequences = evaluate::windows(text, 256.min(source.arch().max_positions))?;
    let what = Measure { sequences: &sequences, calibration: &samples, generate: 16 };
    println!("{:36} {:>6} {:>12} {:>10}", "method", "bits", "perplexity", "seconds");
    for recipe in std::iter::once(None).chain(RECIPES.map(Some)) {
        let recipe = recipe.map(str::parse::<Recipe>).transpose()?;
        let row = measure(&gpu, &source, recipe.as_ref(), &what, |_| Ok(()))?;
        println!("{:36} {:6.3} {:12.3} {:10.1}", row.recipe, row.bits_per_weight, row.perplexity, row.quantize_seconds);
    }
    Ok(())
}
