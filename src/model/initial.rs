//! The product that PEFT takes out of a base for an adapter made by PiSSA or OLoRA, in f64 on the host.
//!
//! PiSSA (Meng et al. 2024): the r largest singular values with their vectors. OLoRA (Büyükakyüz 2024): the first r columns of
//! Q and rows of R. Signs of vectors cancel in the product, so it is the same whatever library finds it, unless vectors are not
//! determined by the weight: then PEFT's own result is one of many, and this refuses.

use crate::format::peft::Initial;

/// Left [out, r] and right [r, in] of the product, row by row. Errors: why no product is the only one.
pub(super) fn product(
    initial: Initial,
    weight: &[f32],
    [rows, cols]: [usize; 2],
    r: usize,
) -> Result<[Vec<f32>; 2], String> {
    if r > rows.min(cols) {
        return Err(format!("a rank of {r} where the weight is {rows} by {cols}"));
    }
    let w: Vec<f64> = weight.iter().map(|&v| f64::from(v)).collect();
    if w.iter().any(|v| !v.is_finite()) {
        return Err("a weight that is not finite".to_owned());
    }
    let w = Matrix { values: &w, rows, cols };
    // Orthonormal columns whose span is what is taken out, each as a row here: the product is U Uᵀ W.
    let span = match initial {
        Initial::Plain => return Err("nothing to take out".to_owned()),
        Initial::Olora => columns(&w, r)?,
        Initial::Pissa => singular(&w, r)?,
    };
    let right = span.iter().flat_map(|u| w.transposed_times(u)).map(|v| v as f32).collect();
    let left = (0..rows).flat_map(|row| span.iter().map(move |u| u[row] as f32)).collect();
    Ok([left, right])
}

struct Matrix<'a> {
    values: &'a [f64],
    rows: usize,
    cols: usize,
}

impl Matrix<'_> {
    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.cols)
    }

    /// W x
    fn times(&self, x: &[f64]) -> Vec<f64> {
        self.rows().map(|row| dot(row, x)).collect()
    }

    /// Wᵀ u
    fn transposed_times(&self, u: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.cols];
        for (row, &factor) in self.rows().zip(u) {
            add(&mut y, factor, row);
        }
        y
    }
}

/// Orthonormal vectors of the span of the first r columns. Errors: where they depend on each other, as f32 sees it.
fn columns(w: &Matrix, r: usize) -> Result<Vec<Vec<f64>>, String> {
    let mut span: Vec<Vec<f64>> = Vec::with_capacity(r);
    for col in 0..r {
        let column: Vec<f64> = w.rows().map(|row| row[col]).collect();
        let before = dot(&column, &column).sqrt();
        match orthonormal(column, &span) {
            Some((u, length)) if length > 1e-6 * before => span.push(u),
            _ => return Err(format!("OLoRA of a weight whose column {col} depends on those before it")),
        }
    }
    Ok(span)
}

/// What is left of x beside `span`, and its length; none where nothing is. Twice is enough (Kahan and Parlett).
pub(super) fn orthonormal(mut x: Vec<f64>, span: &[Vec<f64>]) -> Option<(Vec<f64>, f64)> {
    for _ in 0..2 {
        for u in span {
            let part = dot(&x, u);
            add(&mut x, -part, u);
        }
    }
    let length = dot(&x, &x).sqrt();
    if length == 0.0 {
        return None;
    }
    x.iter_mut().for_each(|v| *v /= length);
    Some((x, length))
}

/// The left vectors of the r largest singular values, by block Krylov spaces of W Wᵀ (Musco and Musco 2015), begun again from the
/// best vectors until they do not move. Errors: where the next value is as large, or nothing converges.
fn singular(w: &Matrix, r: usize) -> Result<Vec<Vec<f64>>, String> {
    const DEPTH: usize = 4;
    const RESTARTS: usize = 200;
    let width = (r + r.max(8)).min(w.rows);
    let mut start: Vec<Vec<f64>> = (0..width).map(|i| random(i as u64, w.rows)).collect();
    for _ in 0..RESTARTS {
        let (mut basis, mut images): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
        let mut block = std::mem::take(&mut start);
        for depth in 0..DEPTH {
            let begin = basis.len();
            for x in block {
                let before = dot(&x, &x).sqrt();
                if let Some((u, length)) = orthonormal(x, &basis)
                    && length > 1e-10 * before
                {
                    images.push(w.times(&w.transposed_times(&u)));
                    basis.push(u);
                }
            }
            block = if depth + 1 < DEPTH { images[begin..].to_vec() } else { Vec::new() };
        }
        let n = basis.len();
        let small = (0..n * n).map(|i| dot(&basis[i / n], &images[i % n])).collect();
        let (values, vectors) = eigen(small, n);
        let combine = |of: &[Vec<f64>], v: usize| {
            let mut x = vec![0.0; w.rows];
            of.iter().enumerate().for_each(|(i, part)| add(&mut x, vectors[i * n + v], part));
            x
        };
        let keep = width.min(n);
        start = (0..keep).map(|v| combine(&basis, v)).collect();
        let moved = (0..r.min(keep)).map(|v| {
            let mut rest = combine(&images, v);
            add(&mut rest, -values[v], &start[v]);
            dot(&rest, &rest).sqrt()
        });
        if moved.fold(0.0, f64::max) > 1e-11 * values[0] {
            continue;
        }
        let sigma = |i: usize| values.get(i).map_or(0.0, |v| v.max(0.0).sqrt());
        if n < r || sigma(r - 1) <= 1e-7 * sigma(0) {
            return Err(format!("PiSSA of rank {r} of a weight of a smaller rank"));
        }
        // A full space has no next value.
        if r < w.rows.min(w.cols) && sigma(r - 1) - sigma(r) <= 1e-6 * sigma(0) {
            return Err(format!("PiSSA where singular values {r} and {} are as large", r + 1));
        }
        start.truncate(r);
        return Ok(start);
    }
    Err(format!("PiSSA of rank {r} of a weight whose singular values lie too close"))
}

