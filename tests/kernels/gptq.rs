use super::product::with_subgroups;
use crate::{
    reference::{
        gptq::{Rounded, Task, gptq},
        wide,
    },
    support::{Rng, gpu, without_subgroups},
};
use fourbit::{
    DType, Gpu,
    arch::LinearId,
    graph::Graph,
    kernels::dequantize,
    method::{Gptq, GptqOptions, InputStats, Layer, LayerMethod, Observer, RtnObserved},
    nn::Linear,
    ops::quantize,
    quant::{
        BlockSize, FP4, NF4, Packed, ScaleType, Scheme,
        blockwise4::{NF2, NF3},
    },
};

/// The quadratic form of a Hessian.
pub struct Rows<'a> {
    pub n: usize,
    /// [n, n]
    pub h: &'a [f32],
}

impl Rows<'_> {
    /// δ H δᵀ of each row, δ = a - b
    pub fn losses(&self, a: &[f32], b: &[f32]) -> Vec<f64> {
        let Rows { n, h } = *self;
        let delta: Vec<f64> = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let row = |d: &[f64]| (0..n * n).map(|k| d[k / n] * f64::from(h[k]) * d[k % n]).sum();
        delta.chunks_exact(n).map(row).collect()
    }
}

/// Second moments of `tokens` inputs whose channels depend on each other and differ in size.
pub fn hessian(n: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng(seed);
    let mut h = vec![0.0f64; n * n];
    for _ in 0..tokens {
        let common = rng.normal();
        let x: Vec<f64> = (0..n)
            .map(|c| f64::from((rng.normal() + common) * if c % 7 == 3 { 4.0 } else { 0.5 + (c % 5) as f32 / 4.0 }))
            .collect();
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] += 2.0 / tokens as f64 * x[i] * x[j];
            }
        }
    }
    h.into_iter().map(|v| v as f32).collect()
}

fn run(gpu: &Gpu, options: GptqOptions, w: &[f32], h: &[f32], n: usize) -> fourbit::Result<Linear> {
    let stats = InputStats {
        tokens: 100,
        hessian: Some(gpu.tensor("h", [n, n], DType::F32, h).unwrap()),
        ..InputStats::default()
    };
    let weight = gpu.tensor("w", [w.len() / n, n], DType::F32, w).unwrap();
    Gptq::new(options)?.quantize(gpu, &Layer { id: LinearId::Q, name: "layer", weight, bias: None, stats: &stats })
}

fn values(gpu: &Gpu, linear: &Linear) -> Vec<f32> {
    let mut g = Graph::new(gpu);
    let y = dequantize::dequantize(&mut g, &linear.weight).unwrap();
    g.keep(&y);
    g.run().unwrap().read(&y).unwrap()
}

fn scheme(bits: u8, block_size: usize, symmetric: bool, scale: ScaleType) -> Scheme {
    Scheme::Int { bits, block: block_size.into(), symmetric, scale }
}

/// tr(Δ H Δᵀ)
fn loss(a: &[f32], b: &[f32], h: &[f32], n: usize) -> f64 {
    Rows { n, h }.losses(a, b).iter().sum()
}

#[test]
fn codes_are_those_of_the_definition_but_for_ties() {
    for (gpu, most) in [(with_subgroups(), 8), (without_subgroups(), 1)] {
        let Some(gpu) = gpu else { continue };
        // rows, columns, group, bits, symmetric, halves, act-order, static groups
        let cases = [
            (5, 96, 32, 4, false, true, false, true),
            (3, 70, 70, 3, true, false, false, true),
            (9, 120, 40, 2, false, false, false, true),
            (4, 63, 63, 8, false, true, false, true),
            (66, 48, 16, 4, true, true, false, true),
            (5, 96, 32, 4, false, true, true, true),
            (5, 96, 24, 3, false, false, true, false),
            (1, 40, 8, 4, false, false, true, true),
        ];
        for (index, &(rows, n, group, bits, symmetric, half, act_order, static_groups)) in
            cases.iter().enumerate().take(most)
        {
            let mut w = Rng(index as u64 + 5).normals(rows * n);
            // A constant row, an outlier, and a channel that no token uses.
            w[..n].fill(0.75);
            w[rows * n - 2] = if half { 40.0 } else { 1e4 };
            let mut h = hessian(n, 3 * n, index as u64);
            for k in 0..n {
                h[5 * n + k] = 0.0;
                h[k * n + 5] = 0.0;
            }
            let scale = if half { ScaleType::F16 } else { ScaleType::F32 };
            let options =
                GptqOptions { act_order, static_groups, ..GptqOptions::new(scheme(bits, group, symmetric, scale)) };
            let linear = run(&gpu, options, &w, &h, n).unwrap();
            let task = Task {
                w: &wide(&w),
                h: &wide(&h),
                cols: n,
                group,
                bits: bits.into(),
                symmetric,
                table: None,
                half,
                damping: options.damping,
                act_order,
                static_groups,
            };
            let want = gptq(&task);
            let moved = act_order && !static_groups;
            assert_eq!(linear.transform.is_some(), moved);
            let got = values(&gpu, &linear);
            let got: Vec<f32> = match moved {
                true => (0..rows * n).map(|k| got[k / n * n + want.place[k % n]]).collect(),
                false => got,
            };
            check(index, &got, &want, n);
        }
    }
}

