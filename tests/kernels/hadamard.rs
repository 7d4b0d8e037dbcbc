//! Random Hadamard transforms against dense matrices in f64.

use crate::{
    reference::{product, transposed, wide},
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType, QuantizedTensor,
    gpu::{Gpu, GpuOptions},
    graph::Graph,
    kernels::hadamard::{Factors, Hadamard, transpose},
    nn::{Linear, Transform, linear::LowRank},
    ops::hadamard::read_signs,
    quant::{
        Packed, Scheme,
        hadamard::{factor, signs, split},
    },
};

/// y = x · Tᵀ by the definition: T = (H of 2^k, divided by its norm, times the factor, by Kronecker) · signs.
fn reference(x: &[f32], cols: usize, seed: u64, back: bool) -> Vec<f64> {
    let (order, twos) = split(cols).unwrap();
    let (small, flips) = (factor(order, 0), signs(cols, seed));
    let norm = f64::from(1u32 << twos).sqrt();
    let sign = |c: usize| if flips[c / 32] >> (c % 32) & 1 == 1 { -1.0 } else { 1.0 };
    let entry = |r: usize, c: usize| {
        let walsh = if ((r / order) & (c / order)).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
        walsh / norm * f64::from(small[r % order * order + c % order]) * sign(c)
    };
    let rows = x.len() / cols;
    let mut y = vec![0.0; x.len()];
    for (r, i, j) in (0..rows).flat_map(|r| (0..cols).flat_map(move |i| (0..cols).map(move |j| (r, i, j)))) {
        y[r * cols + i] += f64::from(x[r * cols + j]) * if back { entry(j, i) } else { entry(i, j) };
    }
    y
}

/// One column, odd ones, powers of two, what models have, and one that takes two passes.
const COLS: [usize; 12] = [1, 2, 3, 8, 16, 63, 192, 257, 512, 576, 1024, 4096];

#[test]
fn transforms_equal_the_dense_matrix_both_ways() {
    let Some(gpu) = gpu() else { return };
    for cols in COLS {
        let x = Rng(cols as u64).normals(3 * cols);
        let map = Hadamard::new(&gpu, cols, 5).unwrap();
        let mut g = Graph::new(&gpu);
        let tx = g.import(&gpu.tensor("x", [3, cols], DType::F32, &x).unwrap());
        let forward = map.forward(&mut g, &tx).unwrap();
        let backward = map.backward(&mut g, &tx).unwrap();
        let round = map.backward(&mut g, &forward).unwrap();
        for value in [&forward, &backward, &round] {
            g.keep(value);
        }
        let program = g.run().unwrap();
        // Sums of `cols` terms of which the squares sum to about one.
        for (value, back) in [(&forward, false), (&backward, true)] {
            let want = reference(&x, cols, 5, back);
            assert_close(&format!("{cols} columns, back {back}"), &program.read(value).unwrap(), &want, 4e-6, 1e-6);
        }
        let want: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        assert_close(&format!("{cols} columns and back"), &program.read(&round).unwrap(), &want, 4e-6, 1e-6);
    }
}

