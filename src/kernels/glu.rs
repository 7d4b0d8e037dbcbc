//! Gated linear units.

use super::element::Element;
use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

/// What opens the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// v / (1 + e^−v): SwiGLU.
    Silu,
    /// v · (1 + tanh(√(2/π) · (v + 0.044715 v³))) / 2: GeGLU with GELU's approximation by tanh (Hendrycks & Gimpel 2016).
    GeluTanh,
}

impl Activation {
    const ALL: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    fn snippet(self) -> &'static str {
        match self {
            Activation::Silu => "activation_silu",
            Activation::GeluTanh => "activation_gelu_tanh",
        }
    }
}

crate::graph::params! {
    struct Params {
        len: u32,
    }
}

const PER_GROUP: usize = 1024;

fn kernel(entry: &'static str, activation: Activation, element: Element) -> Kernel {
    element.import(Kernel::new("glu", entry)).import("activation", activation.snippet())
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let both = |activation, element| ["forward", "backward"].map(|entry| kernel(entry, activation, element));
    let all = |activation| Element::ALL.into_iter().flat_map(move |element| both(activation, element));
    Activation::ALL.into_iter().flat_map(all).collect()
}

/// h = activation(gate) · up
///
/// gate, up, h: any shape, f32. Errors: Shape where gate and up differ. GLU variants, Shazeer 2020.
pub fn glu(g: &mut Graph, activation: Activation, gate: &Value, up: &Value) -> Result<Value> {
    up.expect("glu", gate.shape().dims())?;
    let h = g.value(gate.shape().clone(), DType::F32)?;
    let (kernel, params, groups) = sized("forward", activation, gate);
    g.dispatch(kernel, &params, &[gate, up, &h], groups, 20.0 * gate.shape().len() as f64)?;
    Ok(h)
}

/// gate ← dh · up · activation′(gate), up ← dh · activation(gate): both are overwritten by their gradients, since nothing reads them
/// once these are known, and they are a block's widest activations.
///
/// dh, gate, up: one shape, f32. Errors: Shape.
pub fn glu_backward(g: &mut Graph, activation: Activation, dh: &Value, gate: &Value, up: &Value) -> Result<()> {
    up.expect("glu_backward", gate.shape().dims())?;
    dh.expect("glu_backward", gate.shape().dims())?;
    let (kernel, params, groups) = sized("backward", activation, gate);
    g.dispatch(kernel, &params, &[dh, gate, up], groups, 36.0 * gate.shape().len() as f64)
}

/// The kernel, its parameters and its workgroups for as many numbers as `gate` has.
fn sized(entry: &'static str, activation: Activation, gate: &Value) -> (Kernel, Params, usize) {
    let element = Element::of(gate.shape().len());
    let len = gate.shape().len() / element.width();
    (kernel(entry, activation, element), Params { len: len as u32 }, len.div_ceil(PER_GROUP))
}
