use crate::{
    reference::{assert_gradient, dot, norm::*, wide},
    support::{Rng, SHAPES, assert_close, gpu, without_subgroups},
};
use fourbit::{
    DType,
    gpu::Gpu,
    graph::Graph,
    kernels::{elementwise, norm},
};

const EPS: f32 = 1e-5;

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let mut rng = Rng(1);
    let (x, w, dy) = (wide(&rng.normals(3 * 7)), wide(&rng.normals(7)), wide(&rng.normals(3 * 7)));
    let dx = rms_norm_backward(&dy, &x, &w, 1e-5);
    assert_gradient("rms_norm", &dx, &x, |x| dot(&rms_norm(x, &w, 1e-5).0, &dy));
}

#[test]
fn forward_and_backward() {
    check(gpu());
}

/// Where processors have a size of workgroup of their own.
#[test]
fn forward_and_backward_as_on_gpus() {
    check(without_subgroups());
}

fn check(gpu: Option<Gpu>) {
    let Some(gpu) = gpu else { return };
    for (offset, (rows, cols)) in
        [(2, 576), (3, 1025), (2, 2052)].into_iter().chain(SHAPES).flat_map(|size| [(0.0, size), (1.0, size)])
    {
        let mut rng = Rng(cols as u64);
        let (x, w) = (rng.normals(rows * cols), rng.normals(cols));
        let (upstream, past) = (rng.normals(rows * cols), rng.normals(rows * cols));
        let mut g = Graph::new(&gpu);
        let tensor = |g: &mut Graph, shape: &[usize], values: &[f32]| {
            g.import(&gpu.tensor("operand", shape, DType::F32, values).unwrap())
        };
        let tx = tensor(&mut g, &[rows, cols], &x);
        let tw = tensor(&mut g, &[cols], &w);
        let tdy = tensor(&mut g, &[rows, cols], &upstream);
        let tpast = tensor(&mut g, &[rows, cols], &past);
        // In the middle of a graph: x and dy come out of another kernel.
        let x2 = elementwise::add(&mut g, &tx, &tx, 0.5).unwrap();
        let dy2 = elementwise::add(&mut g, &tdy, &tdy, 1.0).unwrap();
        let (y, rstd) = norm::rms_norm(&mut g, &x2, &tw, offset, EPS).unwrap();
        let dx = norm::rms_norm_backward(&mut g, &dy2, &x2, &tw, offset, &rstd, None).unwrap();
        let joined = norm::rms_norm_backward(&mut g, &dy2, &x2, &tw, offset, &rstd, Some(&tpast)).unwrap();
        for v in [&y, &rstd, &dx, &joined] {
            g.keep(v);
        }
        let ran = g.run().unwrap();
        let x64: Vec<f64> = x.iter().map(|v| 1.5 * f64::from(*v)).collect();
        let dy64: Vec<f64> = upstream.iter().map(|v| 2.0 * f64::from(*v)).collect();
        let w64: Vec<f64> = w.iter().map(|&w| f64::from(offset) + f64::from(w)).collect();
        let (want_y, want_rstd) = rms_norm(&x64, &w64, f64::from(EPS));
        let want_dx = rms_norm_backward(&dy64, &x64, &w64, f64::from(EPS));
        let want_joined: Vec<f64> = want_dx.iter().zip(&past).map(|(d, p)| d + f64::from(*p)).collect();
        // Sums of up to 4096 f32 terms, in 16 or more partial sums: a few 1e-6 of the result. One column makes dx cancel:
        // its error is that of terms of size 1 / sqrt(eps).
        let cancel = if cols == 1 { 2e-4 } else { 2e-5 };
        assert_close("rstd", &ran.read::<f32>(&rstd).unwrap(), &want_rstd, 0.0, 4e-6);
        assert_close("y", &ran.read::<f32>(&y).unwrap(), &want_y, 1e-6, 6e-6);
        assert_close("dx", &ran.read::<f32>(&dx).unwrap(), &want_dx, cancel, 1e-5);
        assert_close("dx + residual", &ran.read::<f32>(&joined).unwrap(), &want_joined, cancel, 1e-5);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("x", [2, 3], DType::F32).unwrap());
    let w = g.import(&gpu.zeros("w", [4], DType::F32).unwrap());
    let message = norm::rms_norm(&mut g, &x, &w, 0.0, EPS).unwrap_err().to_string();
    assert_eq!(message, "rms_norm: expected [3], got [4]");
}
