//! Norms of the rows of V = W + scale · B · A, by which DoRA divides.

use super::expect;
use crate::{
    Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        rank: u32,
        scale: f32,
    }
}

const LANES: u32 = 64;

fn kernel() -> Kernel {
    Kernel::new("dora", "inverse_norms").with("LANES", LANES)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
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
    let params = Params { rows: rows as u32, rank: rank as u32, scale };
    let args = [squares, b, seen, through, inverse];
    g.dispatch(kernel(), &params, &args, rows.div_ceil(LANES as usize), 5.0 * (rows * rank) as f64)
}
