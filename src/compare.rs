//! What quantization methods cost and what they give, measured on one model and one device.

use crate::{
    Error, Result,
    data::Example,
    evaluate,
    generate::{Generator, Sampling},
    gpu::Gpu,
    method::{LayerReport, Recipe, quantize_model},
    model::{LoadOptions, Model, Source},
};
use serde::{Deserialize, Deserializer, Serialize};
use std::time::Instant;

/// What is measured for every method.
#[derive(Clone, Copy, Debug)]
pub struct Measure<'a> {
    /// Windows of the text, or rows, whose perplexity is taken.
    pub sequences: &'a [Example],
    /// Ids of calibration samples: never those of the text.
    pub calibration: &'a [Vec<u32>],
    /// Tokens that are generated to measure the speed; 0 for none.
    pub generate: usize,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `gptq:int4-g64`, or `stored` for the model as it is.
    pub recipe: String,
    /// Bits of a number of the blocks' linear layers on the device, scales, code books and orders included.
    pub bits_per_weight: f64,
    /// Bytes of all weights on the device.
    pub bytes: u64,
    /// Seconds from the files to the quantized model.
    pub quantize_seconds: f64,
    /// Mean loss of a predicted token; JSON has null where it is not finite, which reads as NaN.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// exp(loss), in JSON as the loss.
    #[serde(deserialize_with = "or_nan")]
    pub perplexity: f64,
    /// Tokens a second of generating one sequence; `None` where nothing was generated.
    pub tokens_per_second: Option<f64>,
    /// The most device memory while quantizing.
    pub quantize_peak_bytes: u64,
    /// The most device memory while evaluating and generating.
    pub peak_bytes: u64,
}

/// A number, or NaN for null: JSON has no numbers that are not finite, and a method may lose a model so far.
fn or_nan<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// How far a row is.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// A layer is quantized.
    Layer(&'a LayerReport),
    /// Tokens of the text are read.
    Tokens(usize),
}

/// Measures one method; `None` is the model as it is stored. `progress` is called at each step; its error ends the work.
/// Errors: those of [`quantize_model`] and [`evaluate::loss`].
pub fn measure(
    gpu: &Gpu,
    source: &Source,
    recipe: Option<&Recipe>,
    what: &Measure<'_>,
    mut progress: impl FnMut(Progress<'_>) -> Result<()>,
) -> Result<Row> {
    gpu.reset_peak();
    let start = Instant::now();
    let model = match recipe {
        None => Model::from_source(gpu, source, &LoadOptions::default())?,
        Some(recipe) => {
            let method = recipe.build()?;
            quantize_model(gpu, source, &*method, &recipe.pipeline(), what.calibration, |report| {
                progress(Progress::Layer(report))
            })?
        }
    };
    gpu.wait()?;
    let quantize_seconds = start.elapsed().as_secs_f64();
    let quantize_peak_bytes = gpu.peak_bytes();
    gpu.reset_peak();
    let evaluation = evaluate::loss(&model, what.sequences, |tokens| progress(Progress::Tokens(tokens)))?;
    let tokens_per_second = (what.generate > 0).then(|| speed(&model, what)).transpose()?;
    Ok(Row {
        recipe: recipe.map_or("stored".to_owned(), Recipe::to_string),
        bits_per_weight: bits_per_weight(&model),
        bytes: model.weight_bytes(),
        quantize_seconds,
        loss: evaluation.loss,
        perplexity: evaluation.perplexity,
        tokens_per_second,
        quantize_peak_bytes,
        peak_bytes: gpu.peak_bytes(),
    })
}

/// Bits of a number of the blocks' linear layers, with all that belongs to them on the device but biases.
pub fn bits_per_weight(model: &Model) -> f64 {
    let linears = || model.linears();
    let bytes: u64 = linears().map(|linear| linear.base.bytes()).sum();
    let numbers: usize = linears().map(|linear| linear.base.weight.len()).sum();
    8.0 * bytes as f64 / numbers.max(1) as f64
}

/// Tokens of the text that are read before any are generated.
const PROMPT: usize = 32;
/// Tokens that are generated before the clock starts: the first pays for reading the prompt, the second for the programs.
const WARM: usize = 2;

fn speed(model: &Model, what: &Measure<'_>) -> Result<f64> {
    let ids = what.sequences.first().map_or(&[][..], |sequence| &sequence.input_ids);
    let prompt = &ids[..ids.len().min(PROMPT)];
    let mut generator = Generator::new(model, prompt.len() + what.generate + WARM)?;
    let sampling = Sampling { temperature: 0.0, max_new_tokens: what.generate + WARM, ..Sampling::default() };
    let (mut start, mut count) = (None, 0);
    generator.generate(prompt, &sampling, &[], |_| {
        count += 1;
        if count == WARM {
            start = Some(Instant::now());
        }
        Ok(true)
    })?;
    let start = start.filter(|_| count > WARM);
    let start = start.ok_or_else(|| Error::config("generate", format!("the model holds {count} tokens; too few")))?;
    Ok((count - WARM) as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_lost_the_model_are_read_back() {
        let row = Row {
            recipe: "rtn:int2-g64".into(),
            bits_per_weight: 2.5,
            bytes: 1,
            quantize_seconds: 1.0,
            loss: f64::NAN,
            perplexity: f64::INFINITY,
            tokens_per_second: None,
            quantize_peak_bytes: 1,
            peak_bytes: 1,
        };
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains("\"loss\":null,\"perplexity\":null"), "{text}");
        let read: Row = serde_json::from_str(&text).unwrap();
        assert!(read.loss.is_nan() && read.perplexity.is_nan());
        let finite = Row { loss: 0.1 + 0.2, perplexity: 1.5, ..row };
        assert_eq!(serde_json::from_str::<Row>(&serde_json::to_string(&finite).unwrap()).unwrap(), finite);
    }
}
