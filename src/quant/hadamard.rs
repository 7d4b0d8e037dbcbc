//! Orthogonal matrices for incoherence processing: Hadamard's where one is known, else random ones.
//!
//! A transform of n columns is a Walsh-Hadamard transform of 2^k times a *factor*, a small dense orthogonal matrix of order
//! n / 2^k; signs go before. Factors come out of Paley's constructions (1933) over prime fields: orders q + 1 for primes q =
//! 3 mod 4, and 2 (q + 1) for primes q = 1 mod 4, doubled at will: 36 for 576 = 16 * 36, 12 for 1536 = 128 * 12.

use crate::{Error, Result, random::Random};
use std::ops::{Add, Sub};

/// The largest order of a factor.
pub const MOST: usize = 1024;

/// The seed of all random factors, which are no secret: signs alone differ from layer to layer.
pub const FACTOR_SEED: u64 = 0;

/// Random signs of n columns, a bit each, set where a column is negated. `[n.div_ceil(32)]`
pub fn signs(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n.div_ceil(32)).map(|_| (random.bits() >> 32) as u32).collect()
}

/// (the factor's order, k) for n columns: n = order * 2^k. Orders up to 128 are chosen for the fewest passes of 16 columns
/// at a time; larger ones where n has a large odd part. Errors: Unsupported where that part is beyond [`MOST`].
pub fn split(n: usize) -> Result<(usize, usize)> {
    let n = n.max(1);
    let twos = n.trailing_zeros() as usize;
    let odd = n >> twos;
    // The least multiple of the odd part that is an order of Hadamard's matrices.
    let base = (0..=twos).map(|t| odd << t).find(|&m| m == 1 || (m <= 128 && paley(m).is_some())).unwrap_or(odd);
    if base > MOST {
        let supported = format!("odd parts up to {MOST}");
        return Err(Error::unsupported("number of columns to transform", n, supported));
    }
    let passes = |order: usize| (n / order).trailing_zeros().div_ceil(4) as usize;
    let orders = (0..=twos).map(|t| base << t).filter(|m| n % m == 0 && (*m <= 128 || *m <= 8 * base));
    // Rows of whole eights suit the products best.
    let best = orders.min_by_key(|&m| (m % 8 != 0 && n % 8 == 0 && m > 1, passes(m), m)).expect("base itself is one");
    Ok((best, (n / best).trailing_zeros() as usize))
}

/// An orthogonal matrix of this order, rows after each other; Hadamard's divided by sqrt(order) where one is known, else a
/// random one of this seed. `[order * order]`
pub fn factor(order: usize, seed: u64) -> Vec<f32> {
    let scale = 1.0 / (order as f64).sqrt();
    match hadamard(order) {
        Some(entries) => entries.into_iter().map(|e| (f64::from(e) * scale) as f32).collect(),
        None => random(order, seed).into_iter().map(|e| e as f32).collect(),
    }
}

/// x · Tᵀ for rows of `cols` columns, by the signs of `seed`: what the kernels do, in f64.
///
/// x: `[rows * cols]`. Errors: as [`split`].
pub fn apply(x: &mut [f64], cols: usize, seed: u64) -> Result<()> {
    let (order, twos) = split(cols)?;
    let (signs, norm) = (signs(cols, seed), f64::from(1u32 << twos).sqrt());
    let small: Vec<f64> = factor(order, FACTOR_SEED).into_iter().map(|v| f64::from(v) / norm).collect();
    let mut folded = vec![0.0; order];
    for row in x.chunks_exact_mut(cols.max(1)) {
        let negative = |c: usize| signs[c / 32] >> (c % 32) & 1 == 1;
        row.iter_mut().enumerate().filter(|(c, _)| negative(*c)).for_each(|(_, v)| *v = -*v);
        walsh(row, order);
        for part in row.chunks_exact_mut(order) {
            folded.iter_mut().zip(small.chunks_exact(order)).for_each(|(out, entries)| {
                *out = entries.iter().zip(&*part).map(|(a, b)| a * b).sum();
            });
            part.copy_from_slice(&folded);
        }
    }
    Ok(())
}

/// z · T for rows of `signs.len()` columns: what undoes x · Tᵀ, where T has these numbers for signs and they are ±1; the transpose of
/// it where fine-tuning has changed them.
///
/// z: `[rows * cols]`. Errors: as [`split`].
pub fn undo(z: &mut [f32], signs: &[f32]) -> Result<()> {
    let cols = signs.len();
    let (order, twos) = split(cols)?;
    let norm = f64::from(1u32 << twos).sqrt() as f32;
    let small: Vec<f32> = factor(order, FACTOR_SEED).into_iter().map(|v| v / norm).collect();
    let mut folded = vec![0.0; order];
    for row in z.chunks_exact_mut(cols.max(1)) {
        for part in row.chunks_exact_mut(order) {
            folded.fill(0.0);
            for (entries, &x) in small.chunks_exact(order).zip(&*part) {
                folded.iter_mut().zip(entries).for_each(|(out, entry)| *out += entry * x);
            }
            part.copy_from_slice(&folded);
        }
        walsh(row, order);
        row.iter_mut().zip(signs).for_each(|(v, sign)| *v *= sign);
    }
    Ok(())
}

