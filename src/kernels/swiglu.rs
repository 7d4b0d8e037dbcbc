//! Gated activations.

use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
    }
}

const PER_GROUP: usize = 1024;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("swiglu", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("swiglu"), kernel("swiglu_backward")]
}

/// h = silu(gate) · up with silu(v) = v / (1 + e^−v)
///
/// gate, up, h: any shape, f32. Errors: Shape where gate and up differ. SwiGLU, Shazeer 2020.
pub fn swiglu(g: &mut Graph, gate: &Value, up: &Value) -> Result<Value> {
    up.expect("swiglu", gate.shape().dims())?;
    let h = g.value(gate.shape().clone(), DType::F32)?;
    let len = gate.shape().len();
    let params = Params { len: len as u32 };
    g.dispatch(kernel("swiglu"), &params, &[gate, up, &h], len.div_ceil(PER_GROUP), 20.0 * len as f64)?;
    Ok(h)
}

/// dgate = dh · up · s · (1 + gate · (1 − s)), dup = dh · gate · s, with s = 1 / (1 + e^−gate)
///
/// dh, gate, up, dgate, dup: one shape, f32. Returns (dgate, dup). Errors: Shape.
pub fn swiglu_backward(g: &mut Graph, dh: &Value, gate: &Value, up: &Value) -> Result<(Value, Value)> {
    up.expect("swiglu_backward", gate.shape().dims())?;
    dh.expect("swiglu_backward", gate.shape().dims())?;
    let dgate = g.value(gate.shape().clone(), DType::F32)?;
    let dup = g.value(gate.shape().clone(), DType::F32)?;
    let len = gate.shape().len();
    let params = Params { len: len as u32 };
    let args = [gate, up, dh, &dgate, &dup];
    g.dispatch(kernel("swiglu_backward"), &params, &args, len.div_ceil(PER_GROUP), 36.0 * len as f64)?;
    Ok((dgate, dup))
}
