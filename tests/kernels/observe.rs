use crate::support::{Rng, SHAPES, gpu};
use fourbit::{
    DType,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::observe::{self, Limits, PARTS, RANGE},
};

fn import(gpu: &Gpu, g: &mut Graph, x: &[f32]) -> Value {
    g.import(&gpu.tensor("x", [x.len()], DType::F32, x).unwrap())
}

fn words(gpu: &Gpu, len: usize) -> Tensor {
    gpu.zeros("words", [len], DType::U32).unwrap()
}

/// Normals, constants, zeros, one number, huge and tiny outliers: batches of one tensor.
fn batches() -> Vec<Vec<Vec<f32>>> {
    let mut all: Vec<Vec<Vec<f32>>> = SHAPES
        .iter()
        .map(|&(rows, cols)| (0..3).map(|b| Rng((rows * cols + b) as u64).normals(rows * cols)).collect())
        .collect();
    let mut outlier = Rng(9).normals(1000);
    outlier[77] = 1e4;
    all.push(vec![Rng(1).normals(5), outlier, vec![2e-38; 3]]);
    all.push(vec![vec![0.0; 130], vec![0.0; 2]]);
    all.push(vec![vec![-0.37; 130], vec![-0.37; 65]]);
    all.push(vec![vec![2.5, 3.5], vec![1.5]]);
    // Magnitudes near both ends of f32; smaller ones devices may take for 0.
    all.push(vec![vec![f32::MAX, -1.0, f32::MIN]]);
    all.push(vec![vec![3e-38, -2e-38, 0.0]]);
    all
}

fn ranges(gpu: &Gpu, batches: &[Vec<f32>], rate: f32) -> Tensor {
    let range = words(gpu, RANGE);
    for x in batches {
        let mut g = Graph::new(gpu);
        let (x, range) = (import(gpu, &mut g, x), g.import(&range));
        observe::join_range(&mut g, &x, &range, rate).unwrap();
        g.run().unwrap();
    }
    range
}

