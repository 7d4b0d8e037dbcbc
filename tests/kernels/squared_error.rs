use crate::{
    reference::{assert_gradient, wide},
    support::{Rng, SHAPES, assert_close, gpu},
};
use fourbit::{DType, graph::Graph, kernels::squared_error};

fn error(y: &[f64], wanted: &[f64]) -> f64 {
    y.iter().zip(wanted).map(|(y, w)| (y - w).powi(2)).sum()
}

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let (y, wanted) = (wide(&Rng(1).normals(12)), wide(&Rng(2).normals(12)));
    let dy: Vec<f64> = y.iter().zip(&wanted).map(|(y, w)| 2.0 / 12.0 * (y - w)).collect();
    assert_gradient("squared error", &dy, &y, |y| error(y, &wanted) / 12.0);
}

#[test]
fn gradient_and_sums_over_two_batches() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES {
        let mut rng = Rng(cols as u64);
        let errors = gpu.zeros("errors", [rows], DType::F32).unwrap();
        let mut want = vec![0.0; rows];
        for _ in 0..2 {
            let (y, wanted) = (rng.normals(rows * cols), rng.normals(rows * cols));
            let mut g = Graph::new(&gpu);
            let [ty, tw] = [&y, &wanted].map(|v| g.import(&gpu.tensor("t", [rows, cols], DType::F32, v).unwrap()));
            let te = g.import(&errors);
            let dy = squared_error::squared_error(&mut g, &ty, &tw, 0.25, &te).unwrap();
            g.keep(&dy);
            let got = g.run().unwrap().read::<f32>(&dy).unwrap();
            let (y, wanted) = (wide(&y), wide(&wanted));
            let gradient: Vec<f64> = y.iter().zip(&wanted).map(|(y, w)| 0.25 * (y - w)).collect();
            // One rounding of a difference below 16.
            assert_close("dy", &got, &gradient, 1e-6, 1e-6);
            want.iter_mut().enumerate().for_each(|(r, want)| {
                *want += error(&y[r * cols..(r + 1) * cols], &wanted[r * cols..(r + 1) * cols]);
            });
        }
        // Sums of up to 8192 positive terms, 64 at a time.
        assert_close("errors", &errors.read::<f32>().unwrap(), &want, 1e-6, 1e-5);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let [a, b] = [[2, 3], [3, 2]].map(|shape| g.import(&gpu.zeros("t", shape, DType::F32).unwrap()));
    let errors = g.import(&gpu.zeros("errors", [2], DType::F32).unwrap());
    let message = squared_error::squared_error(&mut g, &a, &b, 1.0, &errors).unwrap_err().to_string();
    assert_eq!(message, "squared_error: expected wanted [2, 3] F32, got [3, 2] F32");
}
