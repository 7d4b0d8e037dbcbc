//! Random numbers on the device, and weights of them, for measuring without a model's files.

use super::quantize;
use crate::{
    DType, QuantizedTensor, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::random,
    quant::{Packed, Scheme},
    random::{Random, unit},
};

/// Words that one dispatch fills: 64 MiB, which every device binds.
const PIECE: usize = 16 << 20;
/// Rows that are rounded on the host.
const PANEL: usize = 8;

/// Overwrites `y` with numbers in [−spread, spread), the same for the same seed on every device. y: f32 in any shape. Errors: Device.
pub fn fill(y: &Tensor, seed: u32, spread: f32) -> Result<()> {
    let words = Tensor::view(y.buffer.clone(), y.offset, [y.shape().len()].into(), DType::U32);
    fill_words(&words, DType::F32, seed, spread)
}

fn fill_words(words: &Tensor, dtype: DType, seed: u32, spread: f32) -> Result<()> {
    let gpu = words.gpu();
    if gpu.is_dry() {
        return Ok(());
    }
    let mut g = Graph::new(gpu);
    let (len, of_word) = (words.shape().len(), DType::U32.size() / dtype.size());
    for start in (0..len).step_by(PIECE) {
        let piece = g.import(&words.slice(start, [PIECE.min(len - start)])?);
        random::uniform(&mut g, &piece, dtype, seed, start * of_word, spread)?;
    }
    g.run()?;
    gpu.wait()
}

impl QuantizedTensor {
    /// A weight of random numbers in [−spread, spread), made and rounded on the device. Where a scheme's codes are searched for on the
    /// host, those of a few rows are repeated; codes that stand for vectors are random themselves, with random vectors.
    /// Errors: as [`QuantizedTensor::zeros`], Device.
    pub fn random(
        gpu: &Gpu,
        name: &str,
        scheme: Scheme,
        shape: [usize; 2],
        spread: f32,
        seed: u32,
    ) -> Result<QuantizedTensor> {
        let plain = match scheme {
            Scheme::F32 => Some(DType::F32),
            Scheme::BF16 => Some(DType::BF16),
            _ => None,
        };
        if let Some(dtype) = plain {
            let weight = QuantizedTensor::zeros(gpu, name, scheme, shape)?;
            for (part, words) in weight.parts().iter().enumerate() {
                fill_words(words, dtype, seed.wrapping_add(part as u32), spread)?;
            }
            return Ok(weight);
        }
        if quantize::rounds(scheme) {
            // As large as what a published model would be rounded from.
            let floats = gpu.zeros(name, shape, DType::BF16)?;
            let words = [floats.shape().len().div_ceil(2)];
            fill_words(&Tensor::view(floats.buffer.clone(), 0, words.into(), DType::U32), DType::BF16, seed, spread)?;
            return quantize::quantize(gpu, name, &floats, shape, scheme);
        }
        if gpu.is_dry() {
            return QuantizedTensor::zeros(gpu, name, scheme, shape);
        }
        let mut random = Random::new(u64::from(seed));
        let number = |bits: u64| spread * (2.0 * unit(bits) - 1.0) as f32;
        if scheme.is_vector() {
            let [codes, scales, vectors] = scheme.words(shape);
            let codes = (0..codes).map(|_| random.bits() as u32).collect();
            let scales = vec![1.0f32.to_bits(); scales];
            let vectors = (0..vectors).map(|_| number(random.bits())).collect();
            return QuantizedTensor::upload(gpu, name, &Packed::new(scheme, shape, codes, scales, vectors)?);
        }
        let [rows, cols] = shape;
        let panel = [rows.min(PANEL), cols];
        let numbers: Vec<f32> = (0..panel[0] * cols).map(|_| number(random.bits())).collect();
        let packed = Packed::quantize_named(name, scheme, panel, &numbers)?;
        let repeated = |words: &[u32], bytes: &dyn Fn(usize) -> usize| -> Vec<u8> {
            let first = &bytemuck::cast_slice(words)[..bytes(panel[0])];
            first.iter().copied().cycle().take(bytes(rows)).collect()
        };
        let codes = repeated(&packed.codes, &|rows| (rows * cols * scheme.code_bits()).div_ceil(8));
        let scales = repeated(&packed.scales, &|rows| scheme.scale_bytes(shape, rows * cols));
        QuantizedTensor::from_bytes(gpu, name, scheme, shape, &codes, &scales, &packed.nested)
    }
}
