//! Chooses the static scales of a model's activations by each observer, and prints what each choice costs.
//!
//! `cargo run --release --example calibrate [-- MODEL CALIBRATION]`; the calibration text is a plain text file. Without them the
//! embedded model looks at its own training data.

use fourbit::{
    Error, Gpu, Result, Tokenizer,
    format::read_text,
    method::{ActivationScales, LayerFigures, Observer, PipelineOptions, Rtn, W8A8, quantize_model},
    model::Source,
    quant::Scheme,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");
    let model = arguments.first().map_or(embedded, String::as_str);
    let text = arguments.get(1).cloned().unwrap_or_else(|| format!("{embedded}/train.jsonl"));
    let tokenizer = Tokenizer::open(model)?.ok_or_else(|| Error::config("model", "it has no tokenizer"))?;
    let ids = tokenizer.encode(&read_text(&text)?, false)?;
    let samples: Vec<Vec<u32>> = ids.chunks(128).take(16).map(<[u32]>::to_vec).collect();

    let (gpu, source) = (Gpu::new()?, Source::open(model)?);
    let mut all: Vec<(Observer, Vec<(String, LayerFigures)>)> = Vec::new();
    for observer in Observer::ALL {
        let weights = Rtn { scheme: Scheme::INT8_ROWS };
        let method = W8A8 { method: Box::new(weights), activations: ActivationScales::Static(observer) };
        let options = PipelineOptions { report: true, ..PipelineOptions::default() };
        let mut layers = Vec::new();
        quantize_model(&gpu, &source, &method, &options, &samples, |layer| {
            layers.extend(layer.figures.map(|figures| (layer.name.clone(), figures)));
            Ok(())
        })?;
        all.push((observer, layers));
    }

    // One line per layer: the magnitude that each observer holds, and how near the rounded input is to the real one.
    let width = all[0].1.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    print!("{:width$}", "held, dB of the input");
    all.iter().for_each(|(observer, _)| print!(" {:>16}", observer.to_string()));
    println!();
    for (index, (name, _)) in all[0].1.iter().enumerate() {
        print!("{name:width$}");
        for (_, layers) in &all {
            let input = &layers[index].1.input;
            print!(" {:>9.3} {:>6.1}", input.clip.unwrap_or(input.high), input.sqnr.unwrap_or(f64::INFINITY));
        }
        println!();
    }
    print!("{:width$}", "mean dB of the outputs");
    for (_, layers) in &all {
        let sum: f64 = layers.iter().map(|(_, figures)| figures.output_sqnr.unwrap_or(0.0)).sum();
        print!(" {:>16.2}", sum / layers.len() as f64);
    }
    println!();
    Ok(())
}
