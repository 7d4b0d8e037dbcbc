mod subgroup;

use super::quantize_rows::{awkward, reference};
use crate::support::{Rng, SHAPES, golden::Golden, gpu};
use fourbit::{
    DType,
    gpu::{Gpu, GpuOptions},
    graph::Graph,
    kernels::{
        QuantizedTensor,
        product_int8::{self, Kept},
        quantize_rows::{self, Scale},
    },
    quant::{Packed, ScaleType, Scheme, affine_words, bytes_to_words},
};

/// A weight of random codes, -128 among them, and random scales.
fn weight(rows: usize, cols: usize) -> Packed {
    let mut rng = Rng(rows as u64);
    let bytes: Vec<u8> = (0..rows * cols).map(|_| rng.bits() as u8).collect();
    let scheme = Scheme::INT8_ROWS.resolve([rows, cols]);
    let Scheme::Int { scale, .. } = scheme else { unreachable!() };
    let scales = affine_words(scale, (0..rows).map(|_| (rng.uniform() * 0.01 + 1e-4, 0.0)));
    let mut codes = vec![0u32; bytes.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut codes)[..bytes.len()].copy_from_slice(&bytes);
    Packed::new(scheme, [rows, cols], codes, scales, vec![]).unwrap()
}

/// The variant that this device takes, and the one through workgroup memory, with and without packed dot products.
fn devices() -> Vec<Gpu> {
    let Some(gpu) = gpu() else { return vec![] };
    let open = |subgroups, packed_dot| {
        Gpu::open(&GpuOptions { subgroups: Some(subgroups), packed_dot, ..GpuOptions::from_env().unwrap() }).unwrap()
    };
    vec![gpu, open(true, false), open(false, true), open(false, false)]
}

fn check(gpu: &Gpu, tokens: usize, cols: usize, rows: usize, threshold: Option<f32>, with_bias: bool) {
    let x = awkward(tokens, cols);
    let packed = weight(rows, cols);
    let bias = Rng(5).normals(rows);
    let w = QuantizedTensor::upload(gpu, "w", &packed).unwrap();
    let mut g = Graph::new(gpu);
    let tx = g.import(&gpu.tensor("x", [tokens, cols], DType::F32, &x).unwrap());
    let tb = g.import(&gpu.tensor("bias", [rows], DType::F32, &bias).unwrap());
    let outliers = threshold.map(|t| quantize_rows::outliers(&mut g, &tx, t).unwrap());
    let scale = outliers.as_ref().map_or(Scale::Row, Scale::WithoutOutliers);
    let q = quantize_rows::quantize(&mut g, &tx, scale).unwrap();
    let kept = outliers.as_ref().map(|o| Kept { x: &tx, columns: &o.list });
    let y = product_int8::matmul(&mut g, &q, &w, kept, with_bias.then_some(&tb)).unwrap();
    g.keep(&y);
    let y = g.run().unwrap().read::<f32>(&y).unwrap();

    let outlier: Vec<bool> =
        (0..cols).map(|c| threshold.is_some_and(|t| (0..tokens).any(|r| x[r * cols + c].abs() >= t))).collect();
    let any = outlier.contains(&true);
    for t in 0..tokens {
        let row = &x[t * cols..(t + 1) * cols];
        let (codes, scale) = reference(row, &outlier, threshold.unwrap_or(f32::INFINITY));
        for r in 0..rows {
            let code = |c: usize| i64::from(packed.code(r * cols + c) as u8 as i8);
            let sum: i64 = (0..cols).map(|c| i64::from(codes[c]) * code(c)).sum();
            let s = packed.affine(r).0;
            let kept = (0..cols).filter(|&c| outlier[c]).map(|c| half::f16::from_f32(row[c]).to_f64() * code(c) as f64);
            let (kept, size) = kept.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            let bias = if with_bias { f64::from(bias[r]) } else { 0.0 };
            let want = f64::from(s) * (f64::from(scale) * sum as f64 + kept) + bias;
            let got = f64::from(y[t * rows + r]);
            // The sum is exact; four roundings of f32 follow it, and one for each column that is kept.
            let parts = f64::from(s) * (f64::from(scale) * sum.abs() as f64 + size) + bias.abs();
            let roundings = 4.0 + if any { outlier.iter().filter(|o| **o).count() as f64 } else { 0.0 };
            let what = format!("[{tokens}, {cols}] x [{rows}, {cols}] at {t}, {r}");
            assert!((got - want).abs() <= roundings * 6e-8 * parts, "{what}: {got} {want}");
        }
    }
}