/// Numbers in place of the signs: forward is (x ∘ s) · Hᵀ, and backward its transpose.
#[test]
fn signs_may_be_any_numbers() {
    let Some(gpu) = gpu() else { return };
    let factors = Factors::default();
    for cols in COLS {
        let mut rng = Rng(cols as u64 + 1);
        let (x, dy, numbers) = (rng.normals(3 * cols), rng.normals(3 * cols), rng.normals(cols));
        let map = Hadamard::sharing(&gpu, cols, 5, &factors).unwrap();
        let ones = read_signs(&map).unwrap();
        let flips = signs(cols, 5);
        assert!((0..cols).all(|c| (ones[c] < 0.0) == (flips[c / 32] >> (c % 32) & 1 == 1)));
        let tensor = gpu.tensor("signs", [cols], DType::F32, &numbers).unwrap();
        let tuned = map.with_signs(&tensor).unwrap();
        let loaded = Hadamard::of_signs(&gpu, &numbers, &factors).unwrap();
        assert!(read_signs(&tuned).unwrap() == numbers && read_signs(&loaded).unwrap() == numbers);
        let mut g = Graph::new(&gpu);
        let [tx, tdy] = [&x, &dy].map(|v| g.import(&gpu.tensor("x", [3, cols], DType::F32, v).unwrap()));
        let (forward, backward) = (loaded.forward(&mut g, &tx).unwrap(), tuned.backward(&mut g, &tdy).unwrap());
        g.keep(&forward);
        g.keep(&backward);
        let program = g.run().unwrap();
        // The map of the seed undoes its own signs.
        let scaled: Vec<f32> = (0..x.len()).map(|i| x[i] * numbers[i % cols] * ones[i % cols]).collect();
        let want = reference(&scaled, cols, 5, false);
        assert_close(&format!("{cols} columns"), &program.read(&forward).unwrap(), &want, 2e-5, 1e-6);
        let mut want = reference(&dy, cols, 5, true);
        want.iter_mut().enumerate().for_each(|(i, v)| *v *= f64::from(numbers[i % cols] * ones[i % cols]));
        assert_close(&format!("{cols} columns back"), &program.read(&backward).unwrap(), &want, 2e-5, 1e-6);
    }
    let map = Hadamard::new(&gpu, 8, 5).unwrap();
    let message = map.with_signs(&gpu.zeros("signs", [7], DType::F32).unwrap()).err().unwrap().to_string();
    assert_eq!(message, "hadamard: expected signs [8] F32, got [7] F32");
}

#[test]
fn maps_share_their_factor() {
    // A device of its own, whose bytes no other test changes.
    let gpu = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
    let (factors, order) = (Factors::default(), split(576).unwrap().0);
    let first = Hadamard::sharing(&gpu, 576, 1, &factors).unwrap();
    let held = gpu.allocated_bytes();
    let second = Hadamard::of_signs(&gpu, &[1.0; 576], &factors).unwrap();
    let factor = (4 * order * order) as u64;
    assert!(held >= first.bytes() + factor);
    assert!((second.bytes()..factor).contains(&(gpu.allocated_bytes() - held)));
}

#[test]
fn an_outlier_is_spread_over_all_columns() {
    let Some(gpu) = gpu() else { return };
    let mut x = vec![0.0f32; 576];
    x[77] = 1e4;
    let map = Hadamard::new(&gpu, 576, 1).unwrap();
    let mut g = Graph::new(&gpu);
    let tx = g.import(&gpu.tensor("x", [1, 576], DType::F32, &x).unwrap());
    let y = map.forward(&mut g, &tx).unwrap();
    g.keep(&y);
    // All entries of a Hadamard matrix have the same magnitude.
    let want = 1e4 / 24.0;
    assert!(g.run().unwrap().read::<f32>(&y).unwrap().iter().all(|v| (v.abs() - want).abs() < 1e-3 * want));
}

#[test]
fn transposing_and_refusals() {
    let Some(gpu) = gpu() else { return };
    let x = Rng(3).normals(7 * 257);
    let mut g = Graph::new(&gpu);
    let tx = g.import(&gpu.tensor("x", [7, 257], DType::F32, &x).unwrap());
    let y = transpose(&mut g, &tx).unwrap();
    g.keep(&y);
    let message = Hadamard::new(&gpu, 64, 1).unwrap().forward(&mut g, &tx).unwrap_err().to_string();
    assert!(message.starts_with("hadamard: expected x [7, 64]"), "{message}");
    assert!(Hadamard::new(&gpu, 2 * 2003, 1).is_err());
    let got = g.run().unwrap().read::<f32>(&y).unwrap();
    assert!((0..x.len()).all(|i| got[i % 257 * 7 + i / 257] == x[i]));
}

