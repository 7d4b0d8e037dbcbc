//! Gradients of code books and row scales against f64 loops over the definition of the weight.

use crate::{
    reference::{assert_gradient, dot, wide},
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType, QuantizedTensor,
    gpu::Gpu,
    graph::Graph,
    ops::codebook::sort,
    quant::{Packed, Scheme},
};

/// w[r, 8 v + t] = scales[r] · (books[code0][t] + books[256 + code1][t])
fn weight(codes: &[[usize; 2]], books: &[f64], scales: &[f64]) -> Vec<f64> {
    let vectors = codes.len() / scales.len();
    let number = |v: usize, t: usize| books[codes[v][0] * 8 + t] + books[(256 + codes[v][1]) * 8 + t];
    (0..codes.len()).flat_map(|v| (0..8).map(move |t| scales[v / vectors] * number(v, t))).collect()
}

/// (dbooks, dscales) of Σ dw · w
fn gradients(codes: &[[usize; 2]], books: &[f64], scales: &[f64], dw: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let vectors = codes.len() / scales.len();
    let (mut dbooks, mut dscales) = (vec![0.0; 2 * 256 * 8], vec![0.0; scales.len()]);
    for (v, [a, b]) in codes.iter().enumerate() {
        for (t, dw) in dw[8 * v..8 * v + 8].iter().enumerate() {
            dbooks[a * 8 + t] += scales[v / vectors] * dw;
            dbooks[(256 + b) * 8 + t] += scales[v / vectors] * dw;
            dscales[v / vectors] += dw * (books[a * 8 + t] + books[(256 + b) * 8 + t]);
        }
    }
    (dbooks, dscales)
}

fn codes(words: &[u32], vectors: usize) -> Vec<[usize; 2]> {
    let half = |v: usize| words[v / 2] >> (16 * (v % 2));
    (0..vectors).map(|v| [(half(v) & 255) as usize, (half(v) >> 8 & 255) as usize]).collect()
}

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let mut rng = Rng(1);
    let codes = [[3, 255], [0, 7], [3, 7], [3, 3], [9, 255], [0, 0]];
    let (books, scales, dw) = (wide(&rng.normals(4096)), wide(&rng.normals(2)), wide(&rng.normals(48)));
    let (dbooks, dscales) = gradients(&codes, &books, &scales, &dw);
    assert_gradient("scales", &dscales, &scales, |scales| dot(&weight(&codes, &books, scales), &dw));
    // The vectors that are in use; all others have no gradient, and the weight does not change with them.
    let used = 9 * 8 + 8;
    assert!(dbooks[used..2048].iter().all(|v| *v == 0.0));
    assert_gradient("books", &dbooks[..used], &books[..used], |part| {
        let books = [part, &books[used..]].concat();
        dot(&weight(&codes, &books, &scales), &dw)
    });
}

fn check(gpu: &Gpu, [rows, cols]: [usize; 2], words: Vec<u32>) {
    let mut rng = Rng(cols as u64);
    let (books, scales, dw) = (rng.normals(4096), rng.normals(rows), rng.normals(rows * cols));
    let scheme = Scheme::Aqlm;
    let bits = scales.iter().map(|v| v.to_bits()).collect();
    let packed = Packed::new(scheme, [rows, cols], words.clone(), bits, books.clone()).unwrap();
    let sorted = sort(gpu, &QuantizedTensor::upload(gpu, "w", &packed).unwrap()).unwrap();
    let tensor = |values: &[f32]| gpu.tensor("t", [values.len()], DType::F32, values).unwrap();
    // What is there before the first gradient must not be read.
    let (dbooks, dscales) = (tensor(&vec![f32::NAN; 4096]), tensor(&vec![f32::NAN; rows]));
    for keep in [0.0f32, 0.5] {
        let mut g = Graph::new(gpu);
        let tdw = g.import(&gpu.tensor("dw", [rows, cols], DType::F32, &dw).unwrap());
        let [b, s, k] = [&books, &scales, &vec![keep]].map(|values| g.import(&tensor(values)));
        let (db, ds) = (g.import(&dbooks), g.import(&dscales));
        sorted.gradient(&mut g, &tdw, [&b, &s], [&db, &ds], &k).unwrap();
        g.run().unwrap();
    }
    let codes = codes(&words, rows * cols / 8);
    let (want_books, want_scales) = gradients(&codes, &wide(&books), &wide(&scales), &wide(&dw));
    let twice = |v: Vec<f64>| v.into_iter().map(|v| 1.5 * v).collect::<Vec<_>>();
    // Sums of up to 700 products of a few units, in parts of 64.
    let what = format!("[{rows}, {cols}]");
    assert_close(&format!("books {what}"), &dbooks.read::<f32>().unwrap(), &twice(want_books), 2e-4, 1e-5);
    assert_close(&format!("scales {what}"), &dscales.read::<f32>().unwrap(), &twice(want_scales), 2e-4, 1e-5);
}

#[test]
fn gradients_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    // One vector, an odd number of them, rows longer than a workgroup's turn, more than a chunk of one code.
    for [rows, cols] in [[1usize, 8], [3, 24], [7, 520], [33, 1536]] {
        let words = (rows * cols / 8).div_ceil(2);
        let mut rng = Rng(rows as u64);
        check(&gpu, [rows, cols], (0..words).map(|_| rng.bits() as u32).collect());
        // All of one code, and of a few codes at the ends of the books.
        check(&gpu, [rows, cols], vec![0x07ff_07ff; words]);
        check(&gpu, [rows, cols], (0..words).map(|_| 0xff00_00ff * (rng.bits() as u32 & 1)).collect());
    }
}

#[test]
fn other_weights_and_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let floats = QuantizedTensor::zeros(&gpu, "w", Scheme::F32, [2, 8]).unwrap();
    let message = sort(&gpu, &floats).err().unwrap().to_string();
    assert_eq!(message, "codebook: expected a weight of AQLM, got f32");
    let weight = QuantizedTensor::zeros(&gpu, "w", Scheme::Aqlm, [2, 8]).unwrap();
    let codes = sort(&gpu, &weight).unwrap();
    let mut g = Graph::new(&gpu);
    let mut zeros = |len: usize| g.import(&gpu.zeros("t", [len], DType::F32).unwrap());
    let (dw, books, scales, keep) = (zeros(16), zeros(4096), zeros(2), zeros(1));
    let dw = g.reshape(&dw, [2, 8]).unwrap();
    let message = codes.gradient(&mut g, &dw, [&books, &books], [&books, &scales], &keep).unwrap_err().to_string();
    assert_eq!(message, "codebook: expected scales [1, 2] F32, got [4096] F32");
}
