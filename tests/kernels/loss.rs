use super::logits::SHAPES;
use crate::{
    reference::{
        assert_gradient,
        loss::{cross_entropy, shaped},
        wide,
    },
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{elementwise, logits::LogitShape, loss},
};

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let logits = wide(&Rng(4).normals(11));
    let (_, _, d) = cross_entropy(&logits, 3);
    assert_gradient("cross_entropy", &d, &logits, |x| cross_entropy(x, 3).0);
}

/// Rows of every kind: ordinary, ignored, with ties, with far-out logits, with the label first and last.
fn batch(rows: usize, cols: usize) -> (Vec<f32>, Vec<i32>) {
    let mut rng = Rng((rows * cols) as u64);
    let mut logits: Vec<f32> = rng.normals(rows * cols).iter().map(|v| 3.0 * v).collect();
    let mut labels: Vec<i32> = (0..rows).map(|_| (rng.bits() % cols as u64) as i32).collect();
    for r in 0..rows {
        let row = &mut logits[r * cols..(r + 1) * cols];
        match r % 7 {
            1 => labels[r] = -100,
            2 => row.fill(0.5),
            3 => row.iter_mut().for_each(|v| *v *= 1e4),
            4 => row.iter_mut().for_each(|v| *v -= 3e4),
            5 => row[labels[r] as usize] = 40.0,
            6 => labels[r] = [0, cols as i32 - 1][r / 7 % 2],
            _ => {}
        }
    }
    if rows > 9 {
        // A tie of all: the first column counts as the prediction.
        labels[9] = 0;
    }
    (logits, labels)
}

const SIZES: [(usize, usize, usize); 5] = [(1, 1, 1), (3, 63, 2), (16, 257, 7), (9, 5003, 4), (3, 128_256, 3)];

#[test]
fn losses_and_gradients_in_chunks() {
    let Some(gpu) = gpu() else { return };
    for (shape, (rows, cols, chunk)) in SHAPES.into_iter().flat_map(|shape| SIZES.map(|sizes| (shape, sizes))) {
        let (logits, labels) = batch(rows, cols);
        let scale = 1.0 / 37.0f32;
        let mut g = Graph::new(&gpu);
        let tlabels = g.import(&gpu.tensor("labels", [rows], DType::I32, &labels).unwrap());
        let tscale = g.import(&gpu.tensor("scale", [2], DType::F32, &[scale, 7.0]).unwrap());
        let losses = g.value([rows, 2], DType::F32).unwrap();
        let unchanged = g.value([rows, 2], DType::F32).unwrap();
        let mut chunks = Vec::new();
        for row0 in (0..rows).step_by(chunk) {
            let n = chunk.min(rows - row0);
            let part = &logits[row0 * cols..(row0 + n) * cols];
            let stored = g.import(&gpu.tensor("logits", [n, cols], DType::F32, part).unwrap());
            let part = elementwise::add(&mut g, &stored, &stored, 0.0).unwrap();
            loss::cross_entropy_losses(&mut g, &part, shape, &tlabels, row0, &unchanged).unwrap();
            loss::cross_entropy(&mut g, &part, shape, &tlabels, row0, loss::Share::All(&tscale), &losses).unwrap();
            g.keep(&part);
            chunks.push(part);
        }
        g.keep(&losses);
        g.keep(&unchanged);
        let ran = g.run().unwrap();
        let got: Vec<f32> = chunks.iter().flat_map(|c| ran.read::<f32>(c).unwrap()).collect();
        let (mut want, mut want_losses) = (Vec::new(), Vec::new());
        for (row, label) in logits.chunks(cols).zip(&labels) {
            let (z, slopes): (Vec<f64>, Vec<f64>) = wide(row).into_iter().map(|x| shaped(shape, x)).unzip();
            let (loss, correct, d) = cross_entropy(&z, *label);
            want.extend(d.iter().zip(slopes).map(|(d, slope)| d * slope * f64::from(scale)));
            want_losses.extend([loss, f64::from(u8::from(correct))]);
        }
        // exp of differences up to 40 is off by 80 ulp at most, relative to terms that small; the label's column cancels
        // against scale. Logits of 3e4 are exact only to 2e-3, but their differences are those of the reference.
        assert_close("dlogits", &got, &want, 2e-7 * f64::from(scale), 1e-5);
        assert_close("losses", &ran.read::<f32>(&losses).unwrap(), &want_losses, 2e-6, 2e-6);
        assert_eq!(ran.read::<f32>(&unchanged).unwrap(), ran.read::<f32>(&losses).unwrap());
    }
}

#[test]
fn sums_accumulate_over_micro_batches() {
    let Some(gpu) = gpu() else { return };
    for rows in [1, 255, 1000] {
        let mut rng = Rng(rows as u64);
        let losses: Vec<f32> =
            (0..2 * rows).map(|i: usize| if i.is_multiple_of(2) { rng.uniform() } else { 1.0 }).collect();
        let labels: Vec<i32> = (0..rows as i32).map(|r| if r % 3 == 1 { -100 } else { r }).collect();
        let mut g = Graph::new(&gpu);
        let tlosses = g.import(&gpu.tensor("losses", [rows, 2], DType::F32, &losses).unwrap());
        let tlabels = g.import(&gpu.tensor("labels", [rows], DType::I32, &labels).unwrap());
        let first = g.import(&gpu.tensor("accumulate", [1], DType::F32, &[0.0f32]).unwrap());
        let second = g.import(&gpu.tensor("accumulate", [1], DType::F32, &[1.0f32]).unwrap());
        // What the first micro-batch finds there must not matter.
        let metrics = g.import(&gpu.tensor("metrics", [4], DType::F32, &[f32::NAN; 4]).unwrap());
        loss::sum_losses(&mut g, &tlosses, &tlabels, &first, &metrics).unwrap();
        loss::sum_losses(&mut g, &tlosses, &tlabels, &second, &metrics).unwrap();
        let got = g.run().unwrap().read::<f32>(&metrics).unwrap();
        let sum: f64 = losses.iter().step_by(2).map(|v| f64::from(*v)).sum();
        let count = labels.iter().filter(|l| **l >= 0).count() as f64;
        assert_close("metrics", &got, &[2.0 * sum, 2.0 * rows as f64, 2.0 * count, 0.0], 0.0, 1e-6);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let mut zeros = |shape: &[usize], dtype| g.import(&gpu.zeros("operand", shape, dtype).unwrap());
    let (logits, labels) = (zeros(&[2, 5], DType::F32), zeros(&[4], DType::I32));
    let (unsigned, scale) = (zeros(&[4], DType::U32), zeros(&[1], DType::F32));
    let (losses, flat) = (zeros(&[4, 2], DType::F32), zeros(&[8], DType::F32));
    let share = loss::Share::All(&scale);
    assert!(loss::cross_entropy(&mut g, &logits, LogitShape::PLAIN, &labels, 2, share, &losses).is_ok());
    assert!(loss::cross_entropy(&mut g, &logits, LogitShape::PLAIN, &labels, 3, share, &losses).is_err());
    assert!(loss::cross_entropy(&mut g, &logits, LogitShape::PLAIN, &labels, usize::MAX, share, &losses).is_err());
    assert!(loss::cross_entropy(&mut g, &logits, LogitShape::PLAIN, &unsigned, 0, share, &losses).is_err());
    assert!(loss::cross_entropy(&mut g, &logits, LogitShape::PLAIN, &labels, 0, share, &flat).is_err());
}
