//! Rounding to the lattice against its definition in f64, and values of vector codes against the CPU specification.

use crate::support::{Rng, gpu, packed};
use fourbit::{
    DType, QuantizedTensor,
    graph::Graph,
    kernels::dequantize::{dequantize, dequantize_rows},
    ops::lattice::{additive, block_factor, ldlq},
    quant::{Packed, Scheme, VECTOR, lattice},
};

fn distance(x: &[f64], q: &[f64]) -> f64 {
    x.iter().zip(q).map(|(a, b)| (a - b).powi(2)).sum()
}

/// The point nearest to `x / scale`, times `scale`.
fn nearest(x: &[f64], scale: f64) -> Vec<f64> {
    let scaled: [f32; VECTOR] = std::array::from_fn(|t| (x[t] / scale) as f32);
    let code = lattice::nearest(&scaled);
    let point = lattice::decode(code, &lattice::patterns()[usize::from(code >> 8)]);
    point.iter().map(|&v| f64::from(v) * scale).collect()
}

#[test]
fn every_vector_becomes_a_nearest_point() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in [(1, 8), (3, 24), (33, 200), (5, 576)] {
        let mut w = Rng(cols as u64).normals(rows * cols);
        for (i, v) in w.iter_mut().enumerate() {
            match i % 640 {
                0 => *v = 40.0,
                100..120 => *v = 0.0,
                200..216 => *v = 0.37,
                _ => {}
            }
        }
        let tensor = gpu.tensor("w", [rows, cols], DType::F32, &w).unwrap();
        let rounded = ldlq(&gpu, "w", &tensor, None, 0.9).unwrap().download().unwrap();
        let got: Vec<f64> = rounded.dequantize().into_iter().map(f64::from).collect();
        for (i, (x, q)) in w.chunks(VECTOR).zip(got.chunks(VECTOR)).enumerate() {
            let x: Vec<f64> = x.iter().map(|&v| v.into()).collect();
            let (ours, least) = (distance(&x, q), distance(&x, &nearest(&x, f64::from(0.9f32))));
            // Points that are equally near within the rounding of f32 may be exchanged.
            assert!((ours - least).abs() <= 1e-5 * (1.0 + least), "{rows} x {cols}, vector {i}: {ours} {least}");
        }
    }
}

/// The second moments of inputs that a quarter as many factors make, with some noise and damping.
fn hessian(n: usize, rng: &mut Rng) -> Vec<f64> {
    let factors = n.div_ceil(4);
    let mixing = rng.normals(factors * n);
    let mut h = vec![0.0; n * n];
    (0..n).for_each(|i| h[i * n + i] = 0.01);
    for _ in 0..4 * n {
        let (f, noise) = (rng.normals(factors), rng.normals(n));
        let made = |c: usize| (0..factors).map(|k| f64::from(f[k] * mixing[k * n + c])).sum::<f64>();
        let x: Vec<f64> = (0..n).map(|c| made(c) / (factors as f64).sqrt() + 0.3 * f64::from(noise[c])).collect();
        (0..n * n).for_each(|i| h[i] += x[i / n] * x[i % n] / (4 * n) as f64);
    }
    h
}

fn cholesky(h: &[f64], n: usize) -> Vec<f64> {
    let mut c = vec![0.0; n * n];
    for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
        let known: f64 = (0..j).map(|k| c[i * n + k] * c[j * n + k]).sum();
        let rest = h[i * n + j] - known;
        c[i * n + j] = if i == j { rest.sqrt() } else { rest / c[j * n + j] };
    }
    c
}

/// tr((W - Q) H (W - Q)ᵀ)
fn proxy_loss(w: &[f32], q: &[f32], h: &[f64], n: usize) -> f64 {
    let rows = w.chunks(n).zip(q.chunks(n));
    rows.map(|(w, q)| {
        let e: Vec<f64> = w.iter().zip(q).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        (0..n).map(|r| e[r] * (0..n).map(|c| h[r * n + c] * e[c]).sum::<f64>()).sum::<f64>()
    })
    .sum()
}

#[test]
fn the_block_factor_is_one_of_the_hessian() {
    let n = 40;
    let h = hessian(n, &mut Rng(1));
    let c = cholesky(&h, n);
    let lower: Vec<f64> = block_factor(&c, n).into_iter().map(f64::from).collect();
    let block = |i: usize| i / VECTOR;
    // D is what the blocks of the diagonal of C make.
    let d = |r: usize, s: usize| -> f64 {
        let first = block(r) * VECTOR;
        if block(r) == block(s) { (first..=r.min(s)).map(|k| c[r * n + k] * c[s * n + k]).sum() } else { 0.0 }
    };
    for (r, s) in (0..n).flat_map(|r| (0..n).map(move |s| (r, s))) {
        if block(r) <= block(s) {
            assert_eq!(lower[r * n + s], f64::from(u8::from(r == s)), "{r}, {s}");
        }
        let product: f64 = (0..n)
            .flat_map(|i| (block(i) * VECTOR..n.min(block(i) * VECTOR + VECTOR)).map(move |j| (i, j)))
            .map(|(i, j)| lower[r * n + i] * d(i, j) * lower[s * n + j])
            .sum();
        assert!((product - h[r * n + s]).abs() < 1e-5, "{r}, {s}: {product} {}", h[r * n + s]);
    }
}