#[test]
fn ranges_and_their_averages_are_those_of_the_batches() {
    let Some(gpu) = gpu() else { return };
    for batches in batches() {
        for rate in [0.01f32, 0.5, 1.0] {
            let words: Vec<u32> = ranges(&gpu, &batches, rate).read().unwrap();
            let [low, high, average_low, average_high] = [0, 1, 2, 3].map(|i| f32::from_bits(words[i]));
            let least = |x: &[f32]| x.iter().copied().fold(f32::INFINITY, f32::min);
            let most = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all = batches.concat();
            // Nothing is rounded: equal.
            assert_eq!([low, high], [least(&all), most(&all)]);
            assert_eq!(words[4..], [0, batches.len() as u32]);
            for (got, of) in [(average_low, &least as &dyn Fn(&[f32]) -> f32), (average_high, &most)] {
                let mut want = f64::from(of(&batches[0]));
                for x in &batches[1..] {
                    want += f64::from(rate) * (f64::from(of(x)) - want);
                }
                // Three roundings per batch, of numbers no larger than the largest.
                let slack = 1e-6 * f64::from(most(&all).abs().max(least(&all).abs()));
                assert!((f64::from(got) - want).abs() <= slack, "{rate}: {got} {want}");
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_counted_and_left_out() {
    let Some(gpu) = gpu() else { return };
    let batches = [vec![1.0, f32::NAN, -2.0], vec![f32::INFINITY, 5.0, f32::NEG_INFINITY, 0.5]];
    let range = ranges(&gpu, &batches, 0.01);
    let seen: Vec<u32> = range.read().unwrap();
    assert_eq!([f32::from_bits(seen[0]), f32::from_bits(seen[1])], [-2.0, 5.0]);
    assert_eq!(seen[4..], [3, 2]);
    let counts = words(&gpu, 10);
    for x in &batches {
        let mut g = Graph::new(&gpu);
        let (x, range, counts) = (import(&gpu, &mut g, x), g.import(&range), g.import(&counts));
        observe::histogram(&mut g, &x, &range, &counts).unwrap();
        g.run().unwrap();
    }
    assert_eq!(counts.read::<u32>().unwrap(), [0, 1, 1, 0, 1, 0, 0, 0, 0, 1]);
}

#[test]
fn histograms_count_every_magnitude_once() {
    let Some(gpu) = gpu() else { return };
    for batches in batches() {
        for bins in [1usize, 7, 2048, 8192] {
            let range = ranges(&gpu, &batches, 0.01);
            let counts = words(&gpu, bins);
            for x in &batches {
                let mut g = Graph::new(&gpu);
                let (x, range, counts) = (import(&gpu, &mut g, x), g.import(&range), g.import(&counts));
                observe::histogram(&mut g, &x, &range, &counts).unwrap();
                g.run().unwrap();
            }
            let all = batches.concat();
            let largest = all.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let inverse = if largest > 1e-30 { bins as f32 / largest } else { 0.0 };
            let mut want = vec![0u32; bins];
            // The rule is one f32 division and one product: the same bins everywhere.
            all.iter().for_each(|v| want[((v.abs() * inverse) as usize).min(bins - 1)] += 1);
            assert_eq!(counts.read::<u32>().unwrap(), want, "{bins} bins, largest {largest}");
        }
    }
}

#[test]
fn errors_are_summed_over_batches_and_clipped_numbers_counted() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES {
        let len = rows * cols;
        // Whole tensors, rows, and blocks that end anywhere.
        for (block, first) in [(3 * len, 0), (cols, 0), (5, 3)] {
            let blocks = (first + len).div_ceil(block);
            let limits: Vec<f32> =
                (0..blocks).flat_map(|b| [-1.0 - (b % 3) as f32 * 0.5, 1.5 - (b % 2) as f32]).collect();
            let sums = gpu.zeros("sums", [PARTS, 2], DType::F32).unwrap();
            let clipped = words(&gpu, PARTS);
            let (mut error, mut square, mut outside) = (0.0f64, 0.0f64, 0u32);
            for batch in 0..2 {
                let mut rng = Rng((len + batch) as u64);
                let mut x = rng.normals(len);
                x[len / 2] = 1e4;
                let y: Vec<f32> = x.iter().map(|v| v + 0.01 * rng.normal()).collect();
                for (i, (a, b)) in x.iter().zip(&y).enumerate() {
                    let held = &limits[(first + i) / block * 2..][..2];
                    error += f64::from(a - b).powi(2);
                    square += f64::from(*a).powi(2);
                    outside += u32::from(*a < held[0] || *a > held[1]);
                }
                let mut g = Graph::new(&gpu);
                let (x, y, limits) =
                    (import(&gpu, &mut g, &x), import(&gpu, &mut g, &y), import(&gpu, &mut g, &limits));
                let (sums, clipped) = (g.import(&sums), g.import(&clipped));
                let held = Limits { limits: &limits, block, first };
                observe::errors(&mut g, &x, &y, held, &sums, &clipped).unwrap();
                g.run().unwrap();
            }
            let sums: Vec<f32> = sums.read().unwrap();
            let total = |at: usize| sums.chunks(2).map(|s| f64::from(s[at])).sum::<f64>();
            // Positive terms, at most some 70 to a part, each rounded.
            assert!((total(0) - error).abs() <= 1e-5 * error, "{} {error}", total(0));
            assert!((total(1) - square).abs() <= 1e-5 * square, "{} {square}", total(1));
            assert_eq!(clipped.read::<u32>().unwrap().iter().sum::<u32>(), outside);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = import(&gpu, &mut g, &[1.0; 6]);
    let (range, few, none) = (g.import(&words(&gpu, RANGE)), g.import(&words(&gpu, 3)), g.import(&words(&gpu, 0)));
    assert!(observe::join_range(&mut g, &x, &few, 0.01).is_err());
    assert!(observe::histogram(&mut g, &x, &few, &few).is_err());
    assert!(observe::histogram(&mut g, &x, &range, &none).is_err());
    let sums = g.import(&gpu.zeros("sums", [PARTS, 2], DType::F32).unwrap());
    let clipped = g.import(&words(&gpu, PARTS));
    let limits = import(&gpu, &mut g, &[0.0; 4]);
    for (block, first) in [(0, 0), (2, 0), (3, 1)] {
        let held = Limits { limits: &limits, block, first };
        let message = observe::errors(&mut g, &x, &x, held, &sums, &clipped).unwrap_err().to_string();
        assert!(message.contains(&format!("blocks of {block}")), "{message}");
    }
}
