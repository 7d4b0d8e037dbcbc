//! Rounding to books of vectors on the device: QuIP#'s lattice, and AQLM's sums of two code books.

use super::{
    QuantizedTensor, expect,
    product::{Base, Entry, Product},
};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Kernel, Tensor},
    graph::{Graph, Value},
    quant::{Scheme, VECTOR, lattice},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        first: u32,
        panel: u32,
        scale: f32,
        inverse: f32,
    }
}

fn kernel(entry: &'static str, scheme: Scheme) -> Kernel {
    let lattice = scheme == Scheme::E8p;
    Kernel::new("lattice", entry).import("points", if lattice { "points_lattice" } else { "points_codebooks" })
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let schemes = [Scheme::E8p, Scheme::Aqlm { block_size: VECTOR }];
    schemes.into_iter().flat_map(|s| ["round_nearest", "round_panel", "pack"].map(|entry| kernel(entry, s))).collect()
}

/// Columns that are rounded by one dispatch; what they lost reaches the others by one product.
const PANEL: usize = 64;

/// The rounding of W to E8P points times `scale` that makes tr((W - Q) H (W - Q)ᵀ) small, H = L D Lᵀ: from the last eight
/// columns to the first, Q_k = round(W_k + Σ_{j > k} (W_j - Q_j) L_jk)
///
/// weight: [rows, cols] f32, finite, cols a multiple of 8; lower: the unit block-lower factor L in blocks of 8,
/// `[cols * cols]` ([`block_factor`]), or none for rounding to nearest; scale: above 0. A one-off: it runs at once and
/// waits. Errors: Shape, Config, OutOfMemory, Device. LDLQ: QuIP#, Tseng et al. 2024, section 4.
pub fn ldlq(gpu: &Gpu, name: &str, weight: &Tensor, lower: Option<&[f32]>, scale: f32) -> Result<QuantizedTensor> {
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Error::config(name, format!("a scale of {scale} for the lattice: expected one above 0")));
    }
    let table = lattice::patterns().concat();
    round(gpu, name, weight, lower, &Book { scheme: Scheme::E8p, table: &table, scale, scales: &[scale] })
}

/// [`ldlq`] to sums of a vector of one code book and one of another, found by a beam search of width 4
///
/// weight: [rows, cols] f32, each row divided by its scale; books: `[2 * 256 * 8]`; scales: `[rows]`, for the result alone.
/// Errors: as [`ldlq`]. AQLM, Egiazarian et al. 2024.
pub fn additive(
    gpu: &Gpu,
    name: &str,
    weight: &Tensor,
    lower: Option<&[f32]>,
    books: &[f32],
    scales: &[f32],
) -> Result<QuantizedTensor> {
    let (rows, cols) = weight.shape().rows_cols();
    if [books.len(), scales.len()] != [2 * 256 * VECTOR, rows] {
        let expected = format!("{} numbers of code books, {rows} scales", 2 * 256 * VECTOR);
        return Err(Error::shape(name, expected, format!("{}, {}", books.len(), scales.len())));
    }
    let scheme = Scheme::Aqlm { block_size: cols };
    round(gpu, name, weight, lower, &Book { scheme, table: books, scale: 1.0, scales })
}

/// What vectors may become.
struct Book<'a> {
    scheme: Scheme,
    table: &'a [f32],
    /// Of the points, while rounding.
    scale: f32,
    /// As stored.
    scales: &'a [f32],
}

