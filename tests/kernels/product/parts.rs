use super::{Case, NF4, Sum, assert_sums, upload};
use crate::support::{Rng, without_subgroups};
use fourbit::{DType, graph::Graph, kernels::dense, quant::Scheme};

/// The low-rank term belongs to the last part; bias and what is added come once.
#[test]
fn sums_in_parts() {
    let Some(gpu) = without_subgroups() else { return };
    let case = |scheme, sizes| Case { scheme, sizes, rank: 8, bias: true, add: true };
    for (tile, parts) in [("16x64", 2), ("64x64", 4), ("128x64", 2), ("128x128", 4)] {
        for case in [case(NF4, [20, 520, 576]), case(Scheme::F32, [19, 519, 517])] {
            case.check_by(&gpu, &format!("tiles {tile} in {parts} parts"));
        }
    }
}

/// dB = scale · dyᵀ · xa, replaced and added to.
#[test]
fn gradients_in_parts() {
    let Some(gpu) = without_subgroups() else { return };
    let (tokens, out, rank, scale) = (600, 70, 5, 0.25);
    let class = format!("gradient values {out}x{rank}x{tokens}");
    gpu.choices().repeat(&[(class, "tiles 64x64 in 4 parts".to_owned())].into());
    let mut rng = Rng(4);
    let [dy, xa, old] = [tokens * out, tokens * rank, out * rank].map(|len| rng.normals(len));
    for add in [0.0, 1.0] {
        let mut g = Graph::new(&gpu);
        let [x, w, y] = [(&dy, tokens, out), (&xa, tokens, rank), (&old, out, rank)]
            .map(|(values, rows, cols)| g.import(&upload(&gpu, [rows, cols], values)));
        let gate = g.import(&gpu.tensor("gate", [1], DType::F32, &[add as f32]).unwrap());
        dense::xt_w_into(&mut g, &x, &w, scale, &y, &gate).unwrap();
        let program = g.run().unwrap();
        assert!(program.labels().any(|label| label.contains("product/parts")), "in parts");
        let mut want = vec![Sum::default(); out * rank];
        for (i, sum) in want.iter_mut().enumerate() {
            for t in 0..tokens {
                sum.add(f64::from(scale) * f64::from(dy[t * out + i / rank]), xa[t * rank + i % rank].into());
            }
            sum.add(add, old[i].into());
        }
        assert_sums("dB", &program.read::<f32>(&y).unwrap(), &want);
    }
}
