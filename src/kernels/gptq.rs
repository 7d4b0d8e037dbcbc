//! The column loop of GPTQ (Frantar et al. 2023). The method around it is [`crate::method::Gptq`].

use super::matmul::{Base, Entry, Product, Weight, expect};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::ScaleType,
};
use std::ops::Range;

/// Columns that one dispatch rounds, at most.
pub const BLOCK: usize = 32;

/// How the codes of a weight lie on a grid.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Whether the zero point is the middle code.
    pub symmetric: bool,
    /// How scale and zero point are stored.
    pub scale: ScaleType,
    /// Columns that share a scale; it divides the columns of the weight.
    pub group: usize,
    /// The number of the first row's first scale.
    pub first_block: u32,
    /// Whether smaller ranges than the whole one are tried for a smaller squared error.
    pub search: bool,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    bits: u32,
    symmetric: u32,
    search: u32,
    rows: u32,
    cols: u32,
    group: u32,
    groups: u32,
    first_block: u32,
    first: u32,
    count: u32,
}

impl Grid {
    /// `kernel` with what the snippet `affine_grid` needs.
    pub(super) fn specialise(&self, kernel: Kernel) -> Kernel {
        kernel.import("pair", if self.scale == ScaleType::F16 { "pair_f16" } else { "pair_f32" })
    }

    /// One for every way of specialising.
    pub(super) fn variants() -> [Grid; 2] {
        [ScaleType::F32, ScaleType::F16].map(|scale| Grid {
            bits: 4,
            symmetric: false,
            scale,
            group: 64,
            first_block: 0,
            search: false,
        })
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        self.specialise(Kernel::new("gptq", entry)).with("BLOCK", BLOCK as u32)
    }

    fn params(&self, (rows, cols): (usize, usize), first: usize, count: usize) -> Params {
        Params {
            bits: self.bits.into(),
            symmetric: self.symmetric.into(),
            search: self.search.into(),
            rows: rows as u32,
            cols: cols as u32,
            group: self.group as u32,
            groups: (cols / self.group) as u32,
            first_block: self.first_block,
            first: first as u32,
            count: count as u32,
        }
    }
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    Grid::variants().iter().flat_map(|grid| [grid.kernel("scales_of_groups"), grid.kernel("columns")]).collect()
}

/// Scale and zero point of these groups of each row, from the weight as it is now.
///
/// w: [rows, cols] f32; scales: the words of the target's scales; status: [1] u32, which becomes 1 + a row whose range the
/// scale cannot hold. Errors: Shape.
pub fn scales(
    g: &mut Graph,
    grid: &Grid,
    w: &Value,
    scales: &Value,
    status: &Value,
    groups: Range<usize>,
) -> Result<()> {
    let (rows, cols) = w.rows_cols();
    check(grid, cols)?;
    if groups.end > cols / grid.group {
        return Err(Error::shape("gptq scales", format!("groups up to {}", cols / grid.group), groups.end));
    }
    let params = grid.params((rows, cols), groups.start, groups.len());
    let threads = rows * groups.len();
    let work = (threads * grid.group) as f64 * if grid.search { 800.0 } else { 4.0 };
    let kernel = grid.kernel("scales_of_groups");
    g.dispatch(kernel, &params, &[w, scales, status], threads.div_ceil(64), work)
}

/// Rounds columns `order[columns]` of each row, one after the other: q = nearest(v), e = (v - q) / U\[i, i\], and
/// v\[j\] -= e · U\[i, j\] for the columns that follow among them.
///
/// w: [rows, cols] f32, which takes the values q; factor: [BLOCK, BLOCK] f32, these columns' part of U; order: [cols] u32,
/// each below cols; errors: [rows, BLOCK] f32, of which the first columns.len() columns are written. Errors: Shape.
#[expect(clippy::too_many_arguments, reason = "the buffers of one kernel")]
pub fn columns(
    g: &mut Graph,
    grid: &Grid,
    w: &Value,
    scales: &Value,
    factor: &Value,
    order: &Value,
    errors: &Value,
    columns: Range<usize>,
) -> Result<()> {
    let (rows, cols) = w.rows_cols();
    check(grid, cols)?;
    expect("gptq", "factor", factor, [BLOCK, BLOCK])?;
    expect("gptq", "errors", errors, [rows, BLOCK])?;
    if order.shape().dims() != [cols] || order.dtype() != DType::U32 {
        return Err(Error::shape(
            "gptq",
            format!("order [{cols}] u32"),
            format!("{} {}", order.shape(), order.dtype()),
        ));
    }
    if columns.len() > BLOCK || columns.end > cols {
        return Err(Error::shape("gptq", format!("at most {BLOCK} of {cols} columns"), format!("{columns:?}")));
    }
    let params = grid.params((rows, cols), columns.start, columns.len());
    let args = [w, scales, factor, order, errors];
    let work = (rows * columns.len() * (columns.len() + 40)) as f64;
    g.dispatch(grid.kernel("columns"), &params, &args, rows.div_ceil(64), work)
}

fn check(grid: &Grid, cols: usize) -> Result<()> {
    match grid.group > 0 && cols % grid.group == 0 {
        true => Ok(()),
        false => Err(Error::shape("gptq", format!("a group size that divides {cols} columns"), grid.group)),
    }
}

/// w\[:, first ..\] -= errors · rest
///
/// errors: [rows, BLOCK] f32, of which the first `rest` rows' number of columns count; rest: [count, n] f32, rows of U;
/// w: [rows, cols] f32. Errors: Shape.
pub fn pass_on(g: &mut Graph, w: &Value, errors: &Value, rest: &Value, first: usize) -> Result<()> {
    let (rows, cols) = w.rows_cols();
    let (depth, n) = rest.rows_cols();
    expect("gptq", "errors", errors, [rows, BLOCK])?;
    if depth > BLOCK || first + n > cols {
        return Err(Error::shape("gptq", format!("at most {BLOCK} rows for {cols} columns"), rest.shape()));
    }
    let product = Product {
        entry: Entry::Backward,
        x: errors,
        stride: BLOCK,
        first: 0,
        weight: Weight::dense(rest),
        rows,
        cols: n,
        depth,
        low: None,
        bias: None,
        base: Base::Itself,
        scale: -1.0,
        y: w,
        out_stride: cols,
        out_first: first,
    };
    product.record(g)
}