/// Eigenvalues, largest first, and the vectors as columns, of a symmetric matrix: Jacobi's rotations.
pub(super) fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let scale: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..60 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= 1e-32 * scale {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    let vectors = (0..n * n).map(|at| v[at / n * n + order[at % n]]).collect();
    (values, vectors)
}

/// Makes a[p, q] zero.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
    for k in 0..n {
        let (x, y) = (a[p * n + k], a[q * n + k]);
        (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
        let (x, y) = (v[k * n + p], v[k * n + q]);
        (v[k * n + p], v[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
}

/// Numbers in ±1 (an xorshift generator), the same on every machine.
fn random(seed: u64, len: usize) -> Vec<f64> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// y += factor · x
pub(super) fn add(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// U diag(σ) Vᵀ with orthonormal U and V.
    fn of_values(sigma: &[f64], rows: usize, cols: usize) -> Vec<f32> {
        let orthonormals = |seed: u64, len: usize| {
            (0..sigma.len()).fold(Vec::new(), |mut span, i| {
                let (u, _) = orthonormal(random(seed + i as u64, len), &span).unwrap();
                span.push(u);
                span
            })
        };
        let (u, v) = (orthonormals(10, rows), orthonormals(90, cols));
        let value = |i: usize| (0..sigma.len()).map(|k| sigma[k] * u[k][i / cols] * v[k][i % cols]).sum::<f64>() as f32;
        (0..rows * cols).map(value).collect()
    }

    fn times(left: &[f32], right: &[f32], r: usize, cols: usize) -> Vec<f32> {
        let value = |i: usize| (0..r).map(|k| left[i / cols * r + k] * right[k * cols + i % cols]).sum();
        (0..left.len() / r * cols).map(value).collect()
    }

    fn apart(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn the_largest_singular_values_are_taken_out_of_tall_and_wide_weights() {
        let sigma: Vec<f64> = (0..40).map(|i| 3.0 * 0.93f64.powi(i)).collect();
        for (rows, cols) in [(40, 90), (90, 40), (200, 130)] {
            let w = of_values(&sigma, rows, cols);
            let [left, right] = product(Initial::Pissa, &w, [rows, cols], 5).unwrap();
            let want = of_values(&sigma[..5], rows, cols);
            assert!(apart(&times(&left, &right, 5, cols), &want) < 2e-6, "{rows}x{cols}");
        }
    }

    #[test]
    fn the_first_columns_are_gone_after_olora() {
        let w = of_values(&[3.0, 2.0, 1.0, 0.5, 0.2, 0.1], 9, 14);
        let [left, right] = product(Initial::Olora, &w, [9, 14], 3).unwrap();
        let taken = times(&left, &right, 3, 14);
        for i in (0..9 * 14).filter(|i| i % 14 < 3) {
            assert!((w[i] - taken[i]).abs() < 1e-6);
        }
        // The rest is orthogonal to what was taken.
        let rest: f32 = (0..9).map(|row| (w[row * 14 + 8] - taken[row * 14 + 8]) * w[row * 14]).sum();
        assert!(rest.abs() < 1e-6 && apart(&w, &taken) > 1e-3);
    }

    #[test]
    fn what_the_weight_does_not_determine_is_refused() {
        let identity: Vec<f32> = (0..64).map(|i| f32::from(u8::from(i % 9 == 0))).collect();
        let why = product(Initial::Pissa, &identity, [8, 8], 3).unwrap_err();
        assert!(why.contains("singular values 3 and 4"), "{why}");
        assert!(product(Initial::Olora, &identity, [8, 8], 3).is_ok());
        assert!(
            product(Initial::Pissa, &of_values(&[2.0, 1.0], 20, 30), [20, 30], 3).unwrap_err().contains("smaller rank")
        );
        assert!(product(Initial::Olora, &vec![1.0; 60], [6, 10], 2).unwrap_err().contains("column 1"));
        assert!(product(Initial::Olora, &identity, [8, 8], 9).unwrap_err().contains("8 by 8"));
        assert!(product(Initial::Pissa, &vec![f32::NAN; 64], [8, 8], 2).unwrap_err().contains("finite"));
        assert!(product(Initial::Pissa, &[0.0; 64], [8, 8], 2).is_err());
    }
}