fn round(gpu: &Gpu, name: &str, weight: &Tensor, lower: Option<&[f32]>, book: &Book<'_>) -> Result<QuantizedTensor> {
    let (rows, cols) = weight.shape().rows_cols();
    let scale = book.scale;
    let kernel = |entry| kernel(entry, book.scheme);
    if lower.is_some_and(|l| l.len() != cols * cols) {
        return Err(Error::shape(name, format!("a factor of [{cols}, {cols}]"), lower.map_or(0, <[f32]>::len)));
    }
    let target = QuantizedTensor::zeros(gpu, name, book.scheme, [rows, cols])?;
    if gpu.is_dry() || target.is_empty() {
        return Ok(target);
    }
    target.scales().expect("vector schemes have scales").write(bytemuck::cast_slice(book.scales))?;
    let patterns = target.nested().expect("vector schemes have a table");
    patterns.write(bytemuck::cast_slice(book.table))?;
    let mut g = Graph::new(gpu);
    let weight = g.import(weight);
    expect("ldlq", "weight", &weight, [rows, cols])?;
    let patterns = g.import(patterns);
    let codes = g.value([rows, cols / VECTOR], DType::U32)?;
    let params = Params {
        rows: rows as u32,
        cols: (cols / VECTOR) as u32,
        first: 0,
        panel: (cols / VECTOR) as u32,
        scale,
        inverse: 1.0 / scale,
    };
    match lower {
        None => {
            let work = search_work(rows * cols);
            let groups = (rows * cols / VECTOR).div_ceil(32);
            g.dispatch(kernel("round_nearest"), &params, &[&weight, &patterns, &codes], groups, work)?;
        }
        Some(lower) => {
            let scheme = book.scheme;
            let rounding = Rounding { scheme, weight: &weight, patterns: &patterns, codes: &codes, lower, params };
            rounding.record(&mut g, [rows, cols])?;
        }
    }
    let shard = target.shards().next().expect("the weight is not empty");
    if shard.rows != rows {
        return Err(Error::shape(name, "a weight whose codes fit one binding", format!("{:?}", [rows, cols])));
    }
    let packed = g.import(&shard.codes);
    let words = (rows * cols / VECTOR).div_ceil(2);
    g.dispatch(kernel("pack"), &params, &[&codes, &packed], words.div_ceil(64), words as f64)?;
    g.run()?;
    Ok(target)
}

/// Two shifts and 256 patterns for each vector.
fn search_work(len: usize) -> f64 {
    len as f64 * 2.0 * 256.0 * 3.0
}

/// Rounding with feedback, a panel of columns after the other.
struct Rounding<'a> {
    scheme: Scheme,
    weight: &'a Value,
    patterns: &'a Value,
    codes: &'a Value,
    lower: &'a [f32],
    params: Params,
}

impl Rounding<'_> {
    fn record(&self, g: &mut Graph, [rows, cols]: [usize; 2]) -> Result<()> {
        let gpu = g.gpu().clone();
        // What is to be rounded: W, and what later columns carry over to it.
        let aim = super::elementwise::add(g, self.weight, self.weight, 0.0)?;
        for first in (0..cols).step_by(PANEL).rev() {
            let end = cols.min(first + PANEL);
            let panel: Vec<f32> =
                (first..end).flat_map(|row| self.lower[row * cols..row * cols + end].iter().copied()).collect();
            let lower = g.import(&gpu.tensor("rows of a factor", [end - first, end], DType::F32, &panel)?);
            let lost = g.value([rows, end - first], DType::F32)?;
            let params =
                Params { first: (first / VECTOR) as u32, panel: ((end - first) / VECTOR) as u32, ..self.params };
            let args = [self.weight, self.patterns, &aim, &lower, self.codes, &lost];
            let work = search_work(rows * (end - first));
            g.dispatch(kernel("round_panel", self.scheme), &params, &args, rows.div_ceil(32), work)?;
            if first == 0 {
                break;
            }
            let product = Product::dense(Entry::Backward, &lost, &lower, &aim);
            Product { cols: first, base: Base::Itself, ..product }.record(g)?;
        }
        Ok(())
    }
}

/// L of H = L D Lᵀ, where L is lower with unit blocks of 8 on its diagonal and D has blocks of 8
///
/// cholesky: `[n * n]`, C lower with H = C Cᵀ, n a multiple of 8. L is C with its columns of each block divided by the
/// block of the diagonal: L_jk = C_jk C_kk⁻¹.
pub fn block_factor(cholesky: &[f64], n: usize) -> Vec<f32> {
    let mut lower = vec![0.0f32; n * n];
    for (row, out) in lower.chunks_exact_mut(n.max(1)).enumerate() {
        out[row] = 1.0;
        for block in (0..row / VECTOR * VECTOR).step_by(VECTOR) {
            // x · C_kk = C_jk from the last column to the first.
            let mut x = [0.0f64; VECTOR];
            for j in (0..VECTOR).rev() {
                let known: f64 = (j + 1..VECTOR).map(|i| x[i] * cholesky[(block + i) * n + block + j]).sum();
                x[j] = (cholesky[row * n + block + j] - known) / cholesky[(block + j) * n + block + j];
                out[block + j] = x[j] as f32;
            }
        }
    }
    lower
}
