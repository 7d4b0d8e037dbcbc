//! The float weight behind a layer that is trained through rounding.

use super::{Lora, Parameter};
use crate::{
    Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{
        QuantizedTensor, dense, dequantize, elementwise,
        fake_quantize::{self, Grid},
        quantize,
    },
    nn::{InputRounding, Linear},
    quant::Scheme,
};

/// What a rounded layer is trained by: y = Q(x) · fq(W)ᵀ + bias, where fq(W) is the layer's own, packed weight.
///
/// W changes once per optimizer step and is rounded as often, by the kernels that quantize models: the products decode
/// what will be stored, and there is nothing to convert afterwards. The gradients go through rounding as if it were the
/// identity (straight through, Bengio et al. 2013) where nothing is clamped; steps follow LSQ (Esser et al. 2020).
#[derive(Clone)]
pub struct Latent {
    /// W.
    pub float: Float,
    /// The steps of the grid where they are trained; else each rounding takes them from W's ranges. \[blocks\]
    pub steps: Option<Parameter>,
    /// The step of the input where it is trained. \[1\]
    pub input_step: Option<Parameter>,
    /// Where rounding reports numbers that cannot be stored.
    status: Tensor,
}

/// The float weight W, [out, in].
#[derive(Clone)]
pub enum Float {
    /// Trained as a whole.
    Whole(Parameter),
    /// Trained by its adapter.
    Merged(Box<Merged>),
    /// Rounded once, not trained.
    Fixed,
}

/// W = W0 + scale · B · A.
#[derive(Clone)]
pub struct Merged {
    /// W0.
    pub frozen: QuantizedTensor,
    /// The pair, which is trained.
    pub lora: Lora,
}

impl Merged {
    /// W. [out, in] f32. Errors: Shape.
    fn weight(&self, g: &mut Graph) -> Result<Value> {
        let w = dequantize::dequantize(g, &self.frozen)?;
        let (a, b) = (g.import(&self.lora.a.values), g.import(&self.lora.b.values));
        dense::merged(g, &w, &b, &a, self.lora.scale)
    }
}

impl Latent {
    /// Errors: OutOfMemory.
    pub fn new(gpu: &Gpu, float: Float, steps: Option<Parameter>, input_step: Option<Parameter>) -> Result<Latent> {
        Ok(Latent { float, steps, input_step, status: quantize::status(gpu)? })
    }

    /// Memory for fq(W): zeros, or W's own where it is trained as the floats that it is. Errors: those of
    /// [`QuantizedTensor::zeros`].
    pub fn target(&self, gpu: &Gpu, name: &str, scheme: Scheme, shape: [usize; 2]) -> Result<QuantizedTensor> {
        match &self.float {
            Float::Whole(w) if scheme == Scheme::F32 => QuantizedTensor::of_floats(name, &w.values),
            _ => QuantizedTensor::zeros(gpu, name, scheme, shape),
        }
    }

    /// Whether `target` is W itself.
    fn is_own(&self, target: &QuantizedTensor) -> bool {
        target.scheme() == Scheme::F32 && matches!(self.float, Float::Whole(_))
    }

    /// W as it is now. [out, in] f32; none where it is not trained. Errors: Shape.
    pub fn weight(&self, g: &mut Graph) -> Result<Option<Value>> {
        match &self.float {
            Float::Fixed => Ok(None),
            Float::Whole(w) => Ok(Some(g.import(&w.values))),
            Float::Merged(merged) => merged.weight(g).map(Some),
        }
    }

    /// Records the first rounding, of what `source` holds: W begins there, and so do steps that are trained, at those of
    /// W's ranges. For few bits they lie nearer to the best ones than the paper's 2 · mean|W| / √Qp. target: of
    /// [`Latent::target`]. Errors: Shape.
    pub fn begin(&self, g: &mut Graph, name: &str, source: &QuantizedTensor, target: &QuantizedTensor) -> Result<()> {
        let w = match &self.float {
            Float::Merged(merged) => merged.weight(g)?,
            Float::Whole(_) | Float::Fixed => dequantize::dequantize(g, source)?,
        };
        quantize::record(g, name, &w, target, false, &self.status)?;
        if let Float::Whole(own) = &self.float
            && !self.is_own(target)
        {
            let own = g.import(&own.values);
            elementwise::assign(g, &own, &w, 1.0)?;
        }
        if let Some(steps) = &self.steps {
            let (steps, grid) = (g.import(&steps.values), grid(g, target)?);
            fake_quantize::load_steps(g, &grid, &steps)?;
        }
        Ok(())
    }

    /// Records fq(W) into the layer's weight, for values that have changed. Errors: Shape.
    pub fn round(&self, g: &mut Graph, name: &str, target: &QuantizedTensor) -> Result<()> {
        if let Some(steps) = &self.steps {
            let (steps, grid) = (g.import(&steps.values), grid(g, target)?);
            fake_quantize::clamp_steps(g, &steps)?;
            fake_quantize::store_steps(g, &grid, &steps)?;
        }
        if let Some(step) = &self.input_step {
            let step = g.import(&step.values);
            fake_quantize::clamp_steps(g, &step)?;
        }
        if self.is_own(target) {
            return Ok(());
        }
        match self.weight(g)? {
            Some(w) => quantize::record(g, name, &w, target, self.steps.is_some(), &self.status),
            None => Ok(()),
        }
    }

    /// Where rounding tells of numbers that cannot be stored: see [`quantize::report`].
    pub fn status(&self) -> &Tensor {
        &self.status
    }

