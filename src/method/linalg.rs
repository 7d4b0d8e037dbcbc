//! Small dense linear algebra on the host in f64: Cholesky factors of Hessians.
//!
//! Matrices are square, row by row. The work is split over the processor's cores by rows or columns, and every number is
//! summed in the same order whatever their count.

use crate::{Result, gpu::Cancel};
use std::num::NonZero;

/// Columns that are eliminated at once: a panel of them stays in the cache.
const PANEL: usize = 64;
/// Columns of an inverse that one pass makes.
const STRIP: usize = 32;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Overwrites the lower triangle of the symmetric matrix `a` [n, n] with L, where A = L · Lᵀ; the upper one becomes 0.
/// The inner result is the row at which A turned out not to be positive definite. Errors: Interrupted, between panels.
pub fn cholesky(a: &mut [f64], n: usize, cancel: &Cancel) -> Result<Result<(), usize>> {
    assert_eq!(a.len(), n * n, "a square matrix");
    let mut transposed = vec![0.0; PANEL * n];
    for first in (0..n).step_by(PANEL) {
        cancel.check()?;
        let last = n.min(first + PANEL);
        if let Err(row) = factor_panel(a, n, first, last) {
            return Ok(Err(row));
        }
        // The panel's columns as rows, so that the update below reads numbers in a row.
        for row in last..n {
            for (p, column) in (first..last).enumerate() {
                transposed[p * n + row] = a[row * n + column];
            }
        }
        let rest = &mut a[last * n..];
        let rows = n - last;
        let share = rows.div_ceil(threads()).max(1);
        let transposed = &transposed;
        std::thread::scope(|scope| {
            // Below the diagonal later rows are longer, so rows are dealt out in turn by pieces.
            let mut shares: Vec<Vec<(usize, &mut [f64])>> = (0..rows.div_ceil(share)).map(|_| Vec::new()).collect();
            let workers = shares.len().max(1);
            for (i, row) in rest.chunks_exact_mut(n).enumerate() {
                shares[i / 8 % workers].push((last + i, row));
            }
            for rows in shares {
                scope.spawn(move || {
                    rows.into_iter().for_each(|(i, row)| eliminate(row, transposed, n, first, last, i));
                });
            }
        });
    }
    for row in 0..n {
        a[row * n + row + 1..(row + 1) * n].fill(0.0);
    }
    Ok(Ok(()))
}

/// Columns `first..last` of L, whose rows have been eliminated up to `first`.
fn factor_panel(a: &mut [f64], n: usize, first: usize, last: usize) -> Result<(), usize> {
    for row in first..last {
        for column in first..row {
            let dot = dot(&a[row * n + first..row * n + column], &a[column * n + first..column * n + column]);
            a[row * n + column] = (a[row * n + column] - dot) / a[column * n + column];
        }
        let own = &a[row * n + first..row * n + row];
        let square = a[row * n + row] - dot(own, own);
        // Also where it is NaN.
        if square.is_nan() || square <= 0.0 {
            return Err(row);
        }
        a[row * n + row] = square.sqrt();
    }
    let (top, below) = a.split_at_mut(last * n);
    let share = (n - last).div_ceil(threads()).max(1);
    let top = &*top;
    std::thread::scope(|scope| {
        for rows in below.chunks_mut(share * n) {
            scope.spawn(move || {
                for row in rows.chunks_exact_mut(n) {
                    for column in first..last {
                        let dot = dot(&row[first..column], &top[column * n + first..column * n + column]);
                        row[column] = (row[column] - dot) / top[column * n + column];
                    }
                }
            });
        }
    });
    Ok(())
}

/// row[last..=i] -= Σ_p row[first + p] · transposed[p][last..=i]
fn eliminate(row: &mut [f64], transposed: &[f64], n: usize, first: usize, last: usize, i: usize) {
    let (factors, rest) = row.split_at_mut(last);
    let factors = &factors[first..];
    let rest = &mut rest[..=i - last];
    const WIDE: usize = 16;
    let mut at = 0;
    while at + WIDE <= rest.len() {
        let mut sums: [f64; WIDE] = rest[at..at + WIDE].try_into().expect("a range of this length");
        for (p, factor) in factors.iter().enumerate() {
            let line: &[f64; WIDE] =
                transposed[p * n + last + at..][..WIDE].try_into().expect("a range of this length");
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum -= factor * value;
            }
        }
        rest[at..at + WIDE].copy_from_slice(&sums);
        at += WIDE;
    }
    for (j, value) in rest.iter_mut().enumerate().skip(at) {
        for (p, factor) in factors.iter().enumerate() {
            *value -= factor * transposed[p * n + last + j];
        }
    }
}

/// Four sums at once, which processors add in parallel.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a4.zip(b4) {
        for k in 0..4 {
            sums[k] += a[k] * b[k];
        }
    }
    sums[0] + sums[1] + (sums[2] + sums[3]) + tail
}

