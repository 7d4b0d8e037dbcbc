use crate::{
    reference::dropout::{kept, philox},
    support::{Rng, SHAPES, gpu},
};
use fourbit::{
    DType,
    gpu::{Gpu, Kernel},
    graph::{Graph, Params, Value},
    kernels::dropout,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ByElement {
    len: u32,
    layer: u32,
    threshold: u32,
    scale: f32,
}

impl Params for ByElement {
    const NAMES: &'static [&'static str] = &["len", "layer", "threshold", "scale"];
}

/// Dropout by the form that other kernels import, one element at a time.
fn by_element(g: &mut Graph, x: &Value, seed: &Value, layer: u32, p: f32) -> Value {
    let (threshold, scale) = dropout::mask(p).unwrap();
    let len = x.shape().len();
    let y = g.value(x.shape().clone(), DType::F32).unwrap();
    let params = ByElement { len: len as u32, layer, threshold, scale };
    let kernel = Kernel::new("dropout", "by_element");
    g.dispatch(kernel, &params, &[x, seed, &y], len.div_ceil(1024), 80.0 * len as f64).unwrap();
    y
}

/// The authors' known answers.
#[test]
fn the_reference_is_philox() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

fn run(gpu: &Gpu, x: &[f32], seed: [u32; 2], layer: u32, p: f32) -> Vec<f32> {
    let mut g = Graph::new(gpu);
    let tx = g.import(&gpu.tensor("x", [x.len()], DType::F32, x).unwrap());
    let seed = g.import(&gpu.tensor("seed", [2], DType::U32, &seed).unwrap());
    let y = dropout::dropout(&mut g, &tx, &seed, layer, p).unwrap();
    let same = by_element(&mut g, &tx, &seed, layer, p);
    g.keep(&y);
    g.keep(&same);
    let ran = g.run().unwrap();
    let y = ran.read::<f32>(&y).unwrap();
    assert_eq!(y, ran.read::<f32>(&same).unwrap(), "both forms of the mask");
    y
}

#[test]
fn masks_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES {
        for (p, seed, layer) in [(0.0, [1, 2], 0), (0.1, [9, 70_000], 5), (0.75, [!0, !0], !0)] {
            let x = Rng(cols as u64).normals(rows * cols);
            let y = run(&gpu, &x, seed, layer, p);
            let scale = (1.0 / (1.0 - f64::from(p))) as f32;
            for (i, (x, y)) in x.iter().zip(&y).enumerate() {
                let want = if kept(seed, layer, f64::from(p), i) { x * scale } else { 0.0 };
                assert_eq!(*y, want, "p {p}, element {i}");
            }
        }
    }
}

#[test]
fn masks_have_the_right_mean_and_are_independent() {
    let Some(gpu) = gpu() else { return };
    let len = 1 << 18;
    let ones = vec![1.0; len];
    let p = 0.3f64;
    let mask =
        |seed, layer| -> Vec<bool> { run(&gpu, &ones, seed, layer, p as f32).iter().map(|v| *v > 0.0).collect() };
    let first = mask([7, 1], 0);
    assert_eq!(first, mask([7, 1], 0), "the same key gives the same mask");
    let others = [
        mask([7, 1], 1),                                            // layer
        mask([7, 2], 0),                                            // draw
        mask([8, 1], 0),                                            // seed
        mask([1, 7], 0),                                            // seed and draw exchanged
        first.iter().skip(1).chain(&first[..1]).copied().collect(), // the neighbour
    ];
    // Within 4.5 standard deviations of a binomial count.
    let check = |what: &str, count: usize, probability: f64| {
        let n = len as f64;
        let deviation = (count as f64 - n * probability) / (n * probability * (1.0 - probability)).sqrt();
        assert!(deviation.abs() < 4.5, "{what}: {count} of {len} is {deviation:.1} deviations away");
    };
    check("kept", first.iter().filter(|k| **k).count(), 1.0 - p);
    for (i, other) in others.iter().enumerate() {
        let both = first.iter().zip(other).filter(|(a, b)| **a && **b).count();
        check(&format!("kept in both, case {i}"), both, (1.0 - p) * (1.0 - p));
    }
}

#[test]
fn bad_probabilities_and_seeds_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("x", [4], DType::F32).unwrap());
    let seed = g.import(&gpu.zeros("seed", [2], DType::U32).unwrap());
    for p in [-0.1, 1.0, f32::NAN] {
        assert!(dropout::dropout(&mut g, &x, &seed, 0, p).is_err(), "{p}");
    }
    assert!(dropout::dropout(&mut g, &x, &x, 0, 0.1).is_err());
}
