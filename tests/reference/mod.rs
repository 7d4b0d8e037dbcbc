//! Plain f64 loops: what the kernels must compute. Their own gradients are checked against finite differences.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod attention;
pub mod dropout;
pub mod glu;
pub mod gptq;
pub mod loss;
pub mod norm;
pub mod observer;
pub mod optimizer;
pub mod rope;
pub mod steps;

/// f32 values as the references take them.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Σ a · b
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// a · bᵀ, of [n, depth] and [m, depth].
pub fn product(a: &[f64], b: &[f64], depth: usize) -> Vec<f64> {
    a.chunks(depth).flat_map(|a| b.chunks(depth).map(move |b| dot(a, b))).collect()
}

/// aᵀ, of [_, cols].
pub fn transposed<T: Copy>(a: &[T], cols: usize) -> Vec<T> {
    let rows = a.len() / cols;
    (0..a.len()).map(|i| a[i % rows * cols + i / rows]).collect()
}

/// df/dx by central differences of a scalar function.
pub fn central_differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + step;
            let above = f(&x);
            x[i] = at - step;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * step)
        })
        .collect()
}

/// A gradient equals its finite differences within 1e-7 of scale: the differences' own error is about 1e-10 / 1e-5 · 1e-2.
#[track_caller]
pub fn assert_gradient(what: &str, analytic: &[f64], x: &[f64], f: impl Fn(&[f64]) -> f64) {
    let numeric = central_differences(x, f);
    let largest = numeric.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (a, n)) in analytic.iter().zip(&numeric).enumerate() {
        assert!((a - n).abs() <= 1e-7 * largest, "{what}: element {i}: analytic {a}, differences {n}");
    }
    assert_eq!(analytic.len(), numeric.len(), "{what}: lengths");
}