    /// Records a look at W where it is fq(W) itself: no rounding looks at it while it learns. Errors: Shape, OutOfMemory.
    pub fn look(&self, g: &mut Graph, name: &str, target: &QuantizedTensor) -> Result<()> {
        if let (Float::Whole(w), true) = (&self.float, self.is_own(target)) {
            let copy = QuantizedTensor::zeros(target.gpu(), name, target.scheme(), target.shape())?;
            let w = g.import(&w.values);
            quantize::record(g, name, &w, &copy, false, &self.status)?;
        }
        Ok(())
    }

    /// dx (plus `add`), and the gradients of what is trained.
    ///
    /// dW = dyᵀ · Q(x) where W is not clamped; dB = scale · dW · Aᵀ; dA = scale · Bᵀ · dW; dx = dy · fq(W) where x is not
    /// clamped. x: [tokens, in], not rounded; dy: [tokens, out]; accumulate: [1], 0 where old gradients are replaced.
    /// Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        x: &Value,
        dy: &Value,
        add: Option<&Value>,
        accumulate: &Value,
    ) -> Result<Value> {
        self.weight_gradient(g, base, x, dy, accumulate)?;
        let Some(grid) = input_grid(g, base, x)? else { return base.backward(g, dy, None, add) };
        let dx = base.backward(g, dy, None, None)?;
        self.input_step_gradient(g, &grid, x, &dx, accumulate)?;
        fake_quantize::mask(g, &grid, x, &dx)?;
        if let Some(add) = add {
            elementwise::accumulate(g, &dx, add, 1.0)?;
        }
        Ok(dx)
    }

    /// The gradients of what is trained alone. Shapes and errors: as [`Latent::backward`].
    pub fn gradients(&self, g: &mut Graph, base: &Linear, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
        self.weight_gradient(g, base, x, dy, accumulate)?;
        if self.input_step.as_ref().is_none_or(|step| step.grads.is_none()) {
            return Ok(());
        }
        let Some(grid) = input_grid(g, base, x)? else { return Ok(()) };
        let dx = base.backward(g, dy, None, None)?;
        self.input_step_gradient(g, &grid, x, &dx, accumulate)
    }

    fn input_step_gradient(&self, g: &mut Graph, grid: &Grid, x: &Value, dx: &Value, accumulate: &Value) -> Result<()> {
        let Some(grads) = self.input_step.as_ref().and_then(|step| step.grads.as_ref()) else { return Ok(()) };
        let grads = g.import(grads);
        fake_quantize::step_gradients(g, grid, x, dx, &grads, accumulate)
    }

    /// A frozen W asks for nothing: neither its rounded input nor its floats are computed.
    fn weight_gradient(&self, g: &mut Graph, base: &Linear, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
        let trained = match &self.float {
            Float::Whole(w) => w.grads.is_some(),
            Float::Merged(merged) => merged.lora.a.grads.is_some(),
            Float::Fixed => false,
        };
        if !trained {
            return Ok(());
        }
        let rounded = base.rounding.as_ref().map(|a| a.round(g, x)).transpose()?;
        let x = rounded.as_ref().unwrap_or(x);
        // Of tables nothing is clamped, since the largest number of a block is their end: W itself is not asked for.
        let clamped = match base.weight.scheme() {
            Scheme::Int { .. } => self.weight(g)?.map(|w| Ok::<_, Error>((grid(g, &base.weight)?, w))).transpose()?,
            _ => None,
        };
        match &self.float {
            Float::Whole(Parameter { grads: Some(grads), .. }) => {
                let grads = g.import(grads);
                let Some((grid, w)) = &clamped else {
                    return dense::xt_w_into(g, dy, x, 1.0, &grads, accumulate);
                };
                let dw = dense::xt_w(g, dy, x)?;
                self.step_gradient(g, grid, w, &dw, accumulate)?;
                fake_quantize::mask_into(g, grid, w, &dw, &grads, accumulate)
            }
            Float::Merged(merged) => {
                let Lora { a, b, scale, .. } = &merged.lora;
                let (Some(grad_a), Some(grad_b)) = (&a.grads, &b.grads) else { return Ok(()) };
                let [a, b, grad_a, grad_b] = [&a.values, &b.values, grad_a, grad_b].map(|t| g.import(t));
                let dw = dense::xt_w(g, dy, x)?;
                if let Some((grid, w)) = &clamped {
                    self.step_gradient(g, grid, w, &dw, accumulate)?;
                    fake_quantize::mask(g, grid, w, &dw)?;
                }
                dense::x_wt_into(g, &dw, &a, *scale, &grad_b, accumulate)?;
                dense::xt_w_into(g, &b, &dw, *scale, &grad_a, accumulate)
            }
            _ => Ok(()),
        }
    }

    fn step_gradient(&self, g: &mut Graph, grid: &Grid, w: &Value, dw: &Value, accumulate: &Value) -> Result<()> {
        let Some(grads) = self.steps.as_ref().and_then(|steps| steps.grads.as_ref()) else { return Ok(()) };
        let grads = g.import(grads);
        fake_quantize::step_gradients(g, grid, w, dw, &grads, accumulate)
    }
}

/// The grid of a weight whose floats fit a binding, and so its codes.
fn grid(g: &mut Graph, weight: &QuantizedTensor) -> Result<Grid> {
    let mut shards = weight.shards();
    match (shards.next(), shards.next()) {
        (Some(shard), None) => Grid::of_weight(g, weight.scheme(), weight.cols(), &shard),
        _ => Err(Error::shape("training through rounding", "a weight that one binding holds", format!("{weight:?}"))),
    }
}

/// The grid of an input with one scale for all that the layer sees. Errors: Shape.
fn input_grid(g: &mut Graph, base: &Linear, x: &Value) -> Result<Option<Grid>> {
    match &base.rounding {
        Some(InputRounding::Static { scale }) => {
            let scale = g.import(scale);
            Grid::of_input(&scale, x).map(Some)
        }
        _ => Ok(None),
    }
}
