use crate::{
    reference::{assert_gradient, dot, glu::*, wide},
    support::{Rng, SHAPES, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{
        elementwise,
        glu::{self, Activation},
    },
};

const KINDS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

#[test]
fn the_reference_gradient_equals_finite_differences() {
    let mut rng = Rng(2);
    let (gate, up, dh) = (wide(&rng.normals(9)), wide(&rng.normals(9)), wide(&rng.normals(9)));
    for kind in KINDS {
        let (dgate, dup) = glu_backward(kind, &dh, &gate, &up);
        assert_gradient("dgate", &dgate, &gate, |gate| dot(&glu(kind, gate, &up), &dh));
        assert_gradient("dup", &dup, &up, |up| dot(&glu(kind, &gate, up), &dh));
    }
}

#[test]
fn forward_and_backward() {
    let Some(gpu) = gpu() else { return };
    for (kind, (rows, cols)) in KINDS.into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape))) {
        let len = rows * cols;
        let mut rng = Rng(cols as u64);
        let mut gate: Vec<f32> = rng.normals(len).iter().map(|v| 4.0 * v).collect();
        // Far out sigmoid is 0 or 1 and nothing may overflow.
        for (slot, far) in gate.iter_mut().zip([1e4, -1e4, 100.0, -100.0, 30.0, -30.0, 0.0]) {
            *slot = far;
        }
        let (up, dh) = (rng.normals(len), rng.normals(len));
        let mut g = Graph::new(&gpu);
        let [tgate, tup, tdh] =
            [&gate, &up, &dh].map(|v| g.import(&gpu.tensor("operand", [rows, cols], DType::F32, v).unwrap()));
        let dh2 = elementwise::add(&mut g, &tdh, &tdh, 1.0).unwrap();
        let h = glu::glu(&mut g, kind, &tgate, &tup).unwrap();
        glu::glu_backward(&mut g, kind, &dh2, &tgate, &tup).unwrap();
        g.keep(&h);
        let ran = g.run().unwrap();
        let dh64: Vec<f64> = dh.iter().map(|v| 2.0 * f64::from(*v)).collect();
        let (want_dgate, want_dup) = glu_backward(kind, &dh64, &wide(&gate), &wide(&up));
        // WGSL's exp is off by up to 3 + 2|x| ulp, about 2e-6 for the |x| < 16 that matter; 1 + gate * (1 - s) cancels near
        // its zero at -1.28, where the terms are about 1.
        assert_close("h", &ran.read::<f32>(&h).unwrap(), &glu(kind, &wide(&gate), &wide(&up)), 2e-6, 5e-6);
        assert_close("dgate", &ran.read::<f32>(&tgate).unwrap(), &want_dgate, 1e-5, 5e-6);
        assert_close("dup", &ran.read::<f32>(&tup).unwrap(), &want_dup, 2e-6, 5e-6);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let gate = g.import(&gpu.zeros("gate", [2, 3], DType::F32).unwrap());
    let up = g.import(&gpu.zeros("up", [3, 2], DType::F32).unwrap());
    let message = glu::glu(&mut g, Activation::Silu, &gate, &up).unwrap_err().to_string();
    assert_eq!(message, "glu: expected [2, 3], got [3, 2]");
}
