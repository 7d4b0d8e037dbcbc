use crate::{
    reference::wide,
    support::{Rng, assert_close, binding, gpu, int},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{QuantizedTensor, embedding},
    quant::{BlockSize, Packed, Scheme},
};

const SCHEMES: [Scheme; 17] = [
    Scheme::F32,
    Scheme::F16,
    Scheme::BF16,
    Scheme::Nf4 { block_size: 64, double_quant: false },
    Scheme::Nf4 { block_size: 128, double_quant: true },
    Scheme::Fp4 { block_size: 32, double_quant: false },
    int(8, 24, false),
    int(8, 64, true),
    int(4, 64, false),
    Scheme::int(3, 32),
    Scheme::Mxfp4,
    Scheme::Q4_0,
    Scheme::Q4_1,
    Scheme::Q8_0,
    Scheme::Q4_K,
    Scheme::Q6_K,
    Scheme::IQ4_XS,
];

/// Bytes that a device binds, below those of large tables.
const BINDING: u64 = 96 << 10;

/// A power of two, so that plain floats stay exact.
const FACTOR: f32 = 0.5;

#[test]
fn rows_of_whole_and_sharded_tables() {
    let (Some(gpu), Some(small)) = (gpu(), binding(BINDING)) else { return };
    for scheme in SCHEMES {
        // Rows of odd length begin inside a word and inside a block; GGUF stores whole blocks of 32 or 256.
        for (vocabulary, cols) in [(1, 256), (3, 63), (900, 257), (80, 4096), (50, 576)] {
            let mut rng = Rng(cols as u64);
            let Ok(packed) = Packed::quantize(scheme, [vocabulary, cols], &rng.normals(vocabulary * cols)) else {
                let Scheme::Ggml(ty) = scheme else { panic!("{scheme:?} {vocabulary} {cols}") };
                assert!(!cols.is_multiple_of(ty.block_size()), "{scheme:?} {vocabulary} {cols}");
                continue;
            };
            let table = QuantizedTensor::upload(&gpu, "table", &packed).unwrap();
            // First, last, and the same row twice.
            let mut ids = vec![0, vocabulary as u32 - 1, 0];
            ids.extend((0..40).map(|_| (rng.bits() % vocabulary as u64) as u32));
            let mut g = Graph::new(&gpu);
            let tids = g.import(&gpu.tensor("ids", [ids.len()], DType::U32, &ids).unwrap());
            let whole = embedding::embed(&mut g, &tids, &table, FACTOR).unwrap();
            assert_eq!(g.len(), 1);
            g.keep(&whole);
            let ran = g.run().unwrap();
            let all: Vec<f64> = wide(&packed.dequantize()).iter().map(|v| f64::from(FACTOR) * v).collect();
            let want: Vec<f64> = ids.iter().flat_map(|id| all[*id as usize * cols..][..cols].to_vec()).collect();
            // Plain floats are exact; a product and a sum may be one fused operation on either side.
            let tolerance = if scheme.is_float() { 0.0 } else { 1e-6 };
            let what = format!("{scheme:?} {vocabulary} {cols}");
            assert_close(&what, &ran.read::<f32>(&whole).unwrap(), &want, tolerance, tolerance);

            // On a device that binds little the same, for as many ids as it holds rows.
            ids.truncate(BINDING as usize / (4 * cols));
            let Ok(table) = QuantizedTensor::upload(&small, "table", &packed) else {
                assert!(
                    cols == 257 && scheme.block() == Some(BlockSize::Elements(24)),
                    "{what}: rows of whole blocks can be cut"
                );
                continue;
            };
            let mut g = Graph::new(&small);
            let tids = g.import(&small.tensor("ids", [ids.len()], DType::U32, &ids).unwrap());
            let sharded = embedding::embed(&mut g, &tids, &table, FACTOR).unwrap();
            assert!(cols < 4096 || g.len() > 1, "{what}: the table is large enough to be split");
            g.keep(&sharded);
            let sharded = g.run().unwrap().read::<f32>(&sharded).unwrap();
            assert!(sharded == ran.read::<f32>(&whole).unwrap()[..ids.len() * cols], "{what}, in shards");
        }
    }
}

#[test]
fn ids_past_the_vocabulary_give_zeros() {
    let Some(gpu) = binding(BINDING) else { return };
    let packed = Packed::quantize(Scheme::F32, [600, 64], &vec![1.0; 600 * 64]).unwrap();
    let table = QuantizedTensor::upload(&gpu, "table", &packed).unwrap();
    let mut g = Graph::new(&gpu);
    let ids = g.import(&gpu.tensor("ids", [3], DType::U32, &[600u32, 599, u32::MAX]).unwrap());
    let x = embedding::embed(&mut g, &ids, &table, FACTOR).unwrap();
    assert!(g.len() > 1, "the table is split");
    g.keep(&x);
    let got = g.run().unwrap().read::<f32>(&x).unwrap();
    let want: Vec<f32> = [0.0, FACTOR, 0.0].iter().flat_map(|v| [*v; 64]).collect();
    assert_eq!(got, want);
    let mut g = Graph::new(&gpu);
    let signed = g.import(&gpu.zeros("ids", [3], DType::I32).unwrap());
    assert!(embedding::embed(&mut g, &signed, &table, FACTOR).is_err());
}
