use crate::support::{Rng, gpu};
use fourbit::{DType, graph::Graph, kernels::reduce};

fn finite(x: &[f32]) -> impl Iterator<Item = f32> + '_ {
    x.iter().copied().filter(|v| v.is_finite())
}

#[test]
fn ranges_of_rows_blocks_and_wholes() {
    let Some(gpu) = gpu() else { return };
    // (length, group): one element, rows, ragged last blocks, whole tensors in one and in several parts.
    let cases =
        [(1, 1), (189, 63), (1799, 257), (135_168, 4096), (1000, 64), (130, 128), (5000, 1024), (300_001, 300_001)];
    for (len, group) in cases.into_iter().chain([(100_000, 50_000), (7, 100)]) {
        let mut rng = Rng(len as u64);
        let mut x: Vec<f32> = rng.normals(len).iter().map(|v| v - 0.3).collect();
        for (i, odd) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN].into_iter().enumerate() {
            if len > 1000 {
                x[(i + 1) * len / 7] = odd;
            }
        }
        let mut g = Graph::new(&gpu);
        let tx = g.import(&gpu.tensor("x", [len], DType::F32, &x).unwrap());
        let range = reduce::min_max(&mut g, &tx, group).unwrap();
        let (absmax, bad) = reduce::absmax(&mut g, &tx, group).unwrap();
        for v in [&range.low, &range.high, &range.non_finite, &absmax, &bad] {
            g.keep(v);
        }
        let ran = g.run().unwrap();
        let (low, high) = (ran.read::<f32>(&range.low).unwrap(), ran.read::<f32>(&range.high).unwrap());
        let (absmax, bad) = (ran.read::<f32>(&absmax).unwrap(), ran.read::<u32>(&bad).unwrap());
        assert_eq!(ran.read::<u32>(&range.non_finite).unwrap(), bad);
        assert_eq!(low.len(), len.div_ceil(group));
        for (i, block) in x.chunks(group).enumerate() {
            // No rounding anywhere: equal.
            assert_eq!(low[i], finite(block).reduce(f32::min).unwrap(), "{len} {group} low {i}");
            assert_eq!(high[i], finite(block).reduce(f32::max).unwrap(), "{len} {group} high {i}");
            assert_eq!(absmax[i], finite(block).map(f32::abs).reduce(f32::max).unwrap(), "{len} {group} absmax {i}");
            assert_eq!(bad[i] as usize, block.len() - finite(block).count(), "{len} {group} bad {i}");
        }
    }
}

#[test]
fn groups_without_finite_elements_are_zero() {
    let Some(gpu) = gpu() else { return };
    for group in [3, 500] {
        let x = vec![f32::NAN; 2 * group];
        let mut g = Graph::new(&gpu);
        let tx = g.import(&gpu.tensor("x", [2, group], DType::F32, &x).unwrap());
        let range = reduce::min_max(&mut g, &tx, group).unwrap();
        for v in [&range.low, &range.high, &range.non_finite] {
            g.keep(v);
        }
        let ran = g.run().unwrap();
        assert_eq!(ran.read::<f32>(&range.low).unwrap(), [0.0; 2]);
        assert_eq!(ran.read::<f32>(&range.high).unwrap(), [0.0; 2]);
        assert_eq!(ran.read::<u32>(&range.non_finite).unwrap(), [group as u32; 2]);
    }
}

#[test]
fn empty_and_integer_tensors_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("x", [4], DType::F32).unwrap());
    let words = g.import(&gpu.zeros("x", [4], DType::U32).unwrap());
    let empty = g.import(&gpu.zeros("x", [0], DType::F32).unwrap());
    assert!(reduce::min_max(&mut g, &x, 0).is_err());
    assert!(reduce::min_max(&mut g, &words, 4).is_err());
    assert!(reduce::absmax(&mut g, &empty, 4).is_err());
}
