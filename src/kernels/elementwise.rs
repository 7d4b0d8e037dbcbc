//! Sums of flat arrays.

use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    len: u32,
    scale: f32,
}

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("elementwise", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("add"), kernel("accumulate")]
}

/// y = a + scale · b
///
/// a, b, y: any shape, f32. Errors: Shape where a and b differ.
pub fn add(g: &mut Graph, a: &Value, b: &Value, scale: f32) -> Result<Value> {
    b.expect("add", a.shape())?;
    let y = g.value(a.shape().clone(), DType::F32)?;
    let len = a.shape().len();
    let params = Params { len: len as u32, scale };
    g.dispatch(kernel("add"), &params, &[a, b, &y], len.div_ceil(256), 2.0 * len as f64)?;
    Ok(y)
}

/// y += scale · b
///
/// b, y: any shape, f32. Errors: Shape where they differ.
pub fn accumulate(g: &mut Graph, y: &Value, b: &Value, scale: f32) -> Result<()> {
    b.expect("accumulate", y.shape())?;
    let len = y.shape().len();
    let params = Params { len: len as u32, scale };
    g.dispatch(kernel("accumulate"), &params, &[b, y], len.div_ceil(256), 2.0 * len as f64)
}