/// A layer that is stored as U · W · Tᵀ is the layer of W: y = x · Wᵀ + bias + s · xa · Bᵀ, and the gradient of x.
#[test]
fn a_layer_between_transforms_agrees_with_f64_both_ways() {
    let Some(gpu) = gpu() else { return };
    for (tokens, cols, rows, rank, bias) in [(1, 8, 3, 2, true), (5, 63, 72, 4, false), (33, 128, 65, 8, true)] {
        check_layer(&gpu, tokens, cols, rows, rank, bias);
    }
}

fn check_layer(gpu: &Gpu, tokens: usize, cols: usize, rows: usize, rank: usize, bias: bool) {
    let mut rng = Rng(rows as u64);
    let mut random = |r: usize, c: usize| rng.normals(r * c);
    let (w, x, dy, bias_values) = (random(rows, cols), random(tokens, cols), random(tokens, rows), random(1, rows));
    let (xa, b, dxa, a, add) =
        (random(tokens, rank), random(rows, rank), random(tokens, rank), random(rank, cols), random(tokens, cols));
    let single = |v: Vec<f64>| v.into_iter().map(|v| v as f32).collect::<Vec<_>>();
    // Rows by T, then columns by U.
    let stored = single(reference(&w, cols, 5, false));
    let stored = single(reference(&transposed(&stored, cols), rows, 6, false));
    let packed = Packed::quantize(Scheme::F32, [rows, cols], &transposed(&stored, rows)).unwrap();
    let layer = Linear {
        weight: QuantizedTensor::upload(gpu, "w", &packed).unwrap(),
        bias: bias.then(|| gpu.tensor("bias", [rows], DType::F32, &bias_values).unwrap()),
        transform: Some(Transform::Hadamard {
            input: Hadamard::new(gpu, cols, 5).unwrap(),
            output: Hadamard::new(gpu, rows, 6).unwrap(),
        }),
        rounding: None,
    };
    let mut g = Graph::new(gpu);
    let mut import = |rows, cols, v: &[f32]| g.import(&gpu.tensor("t", [rows, cols], DType::F32, v).unwrap());
    let (tx, tdy, tadd) = (import(tokens, cols, &x), import(tokens, rows, &dy), import(tokens, cols, &add));
    let (txa, tb) = (import(tokens, rank, &xa), import(rows, rank, &b));
    let (tdxa, ta) = (import(tokens, rank, &dxa), import(rank, cols, &a));
    let y = layer.forward(&mut g, &tx, Some(LowRank { xa: &txa, factor: &tb, scale: 0.5 }), None).unwrap();
    let update = LowRank { xa: &tdxa, factor: &ta, scale: 0.5 };
    let dx = layer.backward(&mut g, &tdy, Some(update), Some(&tadd)).unwrap();
    g.keep(&y);
    g.keep(&dx);
    let run = g.run().unwrap();
    let [w, x, dy, xa, b, dxa, a, add] = [w, x, dy, xa, b, dxa, a, add].map(|v| wide(&v));
    let sum = |own: Vec<f64>, low: Vec<f64>, add: &dyn Fn(usize) -> f64| -> Vec<f64> {
        own.iter().zip(&low).enumerate().map(|(i, (own, low))| own + 0.5 * low + add(i)).collect()
    };
    let of_bias = |i: usize| if bias { f64::from(bias_values[i % rows]) } else { 0.0 };
    let want_y = sum(product(&x, &w, cols), product(&xa, &b, rank), &of_bias);
    let (w, a) = (transposed(&w, cols), transposed(&a, cols));
    let want_dx = sum(product(&dy, &w, rows), product(&dxa, &a, rank), &|i| add[i]);
    // Sums of up to 128 products of a few units each, through four transforms of f32.
    assert_close("y", &run.read::<f32>(&y).unwrap(), &want_y, 1e-4, 1e-5);
    assert_close("dx", &run.read::<f32>(&dx).unwrap(), &want_dx, 1e-4, 1e-5);
}
