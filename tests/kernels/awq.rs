use super::gptq::{Rows, hessian};
use crate::support::{Rng, gpu};
use fourbit::{
    DType, Gpu,
    gpu::Tensor,
    graph::Graph,
    kernels::{
        awq,
        gptq::{BlockRange, Grid},
    },
    ops::quantize,
    quant::{BlockSize, ScaleType, Scheme},
};

fn grid(scheme: Scheme) -> Grid {
    let Some(BlockSize::Elements(group)) = scheme.block() else { unreachable!("groups of one size are tested") };
    Grid { scheme, group, first_block: 0, range: BlockRange::Whole }
}

fn tensor(gpu: &Gpu, shape: [usize; 2], values: &[f32]) -> Tensor {
    gpu.tensor("test", shape, DType::F32, values).unwrap()
}

/// What rounding to nearest makes of w.
fn nearest(gpu: &Gpu, w: &[f32], n: usize, scheme: Scheme) -> Vec<f32> {
    let shape = [w.len() / n, n];
    quantize::quantize(gpu, "w", &tensor(gpu, shape, w), shape, scheme).unwrap().download().unwrap().dequantize()
}

/// 4 and 3 bits, 2 bits symmetric, one group per row, and 8 bits.
fn schemes() -> [(Scheme, usize); 5] {
    let int = |bits, block_size, symmetric, scale| Scheme::Int {
        bits,
        block: BlockSize::Elements(block_size),
        symmetric,
        scale,
    };
    [
        (int(4, 32, false, ScaleType::F16), 96),
        (int(3, 24, false, ScaleType::F32), 72),
        (int(2, 8, true, ScaleType::F32), 40),
        (int(4, 63, false, ScaleType::F32), 63),
        (int(8, 64, false, ScaleType::F16), 128),
    ]
}

#[test]
fn the_error_of_scaled_weights_is_that_of_the_definition() {
    let Some(gpu) = gpu() else { return };
    for (scheme, n) in schemes() {
        let rows = 7;
        let mut w = Rng(n as u64).normals(rows * n);
        w[..n].fill(-0.5);
        w[2 * n..3 * n].fill(0.0);
        let h = hessian(n, 2 * n, 4);
        let factors: Vec<f32> = Rng(9).normals(n).iter().map(|v| (0.5 * v).exp()).collect();
        let step = if n == 72 { 3 } else { 1 };
        let sums = gpu.zeros("sums", [rows + 2], DType::F32).unwrap();
        let th = tensor(&gpu, [n, n], &h);
        let mut g = Graph::new(&gpu);
        let tw = g.import(&tensor(&gpu, [rows, n], &w));
        let f = g.import(&gpu.tensor("factors", [n], DType::F32, &factors).unwrap());
        let s = g.import(&sums);
        let taken = awq::scaled_error(&mut g, &grid(scheme), &tw, &f, &th, &s, 2, step).unwrap();
        assert_eq!(taken, if step == 3 { 3 } else { rows });
        g.run().unwrap();
        let scaled: Vec<f32> = w.iter().enumerate().map(|(i, v)| v * factors[i % n]).collect();
        let rounded: Vec<f32> =
            nearest(&gpu, &scaled, n, scheme).iter().enumerate().map(|(i, v)| v / factors[i % n]).collect();
        let got = sums.read::<f32>().unwrap();
        assert_eq!(got[..2], [0.0, 0.0]);
        for (r, want) in (Rows { n, h: &h }).losses(&rounded, &w).into_iter().step_by(step).enumerate() {
            // Differences of near numbers (two roundings of w, whose errors are 1e-3 of a step at 8 bits), and f32 sums of n² terms.
            assert!(
                (f64::from(got[2 + r]) - want).abs() <= 2e-3 * want + 1e-9,
                "{scheme:?} {r}: {} {want}",
                got[2 + r]
            );
        }
    }
}

#[test]
fn clipping_takes_the_best_of_the_ranges() {
    let Some(gpu) = gpu() else { return };
    for (scheme, n) in schemes() {
        let (rows, group) = (5, grid(scheme).group);
        let mut w = Rng(n as u64 + 1).normals(rows * n);
        w[..n].fill(0.25);
        w[n..2 * n].fill(0.0);
        w[3 * n + 1] = 1e4;
        let h = hessian(n, 2 * n, 5);
        let (target, th) = (tensor(&gpu, [rows, n], &w), tensor(&gpu, [n, n], &h));
        let mut g = Graph::new(&gpu);
        let tw = g.import(&target);
        awq::clip(&mut g, &grid(scheme), &tw, &th).unwrap();
        g.run().unwrap();
        let got = target.read::<f32>().unwrap();
        // Every range for all groups at once: groups do not touch each other.
        let tried: Vec<(Vec<f32>, Vec<f32>)> = (0..10)
            .map(|t| {
                let cut = |part: &[f32]| {
                    let m = part.iter().fold(0.0f32, |m, v| m.max(v.abs())) * (1.0 - 0.05 * t as f32);
                    part.iter().map(move |v| v.clamp(-m, m)).collect::<Vec<_>>()
                };
                let cut: Vec<f32> = w.chunks_exact(group).flat_map(cut).collect();
                let rounded = nearest(&gpu, &cut, n, scheme);
                (cut, rounded)
            })
            .collect();
        for (index, part) in got.chunks_exact(group).enumerate() {
            let at = index * group;
            let first = at % n;
            let cost = |rounded: &[f32]| {
                let d: Vec<f64> = (at..at + group).map(|i| f64::from(rounded[i]) - f64::from(w[i])).collect();
                let h = |a: usize, b: usize| f64::from(h[(first + a) * n + first + b]);
                (0..group * group).map(|k| d[k / group] * h(k / group, k % group) * d[k % group]).sum::<f64>()
            };
            let least = tried.iter().map(|(_, rounded)| cost(rounded)).fold(f64::INFINITY, f64::min);
            let near = |a: &[f32]| a.iter().zip(part).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
            let taken = tried.iter().find(|(cut, _)| near(&cut[at..at + group]));
            let (_, rounded) = taken.unwrap_or_else(|| panic!("{scheme:?} group {index}: {part:?}"));
            assert!(cost(rounded) <= least * (1.0 + 1e-3) + 1e-9, "{scheme:?} group {index}");
        }
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let Some(gpu) = gpu() else { return };
    let (w, h) = (gpu.zeros("w", [2, 96], DType::F32).unwrap(), gpu.zeros("h", [96, 96], DType::F32).unwrap());
    let mut g = Graph::new(&gpu);
    let tw = g.import(&w);
    let message = awq::clip(&mut g, &grid(Scheme::int(4, 64)), &tw, &h).unwrap_err().to_string();
    assert_eq!(message, "awq: expected a group size that divides 96 columns, got 64");
}
