use crate::support::{Rng, SHAPES, gpu};
use fourbit::{DType, graph::Graph, kernels::sample};

#[test]
fn argmax_is_the_first_of_the_largest() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES.into_iter().chain([(1, 49152), (2, 1024), (2, 1025)]) {
        let mut rng = Rng(cols as u64);
        // Few distinct values make ties; one row is constant, one all negative and far out.
        let mut x: Vec<f32> = rng.normals(rows * cols).iter().map(|v| (v * 2.0).round()).collect();
        for (r, row) in x.chunks_mut(cols).enumerate() {
            match r % 4 {
                1 => row.fill(-0.5),
                2 => row.iter_mut().for_each(|v| *v -= 1e30),
                3 => row[cols - 1] = 1e30,
                _ => {}
            }
        }
        let mut g = Graph::new(&gpu);
        let tx = g.import(&gpu.tensor("logits", [rows, cols], DType::F32, &x).unwrap());
        let ids = sample::argmax(&mut g, &tx).unwrap();
        g.keep(&ids);
        let got = g.run().unwrap().read::<u32>(&ids).unwrap();
        for (r, row) in x.chunks(cols).enumerate() {
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let want = row.iter().position(|v| *v == largest).unwrap();
            assert_eq!(got[r] as usize, want, "{rows} x {cols}, row {r}");
        }
    }
}

#[test]
fn no_logits_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("logits", [0], DType::F32).unwrap());
    assert!(sample::argmax(&mut g, &x).is_err());
}
