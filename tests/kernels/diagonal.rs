//! Gradients of the diagonals around a matrix against f64 loops.

use crate::{
    reference::{assert_gradient, dot, norm::rms_norm, wide},
    support::{Rng, SHAPES, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{diagonal, elementwise, norm},
};

/// (dleft, dright) of Σ dy · diag(left) · a · diag(right)
fn gradients(dy: &[f64], a: &[f64], left: &[f64], right: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let cols = right.len();
    let product = |r: usize, c: usize| dy[r * cols + c] * a[r * cols + c];
    let dleft = (0..left.len()).map(|r| (0..cols).map(|c| product(r, c) * right[c]).sum()).collect();
    let dright = (0..cols).map(|c| (0..left.len()).map(|r| product(r, c) * left[r]).sum()).collect();
    (dleft, dright)
}

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let mut rng = Rng(1);
    let [dy, a, left, right] = [21, 21, 3, 7].map(|len| wide(&rng.normals(len)));
    let between =
        |left: &[f64], right: &[f64]| -> Vec<f64> { (0..21).map(|i| left[i / 7] * a[i] * right[i % 7]).collect() };
    let (dleft, dright) = gradients(&dy, &a, &left, &right);
    assert_gradient("left", &dleft, &left, |left| dot(&between(left, &right), &dy));
    assert_gradient("right", &dright, &right, |right| dot(&between(&left, right), &dy));
    // An RMSNorm's weight is a right diagonal, between its input and the rows' rstd.
    let (_, rstd) = rms_norm(&a, &right, 1e-5);
    let (_, dw) = gradients(&dy, &a, &rstd, &right);
    assert_gradient("norm", &dw, &right, |w| dot(&rms_norm(&a, w, 1e-5).0, &dy));
}

#[test]
fn both_sides() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES.into_iter().chain([(130, 65)]) {
        let mut rng = Rng(cols as u64);
        let [dy, a, l, r] = [rows * cols, rows * cols, rows, cols].map(|len| rng.normals(len));
        let tensor = |shape: &[usize], values: &[f32]| gpu.tensor("t", shape, DType::F32, values).unwrap();
        // What is there before the first gradient must not be read.
        let (dleft, dright) = (tensor(&[rows], &vec![f32::NAN; rows]), tensor(&[cols], &vec![f32::NAN; cols]));
        let dshifts = tensor(&[cols], &vec![f32::NAN; cols]);
        let (drows, dcolumns) = (tensor(&[rows], &vec![f32::NAN; rows]), tensor(&[cols], &vec![f32::NAN; cols]));
        for keep in [0.0f32, 0.5] {
            let mut g = Graph::new(&gpu);
            let [tdy, ta] = [&dy, &a].map(|v| g.import(&tensor(&[rows, cols], v)));
            let [tl, tr, keep] = [&l, &r, &vec![keep]].map(|v| g.import(&tensor(&[v.len()], v)));
            let [dl, dr, ds] = [&dleft, &dright, &dshifts].map(|t| g.import(t));
            let [of_rows, of_columns] = [&drows, &dcolumns].map(|t| g.import(t));
            // In the middle of a graph.
            let tdy = elementwise::add(&mut g, &tdy, &tdy, 1.0).unwrap();
            diagonal::left(&mut g, &tdy, &ta, &tr, &dl, &keep).unwrap();
            diagonal::right(&mut g, &tdy, &ta, &tl, &dr, &keep).unwrap();
            diagonal::rows(&mut g, &tdy, &ta, 0.25, &of_rows, &keep).unwrap();
            diagonal::columns(&mut g, &tdy, &ta, 0.25, &of_columns, &keep).unwrap();
            diagonal::shifts(&mut g, &tdy, &ds, &keep).unwrap();
            g.run().unwrap();
        }
        let (want_left, want_right) = gradients(&wide(&dy), &wide(&a), &wide(&l), &wide(&r));
        let three = |v: Vec<f64>| v.into_iter().map(|v| 3.0 * v).collect::<Vec<_>>();
        // Sums of up to 4096 products of a few units each.
        assert_close("left", &dleft.read::<f32>().unwrap(), &three(want_left), 1e-3, 1e-5);
        assert_close("right", &dright.read::<f32>().unwrap(), &three(want_right), 1e-3, 1e-5);
        let (_, want_shifts) = gradients(&wide(&dy), &vec![1.0; rows * cols], &vec![1.0; rows], &wide(&r));
        assert_close("shifts", &dshifts.read::<f32>().unwrap(), &three(want_shifts), 1e-3, 1e-5);
        let (want_rows, want_columns) = gradients(&wide(&dy), &wide(&a), &vec![1.0; rows], &vec![1.0; cols]);
        let quarter = |v: Vec<f64>| v.into_iter().map(|v| 0.25 * v).collect();
        assert_close("rows", &drows.read::<f32>().unwrap(), &three(quarter(want_rows)), 1e-3, 1e-5);
        assert_close("columns", &dcolumns.read::<f32>().unwrap(), &three(quarter(want_columns)), 1e-3, 1e-5);
    }
}

#[test]
fn a_norms_weight_has_the_gradient_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in [(1, 1), (3, 63), (70, 257)] {
        let mut rng = Rng(rows as u64);
        let [x, dy, w] = [rows * cols, rows * cols, cols].map(|len| rng.normals(len));
        let mut g = Graph::new(&gpu);
        let [tx, tdy] = [&x, &dy].map(|v| g.import(&gpu.tensor("t", [rows, cols], DType::F32, v).unwrap()));
        let [tw, keep] = [&w, &vec![0.0]].map(|v| g.import(&gpu.tensor("t", [v.len()], DType::F32, v).unwrap()));
        let (_, rstd) = norm::rms_norm(&mut g, &tx, &tw, 0.0, 1e-5).unwrap();
        let dw = g.value([cols], DType::F32).unwrap();
        diagonal::right(&mut g, &tdy, &tx, &rstd, &dw, &keep).unwrap();
        g.keep(&dw);
        let got = g.run().unwrap().read::<f32>(&dw).unwrap();
        let (_, rstd) = rms_norm(&wide(&x), &wide(&w), 1e-5);
        let (_, want) = gradients(&wide(&dy), &wide(&x), &rstd, &wide(&w));
        // Sums of 70 products of normal numbers.
        assert_close("norm", &got, &want, 2e-5, 1e-5);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.zeros("a", [2, 3], DType::F32).unwrap());
    let [two, three, one] = [2, 3, 1].map(|len| g.import(&gpu.zeros("v", [len], DType::F32).unwrap()));
    assert!(diagonal::left(&mut g, &a, &a, &three, &two, &one).is_ok());
    let message = diagonal::right(&mut g, &a, &a, &three, &three, &one).unwrap_err().to_string();
    assert_eq!(message, "diagonal: expected diagonal [1, 2] F32, got [3] F32");
    let message = diagonal::columns(&mut g, &a, &a, 1.0, &two, &one).unwrap_err().to_string();
    assert_eq!(message, "diagonal: expected out [1, 3] F32, got [2] F32");
    let message = diagonal::rows(&mut g, &a, &a, 1.0, &three, &one).unwrap_err().to_string();
    assert_eq!(message, "diagonal: expected out [1, 2] F32, got [3] F32");
}
