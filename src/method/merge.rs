//! An adapter that becomes part of the weights, which are then quantized.

use super::{Layer, LayerMethod, float_tensor, fold::row_ranges};
use crate::{
    DType, Error, Result,
    adapter::{Adapter, Module, PeftConfig},
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{dense, diagonal, elementwise},
    model::Block,
    nn::{AdaLora, Adapted, Ia3, Linear, Lora, Parameter},
};
use serde::Serialize;
use std::{cell::RefCell, collections::HashMap};

/// What an adapter makes of W, quantized as `method` does: W + scale · B · A of LoRA and W + scale · B · (E ∘ A) of AdaLoRA, m/‖V‖ ∘ V of DoRA with V = W + scale · B · A, and
/// l ∘ W, rows and biases or columns, of IA3.
///
/// An adapter's update is small beside the steps of 4 bits, so that rounding the sum to nearest loses much of what was
/// learned. A method that minimises the error of the layer's *output* ([`Gptq`](super::Gptq)) keeps more of it: the Hessian is
/// that of the merged model's inputs. The base is what the adapter was trained on, as
/// [`PipelineOptions::base`](super::PipelineOptions) says.
pub struct Merge {
    method: Box<dyn LayerMethod>,
    /// By the name of their layer.
    modules: HashMap<String, Module>,
    kept: RefCell<Vec<Kept>>,
}

/// What quantization left of one layer's update.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub layer: String,
    /// ⟨Ŵ − W, ΔW⟩ / ⟨ΔW, ΔW⟩ of the stored sum Ŵ, the base W and the update ΔW = scale · B · A: 1 where the update is there, whatever
    /// noise rounding adds, and 0 where the base is. With a Hessian H of the layer's input ⟨X, Y⟩ is tr(X H Yᵀ), so that what counts
    /// is the layer's output.
    pub share: f64,
}

impl Merge {
    /// method: how the sum is quantized; adapter: what is added; layers that it has nothing for stay as they are. Errors: Unsupported for
    /// virtual tokens, which are no part of a weight.
    pub fn new(method: Box<dyn LayerMethod>, adapter: &Adapter) -> Result<Merge> {
        if let PeftConfig::PromptTuning(_) = adapter.config {
            return Err(Error::unsupported(
                "merging an adapter",
                "PROMPT_TUNING, whose virtual tokens are no part of a weight",
                "LoRA, DoRA, AdaLoRA and IA3; keep the base and load the adapter beside it (`load_adapter`)",
            ));
        }
        let modules = adapter.modules().map(|(name, module)| (name.to_owned(), module)).collect();
        Ok(Merge { method, modules, kept: RefCell::default() })
    }

    /// The share that rounding left of each layer's update, for the layers quantized so far. A method that moves scales between layers
    /// ([`LayerMethod::folds`]) changes base and update before it rounds; its layers are left out, and so are updates of zero, and layers of DoRA and IA3, whose
    /// update has no low rank to be seen through.
    pub fn kept(&self) -> Vec<Kept> {
        self.kept.borrow().clone()
    }
}

impl LayerMethod for Merge {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn wrapped(&self) -> Option<&dyn LayerMethod> {
        Some(&*self.method)
    }

    fn prepare(&self, gpu: &Gpu, number: usize, block: &Block) -> Result<()> {
        for (_, linear) in block.linears() {
            if let Some(module) = self.modules.get(&linear.name) {
                merge(gpu, linear, module)?;
            }
        }
        self.method.prepare(gpu, number, block)
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let pair = match self.modules.get(layer.name) {
            Some(Module::Lora(pair)) => Some(pair.clone()),
            Some(Module::AdaLora(ada)) => Some(plain(gpu, ada)?),
            _ => None,
        };
        let pair = pair.filter(|_| !self.folds() && !gpu.is_dry());
        let probe = pair.as_ref().map(|pair| Probe::new(gpu, layer, pair)).transpose()?;
        let linear = self.method.quantize(gpu, layer)?;
        if let Some(share) = probe.map(|probe| probe.share(gpu, &linear)).transpose()?.flatten() {
            self.kept.borrow_mut().push(Kept { layer: layer.name.to_owned(), share });
        }
        Ok(linear)
    }
}

