//! What a quantized block can learn: real numbers that are stored beside its codes, their gradients, and Adam's steps.

use super::float_tensor;
use crate::{
    DType, Error, Result,
    adapter::AdaptedLinear,
    gpu::{Gpu, Tensor},
    graph::{Graph, Pool, Program, Value},
    kernels::{
        codebook::Codes,
        dense, dequantize, diagonal, elementwise,
        hadamard::{Hadamard, transpose},
        optimizer::{self, AdamW, Stepped},
    },
    model::{Block, WeightGradients},
    nn::{Linear, RmsNorm, Transform, norm::Saved},
    quant::Scheme,
};

/// One tensor of a block that learns. Both f32, of one shape.
pub struct Tunable {
    /// What the block computes with.
    pub value: Tensor,
    /// Where its gradient goes.
    pub grad: Tensor,
}

impl Tunable {
    fn new(gpu: &Gpu, value: Tensor) -> Result<Tunable> {
        let grad = gpu.zeros("gradients of a block", value.shape().clone(), DType::F32)?;
        Ok(Tunable { value, grad })
    }

    /// Root mean square, or 1 for zeros.
    fn size(&self) -> Result<f64> {
        let values = self.value.read::<f32>()?;
        let square: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let rms = (square / values.len().max(1) as f64).sqrt();
        Ok(if rms > 0.0 && rms.is_finite() { rms } else { 1.0 })
    }
}

/// What a linear layer learns.
enum Part {
    /// Nothing.
    Frozen,
    /// A weight in floats. [out, in]
    Float(Tunable),
    /// AQLM's code books [2 * 256 * 8] and row scales [out].
    Books { codes: Codes, books: Tunable, scales: Tunable },
    /// W = diag(left) · inner · diag(right): the weight of QuIP# with the signs of its transforms taken out. inner:
    /// [out, in] f32; left: [out]; right: [in].
    Signs { inner: Tensor, left: Tunable, right: Tunable },
}

impl Part {
    /// Makes numbers of a layer's signs. `floats`: whether a weight in floats learns.
    fn new(gpu: &Gpu, linear: &mut AdaptedLinear, floats: bool) -> Result<Part> {
        let weight = &linear.base.weight;
        if weight.is_empty() {
            return Ok(Part::Frozen);
        }
        match (&linear.base.input, weight.scheme()) {
            (Some(Transform::Hadamard { input, output }), _) => {
                let inner = inner(gpu, &linear.base, input, output)?;
                let real = |map: &Hadamard| {
                    let signs = gpu.tensor("signs of a transform", [map.cols()], DType::F32, &map.signs()?)?;
                    Ok::<_, Error>((map.with_signs(&signs)?, Tunable::new(gpu, signs)?))
                };
                let ((input, right), (output, left)) = (real(input)?, real(output)?);
                linear.base.input = Some(Transform::Hadamard { input, output });
                Ok(Part::Signs { inner, left, right })
            }
            (None, Scheme::Aqlm { .. }) => {
                let scales = weight.scales().expect("the scheme has scales");
                let scales = Tensor::view(scales.buffer.clone(), scales.offset, [weight.rows()].into(), DType::F32);
                let books = weight.nested().expect("the scheme has code books").clone();
                let (books, scales) = (Tunable::new(gpu, books)?, Tunable::new(gpu, scales)?);
                Ok(Part::Books { codes: Codes::new(gpu, weight)?, books, scales })
            }
            (None, Scheme::F32) if floats => Ok(Part::Float(Tunable::new(gpu, float_tensor(&linear.name, weight)?)?)),
            _ => Ok(Part::Frozen),
        }
    }

    fn all(&self) -> Vec<&Tunable> {
        match self {
            Part::Frozen => Vec::new(),
            Part::Float(weight) => vec![weight],
            Part::Books { books, scales, .. } => vec![books, scales],
            Part::Signs { left, right, .. } => vec![left, right],
        }
    }
}

