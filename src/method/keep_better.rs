//! Rounding in place of a method, layer by layer, where samples that the method did not see say so.

use super::{Layer, LayerMethod, Needs, fold::row_ranges};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{QuantizedTensor, dense, dequantize, elementwise},
    nn::Linear,
};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// What `method` makes of each layer, or what `rounding` does where its output is nearer to that of the floats on samples held back.
///
/// A method that fits a layer to few tokens fits what is theirs alone: on other texts it can lose more than rounding to nearest.
/// Of every four samples the last is held back ([`Needs::held_back`]). Errors are compared in one layer at a time, on its float
/// weight after folding.
pub struct KeepBetter {
    method: Box<dyn LayerMethod>,
    rounding: Box<dyn LayerMethod>,
    compared: RefCell<Vec<Compared>>,
}

/// What a method and rounding lose of a layer's output on samples held back: Σ ‖(Ŵ − W)·x‖² / Σ ‖W·x‖².
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub layer: String,
    /// By the method.
    pub method: f64,
    /// By rounding to nearest.
    pub rounding: f64,
}

impl Compared {
    /// Whether the layer is rounded to nearest.
    pub fn keeps_rounding(&self) -> bool {
        self.rounding < self.method
    }
}

impl KeepBetter {
    /// method: one that leaves the layers' inputs as they are; rounding: what it is compared with, in the same scheme.
    pub fn new(method: Box<dyn LayerMethod>, rounding: Box<dyn LayerMethod>) -> KeepBetter {
        KeepBetter { method, rounding, compared: RefCell::default() }
    }
}

impl LayerMethod for KeepBetter {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn wrapped(&self) -> Option<&dyn LayerMethod> {
        Some(&*self.method)
    }

    fn needs(&self) -> Needs {
        Needs { held_back: true, ..self.method.needs() }
    }

    fn compared(&self) -> Vec<Compared> {
        self.compared.borrow().clone()
    }

    fn go_on(&self, compared: Vec<Compared>) {
        self.compared.borrow_mut().extend(compared);
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        if gpu.is_dry() {
            return self.method.quantize(gpu, layer);
        }
        let missing = || Error::config(layer.name, "what was held back of the calibration text is not known");
        let moments = layer.stats.held_back.as_ref().ok_or_else(missing)?;
        // Methods write over the weight.
        let weight = copied(gpu, &layer.weight)?;
        let made = self.method.quantize(gpu, layer)?;
        if made.transform.is_some() {
            return Err(Error::config(layer.name, "weights of a transformed input cannot be compared with rounding"));
        }
        let other = Layer { weight: weight.clone(), bias: layer.bias.clone(), ..*layer };
        let rounded = self.rounding.quantize(gpu, &other)?;
        let whole = energy(gpu, &weight, None, moments)?;
        let part = |made: &Linear| -> Result<f64> {
            let lost = energy(gpu, &weight, Some(&made.weight), moments)?;
            Ok(if whole > 0.0 { lost / whole } else { 0.0 })
        };
        let compared = Compared { layer: layer.name.to_owned(), method: part(&made)?, rounding: part(&rounded)? };
        let keeps_rounding = compared.keeps_rounding();
        self.compared.borrow_mut().push(compared);
        Ok(if keeps_rounding { rounded } else { made })
    }
}

fn copied(gpu: &Gpu, weight: &Tensor) -> Result<Tensor> {
    let (rows, cols) = weight.shape().rows_cols();
    let copy = gpu.zeros("a weight before it is quantized", [rows, cols], DType::F32)?;
    for (start, count) in row_ranges(gpu, rows, cols) {
        let mut g = Graph::new(gpu);
        let [from, to] = [weight, &copy].map(|tensor| tensor.slice(start * cols, [count, cols]));
        let (from, to) = (g.import(&from?), g.import(&to?));
        elementwise::assign(&mut g, &to, &from, 1.0)?;
        g.run()?;
    }
    Ok(copy)
}

/// tr(X·H·Xᵀ) of X = W − `made`, or of W alone. weight: [out, in] f32; moments: H, symmetric, [in, in] f32. Errors: Device, Shape.
fn energy(gpu: &Gpu, weight: &Tensor, made: Option<&QuantizedTensor>, moments: &Tensor) -> Result<f64> {
    let (rows, cols) = weight.shape().rows_cols();
    let mut sum = 0.0;
    for (start, count) in row_ranges(gpu, rows, cols) {
        // Pieces of H that can be bound: H is its own transpose.
        for (first, width) in row_ranges(gpu, cols, cols) {
            let mut g = Graph::new(gpu);
            let mut x = g.import(&weight.slice(start * cols, [count, cols])?);
            if let Some(made) = made {
                let stored = dequantize::dequantize_rows(&mut g, made, start..start + count)?;
                x = elementwise::add(&mut g, &x, &stored, -1.0)?;
            }
            let h = g.import(&moments.slice(first * cols, [width, cols])?);
            let product = dense::x_wt(&mut g, &x, &h)?;
            g.keep(&product);
            g.keep(&x);
            let run = g.run()?;
            let (x, product) = (run.read::<f32>(&x)?, run.read::<f32>(&product)?);
            for (x, product) in x.chunks_exact(cols).zip(product.chunks_exact(width)) {
                let pairs = x[first..first + width].iter().zip(product);
                sum += pairs.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
            }
        }
    }
    Ok(sum)
}
