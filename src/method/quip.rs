//! QuIP#: weights between random Hadamard transforms, rounded to a lattice with what is lost carried over.

use super::{
    FineTune, Layer, LayerMethod, Needs,
    of_hessian::{self, OfHessian},
};
use crate::{
    Error, Result,
    gpu::{Cancel, Gpu, Tensor},
    kernels::{
        QuantizedTensor,
        hadamard::{Factors, Hadamard},
    },
    nn::{Linear, Transform},
    ops::{hadamard as transforms, lattice},
    quant::{Scheme, VECTOR, hadamard, lattice as codebook},
};

/// QuIP# (Tseng et al. 2024) at 2 bits: incoherence processing, the E8P code book, and LDLQ by the Hessian of the layer's
/// input. The Hessian is transformed and factored on the host in f64; everything else is the device's.
///
/// With [`Quip::finetune`] a block learns while it is quantized (section 5): the layers that are still floats each time that
/// layers before them were rounded, the signs of both transforms, which become real numbers, and the norms: see
/// [`FineTune`]. The paper's second stage, which trains signs, norms and head of the whole model, is not part of it.
pub struct Quip {
    /// Of all signs; those of an input also depend on the part of the block that reads it, those of an output on the layer.
    pub seed: u64,
    /// Added to the Hessian's diagonal, in parts of its mean.
    pub damping: f64,
    /// The code book's scale, in parts of the best one for normal numbers that are rounded to nearest.
    pub scale: f32,
    /// Fine-tuning of blocks; none unless asked for.
    pub finetune: FineTune,
    factors: Factors,
    factor: OfHessian<Vec<f32>>,
}

impl Default for Quip {
    fn default() -> Quip {
        let finetune = FineTune { between: true, ..FineTune::default() };
        let (factors, factor) = (Factors::default(), OfHessian::default());
        Quip { seed: 0, damping: 0.01, scale: 1.0, finetune, factors, factor }
    }
}

/// FNV-1a: the same on every machine.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

impl Quip {
    /// With these signs and this damping, which is above 0 and at most 1. Errors: Config.
    pub fn new(seed: u64, damping: f64) -> Result<Quip> {
        Ok(Quip { seed, damping: of_hessian::damping(damping)?, ..Quip::default() })
    }

    /// The same with blocks fine-tuned in this way.
    pub fn finetuned(self, finetune: FineTune) -> Quip {
        Quip { finetune, ..self }
    }

    /// The block-lower factor of the damped Hessian between the input's transform, whose signs are those of `seed`. H:
    /// [n, n]. Errors: Config where it is no Hessian.
    fn solve(&self, name: &str, mut h: Vec<f64>, n: usize, seed: u64, cancel: &Cancel) -> Result<Vec<f32>> {
        // H is symmetric: rows, then columns as rows.
        hadamard::apply(&mut h, n, seed)?;
        for (r, c) in (0..n).flat_map(|r| (0..r).map(move |c| (r, c))) {
            h.swap(r * n + c, c * n + r);
        }
        hadamard::apply(&mut h, n, seed)?;
        of_hessian::damp(&mut h, n, self.damping);
        of_hessian::block_lower(name, h, n, cancel)
    }
}

impl LayerMethod for Quip {
    fn name(&self) -> &'static str {
        "quip"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, ..Needs::default() }
    }

    fn finetune(&self) -> Option<FineTune> {
        Some(self.finetune)
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let ([rows, cols], name) = (layer.shape(), layer.weight_name());
        if cols % VECTOR != 0 {
            return Err(Error::shape(name, format!("a multiple of {VECTOR} columns"), format!("{:?}", [rows, cols])));
        }
        // Layers of one input have one map of it: its Hessian is factored once.
        let part = layer.name.rsplit_once('.').map_or(layer.name, |(part, _)| part);
        let seed = self.seed ^ hash(part);
        let input = Hadamard::sharing(gpu, cols, seed, &self.factors)?;
        let output = Hadamard::sharing(gpu, rows, !(self.seed ^ hash(layer.name)), &self.factors)?;
        let weight = if gpu.is_dry() {
            QuantizedTensor::zeros(gpu, &name, Scheme::E8p, [rows, cols])?
        } else {
            let hessian = layer.stats.hessian.as_ref();
            let lower = hessian
                .map(|h| self.factor.get(&name, h, cols, |h, cancel| self.solve(&name, h, cols, seed, cancel)))
                .transpose()?;
            let weight = transforms::between(gpu, &layer.weight, &input, &output)?;
            lattice::ldlq(gpu, &name, &weight, lower.as_ref().map(|l| l.as_slice()), self.fit(&name, &weight)?)?
        };
        Ok(Linear { transform: Some(Transform::Hadamard { input, output }), ..layer.done(weight) })
    }
}

impl Quip {
    /// The code book's scale for the root mean square of the weight, which transforms leave as it is.
    fn fit(&self, name: &str, weight: &Tensor) -> Result<f32> {
        let values = weight.read::<f32>()?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::config(name, format!("element {i} between its transforms is {}", values[i])));
        }
        let square: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let rms = (square / values.len().max(1) as f64).sqrt() as f32;
        // A weight of zeros: any scale serves, as every point is off by the same.
        Ok(if rms > 0.0 { self.scale * rms / codebook::GAUSSIAN_SCALE } else { f32::MIN_POSITIVE })
    }
}
