//! What calibration collects of the input of a linear layer: second moments, and the range and mean of each channel.

use super::{
    expect,
    product::{Base, Entry, Product},
};
use crate::{
    DType, Error, Result,
    gpu::{Kernel, Tensor},
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
    }
}

fn kernel() -> Kernel {
    Kernel::new("statistics", "channels")
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
}

/// absmax\[c\] = max(absmax\[c\], max_r |x\[r, c\]|), total\[c\] += Σ_r |x\[r, c\]|
///
/// x: [rows, cols]; absmax, total: [cols], f32. Errors: Shape.
pub fn channels(g: &mut Graph, x: &Value, absmax: &Value, total: &Value) -> Result<()> {
    let (rows, cols) = x.rows_cols();
    expect("statistics", "x", x, [rows, cols])?;
    for (what, value) in [("absmax", absmax), ("total", total)] {
        expect("statistics", what, value, [1, cols])?;
    }
    let params = Params { rows: rows as u32, cols: cols as u32 };
    g.dispatch(kernel(), &params, &[x, absmax, total], cols.div_ceil(64), 3.0 * (rows * cols) as f64)
}

/// h += scale · xᵀ · x
///
/// x: [rows, n] f32; h: [n, n] f32, which may exceed a binding; `one`: [1] f32 that holds 1. With scale = 2 / tokens the sum
/// over all tokens is the Hessian of the squared output error of a linear layer with respect to a row of its weight.
/// Errors: Shape.
pub fn second_moments(g: &mut Graph, x: &Value, h: &Tensor, scale: f32, one: &Value) -> Result<()> {
    let op = "second_moments";
    let (depth, n) = x.rows_cols();
    expect(op, "x", x, [depth, n])?;
    if h.shape().dims() != [n, n] || h.dtype() != DType::F32 {
        return Err(Error::shape(op, format!("h [{n}, {n}] f32"), format!("{} {}", h.shape(), h.dtype())));
    }
    // Every 64th row of f32 begins at an offset that can be bound.
    let most = (g.gpu().caps().max_binding as usize / (4 * n.max(1)) / 64 * 64).max(64);
    for start in (0..n).step_by(most) {
        let rows = most.min(n - start);
        let part = g.import(&h.slice(start * n, [rows, n])?);
        let product = Product::dense(Entry::Gradient, x, x, &part);
        Product { first: start, rows, base: Base::Gate(one), scale, ..product }.record(g)?;
    }
    Ok(())
}