/// The Walsh-Hadamard transform of a row of order * 2^k columns, not divided by its norm: its own transpose.
fn walsh<T: Copy + Add<Output = T> + Sub<Output = T>>(row: &mut [T], order: usize) {
    let mut stride = order;
    while stride < row.len() {
        for pair in row.chunks_exact_mut(2 * stride) {
            let (low, high) = pair.split_at_mut(stride);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        stride *= 2;
    }
}

/// A matrix of ±1 with orthogonal rows, where doubling or Paley's constructions give one.
pub fn hadamard(order: usize) -> Option<Vec<i8>> {
    if order == 1 {
        return Some(vec![1]);
    }
    if let Some(matrix) = paley(order) {
        return Some(matrix);
    }
    let half = order / 2;
    let inner = if order % 2 == 0 { hadamard(half)? } else { return None };
    let sign = |r: usize, c: usize| if r >= half && c >= half { -1 } else { 1 };
    Some(
        (0..order * order)
            .map(|i| (i / order, i % order))
            .map(|(r, c)| sign(r, c) * inner[r % half * half + c % half])
            .collect(),
    )
}

fn is_prime(q: usize) -> bool {
    q > 1 && (2..).take_while(|d| d * d <= q).all(|d| q % d != 0)
}

/// Of order q + 1 (q = 3 mod 4) or 2 (q + 1) (q = 1 mod 4), q prime.
fn paley(order: usize) -> Option<Vec<i8>> {
    if order >= 4 && order % 4 == 0 && is_prime(order - 1) {
        let q = order - 1;
        // I + S, where S borders the residues' matrix by a row of 1 and a column of -1.
        let residue = residues(q);
        let entry = |r: usize, c: usize| match (r, c) {
            (r, c) if r == c => 1,
            (0, _) => 1,
            (_, 0) => -1,
            (r, c) => residue[(q + r - c) % q],
        };
        return Some((0..order * order).map(|i| entry(i / order, i % order)).collect());
    }
    let half = order / 2;
    if order % 4 == 0 && half > 2 && half % 4 == 2 && is_prime(half - 1) {
        let q = half - 1;
        let residue = residues(q);
        // C, symmetric with 0 on the diagonal: an entry becomes itself times [1 1; 1 -1], a 0 becomes [1 -1; -1 -1].
        let core = |r: usize, c: usize| match (r, c) {
            (r, c) if r == c => 0,
            (0, _) | (_, 0) => 1,
            (r, c) => residue[(q + r - c) % q],
        };
        let entry = |r: usize, c: usize| match (core(r / 2, c / 2), r % 2, c % 2) {
            (0, 0, 0) => 1,
            (0, ..) => -1,
            (e, 1, 1) => -e,
            (e, ..) => e,
        };
        return Some((0..order * order).map(|i| entry(i / order, i % order)).collect());
    }
    None
}

/// The quadratic character of 0..q: 1 for squares, -1 for others, 0 for 0.
fn residues(q: usize) -> Vec<i8> {
    let mut all = vec![-1; q];
    (1..q).for_each(|n| all[n * n % q] = 1);
    all[0] = 0;
    all
}

/// An orthogonal matrix out of normal numbers by Gram and Schmidt, each row twice for the rounding.
fn random(order: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed);
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(order);
    while rows.len() < order {
        let mut row: Vec<f64> = (0..order).map(|_| random.normal()).collect();
        for _ in 0..2 {
            for other in &rows {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm > 1e-6 {
            rows.push(row.into_iter().map(|v| v / norm).collect());
        }
    }
    rows.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hadamard_matrices_are_orthogonal() {
        for order in [1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 60, 68, 72, 76, 84, 96, 108, 128] {
            let h = hadamard(order).unwrap_or_else(|| panic!("none of order {order}"));
            for (r, c) in (0..order).flat_map(|r| (0..order).map(move |c| (r, c))) {
                let dot: i32 = (0..order).map(|t| i32::from(h[r * order + t]) * i32::from(h[c * order + t])).sum();
                assert_eq!(dot, if r == c { order as i32 } else { 0 }, "order {order}, rows {r}, {c}");
            }
        }
        assert!(hadamard(6).is_none() && hadamard(9).is_none() && hadamard(172).is_none());
    }

    #[test]
    fn random_factors_are_orthogonal() {
        for order in [3, 9, 43, 172] {
            let m = factor(order, 7);
            for (r, c) in (0..order).flat_map(|r| (0..order).map(move |c| (r, c))) {
                let dot: f64 = (0..order).map(|t| f64::from(m[r * order + t]) * f64::from(m[c * order + t])).sum();
                assert!((dot - f64::from(u8::from(r == c))).abs() < 1e-6, "order {order}: {dot}");
            }
        }
    }

    #[test]
    fn sizes_split_into_a_factor_and_a_power_of_two() {
        for (n, expected) in
            [(1, (1, 0)), (576, (72, 3)), (1536, (96, 4)), (192, (24, 3)), (4096, (16, 8)), (63, (63, 0))]
        {
            assert_eq!(split(n).unwrap(), expected, "{n}");
        }
        for n in [2, 8, 24, 64, 896, 2048, 4864, 5632, 8192, 11008, 14336, 18944, 22016, 28672, 49152] {
            let (order, k) = split(n).unwrap();
            assert_eq!(order << k, n);
            assert!(order <= MOST, "{n}: {order}");
        }
        assert!(split(2 * 2003).is_err());
    }
}