#[test]
fn codes_of_tables_are_those_of_the_definition_but_for_ties() {
    for (gpu, most) in [(with_subgroups(), 8), (without_subgroups(), 1)] {
        let Some(gpu) = gpu else { continue };
        let double_quant = false;
        let cases = [
            (Scheme::Nf4 { block_size: 32, double_quant }, &NF4[..], 5, 96, true, true),
            (Scheme::Fp4 { block_size: 64, double_quant }, &FP4, 4, 64, false, true),
            (Scheme::Nf3 { block_size: 32 }, &NF3, 9, 96, true, false),
            (Scheme::Nf2 { block_size: 32 }, &NF2, 6, 64, false, true),
        ];
        for (index, &(scheme, table, rows, n, act_order, static_groups)) in cases.iter().enumerate().take(most) {
            let mut w = Rng(index as u64 + 50).normals(rows * n);
            // A row of zeros, a constant one, and an outlier.
            w[..n].fill(0.0);
            w[n..2 * n].fill(-0.75);
            w[rows * n - 2] = 1e4;
            let h = hessian(n, 3 * n, index as u64);
            let options = GptqOptions { act_order, static_groups, ..GptqOptions::new(scheme) };
            let linear = run(&gpu, options, &w, &h, n).unwrap();
            let want = gptq(&Task {
                w: &wide(&w),
                h: &wide(&h),
                cols: n,
                group: scheme.block_size([rows, n]).unwrap(),
                bits: 4,
                symmetric: false,
                table: Some(table),
                half: false,
                damping: options.damping,
                act_order,
                static_groups,
            });
            let got = values(&gpu, &linear);
            let got: Vec<f32> = match act_order && !static_groups {
                true => (0..rows * n).map(|k| got[k / n * n + want.place[k % n]]).collect(),
                false => got,
            };
            assert!(got[..n].iter().all(|&v| v == 0.0), "{scheme}");
            check(index, &got, &want, n);
        }
    }
}

/// A row must agree up to its first tie: from there on another choice is as good, and changes what follows.
fn check(case: usize, got: &[f32], want: &Rounded, n: usize) {
    let mut columns: Vec<usize> = (0..n).collect();
    columns.sort_by_key(|&c| want.place[c]);
    let rows = got.len() / n;
    let mut whole = 0;
    for r in 0..rows {
        // Errors that are passed on have the rounding of the row's largest number.
        let slack = 1e-7 * want.values[r * n..(r + 1) * n].iter().fold(0.1f64, |m, v| m.max(v.abs()));
        let wrong = columns.iter().position(|&c| {
            let (g, w) = (f64::from(got[r * n + c]), want.values[r * n + c]);
            (g - w).abs() > 1e-5 * w.abs() + slack
        });
        let Some(at) = wrong else {
            whole += 1;
            continue;
        };
        let k = r * n + columns[at];
        // f32 sums of some hundred terms: a few thousandths of a step.
        assert!(
            want.ties[k] < 5e-3,
            "case {case}, row {r}, place {at}: {} {} {}",
            got[k],
            want.values[k],
            want.ties[k]
        );
    }
    assert!(10 * whole >= 8 * rows, "case {case}: {whole} of {rows} rows agree");
}

#[test]
fn without_correlations_it_rounds_to_nearest() {
    let Some(gpu) = gpu() else { return };
    let (rows, n) = (33, 128);
    let w = Rng(3).normals(rows * n);
    let mut h = vec![0.0f32; n * n];
    (0..n).for_each(|c| h[c * n + c] = 1.0 + c as f32);
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
    for scheme in [scheme(4, 64, false, ScaleType::F16), scheme(3, 32, true, ScaleType::F32), Scheme::INT8_ROWS, nf4] {
        let ours = run(&gpu, GptqOptions::new(scheme), &w, &h, n).unwrap();
        let weight = gpu.tensor("w", [rows, n], DType::F32, &w).unwrap();
        let rtn = quantize::quantize(&gpu, "w", &weight, [rows, n], scheme).unwrap();
        assert_eq!(ours.weight.download().unwrap(), rtn.download().unwrap(), "{scheme:?}");
    }
}

