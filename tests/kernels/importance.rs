//! Scores of ranks, and the orthogonality term, against f64 loops.

use crate::{
    reference::{assert_gradient, wide},
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::{Graph, Value},
    kernels::{
        elementwise,
        importance::{self, Along},
    },
};

/// ‖M − I‖ of M = F · Fᵀ, and its gradient 2 (M − I) · F / ‖M − I‖.
fn term(f: &[f64], [rows, cols]: [usize; 2]) -> (f64, Vec<f64>) {
    let m = |i: usize, j: usize| {
        let dot: f64 = (0..cols).map(|c| f[i * cols + c] * f[j * cols + c]).sum();
        dot - if i == j { 1.0 } else { 0.0 }
    };
    let all = (0..rows).flat_map(|i| (0..rows).map(move |j| (i, j)));
    let length = all.map(|(i, j)| m(i, j).powi(2)).sum::<f64>().sqrt();
    let gradient = (0..rows * cols).map(|k| {
        let (i, c) = (k / cols, k % cols);
        2.0 * (0..rows).map(|j| m(i, j) * f[j * cols + c]).sum::<f64>() / length.max(f64::MIN_POSITIVE)
    });
    (length, gradient.collect())
}

fn transposed(f: &[f64], cols: usize) -> Vec<f64> {
    let rows = f.len() / cols;
    (0..f.len()).map(|i| f[i % rows * cols + i / rows]).collect()
}

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let f = wide(&Rng(4).normals(3 * 7));
    assert_gradient("orthogonality", &term(&f, [3, 7]).1, &f, |f| term(f, [3, 7]).0);
}

#[test]
fn the_orthogonality_term_and_its_gradient() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let value = |g: &mut Graph, shape: &[usize], values: &[f32]| -> Value {
        g.import(&gpu.tensor("t", shape, DType::F32, values).unwrap())
    };
    let one = value(&mut g, &[1], &[1.0]);
    let total = value(&mut g, &[1], &[f32::NAN]);
    let (mut sum, mut checked) = (0.0, Vec::new());
    let cases = [
        ([1, 1], Along::Rows),
        ([3, 63], Along::Rows),
        ([17, 257], Along::Rows),
        ([130, 5], Along::Columns),
        ([33, 40], Along::Columns),
    ];
    for (index, (shape, along)) in cases.into_iter().enumerate() {
        let mut rng = Rng(index as u64);
        let len = shape[0] * shape[1];
        let f: Vec<f32> = rng.normals(len).iter().map(|v| 0.4 * v).collect();
        let before = rng.normals(len);
        let (half, gradient) = (value(&mut g, &shape, &f), value(&mut g, &shape, &before));
        // In the middle of a graph.
        let factor = elementwise::scaled(&mut g, &half, 2.0).unwrap();
        importance::orthogonality(&mut g, [&factor, &gradient], along, 0.3, (index > 0, &total, &one)).unwrap();
        let f: Vec<f64> = f.iter().map(|v| 2.0 * f64::from(*v)).collect();
        let (length, gradient_of_term) = match along {
            Along::Rows => term(&f, shape),
            Along::Columns => {
                let (length, turned) = term(&transposed(&f, shape[1]), [shape[1], shape[0]]);
                (length, transposed(&turned, shape[0]))
            }
        };
        sum += 0.3 * length;
        let want: Vec<f64> = gradient_of_term.iter().zip(&before).map(|(t, b)| 0.3 * t + f64::from(*b)).collect();
        checked.push((gradient, want));
    }
    // Two orthonormal rows: nothing is added, and no number is divided by 0.
    let unit = value(&mut g, &[2, 3], &[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let gradient = value(&mut g, &[2, 3], &[0.5; 6]);
    importance::orthogonality(&mut g, [&unit, &gradient], Along::Rows, 0.3, (true, &total, &one)).unwrap();
    checked.push((gradient, vec![0.5; 6]));
    g.keep(&total);
    checked.iter().for_each(|(gradient, _)| g.keep(gradient));
    let ran = g.run().unwrap();
    // Sums of up to 257 products of units, and of their squares.
    assert_close("total", &ran.read::<f32>(&total).unwrap(), &[sum], 0.0, 1e-5);
    for (gradient, want) in checked {
        assert_close("gradient", &ran.read::<f32>(&gradient).unwrap(), &want, 2e-5, 1e-5);
    }
}

#[test]
fn scores_are_smoothed() {
    let Some(gpu) = gpu() else { return };
    for [rows, cols] in [[1, 1], [3, 63], [7, 257], [300, 5]] {
        let mut rng = Rng(cols as u64);
        let len = rows * cols;
        let [param, grad] = [len, len].map(|len| rng.normals(len));
        let [s, u]: [Vec<f32>; 2] = [len, len].map(|len| rng.normals(len).iter().map(|v| v.abs()).collect());
        let tensor = |shape: &[usize], values: &[f32]| gpu.tensor("t", shape, DType::F32, values).unwrap();
        let [ts, tu] = [&s, &u].map(|v| tensor(&[rows, cols], v));
        let run = |taken: f32| {
            let mut g = Graph::new(&gpu);
            let [param, grad] = [&param, &grad].map(|v| g.import(&tensor(&[rows, cols], v)));
            let norm = g.import(&tensor(&[3], &[7.0, 0.5, taken]));
            let [vs, vu] = [&ts, &tu].map(|t| g.import(t));
            importance::smooth(&mut g, [&param, &grad], &norm, [&vs, &vu], (0.85, 0.7)).unwrap();
            g.run().unwrap();
        };
        // A step that was left out changes nothing.
        run(0.0);
        assert_eq!((ts.read::<f32>().unwrap(), tu.read::<f32>().unwrap()), (s.clone(), u.clone()));
        run(1.0);
        let now: Vec<f64> = param.iter().zip(&grad).map(|(p, g)| (0.5 * f64::from(*p) * f64::from(*g)).abs()).collect();
        let mean: Vec<f64> = now.iter().zip(wide(&s)).map(|(i, s)| 0.85 * s + 0.15 * i).collect();
        let spread: Vec<f64> = (0..len).map(|i| 0.7 * f64::from(u[i]) + 0.3 * (now[i] - mean[i]).abs()).collect();
        assert_close("sensitivity", &ts.read::<f32>().unwrap(), &mean, 1e-6, 1e-6);
        assert_close("uncertainty", &tu.read::<f32>().unwrap(), &spread, 1e-6, 1e-6);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.zeros("a", [2, 3], DType::F32).unwrap());
    let [two, one] = [2, 1].map(|len| g.import(&gpu.zeros("v", [len], DType::F32).unwrap()));
    assert!(importance::smooth(&mut g, [&a, &two], &two, [&a, &a], (0.9, 0.9)).is_err());
    assert!(importance::orthogonality(&mut g, [&a, &two], Along::Rows, 1.0, (false, &one, &one)).is_err());
}
