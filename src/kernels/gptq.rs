//! The column loop of GPTQ (Frantar et al. 2023). The method around it is [`crate::method::Gptq`].

use super::{
    expect,
    product::{Base, Entry, Product},
};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Kernel, Tensor},
    graph::{Graph, Value},
    quant::{ScaleType, Scheme},
};
use std::ops::Range;

/// Columns that one dispatch rounds, at most.
pub const BLOCK: usize = 32;

/// The numbers that a weight may take: those of a scheme, in groups of columns.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// [`Scheme::Int`], or a table with one absmax per block ([`Grid::serves`]).
    pub scheme: Scheme,
    /// Columns that share a scale; they divide a row.
    pub group: usize,
    /// The number of the first row's first scale.
    pub first_block: u32,
    /// How the range of a group is chosen.
    pub range: BlockRange,
}

/// Which range of a group's numbers its codes are to hold. What lies beyond it is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockRange {
    /// All of it.
    Whole,
    /// That with the least squared error, of 80 from the whole one down to a fifth of it.
    LeastError,
    /// Up to the least magnitude that so many percent of the numbers do not exceed, above 0 and at most 100.
    Percentile(f64),
}

impl BlockRange {
    /// How many of `group` numbers are not clipped; `LeastError` does not say.
    fn keep(self, group: usize) -> usize {
        match self {
            BlockRange::Percentile(percent) => ((group as f64 * percent / 100.0).ceil() as usize).clamp(1, group),
            BlockRange::Whole | BlockRange::LeastError => group,
        }
    }
}

crate::graph::params! {
    struct Params {
        bits: u32,
        symmetric: u32,
        search: u32,
        keep: u32,
        rows: u32,
        cols: u32,
        group: u32,
        groups: u32,
        first_block: u32,
        first: u32,
        count: u32,
    }
}

/// Who makes a grid of what.
const NO_GRID: &str = "`Grid::serves` holds for what a grid is made of";

impl Grid {
    /// Whether the numbers of `scheme` are such a grid.
    pub const fn serves(scheme: Scheme) -> bool {
        !scheme.double_quant()
            && matches!(
                scheme,
                Scheme::Int { .. } | Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Nf3 { .. } | Scheme::Nf2 { .. }
            )
    }

    /// That of a weight [rows, cols]. Errors: Unsupported; Config, with the weight's name, where groups do not divide its rows.
    pub fn of(name: &str, scheme: Scheme, shape: [usize; 2]) -> Result<Grid> {
        scheme.expect("scheme for gptq", Grid::serves)?;
        let (group, cols) = (scheme.block_size(shape).unwrap_or(1), shape[1]);
        let grid = Grid { scheme, group, first_block: 0, range: BlockRange::Whole };
        if !grid.divides(cols) {
            let message = format!("groups of {group} do not divide its {cols} columns; choose another group size");
            return Err(Error::config(name, message));
        }
        Ok(grid)
    }

    /// Whether rows of so many columns are whole groups.
    fn divides(&self, cols: usize) -> bool {
        self.group > 0 && cols.is_multiple_of(self.group)
    }

    /// Bits of a code, and whether the zero point is the middle code: the parameters of `affine_grid`.
    pub(super) fn affine(&self) -> (u32, u32) {
        (self.scheme.code_bits() as u32, u32::from(matches!(self.scheme, Scheme::Int { symmetric: true, .. })))
    }

    /// `kernel` with its snippet `grid`.
    pub(super) fn specialise(&self, kernel: Kernel) -> Kernel {
        let table = |kernel: Kernel, encode, codebook| {
            let kernel = kernel.import("grid", "table_grid").import("encode", encode).import("codebook", codebook);
            kernel.with("BITS", self.scheme.code_bits() as u32)
        };
        match self.scheme {
            Scheme::Nf4 { .. } => table(kernel, "encode_nf4", "codebook_nf4"),
            Scheme::Fp4 { .. } => table(kernel, "encode_fp4", "codebook_fp4"),
            Scheme::Nf3 { .. } => table(kernel, "encode_nf3", "codebook_nf3"),
            Scheme::Nf2 { .. } => table(kernel, "encode_nf2", "codebook_nf2"),
            Scheme::Int { scale: ScaleType::F16, .. } => {
                kernel.import("grid", "affine_grid").import("pair", "pair_f16")
            }
            Scheme::Int { scale: ScaleType::F32, .. } => {
                kernel.import("grid", "affine_grid").import("pair", "pair_f32")
            }
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Mxfp4 | Scheme::Nvfp4 => unreachable!("{NO_GRID}"),
            Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => unreachable!("{NO_GRID}"),
        }
    }

    /// One for every way in which integers specialise.
    pub(super) fn integers() -> [Grid; 2] {
        let int = Scheme::int(4, 64);
        [int.with_f32_scales(), int].map(|scheme| Grid { scheme, group: 64, first_block: 0, range: BlockRange::Whole })
    }

    fn tables() -> [Grid; 4] {
        let (block_size, double_quant) = (64, false);
        let tables = [
            Scheme::Nf4 { block_size, double_quant },
            Scheme::Fp4 { block_size, double_quant },
            Scheme::Nf3 { block_size },
            Scheme::Nf2 { block_size },
        ];
        tables.map(|scheme| Grid { scheme, group: 64, first_block: 0, range: BlockRange::Whole })
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        self.specialise(Kernel::new("gptq", entry)).with("BLOCK", BLOCK as u32)
    }

    fn params(&self, (rows, cols): (usize, usize), first: usize, count: usize) -> Params {
        let (bits, symmetric) = self.affine();
        Params {
            bits,
            symmetric,
            search: u32::from(self.range == BlockRange::LeastError),
            keep: self.range.keep(self.group) as u32,
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
    let grids = Grid::integers().into_iter().chain(Grid::tables());
    grids.flat_map(|grid| [grid.kernel("scales_of_groups"), grid.kernel("columns")]).collect()
}

/// Where [`scales`] tells of a row whose range a scale cannot hold: 1 + its number. [1] u32
pub fn status(gpu: &Gpu) -> Result<Tensor> {
    gpu.zeros("status of scales", [1], DType::U32)
}

/// Errors: Config, where the status, read back, tells of a row; rows are counted from `row0` on.
pub fn report(name: &str, row0: usize, status: &[u32]) -> Result<()> {
    match status[0] {
        0 => Ok(()),
        row => {
            let message = format!("the range of row {} is beyond what a scale can hold", row0 + row as usize - 1);
            Err(Error::config(name, message))
        }
    }
}

/// Scale and zero point of these groups of each row, from the weight as it is now.
///
/// w: [rows, cols] f32; scales: the words of the target's scales; status: of [`status`]. Errors: Shape.
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
    let steps = match grid.range {
        BlockRange::Whole => 4.0,
        BlockRange::LeastError => 800.0,
        BlockRange::Percentile(_) => 100.0,
    };
    let work = (threads * grid.group) as f64 * steps;
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
    grid.scheme.expect("scheme for gptq", Grid::serves)?;
    match grid.divides(cols) {
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
    let product = Product::dense(Entry::Backward, errors, rest, w);
    Product { base: Base::Itself, scale: -1.0, out_first: first, ..product }.record(g)
}
