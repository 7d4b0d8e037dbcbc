//! The searches of AWQ (Lin et al. 2024). The method around them is [`crate::method::Awq`].

use super::{dense, expect};
use crate::{
    DType, Error, Result,
    gpu::{Kernel, Tensor},
    graph::{Graph, Value},
    kernels::gptq::Grid,
};

/// Columns of the longest group whose range can be searched for.
pub const LONGEST: usize = 256;

crate::graph::params! {
    struct Params {
        bits: u32,
        symmetric: u32,
        rows: u32,
        cols: u32,
        group: u32,
        first: u32,
        count: u32,
        out_first: u32,
        step: u32,
    }
}

fn kernel(grid: &Grid, entry: &'static str) -> Kernel {
    grid.specialise(Kernel::new("awq", entry)).with("GROUP", grid.group.next_power_of_two().clamp(32, LONGEST) as u32)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for grid in Grid::integers() {
        all.extend(["residual", "row_dots", "clip"].map(|entry| kernel(&grid, entry)));
    }
    all
}

/// sums\[out_first + r\] += δ_r · H · δ_rᵀ, δ = nearest(w ∘ f) / f - w: what rounding costs once channel c of the input is
/// divided, and column c of the weight multiplied, by f\[c\].
///
/// Of every step-th row, which is row r here. w: [rows, cols]; factors: [cols], above 0; h: [cols, cols], symmetric, which may
/// exceed a binding; sums: at least [out_first + rows / step, rounded up], f32. Returns how many rows were taken.
/// Errors: Shape.
#[expect(clippy::too_many_arguments, reason = "the buffers of two kernels")]
pub fn scaled_error(
    g: &mut Graph,
    grid: &Grid,
    w: &Value,
    factors: &Value,
    h: &Tensor,
    sums: &Value,
    out_first: usize,
    step: usize,
) -> Result<usize> {
    let (rows, cols) = w.rows_cols();
    let rows = rows.div_ceil(step.max(1));
    check(grid, w, h)?;
    expect("awq", "factors", factors, [1, cols])?;
    if out_first + rows > sums.shape().len() || sums.dtype() != DType::F32 {
        let expected = format!("room for {} sums", out_first + rows);
        return Err(Error::shape("awq", expected, format!("{} {}", sums.shape(), sums.dtype())));
    }
    let (bits, symmetric) = grid.affine();
    let mut params = Params {
        bits,
        symmetric,
        rows: rows as u32,
        cols: cols as u32,
        group: grid.group as u32,
        first: 0,
        count: 0,
        out_first: out_first as u32,
        step: step.max(1) as u32,
    };
    let delta = g.value([rows, cols], DType::F32)?;
    let threads = rows * (cols / grid.group);
    let work = 20.0 * (rows * cols) as f64;
    g.dispatch(kernel(grid, "residual"), &params, &[w, factors, &delta], threads.div_ceil(64), work)?;
    let most = (g.gpu().caps().max_binding as usize / (4 * cols) / 64 * 64).max(64);
    for first in (0..cols).step_by(most) {
        let count = most.min(cols - first);
        // H is symmetric: its rows are its columns.
        let part = g.import(&h.slice(first * cols, [count, cols])?);
        let product = dense::x_wt(g, &delta, &part)?;
        (params.first, params.count) = (first as u32, count as u32);
        let work = 2.0 * (rows * count) as f64;
        g.dispatch(kernel(grid, "row_dots"), &params, &[&delta, &product, sums], rows.div_ceil(64), work)?;
    }
    Ok(rows)
}

/// Cuts the numbers of each group of each row of w to the range for which δ · H · δᵀ over the group's own columns is least.
///
/// w: [rows, cols]; h: [cols, cols], f32; groups of at most [`LONGEST`] columns. Errors: Shape.
pub fn clip(g: &mut Graph, grid: &Grid, w: &Value, h: &Tensor) -> Result<()> {
    let (rows, cols) = w.rows_cols();
    check(grid, w, h)?;
    if grid.group > LONGEST {
        return Err(Error::shape("awq clip", format!("groups of at most {LONGEST}"), grid.group));
    }
    let (bits, symmetric) = grid.affine();
    // Whole groups whose rows of H fit a binding and begin at an aligned offset.
    let unit = grid.group * (64 / crate::quant::gcd(64, grid.group));
    let most = (g.gpu().caps().max_binding as usize / (4 * cols) / unit * unit).max(unit);
    for first in (0..cols).step_by(most) {
        let columns = most.min(cols - first);
        let part = g.import(&h.slice(first * cols, [columns, cols])?);
        let count = columns / grid.group;
        let params = Params {
            bits,
            symmetric,
            rows: rows as u32,
            cols: cols as u32,
            group: grid.group as u32,
            first: first as u32,
            count: count as u32,
            out_first: 0,
            step: 1,
        };
        let work = (rows * columns * (grid.group + 20)) as f64 * 10.0;
        g.dispatch(kernel(grid, "clip"), &params, &[w, &part], (rows * count).div_ceil(64), work)?;
    }
    Ok(())
}

fn check(grid: &Grid, w: &Value, h: &Tensor) -> Result<()> {
    let (rows, cols) = w.rows_cols();
    expect("awq", "w", w, [rows, cols])?;
    if h.shape().dims() != [cols, cols] || h.dtype() != DType::F32 {
        return Err(Error::shape("awq", format!("h [{cols}, {cols}] f32"), format!("{} {}", h.shape(), h.dtype())));
    }
    match grid.group > 0 && cols % grid.group == 0 {
        true => Ok(()),
        false => Err(Error::shape("awq", format!("a group size that divides {cols} columns"), grid.group)),
    }
}
