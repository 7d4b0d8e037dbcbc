use crate::{
    reference::{optimizer as reference, wide},
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::{Graph, Pool, Value},
    kernels::optimizer::{self, AdamW, Stepped},
};

#[test]
fn norms_and_coefficients() {
    let Some(gpu) = gpu() else { return };
    for lens in [&[1][..], &[3, 63, 2049], &[100_000, 1, 4096]] {
        for (max_norm, clips) in [(1e-3, true), (1e6, false), (0.0, false)] {
            let mut rng = Rng(lens.len() as u64);
            let grads: Vec<Vec<f32>> = lens.iter().map(|n| rng.normals(*n)).collect();
            let mut g = Graph::new(&gpu);
            let values: Vec<Value> =
                grads.iter().map(|v| g.import(&gpu.tensor("grad", [v.len()], DType::F32, v).unwrap())).collect();
            let hyper = AdamW { max_grad_norm: max_norm, ..AdamW::default() }.hyper(1e-3, 1);
            let hyper = g.import(&gpu.tensor("hyper", [8], DType::F32, &hyper).unwrap());
            let norm = g.value([3], DType::F32).unwrap();
            optimizer::grad_norm(&mut g, &values, &hyper, &norm).unwrap();
            g.keep(&norm);
            let got = g.run().unwrap().read::<f32>(&norm).unwrap();
            let flat: Vec<f64> = grads.iter().flat_map(|v| wide(v)).collect();
            let (length, coefficient) = reference::clip(flat.iter(), max_norm);
            assert_eq!(clips, coefficient < 1.0);
            // Sums of squares, all positive: 1e-6 of the result.
            assert_close("norm", &got, &[length, coefficient, 1.0], 0.0, 2e-6);
        }
    }
}

#[test]
fn twenty_steps_of_adamw() {
    let Some(gpu) = gpu() else { return };
    let constants = AdamW { betas: (0.9, 0.999), eps: 1e-6, weight_decay: 0.1, max_grad_norm: 30.0 };
    for (len, decays) in [(1, true), (257, true), (5000, true), (5000, false)] {
        let mut rng = Rng(len as u64);
        let start = rng.normals(len);
        let tensor = |values: &[f32]| gpu.tensor("adamw", [values.len()], DType::F32, values).unwrap();
        let (param, grad) = (tensor(&start), tensor(&start));
        let (m, v, hyper) = (tensor(&vec![0.0; len]), tensor(&vec![0.0; len]), tensor(&[0.0; 8]));
        let mut g = Graph::new(&gpu);
        let [vp, vg, vm, vv, vh] = [&param, &grad, &m, &v, &hyper].map(|t| g.import(t));
        let norm = g.value([3], DType::F32).unwrap();
        optimizer::grad_norm(&mut g, std::slice::from_ref(&vg), &vh, &norm).unwrap();
        let stepped = Stepped { param: &vp, grad: &vg, m: &vm, v: &vv, decays };
        optimizer::adamw(&mut g, stepped, &norm, &vh).unwrap();
        let mut program = g.plan().build(&mut Pool::default()).unwrap();
        let mut want = reference::AdamW { param: wide(&start), m: vec![0.0; len], v: vec![0.0; len] };
        for t in 1..=20 {
            // Some steps clip and some do not; gradients span several magnitudes.
            let size = 10f32.powi(t % 4 - 2);
            let step: Vec<f32> = rng.normals(len).iter().map(|g| g * size).collect();
            let lr = 0.01 * f64::from(t) / 20.0;
            grad.write(bytemuck::cast_slice(&step)).unwrap();
            hyper.write(bytemuck::cast_slice(&constants.hyper(lr, t as u64))).unwrap();
            program.run().unwrap();
            let (_, coefficient) = reference::clip(wide(&step).iter(), constants.max_grad_norm);
            let clipped: Vec<f64> = step.iter().map(|g| f64::from(*g) * coefficient).collect();
            let decay = if decays { constants.weight_decay } else { 0.0 };
            want.step(&clipped, t, lr, constants.betas, constants.eps, decay);
        }
        // Each step rounds p once (6e-8 of up to 4) and adds an update of at most 0.1 with a relative error of 1e-6.
        assert_close("param", &param.read::<f32>().unwrap(), &want.param, 5e-6, 0.0);
        let scale = want.m.iter().fold(0.0f64, |a, v| a.max(v.abs()));
        assert_close("m", &m.read::<f32>().unwrap(), &want.m, 2e-6 * scale, 0.0);
        assert_close("v", &v.read::<f32>().unwrap(), &want.v, 0.0, 5e-6);
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let mut zeros = |len: usize| g.import(&gpu.zeros("operand", [len], DType::F32).unwrap());
    let (a, b, norm, hyper) = (zeros(5), zeros(6), zeros(3), zeros(8));
    let stepped = Stepped { param: &a, grad: &a, m: &a, v: &a, decays: true };
    assert!(optimizer::adamw(&mut g, Stepped { grad: &b, ..stepped }, &norm, &hyper).is_err());
    assert!(optimizer::adamw(&mut g, stepped, &hyper, &hyper).is_err());
    assert!(optimizer::grad_norm(&mut g, &[], &hyper, &norm).is_err());
    assert!(optimizer::grad_norm(&mut g, &[a], &norm, &norm).is_err());
}

#[test]
fn what_is_not_finite_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let len = 5000;
    let mut rng = Rng(11);
    let [start, m, v] = [(); 3].map(|()| rng.normals(len));
    let fine = rng.normals(len);
    let with = |at: usize, value: f32| {
        let mut grads = fine.clone();
        grads[at] = value;
        grads
    };
    // The last one: each gradient is finite, the sum of their squares is not.
    let bad = [with(0, f32::NAN), with(4999, f32::INFINITY), with(2500, f32::NEG_INFINITY), with(7, 1e30)];
    let losses = [[1.0f32, 0.0], [f32::NAN, 0.0], [f32::INFINITY, 0.0]];
    let cases = bad.iter().map(|grads| (grads, losses[0])).chain(losses.map(|loss| (&fine, loss)));
    for (case, (grads, loss)) in cases.enumerate() {
        let goes = case == 4;
        let tensor = |values: &[f32]| gpu.tensor("adamw", [values.len()], DType::F32, values).unwrap();
        let tensors = [&start, grads, &m, &v].map(|values| tensor(values));
        let mut g = Graph::new(&gpu);
        let [vp, vg, vm, vv] = tensors.each_ref().map(|t| g.import(t));
        let hyper = g.import(&tensor(&AdamW::default().hyper(1e-3, 3)));
        let norm = g.value([3], DType::F32).unwrap();
        let loss = g.import(&tensor(&loss));
        optimizer::spoil(&mut g, &loss, &vg).unwrap();
        optimizer::grad_norm(&mut g, std::slice::from_ref(&vg), &hyper, &norm).unwrap();
        optimizer::adamw(&mut g, Stepped { param: &vp, grad: &vg, m: &vm, v: &vv, decays: true }, &norm, &hyper)
            .unwrap();
        g.keep(&norm);
        let norm = g.run().unwrap().read::<f32>(&norm).unwrap();
        assert_eq!(norm[2], if goes { 1.0 } else { 0.0 }, "case {case}: {norm:?}");
        let after = [0, 2, 3].map(|i| tensors[i].read::<f32>().unwrap());
        assert_eq!(after == [start.clone(), m.clone(), v.clone()], !goes, "case {case}");
    }
}