/// A sum before it is rounded, as [`Kept::share`] needs it: seen through the r rows of P = A · H alone, since
/// ⟨X, ΔW⟩ = scale · Σ (X · Pᵀ) ∘ B.
struct Probe<'a> {
    pair: &'a Lora,
    /// P; A where no Hessian is known. [r, in]
    rows: Tensor,
    /// P · Sᵀ of the sum S. [r, out]
    sum: Vec<f32>,
}

impl Probe<'_> {
    fn new<'a>(gpu: &Gpu, layer: &Layer<'_>, pair: &'a Lora) -> Result<Probe<'a>> {
        let [outputs, inputs] = layer.shape();
        let r = pair.a.values.shape()[0];
        let rows = match &layer.stats.hessian {
            // Symmetric, so that its rows are its columns.
            Some(h) => gpu.tensor("probe", [r, inputs], DType::F32, &products(gpu, &pair.a.values, h, inputs)?)?,
            None => pair.a.values.clone(),
        };
        let sum = products(gpu, &rows, &layer.weight, outputs)?;
        Ok(Probe { pair, rows, sum })
    }

    /// `None` for an update of zero.
    fn share(&self, gpu: &Gpu, linear: &Linear) -> Result<Option<f64>> {
        let r = self.pair.a.values.shape()[0];
        // The stored weight alone: neither bias nor rounding of inputs, but its transforms.
        let weight = Linear { bias: None, rounding: None, ..linear.clone() };
        let mut g = Graph::new(gpu);
        let x = g.import(&self.rows);
        let y = weight.forward(&mut g, &x, None, None)?;
        g.keep(&y);
        let stored: Vec<f32> = g.run()?.read(&y)?;
        let b: Vec<f32> = self.pair.b.values.read()?;
        let seen = products(gpu, &self.rows, &self.pair.a.values, r)?;
        let outputs = self.sum.len() / r;
        let (scale, mut error, mut whole) = (f64::from(self.pair.scale), 0.0, 0.0);
        for (out, b) in b.chunks_exact(r).enumerate() {
            for (i, &factor) in b.iter().enumerate() {
                let at = i * outputs + out;
                error += (f64::from(stored[at]) - f64::from(self.sum[at])) * f64::from(factor);
                let update = (0..r).map(|j| f64::from(seen[i * r + j]) * f64::from(b[j])).sum::<f64>();
                whole += scale * update * f64::from(factor);
            }
        }
        Ok((whole > 0.0).then(|| 1.0 + error / whole))
    }
}

/// x · wᵀ. x: [r, in]; w: [count, in] f32; result: [r, count]. Errors: Shape, Device.
fn products(gpu: &Gpu, x: &Tensor, w: &Tensor, count: usize) -> Result<Vec<f32>> {
    let [r, inputs] = [x.shape()[0], x.shape()[1]];
    let mut all = vec![0.0; r * count];
    for (start, rows) in row_ranges(gpu, count, inputs) {
        let mut g = Graph::new(gpu);
        let (x, w) = (g.import(x), g.import(&w.slice(start * inputs, [rows, inputs])?));
        let y = dense::x_wt(&mut g, &x, &w)?;
        g.keep(&y);
        let part: Vec<f32> = g.run()?.read(&y)?;
        for (to, from) in all.chunks_exact_mut(count).zip(part.chunks_exact(rows)) {
            to[start..start + rows].copy_from_slice(from);
        }
    }
    Ok(all)
}

/// Makes an adapter a part of a layer's float weight, and of its bias. Errors: Shape, Device.
fn merge(gpu: &Gpu, linear: &Adapted, module: &Module) -> Result<()> {
    let w = float_tensor(&linear.name, &linear.base.weight)?;
    match module {
        Module::Lora(pair) => add(gpu, &w, pair),
        Module::AdaLora(ada) => add(gpu, &w, &plain(gpu, ada)?),
        Module::Dora(pair, magnitude) => {
            add(gpu, &w, pair)?;
            to_magnitudes(gpu, &w, magnitude)
        }
        Module::Ia3(ia3) => scale(gpu, &w, linear.base.bias.as_ref(), ia3),
    }
}

