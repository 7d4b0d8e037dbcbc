use crate::support::{Rng, gpu};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{QuantizedTensor, embedding},
    quant::{Packed, Scheme},
};

const SCHEMES: [Scheme; 3] = [Scheme::F32, Scheme::F16, Scheme::BF16];

#[test]
fn rows_of_whole_and_sharded_tables() {
    let Some(gpu) = gpu() else { return };
    for scheme in SCHEMES {
        for (vocabulary, cols) in [(1, 1), (3, 63), (300, 257), (40, 4096), (50, 576)] {
            let mut rng = Rng(cols as u64);
            let packed = Packed::quantize(scheme, [vocabulary, cols], &rng.normals(vocabulary * cols)).unwrap();
            let table = QuantizedTensor::upload(&gpu, "table", &packed).unwrap();
            // First, last, and the same row twice.
            let mut ids = vec![0, vocabulary as u32 - 1, 0];
            ids.extend((0..40).map(|_| (rng.bits() % vocabulary as u64) as u32));
            let mut g = Graph::new(&gpu);
            let tids = g.import(&gpu.tensor("ids", [ids.len()], DType::U32, &ids).unwrap());
            let whole = embedding::embed(&mut g, &tids, &table).unwrap();
            let shards = g.len();
            let sharded = embedding::embed_within(&mut g, &tids, &table, 16 << 10).unwrap();
            if vocabulary >= 300 {
                assert!(g.len() > shards + 2, "the table is large enough to be split");
            }
            g.keep(&whole);
            g.keep(&sharded);
            let ran = g.run().unwrap();
            let all = packed.dequantize();
            let want: Vec<f32> = ids.iter().flat_map(|id| all[*id as usize * cols..][..cols].to_vec()).collect();
            // Every scheme decodes to the same f32 as on the host.
            assert_eq!(ran.read::<f32>(&whole).unwrap(), want, "{scheme:?} {vocabulary} {cols}");
            assert_eq!(ran.read::<f32>(&sharded).unwrap(), want, "{scheme:?} {vocabulary} {cols}, in shards");
        }
    }
}

#[test]
fn ids_past_the_vocabulary_give_zeros() {
    let Some(gpu) = gpu() else { return };
    let packed = Packed::quantize(Scheme::F32, [300, 64], &vec![1.0; 300 * 64]).unwrap();
    let table = QuantizedTensor::upload(&gpu, "table", &packed).unwrap();
    let mut g = Graph::new(&gpu);
    let ids = g.import(&gpu.tensor("ids", [3], DType::U32, &[300u32, 299, u32::MAX]).unwrap());
    let x = embedding::embed_within(&mut g, &ids, &table, 16 << 10).unwrap();
    g.keep(&x);
    let got = g.run().unwrap().read::<f32>(&x).unwrap();
    let want: Vec<f32> = [0.0, 1.0, 0.0].iter().flat_map(|v| [*v; 64]).collect();
    assert_eq!(got, want);
    let mut g = Graph::new(&gpu);
    let signed = g.import(&gpu.zeros("ids", [3], DType::I32).unwrap());
    assert!(embedding::embed(&mut g, &signed, &table).is_err());
}
