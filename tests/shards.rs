//! A head and embedding of 32000 x 4096 halves, 262 MB, which software drivers bind 128 MiB at a time.

mod support;

use fourbit::{
    DType, QuantizedTensor,
    graph::Graph,
    kernels::{embedding, product},
    quant::Scheme,
};
use support::{Rng, assert_close, gpu};

const ROWS: usize = 32000;
const COLS: usize = 4096;

/// Small numbers that every half holds exactly, different in neighbouring rows and columns.
fn weight(row: usize, col: usize) -> f32 {
    ((row * 31 + col * 17) % 61) as f32 / 32.0 - 0.9375
}

#[test]
fn a_weight_beyond_one_binding_embeds_and_multiplies_both_ways() {
    let Some(gpu) = gpu() else { return };
    let mut bytes = Vec::with_capacity(2 * ROWS * COLS);
    for row in 0..ROWS {
        bytes.extend((0..COLS).flat_map(|col| half::f16::from_f32(weight(row, col)).to_le_bytes()));
    }
    let w = QuantizedTensor::from_bytes(&gpu, "head", Scheme::F16, [ROWS, COLS], &bytes, &[], &[]).unwrap();
    drop(bytes);
    let shards = w.shards_within(128 << 20).count();
    assert!(shards >= 2 && w.shards().all(|s| s.codes.bytes() <= gpu.caps().max_binding), "{shards} shards");

    // The first and last rows, and those around every border of a shard.
    let mut rows = vec![0, 1, ROWS - 1];
    rows.extend(w.shards_within(128 << 20).skip(1).flat_map(|s| [s.row0 - 1, s.row0]));
    let tokens = 5;
    let x = Rng(1).normals(tokens * COLS);
    let mut dy = vec![0.0f32; tokens * ROWS];
    for (i, &row) in rows.iter().enumerate() {
        for t in 0..tokens {
            dy[t * ROWS + row] = 0.25 * (i + t) as f32 - 0.5;
        }
    }
    let ids: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
    let mut g = Graph::new(&gpu);
    let vx = g.import(&gpu.tensor("x", [tokens, COLS], DType::F32, &x).unwrap());
    let vdy = g.import(&gpu.tensor("dy", [tokens, ROWS], DType::F32, &dy).unwrap());
    let vids = g.import(&gpu.tensor("ids", [ids.len()], DType::U32, &ids).unwrap());
    let y = product::matmul(&mut g, &vx, &w, None, None, None).unwrap();
    let dx = product::matmul_dx(&mut g, &vdy, &w, None, None).unwrap();
    let embedded = embedding::embed(&mut g, &vids, &w, 1.0).unwrap();
    for value in [&y, &dx, &embedded] {
        g.keep(value);
    }
    let program = g.run().unwrap();

    let got = program.read::<f32>(&embedded).unwrap();
    let want: Vec<f64> = rows.iter().flat_map(|&r| (0..COLS).map(move |c| f64::from(weight(r, c)))).collect();
    assert_close("embedding", &got, &want, 0.0, 0.0);

    let all = program.read::<f32>(&y).unwrap();
    for t in 0..tokens {
        let got: Vec<f32> = rows.iter().map(|&r| all[t * ROWS + r]).collect();
        let dot = |r: usize| (0..COLS).map(|c| f64::from(x[t * COLS + c]) * f64::from(weight(r, c))).sum::<f64>();
        let want: Vec<f64> = rows.iter().map(|&r| dot(r)).collect();
        // 4096 roundings of a sum whose size is about 40.
        assert_close("y", &got, &want, 2e-3, 1e-5);
    }
    let got = program.read::<f32>(&dx).unwrap();
    let want: Vec<f64> = (0..tokens * COLS)
        .map(|i| rows.iter().map(|&r| f64::from(dy[i / COLS * ROWS + r]) * f64::from(weight(r, i % COLS))).sum())
        .collect();
    assert_close("dx", &got, &want, 1e-4, 1e-5);
}
