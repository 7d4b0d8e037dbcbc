//! The squared error of a layer's or block's output, which fine-tuning makes small.

use super::expect;
use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        cols: u32,
        scale: f32,
    }
}

fn kernel() -> Kernel {
    Kernel::new("squared_error", "gradient").with("LANES", 64).with("SIDE", 8)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
}

/// dy = scale · (y − wanted), errors\[r\] += Σ_c (y\[r, c\] − wanted\[r, c\])²
///
/// y, wanted, dy: [rows, cols]; errors: [rows], f32, to be set to 0 before the first use. Returns dy; with scale = 2 / n it
/// is the gradient of Σ (y − wanted)² / n. Errors: Shape.
pub fn squared_error(g: &mut Graph, y: &Value, wanted: &Value, scale: f32, errors: &Value) -> Result<Value> {
    let (rows, cols) = y.rows_cols();
    let op = "squared_error";
    expect(op, "y", y, [rows, cols])?;
    expect(op, "wanted", wanted, [rows, cols])?;
    expect(op, "errors", errors, [1, rows])?;
    let dy = g.value(y.shape().clone(), DType::F32)?;
    let params = Params { cols: cols as u32, scale };
    g.dispatch(kernel(), &params, &[y, wanted, &dy, errors], rows, 5.0 * (rows * cols) as f64)?;
    Ok(dy)
}
