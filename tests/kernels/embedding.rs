use crate::{
    reference::wide,
    support::{Rng, assert_close, binding, gpu, int},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{QuantizedTensor, elementwise, embedding},
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

/// A second table whose ids begin behind those of the first: its rows alone are written.
#[test]
fn rows_of_a_table_behind_another() {
    let Some(gpu) = gpu() else { return };
    for (count, cols, first) in [(1, 1, 0), (5, 63, 900), (40, 1030, 7)] {
        let mut rng = Rng(cols as u64);
        let (table, before) = (rng.normals(count * cols), rng.normals(9 * cols));
        let ids: Vec<u32> = (0..9)
            .map(|r| (first + r * 7 % (count + 2)) as u32 + u32::from(first == 0) - u32::from(first > 0))
            .collect();
        let tensor = |shape: &[usize], values: &[f32]| gpu.tensor("t", shape, DType::F32, values).unwrap();
        let packed = Packed::quantize(Scheme::F32, [count, cols], &table).unwrap();
        let own = QuantizedTensor::upload(&gpu, "table", &packed).unwrap();
        let mut g = Graph::new(&gpu);
        let vids = g.import(&gpu.tensor("ids", [9], DType::U32, &ids).unwrap());
        let x = g.import(&tensor(&[9, cols], &before));
        embedding::embed_beyond(&mut g, &vids, first, &own, FACTOR, &x).unwrap();
        let y = elementwise::scaled(&mut g, &x, 1.0).unwrap();
        g.keep(&y);
        let got = g.run().unwrap().read::<f32>(&y).unwrap();
        let row = |r: usize| match (ids[r] as usize).checked_sub(first).filter(|row| *row < count) {
            Some(row) => table[row * cols..][..cols].iter().map(|v| FACTOR * v).collect::<Vec<f32>>(),
            None => before[r * cols..][..cols].to_vec(),
        };
        assert!(
            (0..9).any(|r| (ids[r] as usize) < first || ids[r] as usize >= first + count),
            "all ids are the table's"
        );
        assert_eq!(got, (0..9).flat_map(row).collect::<Vec<f32>>(), "{count} {cols} {first}");
    }
    let mut g = Graph::new(&gpu);
    let (ids, x) = (g.value([2], DType::U32).unwrap(), g.value([3, 4], DType::F32).unwrap());
    let table = QuantizedTensor::zeros(&gpu, "table", Scheme::F32, [5, 4]).unwrap();
    let message = embedding::embed_beyond(&mut g, &ids, 1, &table, 1.0, &x).unwrap_err().to_string();
    assert_eq!(message, "embed_beyond: expected x [2, 4] F32, got [3, 4] F32");
    let x = g.value([2, 4], DType::F32).unwrap();
    let message =
        embedding::embed_beyond(&mut g, &ids, u32::MAX as usize - 2, &table, 1.0, &x).unwrap_err().to_string();
    assert!(message.contains("below 2^32"), "{message}");
}

/// Ids that come again, that none has, and that are before and past the table's.
#[test]
fn the_gradient_of_a_table_adds_up_rows_of_one_id() {
    let Some(gpu) = gpu() else { return };
    for (vocabulary, cols, rows, first) in [(1, 1, 1, 0), (5, 63, 17, 2), (40, 257, 9, 0), (11, 1030, 30, 3)] {
        let mut rng = Rng(rows as u64);
        let ids: Vec<u32> = (0..rows).map(|r| ((r * r + 3) % (vocabulary + first + 1)) as u32).collect();
        let dx = rng.normals(rows * cols);
        let dtable = gpu.tensor("t", [vocabulary, cols], DType::F32, &vec![f32::NAN; vocabulary * cols]).unwrap();
        let tensor = |shape: &[usize], values: &[f32]| gpu.tensor("t", shape, DType::F32, values).unwrap();
        for (keep, times) in [(Some(0.0f32), 1.0), (Some(0.5), 1.5), (None, 2.5)] {
            let mut g = Graph::new(&gpu);
            let vids = g.import(&gpu.tensor("ids", [rows], DType::U32, &ids).unwrap());
            let half = g.import(&tensor(&[rows, cols], &dx));
            // In the middle of a graph.
            let vdx = elementwise::scaled(&mut g, &half, 2.0).unwrap();
            let out = g.import(&dtable);
            let keep = keep.map(|keep| g.import(&tensor(&[1], &[keep])));
            embedding::embed_backward(&mut g, &vids, first, &vdx, 0.75, &out, keep.as_ref()).unwrap();
            g.run().unwrap();
            let want: Vec<f64> = (0..vocabulary * cols)
                .map(|i| {
                    let of = (0..rows).filter(|&r| ids[r] as usize == first + i / cols);
                    times * 1.5 * of.map(|r| f64::from(dx[r * cols + i % cols])).sum::<f64>()
                })
                .collect();
            assert_close("dtable", &dtable.read::<f32>().unwrap(), &want, 2e-5, 1e-6);
        }
    }
    let mut g = Graph::new(&gpu);
    let (ids, dx) = (g.value([2], DType::U32).unwrap(), g.value([3, 4], DType::F32).unwrap());
    let message = embedding::embed_backward(&mut g, &ids, 0, &dx, 1.0, &dx, None).unwrap_err().to_string();
    assert_eq!(message, "embed_backward: expected dx [2, 4] F32, got [3, 4] F32");
}