/// L⁻¹ of a lower triangular matrix [n, n] with a non-zero diagonal, itself lower triangular. Errors: Interrupted, between strips.
pub fn invert_lower(l: &[f64], n: usize, cancel: &Cancel) -> Result<Vec<f64>> {
    assert_eq!(l.len(), n * n, "a square matrix");
    let mut inverse = vec![0.0; n * n];
    let strips: Vec<usize> = (0..n).step_by(STRIP).collect();
    let workers = threads().min(strips.len().max(1));
    let done: Result<Vec<_>> = std::thread::scope(|scope| {
        let strips = &strips;
        let spawned: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let own = strips.iter().skip(worker).step_by(workers);
                    own.map(|&first| cancel.check().map(|()| (first, invert_strip(l, n, first))))
                        .collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        spawned.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (first, strip) in done?.into_iter().flatten() {
        let width = STRIP.min(n - first);
        for (row, values) in strip.chunks_exact(STRIP).enumerate() {
            let at = (first + row) * n + first;
            inverse[at..at + width].copy_from_slice(&values[..width]);
        }
    }
    Ok(inverse)
}

/// Columns `first..first + STRIP` of L⁻¹ from row `first` on, by forward substitution.
fn invert_strip(l: &[f64], n: usize, first: usize) -> Vec<f64> {
    let mut strip = vec![0.0; (n - first) * STRIP];
    for row in first..n {
        let (above, own) = strip.split_at_mut((row - first) * STRIP);
        let mut sums = [0.0; STRIP];
        if row - first < STRIP {
            sums[row - first] = 1.0;
        }
        for (factor, line) in l[row * n + first..row * n + row].iter().zip(above.chunks_exact(STRIP)) {
            let line: &[f64; STRIP] = line.try_into().expect("a chunk of this length");
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum -= factor * value;
            }
        }
        let diagonal = l[row * n + row];
        for (out, sum) in own[..STRIP].iter_mut().zip(sums) {
            *out = sum / diagonal;
        }
    }
    strip
}

/// U of the symmetric positive definite matrix `a` [n, n], where A⁻¹ = Uᵀ · U and U is upper triangular.
///
/// With the rows and columns of A in reverse, A = R · Rᵀ for an upper triangular R, and U = R⁻¹: one factorization and one
/// triangular inverse, and A⁻¹ itself is never made. The inner result is the row at which A turned out not to be positive definite.
/// Errors: Interrupted.
pub fn inverse_factor(a: &[f64], n: usize, cancel: &Cancel) -> Result<Result<Vec<f64>, usize>> {
    let mut reversed: Vec<f64> = a.iter().rev().copied().collect();
    if let Err(row) = cholesky(&mut reversed, n, cancel)? {
        return Ok(Err(n - 1 - row));
    }
    let mut inverse = invert_lower(&reversed, n, cancel)?;
    inverse.reverse();
    Ok(Ok(inverse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// A random X with n / 2 more rows than columns, and Xᵀ · X + 0.01.
    fn positive(n: usize) -> Vec<f64> {
        let mut state = 88172645463325252u64 + n as u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let rows: Vec<f64> = (0..(n + n / 2) * n).map(|_| random()).collect();
        let mut a = vec![0.0; n * n];
        for row in rows.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    a[i * n + j] += row[i] * row[j];
                }
            }
        }
        (0..n).for_each(|i| a[i * n + i] += 0.01);
        a
    }

    #[test]
    fn factors_give_the_matrix_and_its_inverse() {
        let cancel = Cancel::default();
        for n in [1, 2, 5, 63, 64, 65, 130, 200] {
            let a = positive(n);
            let mut l = a.clone();
            cholesky(&mut l, n, &cancel).unwrap().unwrap();
            let u = inverse_factor(&a, n, &cancel).unwrap().unwrap();
            // A · Uᵀ · U = 1
            let mut product = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    let back: f64 = (0..=i.min(j)).map(|k| l[i * n + k] * l[j * n + k]).sum();
                    assert!((back - a[i * n + j]).abs() < 1e-12 * n as f64, "{n}: L Lᵀ at {i} {j}");
                    product[i * n + j] = (0..n).map(|k| a[i * n + k] * u[j * n + k]).sum::<f64>();
                    assert!(i >= j || l[i * n + j] == 0.0);
                    assert!(i <= j || u[i * n + j] == 0.0);
                }
            }
            for i in 0..n {
                for j in 0..n {
                    let one: f64 = (0..n).map(|k| product[i * n + k] * u[k * n + j]).sum();
                    // The condition number is below 1e4 here.
                    assert!((one - f64::from(u8::from(i == j))).abs() < 1e-9, "{n}: {i} {j} {one}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_told_by_its_row() {
        let n = 70;
        let mut a = positive(n);
        for k in 0..n {
            a[66 * n + k] = a[3 * n + k];
            a[k * n + 66] = a[k * n + 3];
        }
        a[66 * n + 66] = a[3 * n + 3] - 1e-3;
        let cancel = Cancel::default();
        assert_eq!(cholesky(&mut a.clone(), n, &cancel).unwrap(), Err(66));
        assert_eq!(inverse_factor(&a, n, &cancel).unwrap(), Err(3));
        let mut nan = positive(5);
        nan[12] = f64::NAN;
        assert_eq!(cholesky(&mut nan, 5, &cancel).unwrap(), Err(2));
    }

    #[test]
    fn factors_end_where_work_is_asked_to_stop() {
        let (cancel, a) = (Cancel::default(), positive(130));
        let mut l = a.clone();
        cholesky(&mut l, 130, &cancel).unwrap().unwrap();
        cancel.request();
        let interrupted = |error: Error| assert!(matches!(error, Error::Interrupted(_)));
        interrupted(cholesky(&mut a.clone(), 130, &cancel).unwrap_err());
        interrupted(invert_lower(&l, 130, &cancel).unwrap_err());
    }
}
