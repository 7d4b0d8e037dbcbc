//! Rounding a tensor to books of vectors, at once: QuIP#'s lattice, and AQLM's sums of two code books.

use crate::{
    Error, QuantizedTensor, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::lattice as kernel,
    quant::{Scheme, VECTOR, lattice},
};

/// The rounding of W to E8P points times `scale` that makes tr((W - Q) H (W - Q)ᵀ) small, H = L D Lᵀ: from the last eight
/// columns to the first, Q_k = round(W_k + Σ_{j > k} (W_j - Q_j) L_jk)
///
/// weight: [rows, cols] f32, finite, cols a multiple of 8; lower: the unit block-lower factor L in blocks of 8,
/// `[cols * cols]` ([`block_factor`]), or none for rounding to nearest; scale: above 0. Errors: Shape, Config, OutOfMemory, Device. LDLQ: QuIP#, Tseng et al. 2024, section 4.
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
    let (rows, _) = weight.shape().rows_cols();
    if [books.len(), scales.len()] != [2 * 256 * VECTOR, rows] {
        let expected = format!("{} numbers of code books, {rows} scales", 2 * 256 * VECTOR);
        return Err(Error::shape(name, expected, format!("{}, {}", books.len(), scales.len())));
    }
    round(gpu, name, weight, lower, &Book { scheme: Scheme::Aqlm, table: books, scale: 1.0, scales })
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
    if lower.is_some_and(|l| l.len() != cols * cols) {
        return Err(Error::shape(name, format!("a factor of [{cols}, {cols}]"), lower.map_or(0, <[f32]>::len)));
    }
    let target = QuantizedTensor::zeros(gpu, name, book.scheme, [rows, cols])?;
    if gpu.is_dry() || target.is_empty() {
        return Ok(target);
    }
    target.scales().expect("vector schemes have scales").write(bytemuck::cast_slice(book.scales))?;
    target.nested().expect("vector schemes have a table").write(bytemuck::cast_slice(book.table))?;
    let mut g = Graph::new(gpu);
    let weight = g.import(weight);
    kernel::record(&mut g, name, &weight, &target, lower, book.scale)?;
    g.run()?;
    Ok(target)
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