/// LDLQ in f64, row by row.
fn reference(w: &[f32], lower: &[f32], n: usize, scale: f64) -> Vec<f64> {
    let mut all = Vec::new();
    for w in w.chunks(n) {
        let (mut q, mut lost) = (vec![0.0; n], vec![0.0; n]);
        for first in (0..n).step_by(VECTOR).rev() {
            let aim: Vec<f64> = (first..first + VECTOR)
                .map(|c| {
                    let carried: f64 = (first + VECTOR..n).map(|j| lost[j] * f64::from(lower[j * n + c])).sum();
                    f64::from(w[c]) + carried
                })
                .collect();
            for (c, v) in (first..).zip(nearest(&aim, scale)) {
                (q[c], lost[c]) = (v, f64::from(w[c]) - v);
            }
        }
        all.extend(q);
    }
    all
}

#[test]
fn rounding_with_feedback_follows_the_reference_and_loses_less() {
    let Some(gpu) = gpu() else { return };
    // One vector, a short panel, several panels with a short last one.
    for (rows, n) in [(1, 8), (33, 40), (7, 64), (40, 200)] {
        let mut rng = Rng(n as u64);
        let (h, w) = (hessian(n, &mut rng), rng.normals(rows * n));
        let lower = block_factor(&cholesky(&h, n), n);
        let tensor = gpu.tensor("w", [rows, n], DType::F32, &w).unwrap();
        let values =
            |lower: Option<&[f32]>| ldlq(&gpu, "w", &tensor, lower, 0.97).unwrap().download().unwrap().dequantize();
        let (with, without) = (values(Some(&lower)), values(None));
        let want = reference(&w, &lower, n, f64::from(0.97f32));
        let rows_that_agree = with
            .chunks(n)
            .zip(want.chunks(n))
            .filter(|(got, want)| got.iter().zip(*want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
        // A vector between two points may fall to either, and what follows in its row goes another way.
        assert!(rows_that_agree.count() * 10 >= rows * 9, "{rows} x {n}");
        let [ours, nearest] = [&with, &without].map(|q| proxy_loss(&w, q, &h, n));
        // 0.30 to 0.37 by another implementation.
        assert!(n == 8 || ours < 0.5 * nearest, "{rows} x {n}: {ours} {nearest}");
    }
}

#[test]
fn sums_of_two_vectors_are_nearer_than_one_choice_after_the_other() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in [(1, 8), (33, 40), (5, 576)] {
        let mut rng = Rng(cols as u64);
        let w = rng.normals(rows * cols);
        let books: Vec<f32> = rng
            .normals(2 * 256 * VECTOR)
            .iter()
            .enumerate()
            .map(|(i, v)| if i < 2048 { *v } else { 0.4 * v })
            .collect();
        let tensor = gpu.tensor("w", [rows, cols], DType::F32, &w).unwrap();
        let scales = vec![1.0; rows];
        let rounded = additive(&gpu, "w", &tensor, None, &books, &scales).unwrap().download().unwrap();
        assert_eq!(rounded.nested, books);
        let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|&v| v.into()).collect() };
        let closest = |x: &[f64], book: &[f32]| -> Vec<f64> {
            let vectors = book.chunks(VECTOR).map(wide);
            vectors.min_by(|a, b| distance(x, a).total_cmp(&distance(x, b))).unwrap()
        };
        for (x, q) in w.chunks(VECTOR).zip(rounded.dequantize().chunks(VECTOR)) {
            let x = wide(x);
            let first = closest(&x, &books[..2048]);
            let rest: Vec<f64> = x.iter().zip(&first).map(|(a, b)| a - b).collect();
            let greedy = distance(&rest, &closest(&rest, &books[2048..]));
            let ours = distance(&x, &wide(q));
            // The greedy pair is one of the beam's; distances are compared in f32.
            assert!(ours <= greedy + 1e-5 * (1.0 + greedy), "{rows} x {cols}: {ours} {greedy}");
        }
    }
    let tensor = gpu.zeros("w", [2, 16], DType::F32).unwrap();
    assert!(additive(&gpu, "w", &tensor, None, &[0.0; 8], &[1.0; 2]).is_err());
}

#[test]
fn values_of_vector_codes_equal_the_specification() {
    let Some(gpu) = gpu() else { return };
    for scheme in [Scheme::E8p, Scheme::Aqlm] {
        for shape in [[1, 8], [7, 24], [33, 576]] {
            let packed: Packed = packed(scheme, shape, &vec![0.0; shape[0] * shape[1]]);
            let want = packed.dequantize();
            let w = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
            assert_eq!(w.download().unwrap(), packed);
            let mut g = Graph::new(&gpu);
            let all = dequantize(&mut g, &w).unwrap();
            let last = dequantize_rows(&mut g, &w, shape[0] - 1..shape[0]).unwrap();
            g.keep(&all);
            g.keep(&last);
            let run = g.run().unwrap();
            assert_eq!(run.read::<f32>(&all).unwrap(), want, "{scheme:?} {shape:?}");
            assert_eq!(run.read::<f32>(&last).unwrap(), want[(shape[0] - 1) * shape[1]..], "{scheme:?} {shape:?}");
        }
    }
}

#[test]
fn what_the_lattice_cannot_hold_is_refused() {
    let Some(gpu) = gpu() else { return };
    let tensor = gpu.zeros("w", [2, 12], DType::F32).unwrap();
    assert!(ldlq(&gpu, "model.q_proj", &tensor, None, 1.0).is_err());
    let tensor = gpu.zeros("w", [2, 16], DType::F32).unwrap();
    let message = ldlq(&gpu, "model.q_proj", &tensor, None, f32::NAN).unwrap_err().to_string();
    assert!(message.starts_with("model.q_proj: a scale of NaN"), "{message}");
    let message = ldlq(&gpu, "model.q_proj", &tensor, Some(&[1.0; 8]), 1.0).unwrap_err().to_string();
    assert_eq!(message, "model.q_proj: expected a factor of [16, 16], got 8");
}