#[test]
fn products_of_bytes_are_exact() {
    for gpu in devices() {
        for (tokens, cols) in SHAPES {
            for rows in [1, 5, 70] {
                check(&gpu, tokens, cols, rows, None, rows == 5);
            }
        }
        check(&gpu, 130, 576, 192, None, true);
        check(&gpu, 17, 48, 129, None, false);
    }
}

#[test]
fn columns_with_outliers_are_added_in_halves() {
    for gpu in devices() {
        for (tokens, cols, rows) in [(1, 1, 1), (5, 63, 7), (33, 257, 66), (20, 576, 40)] {
            for threshold in [1.0, 6.0, 1e5] {
                check(&gpu, tokens, cols, rows, Some(threshold), rows == 7);
            }
        }
    }
}

#[test]
fn inputs_with_outliers_are_those_of_bitsandbytes() {
    let golden = Golden::open("llm_int8.safetensors");
    let (absmax, codes) = (golden.f32("SCB"), golden.bytes("weight"));
    let (rows, cols) = (absmax.len(), codes.len() / absmax.len());
    let scales = affine_words(ScaleType::F32, absmax.iter().map(|a| (a / 127.0, 0.0)));
    let packed = Packed::new(Scheme::int8(cols), [rows, cols], bytes_to_words(&codes), scales, vec![]).unwrap();
    for gpu in devices() {
        let w = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
        for case in ["plain", "few", "all", "only", "one"] {
            let key = |part: &str| format!("{case}/{part}");
            let x = golden.f32(&key("x"));
            let tokens = x.len() / cols;
            let mut g = Graph::new(&gpu);
            let tx = g.import(&gpu.tensor("x", [tokens, cols], DType::F32, &x).unwrap());
            let found = quantize_rows::outliers(&mut g, &tx, 6.0).unwrap();
            let q = quantize_rows::quantize(&mut g, &tx, Scale::WithoutOutliers(&found)).unwrap();
            let y = product_int8::matmul(&mut g, &q, &w, Some(Kept { x: &tx, columns: &found.list }), None).unwrap();
            [&found.list, &q.codes, &q.scales, &y].iter().for_each(|v| g.keep(v));
            let run = g.run().unwrap();
            let list = run.read::<u32>(&found.list).unwrap();
            let columns: Vec<u32> = golden.bytes(&key("columns")).chunks(8).map(|b| b[0].into()).collect();
            assert_eq!(list[1..=list[0] as usize], columns, "{case}");
            // Rows of 48 codes fill their words.
            assert_eq!(
                bytemuck::cast_slice::<u32, u8>(&run.read(&q.codes).unwrap()),
                golden.bytes(&key("codes")),
                "{case}"
            );
            let scales: Vec<f32> = golden.f32(&key("absmax")).iter().map(|a| a / 127.0).collect();
            assert_eq!(run.read::<f32>(&q.scales).unwrap(), scales, "{case}");
            // There sums are rounded to halves twice, and the columns that are kept are products of halves.
            let want = golden.f32(&key("y"));
            let largest = want.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            for (i, (got, want)) in run.read::<f32>(&y).unwrap().iter().zip(&want).enumerate() {
                assert!((got - want).abs() <= 2e-3 * largest, "{case}: {i}: {got} {want}");
            }
        }
    }
}

#[test]
fn other_weights_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("x", [2, 32], DType::F32).unwrap());
    let q = quantize_rows::quantize(&mut g, &x, Scale::Row).unwrap();
    for scheme in [Scheme::F32, Scheme::int(8, 32), Scheme::int8(16)] {
        let w = QuantizedTensor::zeros(&gpu, "w", scheme, [4, 32]).unwrap();
        assert!(!product_int8::serves(&w));
        assert!(product_int8::matmul(&mut g, &q, &w, None, None).is_err(), "{scheme:?}");
    }
    let narrow = QuantizedTensor::zeros(&gpu, "w", Scheme::INT8_ROWS, [4, 16]).unwrap();
    assert!(product_int8::matmul(&mut g, &q, &narrow, None, None).is_err());
}
