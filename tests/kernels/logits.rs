use crate::{
    reference::loss::shaped,
    support::{assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::logits::{self, LogitShape},
};

/// As they are; Granite's; Gemma 2's.
pub const SHAPES: [LogitShape; 3] =
    [LogitShape::PLAIN, LogitShape { factor: 0.125, soft_cap: None }, LogitShape { factor: 0.5, soft_cap: Some(7.0) }];

#[test]
fn logits_are_shaped() {
    let Some(gpu) = gpu() else { return };
    let x: Vec<f32> = (0..2000).map(|i| (i - 1000) as f32 * 0.0371).chain([1e30, -1e30, 1e-20, 0.0]).collect();
    for shape in SHAPES {
        let mut g = Graph::new(&gpu);
        let z = g.import(&gpu.tensor("logits", [x.len()], DType::F32, &x).unwrap());
        logits::shape(&mut g, &z, shape).unwrap();
        let got = g.run().unwrap().read::<f32>(&z).unwrap();
        let want: Vec<f64> = x.iter().map(|&x| shaped(shape, f64::from(x)).0).collect();
        assert_close("shaped", &got, &want, 0.0, 2e-6);
    }
}