/// The weight of a layer between two transforms as if all their signs were 1: Uᵀ · W · T. [out, in] f32
fn inner(gpu: &Gpu, linear: &Linear, input: &Hadamard, output: &Hadamard) -> Result<Tensor> {
    let unsigned = |map: &Hadamard| {
        let ones = vec![1.0f32; map.cols()];
        map.with_signs(&gpu.tensor("signs of a transform", [map.cols()], DType::F32, &ones)?)
    };
    let (input, output) = (unsigned(input)?, unsigned(output)?);
    let mut g = Graph::new(gpu);
    let w = dequantize::dequantize(&mut g, &linear.weight)?;
    let w = input.backward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    let w = output.backward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    g.keep(&w);
    g.run()?.tensor(&w)
}

/// What a block learns: of AQLM's layers code books and row scales, of layers between Hadamard transforms the two sign
/// vectors, of others nothing, or the weight where it is one in floats; and the norms' weights.
pub struct Tunables {
    /// One a linear layer.
    linears: Vec<Part>,
    norms: [Tunable; 2],
}

impl Tunables {
    /// Finds them in a block, and makes numbers of its transforms' signs. `floats`: whether weights in floats learn.
    /// Errors: Shape for layers that do not fit a binding, OutOfMemory, Device.
    pub fn new(gpu: &Gpu, block: &mut Block, floats: bool) -> Result<Tunables> {
        let linears = block.linears_mut().into_iter().map(|linear| Part::new(gpu, linear, floats));
        let linears = linears.collect::<Result<_>>()?;
        let norm = |norm: &RmsNorm| Tunable::new(gpu, norm.weight.clone());
        let norms = [norm(&block.input_norm)?, norm(&block.post_norm)?];
        Ok(Tunables { linears, norms })
    }

    /// What a backward pass shows the gradients to ([`Block::backward_weights`]). accumulate: [1] f32: what they hold
    /// already is multiplied by it, and not read where it is 0.
    pub fn gradients(&self, g: &mut Graph, accumulate: &Tensor) -> impl WeightGradients + '_ {
        Gradients { tunables: self, accumulate: g.import(accumulate) }
    }

    /// All of them: of each linear layer, in the order of [`Block::linears`], its weight, or code books [2 * 256 * 8] and
    /// scales [out], or the signs of its output [out] and of its input [in]; then the two norms' [hidden].
    pub fn all(&self) -> Vec<&Tunable> {
        self.linears.iter().flat_map(Part::all).chain(&self.norms).collect()
    }
}

/// Records the gradients of what a block learns.
struct Gradients<'a> {
    tunables: &'a Tunables,
    accumulate: Value,
}

impl WeightGradients for Gradients<'_> {
    fn linear(&mut self, g: &mut Graph, index: usize, x: &Value, dy: &Value) -> Result<()> {
        let part = &self.tunables.linears[index];
        match part {
            Part::Frozen => Ok(()),
            Part::Float(weight) => {
                let grad = g.import(&weight.grad);
                dense::xt_w_into(g, dy, x, 1.0, &grad, &self.accumulate)
            }
            Part::Books { codes, books, scales } => {
                let dw = dense::xt_w(g, dy, x)?;
                let values = [&books.value, &scales.value].map(|t| g.import(t));
                let grads = [&books.grad, &scales.grad].map(|t| g.import(t));
                codes.gradient(g, &dw, values.each_ref(), grads.each_ref(), &self.accumulate)
            }
            Part::Signs { inner, left, right } => {
                let dw = dense::xt_w(g, dy, x)?;
                let [inner, l, r, dl, dr] =
                    [inner, &left.value, &right.value, &left.grad, &right.grad].map(|t| g.import(t));
                diagonal::left(g, &dw, &inner, &r, &dl, &self.accumulate)?;
                diagonal::right(g, &dw, &inner, &l, &dr, &self.accumulate)
            }
        }
    }

    fn norm(&mut self, g: &mut Graph, index: usize, saved: &Saved, dy: &Value) -> Result<()> {
        let grad = g.import(&self.tunables.norms[index].grad);
        RmsNorm::weight_gradient(g, saved, dy, &grad, &self.accumulate)
    }
}

