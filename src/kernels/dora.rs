//! Norms of the rows of V = W + scale · B · A, by which DoRA divides.

use super::expect;
use crate::{
    Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        first: u32,
        scale: f32,
    }
}

const LANES: u32 = 64;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("dora", entry).with("LANES", LANES).with("SIDE", 8)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("squares"), kernel("inverse_norms")]
}

/// out\[first + r\] = Σ_c w\[r, c\]²; the rest of out stays as it is
///
/// w: [rows, cols]; out: [first + rows or more], f32. Errors: Shape.
pub fn squares(g: &mut Graph, w: &Value, out: &Value, first: usize) -> Result<()> {
    let (rows, cols) = w.rows_cols();
    expect("squares", "w", w, [rows, cols])?;
    let len = out.shape().len();
    if first.checked_add(rows).is_none_or(|end| end > len) {
        return Err(Error::shape("squares", format!("rows up to {len}"), format!("{rows} rows from {first} on")));
    }
    let params = Params { rows: rows as u32, cols: cols as u32, first: first as u32, scale: 0.0 };
    g.dispatch(kernel("squares"), &params, &[w, out], rows, 2.0 * (rows * cols) as f64)
}

/// inverse\[r\] = 1/‖W\[r\] + scale · B\[r\] · A‖, from the squared norms of W's rows, A · Wᵀ and B · A · Aᵀ; 0 where the norm is
///
/// squares, inverse: [rows]; b, through = B · A · Aᵀ: [rows, rank]; seen = A · Wᵀ: [rank, rows], f32. The sum cancels where the update
/// takes a row nearly to zero: its relative error is that of f32 times ‖W\[r\]‖²/‖V\[r\]‖². Errors: Shape.
pub fn inverse_norms(
    g: &mut Graph,
    squares: &Value,
    b: &Value,
    seen: &Value,
    through: &Value,
    scale: f32,
    inverse: &Value,
) -> Result<()> {
    let op = "inverse_norms";
    let (rows, rank) = b.rows_cols();
    expect(op, "b", b, [rows, rank])?;
    expect(op, "squares", squares, [1, rows])?;
    expect(op, "seen", seen, [rank, rows])?;
    expect(op, "through", through, [rows, rank])?;
    expect(op, "inverse", inverse, [1, rows])?;
    let params = Params { rows: rows as u32, cols: rank as u32, first: 0, scale };
    let args = [squares, b, seen, through, inverse];
    g.dispatch(kernel("inverse_norms"), &params, &args, rows.div_ceil(LANES as usize), 5.0 * (rows * rank) as f64)
}
