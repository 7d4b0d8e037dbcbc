use super::matmul::{Sum, assert_sums, upload, with_subgroups, without_subgroups};
use crate::support::Rng;
use fourbit::{DType, graph::Graph, kernels::lora};

/// rows, in, out, rank
const SIZES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [3, 7, 5, 2], [33, 64, 65, 3], [12, 48, 40, 4], [70, 96, 72, 16], [20, 40, 80, 64]];

#[test]
fn products_of_an_adapter() {
    for gpu in [with_subgroups(), without_subgroups()].into_iter().flatten() {
        for [m, k, n, r] in SIZES {
            let mut rng = Rng(m as u64);
            let mut random = |rows: usize, cols: usize| rng.normals(rows * cols);
            let (x, a, dy, b, old) = (random(m, k), random(r, k), random(m, n), random(n, r), random(n, r));
            let mut g = Graph::new(&gpu);
            let [vx, va, vdy, vb, out] = [(&x, m, k), (&a, r, k), (&dy, m, n), (&b, n, r), (&old, n, r)]
                .map(|(values, rows, cols)| g.import(&upload(&gpu, [rows, cols], values)));
            let db = g.import(&upload(&gpu, [n, r], &vec![f32::NAN; n * r]));
            let [zero, one] = [0.0, 1.0].map(|v: f32| g.import(&gpu.tensor("gate", [1], DType::F32, &[v]).unwrap()));
            let xa = lora::down(&mut g, &vx, &va).unwrap();
            let dxa = lora::up_backward(&mut g, &vdy, &vb, 0.25).unwrap();
            lora::weight_gradient(&mut g, &vdy, &xa, 0.25, &db, &zero).unwrap();
            lora::weight_gradient(&mut g, &vdy, &xa, 0.25, &out, &one).unwrap();
            g.keep(&xa);
            g.keep(&dxa);
            let program = g.run().unwrap();
            let what = |op: &str| format!("{op} {m} {k} {n} {r} subgroups {}", gpu.caps().subgroups);
            let got = program.read::<f32>(&xa).unwrap();
            assert_sums(&what("xa"), &got, &sums(m, r, k, |i, j, t| (x[i * k + t], a[j * k + t]), 1.0));
            let want = sums(m, r, n, |i, j, t| (dy[i * n + t], b[t * r + j]), 0.25);
            assert_sums(&what("dxa"), &program.read::<f32>(&dxa).unwrap(), &want);
            // From the xa that was read back, so that its own error does not count.
            let mut want = sums(n, r, m, |i, j, t| (dy[t * n + i], got[t * r + j]), 0.25);
            assert_sums(&what("db"), &program.read::<f32>(&db).unwrap(), &want);
            for (sum, old) in want.iter_mut().zip(&old) {
                sum.add(1.0, f64::from(*old));
            }
            assert_sums(&what("db accumulated"), &program.read::<f32>(&out).unwrap(), &want);
        }
    }
}

fn sums(
    rows: usize,
    cols: usize,
    depth: usize,
    term: impl Fn(usize, usize, usize) -> (f32, f32),
    scale: f64,
) -> Vec<Sum> {
    let mut all = vec![Sum::default(); rows * cols];
    for (i, sum) in all.iter_mut().enumerate() {
        for t in 0..depth {
            let (a, b) = term(i / cols, i % cols, t);
            sum.add(scale * f64::from(a), b.into());
        }
    }
    all
}
