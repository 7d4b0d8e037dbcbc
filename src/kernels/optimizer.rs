//! Gradient norm, clipping and AdamW.
//!
//! One dispatch serves one array, so parameters are best kept as slices of one long array that is stepped as a whole.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

/// AdamW's constants, in f64 as PyTorch holds them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 or less: never.
    pub max_grad_norm: f64,
}

impl Default for AdamW {
    /// transformers' defaults: betas 0.9 and 0.999, eps 1e-8, no decay, norm 1.
    fn default() -> Self {
        AdamW { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

impl AdamW {
    /// What the kernels read at step t (from 1 on): lr, 1 − β1, 1 − β2, eps, weight_decay, 1 − β1^t, 1 − β2^t, max_grad_norm.
    ///
    /// 1 − β rather than β, since f32 holds 0.001 to 1e-8 of itself, but 1 − 0.999 only to 1e-5.
    pub fn hyper(&self, lr: f64, t: u64) -> [f32; 8] {
        let power = |beta: f64| 1.0 - beta.powf(t as f64);
        let (b1, b2) = self.betas;
        [lr, 1.0 - b1, 1.0 - b2, self.eps, self.weight_decay, power(b1), power(b2), self.max_grad_norm]
            .map(|v| v as f32)
    }
}

crate::graph::params! {
    struct Params {
        len: u32,
        first: u32,
        decays: u32,
    }
}

/// Elements of one workgroup.
const CHUNK: usize = 2048;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("optimizer", entry).with("LANES", 256).with("SIDE", 16).with("CHUNK", CHUNK as u32)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("spoil"), kernel("squares"), kernel("clip"), kernel("adamw")]
}

/// grad\[0\] ← loss\[0\] where that is not finite, so that [`grad_norm`] tells of it and [`adamw`] changes nothing
///
/// loss, grad: of one number or more, f32. Errors: Shape.
pub fn spoil(g: &mut Graph, loss: &Value, grad: &Value) -> Result<()> {
    for value in [loss, grad] {
        if value.shape().is_empty() {
            return Err(Error::shape("spoil", "at least one number", value.shape()));
        }
    }
    let params = Params { len: grad.shape().len() as u32, first: 0, decays: 0 };
    g.dispatch(kernel("spoil"), &params, &[loss, grad], 1, 1.0)
}

/// norm = (√Σ grads², min(1, max_grad_norm / (√Σ grads² + 1e-6)), 1), the second 1 where max_grad_norm ≤ 0, the third 0 where
/// Σ grads² is not finite
///
/// grads: any shapes, f32; hyper: [8] f32 of [`AdamW::hyper`]; norm: [3] f32, overwritten. In a fixed order, as
/// `torch.nn.utils.clip_grad_norm_`. Errors: Shape where there is no gradient.
pub fn grad_norm(g: &mut Graph, grads: &[Value], hyper: &Value, norm: &Value) -> Result<()> {
    hyper.expect("grad_norm", &[8])?;
    norm.expect("grad_norm", &[3])?;
    let groups: usize = grads.iter().map(|grad| grad.shape().len().div_ceil(CHUNK)).sum();
    if groups == 0 {
        return Err(Error::shape("grad_norm", "at least one gradient", format!("{} empty ones", grads.len())));
    }
    let partials = g.value([groups], DType::F32)?;
    let mut first = 0;
    for grad in grads {
        let len = grad.shape().len();
        let params = Params { len: len as u32, first: first as u32, decays: 0 };
        g.dispatch(kernel("squares"), &params, &[grad, &partials], len.div_ceil(CHUNK), 5.0 * len as f64)?;
        first += len.div_ceil(CHUNK);
    }
    let params = Params { len: groups as u32, first: 0, decays: 0 };
    g.dispatch(kernel("clip"), &params, &[hyper, &partials, norm], 1, 1000.0 + 5.0 * groups as f64)
}

/// What one dispatch of [`adamw`] steps. All of one length, f32.
#[derive(Clone, Copy, Debug)]
pub struct Stepped<'a> {
    /// Overwritten.
    pub param: &'a Value,
    /// Its gradient.
    pub grad: &'a Value,
    /// First moments, overwritten.
    pub m: &'a Value,
    /// Second moments, overwritten.
    pub v: &'a Value,
    /// Whether weight decay pulls the parameters to 0.
    pub decays: bool,
}

/// p ← p · (1 − lr · weight_decay) − lr / (1 − β1^t) · m / (√v / √(1 − β2^t) + eps), after m ← β1 m + (1 − β1) g and
/// v ← β2 v + (1 − β2) g², with g = grad · norm\[1\]; weight_decay counts as 0 for what does not decay; nothing at all where
/// norm\[2\] is 0
///
/// norm: [3] of [`grad_norm`]; hyper: [8] of [`AdamW::hyper`]. Errors: Shape. Loshchilov & Hutter 2019, in the order of
/// `torch.optim.AdamW`.
pub fn adamw(g: &mut Graph, stepped: Stepped<'_>, norm: &Value, hyper: &Value) -> Result<()> {
    let Stepped { param, grad, m, v, decays } = stepped;
    let len = param.shape().len();
    for other in [grad, m, v] {
        if other.shape().len() != len {
            return Err(Error::shape("adamw", format!("{len} elements"), other.shape()));
        }
    }
    norm.expect("adamw", &[3])?;
    hyper.expect("adamw", &[8])?;
    let params = Params { len: len as u32, first: 0, decays: decays.into() };
    let args = [hyper, grad, norm, param, m, v];
    g.dispatch(kernel("adamw"), &params, &args, len.div_ceil(CHUNK), 40.0 * len as f64)
}
