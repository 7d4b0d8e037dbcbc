//! Norms of the rows of W + scale · B · A against f64 loops over that sum itself.

use crate::{
    reference::wide,
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{dense, diagonal, dora, elementwise},
};

/// ‖W\[r\] + scale · B\[r\] · A‖ of each row.
fn norms(w: &[f64], b: &[f64], a: &[f64], [rows, cols, rank]: [usize; 3], scale: f64) -> Vec<f64> {
    let at = |r: usize, c: usize| {
        w[r * cols + c] + scale * (0..rank).map(|j| b[r * rank + j] * a[j * cols + c]).sum::<f64>()
    };
    (0..rows).map(|r| (0..cols).map(|c| at(r, c).powi(2)).sum::<f64>().sqrt()).collect()
}

#[test]
fn inverse_norms_of_rows_are_those_of_the_sum() {
    let Some(gpu) = gpu() else { return };
    for [rows, cols, rank] in [[1, 1, 1], [3, 63, 2], [7, 257, 8], [130, 65, 16], [33, 4096, 3]] {
        let mut rng = Rng(cols as u64);
        let [w, b, a] = [rows * cols, rows * rank, rank * cols].map(|len| rng.normals(len));
        let scale = 0.75;
        let mut g = Graph::new(&gpu);
        let mut tensor = |shape: [usize; 2], values: &[f32]| {
            let t = g.import(&gpu.tensor("t", shape, DType::F32, values).unwrap());
            // In the middle of a graph.
            elementwise::scaled(&mut g, &t, 0.5).unwrap()
        };
        let [tw, tb, ta] = [tensor([rows, cols], &w), tensor([rows, rank], &b), tensor([rank, cols], &a)];
        let squares = g.value([rows], DType::F32).unwrap();
        let replace = g.import(&gpu.tensor("gate", [1], DType::F32, &[0.0f32]).unwrap());
        diagonal::rows(&mut g, &tw, &tw, 1.0, &squares, &replace).unwrap();
        let seen = dense::x_wt(&mut g, &ta, &tw).unwrap();
        let gram = dense::x_wt(&mut g, &ta, &ta).unwrap();
        let through = dense::x_wt(&mut g, &tb, &gram).unwrap();
        let inverse = g.value([rows], DType::F32).unwrap();
        dora::inverse_norms(&mut g, &squares, &tb, &seen, &through, scale, &inverse).unwrap();
        g.keep(&squares);
        g.keep(&inverse);
        let ran = g.run().unwrap();
        let half = |values: &[f32]| wide(values).iter().map(|v| 0.5 * v).collect::<Vec<f64>>();
        let [w, b, a] = [half(&w), half(&b), half(&a)];
        let no_update = norms(&w, &b, &a, [rows, cols, 0], 0.0);
        let want: Vec<f64> = no_update.iter().map(|n| n * n).collect();
        // Sums of up to 4096 squares, in 64 partial sums.
        assert_close("squares", &ran.read::<f32>(&squares).unwrap(), &want, 0.0, 2e-6);
        let all = norms(&w, &b, &a, [rows, cols, rank], f64::from(scale));
        // The rank-1 row of one column cancels most: a few 1e-7 times the squared ratio of the norms.
        let cancels = no_update.iter().zip(&all).map(|(base, sum)| (base / sum).powi(2)).fold(1.0, f64::max);
        let want: Vec<f64> = all.iter().map(|norm| 1.0 / norm).collect();
        assert_close("inverse norms", &ran.read::<f32>(&inverse).unwrap(), &want, 0.0, 2e-6 * cancels);
    }
}

#[test]
fn a_row_of_zeros_has_the_inverse_zero() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let mut tensor = |shape: &[usize], values: &[f32]| g.import(&gpu.tensor("t", shape, DType::F32, values).unwrap());
    let (squares, b) = (tensor(&[2], &[0.0, 4.0]), tensor(&[2, 1], &[0.0, 0.0]));
    let (seen, through) = (tensor(&[1, 2], &[3.0, 3.0]), tensor(&[2, 1], &[5.0, 5.0]));
    let inverse = g.value([2], DType::F32).unwrap();
    dora::inverse_norms(&mut g, &squares, &b, &seen, &through, 2.0, &inverse).unwrap();
    let message = dora::inverse_norms(&mut g, &squares, &b, &b, &through, 2.0, &inverse).unwrap_err().to_string();
    assert_eq!(message, "inverse_norms: expected seen [1, 2] F32, got [2, 1] F32");
    g.keep(&inverse);
    assert_eq!(g.run().unwrap().read::<f32>(&inverse).unwrap(), [0.0, 0.5]);
}
