//! Gradients of the diagonals around a matrix: norms' weights, the vectors of DoRA and IA3, and the signs of QuIP#'s transforms once they
//! are numbers; the same sums of other products, such as the squared norms of rows.

use super::expect;
use crate::{
    Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        factor: f32,
    }
}

const LANES: u32 = 64;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("diagonal", entry).with("LANES", LANES).with("SIDE", 8)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["left", "right", "rows", "columns", "shifts"].map(kernel).to_vec()
}

/// out\[r\] ← accumulate · out\[r\] + Σ_c dy\[r, c\] · a\[r, c\] · right\[c\], the gradient of left in
/// diag(left) · a · diag(right)
///
/// dy, a: [rows, cols]; right: [cols]; out: [rows]; accumulate: [1], all f32: where it is 0, `out` may hold anything.
/// Errors: Shape.
pub fn left(g: &mut Graph, dy: &Value, a: &Value, right: &Value, out: &Value, accumulate: &Value) -> Result<()> {
    record(g, "left", [dy, a, right, out, accumulate])
}

/// out\[c\] ← accumulate · out\[c\] + Σ_r dy\[r, c\] · a\[r, c\] · left\[r\], the gradient of right in
/// diag(left) · a · diag(right)
///
/// As [`left`], with left: [rows]; out: [cols]. An RMSNorm's weight is such a right: a is its input, left are the rows'
/// rstd. Errors: Shape.
pub fn right(g: &mut Graph, dy: &Value, a: &Value, left: &Value, out: &Value, accumulate: &Value) -> Result<()> {
    record(g, "right", [dy, a, left, out, accumulate])
}

/// out\[r\] ← accumulate · out\[r\] + factor · Σ_c dy\[r, c\] · a\[r, c\]: with factor 1 the gradient of left in diag(left) · a
///
/// dy, a: [rows, cols]; out: [rows]; accumulate: [1], all f32: where it is 0, `out` may hold anything. Errors: Shape.
pub fn rows(g: &mut Graph, dy: &Value, a: &Value, factor: f32, out: &Value, accumulate: &Value) -> Result<()> {
    let (rows, cols) = a.rows_cols();
    sums(g, "rows", &[("dy", dy), ("a", a)], [rows, cols], factor, (out, rows), accumulate)
}

/// out\[c\] ← accumulate · out\[c\] + factor · Σ_r dy\[r, c\] · a\[r, c\]: with factor 1 the gradient of right in a · diag(right)
///
/// dy, a: [rows, cols]; out: [cols]; accumulate: [1], all f32: where it is 0, `out` may hold anything. Rows are summed in 16 strands, so
/// that many of them keep a device busy. Errors: Shape.
pub fn columns(g: &mut Graph, dy: &Value, a: &Value, factor: f32, out: &Value, accumulate: &Value) -> Result<()> {
    let (rows, cols) = a.rows_cols();
    sums(g, "columns", &[("dy", dy), ("a", a)], [rows, cols], factor, (out, cols), accumulate)
}

/// out\[c\] ← accumulate · out\[c\] + Σ_r dy\[r, c\], the gradient of a bias that is added to each row
///
/// dy: [rows, cols]; out: [cols]; accumulate: [1], as in [`columns`]. Errors: Shape.
pub fn shifts(g: &mut Graph, dy: &Value, out: &Value, accumulate: &Value) -> Result<()> {
    let (rows, cols) = dy.rows_cols();
    sums(g, "shifts", &[("dy", dy)], [rows, cols], 1.0, (out, cols), accumulate)
}

/// Sums without another diagonal, of matrices [rows, cols].
fn sums(
    g: &mut Graph,
    entry: &'static str,
    matrices: &[(&str, &Value)],
    [rows, cols]: [usize; 2],
    factor: f32,
    (out, outs): (&Value, usize),
    accumulate: &Value,
) -> Result<()> {
    let op = "diagonal";
    for (what, value) in matrices {
        expect(op, what, value, [rows, cols])?;
    }
    expect(op, "out", out, [1, outs])?;
    expect(op, "accumulate", accumulate, [1, 1])?;
    let params = Params { rows: rows as u32, cols: cols as u32, factor };
    let args: Vec<&Value> = matrices.iter().map(|(_, value)| *value).chain([accumulate, out]).collect();
    let groups = if entry == "rows" { rows } else { cols.div_ceil(16) };
    g.dispatch(kernel(entry), &params, &args, groups, (matrices.len() + 1) as f64 * (rows * cols) as f64)
}

fn record(g: &mut Graph, entry: &'static str, [dy, a, other, out, accumulate]: [&Value; 5]) -> Result<()> {
    let (rows, cols) = a.rows_cols();
    let (others, outs) = if entry == "left" { (cols, rows) } else { (rows, cols) };
    let op = "diagonal";
    expect(op, "a", a, [rows, cols])?;
    expect(op, "dy", dy, [rows, cols])?;
    for (what, value, len) in [("diagonal", other, others), ("out", out, outs), ("accumulate", accumulate, 1)] {
        expect(op, what, value, [1, len])?;
    }
    let params = Params { rows: rows as u32, cols: cols as u32, factor: 1.0 };
    let groups = if entry == "left" { rows } else { cols.div_ceil(LANES as usize) };
    let args = [dy, a, other, accumulate, out];
    g.dispatch(kernel(entry), &params, &args, groups, 4.0 * (rows * cols) as f64)
}