/// The pair whose product is AdaLoRA's update: A's rows times E. Errors: OutOfMemory, Device.
fn plain(gpu: &Gpu, ada: &AdaLora) -> Result<Lora> {
    let (r, cols) = ada.lora.a.values.shape().rows_cols();
    let scaled = gpu.zeros("E ∘ A", [r, cols], DType::F32)?;
    let mut g = Graph::new(gpu);
    let [a, e, out] = [&ada.lora.a.values, &ada.singular.values.slice(0, [r])?, &scaled].map(|t| g.import(t));
    elementwise::assign(&mut g, &out, &a, 1.0)?;
    elementwise::scale_rows(&mut g, &out, &e)?;
    run(g)?;
    Ok(Lora { a: Parameter::frozen(scaled), ..ada.lora.clone() })
}

/// w += scale · B · A. w: [out, in] f32. Errors: Shape, Device.
fn add(gpu: &Gpu, w: &Tensor, pair: &Lora) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let r = pair.a.values.shape()[0];
    let mut g = Graph::new(gpu);
    let a = g.import(&pair.a.values);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        let b = g.import(&pair.b.values.slice(start * r, [count, r])?);
        let sum = dense::merged(&mut g, &part, &b, &a, pair.scale)?;
        elementwise::assign(&mut g, &part, &sum, 1.0)?;
    }
    run(g)
}

/// Gives each row of w its magnitude; a row of zeros stays one. w: [out, in] f32; magnitude: [out]. Errors: Shape, Device.
fn to_magnitudes(gpu: &Gpu, w: &Tensor, magnitude: &Parameter) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let squares = gpu.zeros("squared norms", [rows], DType::F32)?;
    let mut g = Graph::new(gpu);
    let replace = g.import(&gpu.tensor("replaced", [1], DType::F32, &[0.0f32])?);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        let out = g.import(&squares.slice(start, [count])?);
        diagonal::rows(&mut g, &part, &part, 1.0, &out, &replace)?;
    }
    run(g)?;
    if gpu.is_dry() {
        return Ok(());
    }
    let (squares, magnitude) = (squares.read::<f32>()?, magnitude.values.read::<f32>()?);
    let factor = |(m, square): (&f32, &f32)| if *square > 0.0 { m / square.sqrt() } else { 0.0 };
    let factors: Vec<f32> = magnitude.iter().zip(&squares).map(factor).collect();
    scale_rows(gpu, w, &gpu.tensor("m / norm", [rows], DType::F32, &factors)?)
}

/// w\[r\] *= factors\[r\]. w: [rows, cols]; factors: [rows] f32. Errors: Shape, Device.
fn scale_rows(gpu: &Gpu, w: &Tensor, factors: &Tensor) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let mut g = Graph::new(gpu);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        let factors = g.import(&factors.slice(start, [count])?);
        elementwise::scale_rows(&mut g, &part, &factors)?;
    }
    run(g)
}

/// l ∘ w, rows and bias, or of a feed-forward layer columns. w: [out, in]; bias: [out] f32. Errors: Shape, Device.
fn scale(gpu: &Gpu, w: &Tensor, bias: Option<&Tensor>, ia3: &Ia3) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let l = ia3.scaling.values.slice(0, [ia3.scaling.values.shape().len()])?;
    if !ia3.feedforward {
        if let Some(bias) = bias {
            let mut g = Graph::new(gpu);
            let [bias, l] = [bias, &l].map(|t| g.import(t));
            elementwise::scale_columns(&mut g, &bias, &l)?;
            run(g)?;
        }
        return scale_rows(gpu, w, &l);
    }
    let mut g = Graph::new(gpu);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        let l = g.import(&l);
        elementwise::scale_columns(&mut g, &part, &l)?;
    }
    run(g)
}

fn run(g: Graph) -> Result<()> {
    match g.gpu().is_dry() {
        true => Ok(()),
        false => g.run().map(|_| ()),
    }
}
