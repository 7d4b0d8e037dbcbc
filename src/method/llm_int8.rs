//! LLM.int8(): rows of bytes for the weights, bytes for the activations but for the columns with outliers.

use super::{Layer, LayerMethod, fold::row_ranges};
use crate::{
    Error, Result,
    gpu::Gpu,
    graph::Graph,
    kernels::{QuantizedTensor, reduce},
    nn::{InputRounding, Linear},
    ops::quantize,
    quant::{ScaleType, Scheme, affine_words},
};

/// LLM.int8(), Dettmers et al. 2022: row r of a weight is stored as bytes in steps of max|w_r| / 127, as bitsandbytes does,
/// and the layer rounds its input as [`InputRounding::LlmInt8`] does. Nothing is calibrated.
#[derive(Clone, Copy, Debug)]
pub struct LlmInt8 {
    threshold: f32,
}

impl LlmInt8 {
    /// `threshold`: columns of the input with a magnitude of at least this stay in halves; the paper's is 6. Errors: Config
    /// where it is not positive.
    pub fn new(threshold: f32) -> Result<LlmInt8> {
        match threshold > 0.0 {
            true => Ok(LlmInt8 { threshold }),
            false => Err(Error::config("threshold", format!("expected a positive number, got {threshold}"))),
        }
    }
}

impl Default for LlmInt8 {
    fn default() -> Self {
        LlmInt8 { threshold: 6.0 }
    }
}

impl LayerMethod for LlmInt8 {
    fn name(&self) -> &'static str {
        "llm_int8"
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let (name, shape) = (layer.weight_name(), layer.shape());
        let target = QuantizedTensor::zeros(gpu, &name, Scheme::INT8_ROWS, shape)?;
        if let Some(scales) = target.scales().filter(|_| !gpu.is_dry()) {
            // Rows of zeros have a scale too, so that its reciprocal is finite.
            let pairs = row_absmax(gpu, layer)?.into_iter().map(|a| ((a / 127.0).max(f32::EPSILON), 0.0));
            scales.write(bytemuck::cast_slice(&affine_words(ScaleType::F32, pairs)))?;
            quantize::encode(gpu, &name, &layer.weight, &target)?;
        }
        let rounding = Some(InputRounding::LlmInt8 { threshold: self.threshold });
        Ok(Linear { rounding, ..layer.done(target) })
    }
}

/// The largest magnitude of each row of the weight. [out]
fn row_absmax(gpu: &Gpu, layer: &Layer<'_>) -> Result<Vec<f32>> {
    let [rows, cols] = layer.shape();
    let mut all = Vec::with_capacity(rows);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let mut g = Graph::new(gpu);
        let part = g.import(&layer.weight.slice(start * cols, [count, cols])?);
        let (absmax, _) = reduce::absmax(&mut g, &part, cols)?;
        g.keep(&absmax);
        all.extend(g.run()?.read::<f32>(&absmax)?);
    }
    Ok(all)
}
