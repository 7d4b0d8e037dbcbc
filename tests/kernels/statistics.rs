use super::product::with_subgroups;
use crate::support::{Rng, assert_close, gpu, without_subgroups};
use fourbit::{DType, graph::Graph, kernels::statistics};

#[test]
fn channels_add_up_over_batches() {
    let Some(gpu) = gpu() else { return };
    for cols in [1, 63, 257] {
        let batches = [3, 1, 70].map(|rows| Rng(rows as u64).normals(rows * cols));
        let absmax = gpu.zeros("absmax", [cols], DType::F32).unwrap();
        let total = gpu.zeros("total", [cols], DType::F32).unwrap();
        for x in &batches {
            let mut g = Graph::new(&gpu);
            let tx = g.import(&gpu.tensor("x", [x.len() / cols, cols], DType::F32, x).unwrap());
            let (a, t) = (g.import(&absmax), g.import(&total));
            statistics::channels(&mut g, &tx, &a, &t).unwrap();
            g.run().unwrap();
        }
        let rows: Vec<&[f32]> = batches.iter().flat_map(|x| x.chunks(cols)).collect();
        let column = |c: usize| rows.iter().map(move |row| row[c].abs());
        let largest: Vec<f32> = (0..cols).map(|c| column(c).fold(0.0, f32::max)).collect();
        assert_eq!(absmax.read::<f32>().unwrap(), largest);
        let sums: Vec<f64> = (0..cols).map(|c| column(c).map(f64::from).sum()).collect();
        // 74 positive terms: at most 74 roundings of the sum.
        assert_close("total", &total.read::<f32>().unwrap(), &sums, 0.0, 74.0 * 6e-8);
    }
}

#[test]
fn second_moments_add_up_over_batches() {
    for gpu in [with_subgroups(), without_subgroups()].into_iter().flatten() {
        for n in [1, 7, 64, 100] {
            let h = gpu.zeros("h", [n, n], DType::F32).unwrap();
            let one = gpu.tensor("one", [1], DType::F32, &[1.0f32]).unwrap();
            let batches = [5, 33].map(|rows| Rng(rows as u64).normals(rows * n));
            for x in &batches {
                let mut g = Graph::new(&gpu);
                let tx = g.import(&gpu.tensor("x", [x.len() / n, n], DType::F32, x).unwrap());
                let one = g.import(&one);
                statistics::second_moments(&mut g, &tx, &h, 2.0 / 38.0, &one).unwrap();
                g.run().unwrap();
            }
            let mut want = vec![0.0f64; n * n];
            for row in batches.iter().flat_map(|x| x.chunks(n)) {
                for (i, a) in row.iter().enumerate() {
                    for (j, b) in row.iter().enumerate() {
                        want[i * n + j] += f64::from(*a) * f64::from(*b) * 2.0 / 38.0;
                    }
                }
            }
            // Sums of 38 terms of about 1/19.
            assert_close("h", &h.read::<f32>().unwrap(), &want, 2e-6, 2e-6);
        }
    }
}