/// Weights in floats move by this part of the learning rate: they are many, and each was trained well before.
const OF_FLOATS: f64 = 0.2;
/// Of Adam, as the papers' code sets them.
const BETAS: (f64, f64) = (0.9, 0.95);
/// f32s of one tensor's constants: views must begin at offsets that can be bound.
const HYPER: usize = 64;

/// Adam's steps on all tensors of a block, and the best values so far.
pub(super) struct Steps {
    step: Program,
    keep: Program,
    restore: Program,
    /// Adam's constants, [tensors * 64] f32.
    hyper: Tensor,
    /// A step's length for each tensor.
    rates: Vec<f64>,
    adam: AdamW,
    taken: u64,
}

impl Steps {
    /// `learning_rate`: in parts of each tensor's root mean square; a fifth of it for weights in floats. Errors: OutOfMemory, Device.
    pub fn new(gpu: &Gpu, tunables: &Tunables, learning_rate: f64) -> Result<Steps> {
        let params = tunables.all();
        let rate = |part: &Part| if let Part::Float(_) = part { OF_FLOATS * learning_rate } else { learning_rate };
        let linears = tunables.linears.iter().flat_map(|part| part.all().into_iter().map(move |p| (rate(part), p)));
        let rates = linears.chain(tunables.norms.iter().map(|p| (learning_rate, p)));
        let rates = rates.map(|(rate, p)| Ok(rate * p.size()?)).collect::<Result<Vec<_>>>()?;
        let hyper = gpu.zeros("hyperparameters", [HYPER * params.len()], DType::F32)?;
        // No clipping: Adam's steps do not grow with the gradients.
        let norm = gpu.tensor("gradient norm", [2], DType::F32, &[0.0f32, 1.0])?;
        let [mut step, mut keep, mut restore] = [(); 3].map(|()| Graph::new(gpu));
        for (i, param) in params.iter().enumerate() {
            let like = |what| gpu.zeros(what, param.value.shape().clone(), DType::F32);
            let (m, v, best) = (like("first moments")?, like("second moments")?, like("best values")?);
            let [value, grad, m, v, norm, hyper] =
                [&param.value, &param.grad, &m, &v, &norm, &hyper.slice(HYPER * i, [8])?].map(|t| step.import(t));
            let stepped = Stepped { param: &value, grad: &grad, m: &m, v: &v, decays: false };
            optimizer::adamw(&mut step, stepped, &norm, &hyper)?;
            let [value, kept] = [&param.value, &best].map(|t| keep.import(t));
            elementwise::assign(&mut keep, &kept, &value, 1.0)?;
            let [value, kept] = [&param.value, &best].map(|t| restore.import(t));
            elementwise::assign(&mut restore, &value, &kept, 1.0)?;
        }
        let mut pool = Pool::default();
        let mut build = |g: Graph| g.plan().build(&mut pool);
        let (step, keep, restore) = (build(step)?, build(keep)?, build(restore)?);
        let adam = AdamW { betas: BETAS, eps: 1e-10, weight_decay: 0.0, max_grad_norm: 0.0 };
        let mut steps = Steps { step, keep, restore, hyper, rates, adam, taken: 0 };
        steps.keep()?;
        Ok(steps)
    }

    /// One step by the gradients that are there. Errors: Device.
    pub fn step(&mut self) -> Result<()> {
        self.taken += 1;
        let mut hyper = vec![0.0f32; HYPER * self.rates.len()];
        for (rate, slot) in self.rates.iter().zip(hyper.chunks_exact_mut(HYPER)) {
            slot[..8].copy_from_slice(&self.adam.hyper(*rate, self.taken));
        }
        self.hyper.write(bytemuck::cast_slice(&hyper))?;
        self.step.run()
    }

    /// Takes the values for the best so far. Errors: Device.
    pub fn keep(&mut self) -> Result<()> {
        self.keep.run()
    }

    /// Brings the best values back. Errors: Device.
    pub fn restore(&mut self) -> Result<()> {
        self.restore.run()
    }
}