#[test]
fn the_error_of_the_output_is_below_that_of_rounding_to_nearest() {
    let Some(gpu) = gpu() else { return };
    let (rows, n) = (40, 192);
    let (w, h) = (Rng(8).normals(rows * n), hessian(n, 300, 2));
    let (block_size, double_quant) = (64, false);
    let tables = [Scheme::Nf4 { block_size, double_quant }, Scheme::Fp4 { block_size, double_quant }];
    for scheme in [2, 3, 4, 8].map(|bits| scheme(bits, 64, false, ScaleType::F16)).into_iter().chain(tables) {
        let weight = gpu.tensor("w", [rows, n], DType::F32, &w).unwrap();
        let rtn = quantize::quantize(&gpu, "w", &weight, [rows, n], scheme).unwrap();
        let nearest = loss(&values(&gpu, &Linear::new(rtn, None)), &w, &h, n);
        let plain = GptqOptions { act_order: false, ..GptqOptions::new(scheme) };
        let searched = GptqOptions { observer: Observer::Mse, ..plain };
        for options in [plain, GptqOptions { act_order: true, ..plain }, searched] {
            let ours = loss(&values(&gpu, &run(&gpu, options, &w, &h, n).unwrap()), &w, &h, n);
            assert!(ours < 0.6 * nearest, "{options:?}: {ours} against {nearest}");
        }
    }
}

#[test]
fn percentiles_clip_each_block_at_its_own_magnitudes() {
    let Some(gpu) = gpu() else { return };
    let (rows, cols) = (9, 192);
    let mut w = Rng(5).normals(rows * cols);
    (w[0], w[70], w[cols + 3]) = (1e4, -1e4, 0.0);
    w[2 * cols..3 * cols].fill(0.0);
    w[3 * cols..4 * cols].fill(-0.75);
    let tables = [Scheme::Nf4 { block_size: 64, double_quant: false }, Scheme::Nf3 { block_size: 32 }];
    let int = |block_size, symmetric| scheme(3, block_size, symmetric, ScaleType::F16);
    for scheme in [int(64, false), int(64, true), int(64, false).with_block(BlockSize::Row)].into_iter().chain(tables) {
        for percent in [50.0, 90.0, 98.0, 100.0] {
            let block = scheme.block_size([rows, cols]).unwrap();
            let mut clipped = w.clone();
            for block in clipped.chunks_mut(block) {
                let mut magnitudes: Vec<f32> = block.iter().map(|v| v.abs()).collect();
                magnitudes.sort_by(f32::total_cmp);
                let limit = magnitudes[(block.len() as f64 * percent / 100.0).ceil() as usize - 1];
                block.iter_mut().for_each(|v| *v = v.clamp(-limit, limit));
            }
            // Codes of the clipped numbers may lie nearer than the last one that the limit itself takes: scales are compared.
            let want = Packed::quantize(scheme, [rows, cols], &clipped).unwrap().scales;
            let weight = gpu.tensor("w", [rows, cols], DType::F32, &w).unwrap();
            let layer = Layer { id: LinearId::Q, name: "layer", weight, bias: None, stats: &InputStats::default() };
            let method = RtnObserved::new(scheme, Observer::Percentile { percent }).unwrap();
            let got = method.quantize(&gpu, &layer).unwrap().weight.download().unwrap();
            assert_eq!(got.scales, want, "{scheme:?} {percent}");
            if percent == 100.0 {
                assert_eq!(got, Packed::quantize(scheme, [rows, cols], &w).unwrap(), "{scheme:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_quantized_is_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let (w, h) = (Rng(1).normals(2 * 96), hessian(96, 200, 1));
    let refused = |options: GptqOptions, w: &[f32], h: &[f32]| run(&gpu, options, w, h, 96).err().unwrap().to_string();
    let int4 = GptqOptions::new(scheme(4, 64, false, ScaleType::F16));
    let message = refused(int4, &w, &h);
    assert_eq!(message, "layer.weight: groups of 64 do not divide its 96 columns; choose another group size");
    let int4 = GptqOptions::new(scheme(4, 32, false, ScaleType::F16));
    let mut nan = h.clone();
    nan[7] = f32::NAN;
    assert!(refused(int4, &w, &nan).starts_with("layer: the inputs of the calibration text are not finite"));
    let mut far = w.clone();
    far[100] = 1e7;
    assert_eq!(refused(int4, &far, &h), "layer.weight: the range of row 1 is beyond what a scale can hold");
    assert!(refused(GptqOptions { damping: 0.0, ..int4 }, &w, &h).starts_with("damping: "));
    let nested = Scheme::Nf4 { block_size: 64, double_quant: true };
    assert!(refused(GptqOptions::new(nested), &w, &h).contains("scheme for gptq"));
}
