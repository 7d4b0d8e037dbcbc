use crate::{
    reference::{assert_gradient, dot, rope as reference, wide},
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{
        elementwise,
        rope::{self, RopeScaling, RopeTable},
    },
};
use std::sync::Arc;

fn table_of(frequencies: &[f64], positions: usize) -> Vec<f64> {
    (0..positions)
        .flat_map(|p| {
            let angles: Vec<f64> = frequencies.iter().map(|f| p as f64 * f).collect();
            let cos: Vec<f64> = angles.iter().map(|a| a.cos()).collect();
            cos.into_iter().chain(angles.into_iter().map(f64::sin))
        })
        .collect()
}

#[test]
fn tables_follow_every_scaling() {
    let plain = reference::frequencies(500000.0, 64);
    let linear: Vec<f64> = plain.iter().map(|f| f / 4.0).collect();
    let llama3 = reference::llama3(&plain, 32.0, 1.0, 4.0, 8192.0);
    assert!(llama3.iter().zip(&plain).any(|(a, b)| a != b && *a != b / 32.0), "some angles are blended");
    let scaled = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    for (scaling, want) in
        [(RopeScaling::None, &plain), (RopeScaling::Linear { factor: 4.0 }, &linear), (scaled, &llama3)]
    {
        let table = RopeTable::new(500000.0, 64, &scaling, 300, 300).unwrap();
        // f64 angles, rounded once to f32.
        assert_close("table", table.values(), &table_of(want, 300), 1e-7, 0.0);
    }
}

fn longrope(len: usize, divisor: f64, attention_factor: f64) -> RopeScaling {
    let divisors: Arc<[f64]> = vec![divisor; len].into();
    RopeScaling::LongRope {
        short_factor: divisors.clone(),
        long_factor: divisors,
        attention_factor,
        original_max_position_embeddings: 16,
    }
}

fn yarn(beta_fast: f64, attention_factor: f64) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        beta_fast,
        beta_slow: 1.0,
        truncate: true,
        attention_factor,
        original_max_position_embeddings: 16,
    }
}

#[test]
fn bad_tables_are_refused() {
    for (theta, head_dim, scaling, positions) in [
        (1e4, 63, RopeScaling::None, 8),
        (1e4, 0, RopeScaling::None, 8),
        (0.0, 64, RopeScaling::None, 8),
        (f64::NAN, 64, RopeScaling::None, 8),
        (1e4, 64, RopeScaling::Linear { factor: 0.0 }, 8),
        (1e4, 64, RopeScaling::Dynamic { factor: -1.0, max_position_embeddings: 4 }, 8),
        (1e4, 2, RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 4 }, 8),
        (1e4, 64, longrope(31, 1.0, 1.0), 8),
        (1e4, 64, longrope(32, 0.0, 1.0), 8),
        (1e4, 64, longrope(32, 1.0, f64::INFINITY), 8),
        (1e4, 64, yarn(0.0, 1.0), 8),
        (1e4, 64, yarn(32.0, 0.0), 8),
        (1.0, 64, yarn(32.0, 1.0), 8),
        (1e4, 64, RopeScaling::None, 0),
        (1e4, 64, RopeScaling::None, usize::MAX),
    ] {
        assert!(RopeTable::new(theta, head_dim, &scaling, 8, positions).is_err(), "{theta} {head_dim} {positions}");
    }
}

#[test]
fn the_inverse_is_the_gradient() {
    let mut rng = Rng(3);
    let (x, dy) = (wide(&rng.normals(2 * 2 * 6)), wide(&rng.normals(2 * 2 * 6)));
    for (rotary_dim, attention) in [(6, 1.0), (4, 1.5)] {
        let (f, positions) = (reference::frequencies(100.0, rotary_dim), [3, 11]);
        let dx = reference::partial_rope(&dy, &positions, &f, 2, -1.0, attention);
        assert_gradient("rope", &dx, &x, |x| dot(&reference::partial_rope(x, &positions, &f, 2, 1.0, attention), &dy));
    }
}

#[test]
fn rotates_and_turns_back() {
    let Some(gpu) = gpu() else { return };
    for (rows, heads, head_dim, rotary_dim, attention) in [
        (1, 1, 2, 2, 1.0),
        (3, 9, 6, 6, 1.0),
        (37, 3, 64, 64, 1.0),
        (5, 4, 128, 128, 1.0),
        (2, 5, 7, 4, 1.0),
        (37, 3, 64, 16, 1.5),
        (5, 4, 128, 96, 0.7),
        (3, 1, 8, 2, 1.0),
    ] {
        let mut rng = Rng(rows as u64);
        let x = rng.normals(rows * heads * head_dim);
        // Positions restart, as in packed rows, and reach the table's end.
        let positions: Vec<u32> = (0..rows as u32).map(|r| if r == 0 { 99 } else { r * 7 % 100 }).collect();
        // Divisors of 1 leave the angles as they are.
        let scaling = longrope(rotary_dim / 2, 1.0, attention);
        let table = RopeTable::new(1e4, rotary_dim, &scaling, 100, 100).unwrap().upload(&gpu).unwrap();
        let mut g = Graph::new(&gpu);
        let table = g.import(&table);
        let tp = g.import(&gpu.tensor("positions", [rows], DType::U32, &positions).unwrap());
        let tx = g.import(&gpu.tensor("x", [rows, heads * head_dim], DType::F32, &x).unwrap());
        // Keys of fewer heads, or of more, than the queries have.
        let kv_heads = if heads == 1 { 6 } else { 1 };
        let keys = rng.normals(rows * kv_heads * head_dim);
        let tk = g.import(&gpu.tensor("k", [rows, kv_heads * head_dim], DType::F32, &keys).unwrap());
        let mut doubled = |x| elementwise::add(&mut g, x, x, 1.0).unwrap();
        let [turned, inverse] = [doubled(&tx), doubled(&tx)];
        let [turned_keys, inverse_keys] = [doubled(&tk), doubled(&tk)];
        rope::rope(&mut g, [(&turned, heads), (&turned_keys, kv_heads)], &table, &tp, head_dim, false).unwrap();
        rope::rope(&mut g, [(&inverse, heads), (&inverse_keys, kv_heads)], &table, &tp, head_dim, true).unwrap();
        for value in [&turned, &inverse, &turned_keys, &inverse_keys] {
            g.keep(value);
        }
        let ran = g.run().unwrap();
        let twice = |x: &[f32]| x.iter().map(|v| 2.0 * f64::from(*v)).collect::<Vec<_>>();
        let f = reference::frequencies(1e4, rotary_dim);
        for (what, value, before, heads, sign) in [
            ("queries", &turned, &x, heads, 1.0),
            ("queries back", &inverse, &x, heads, -1.0),
            ("keys", &turned_keys, &keys, kv_heads, 1.0),
            ("keys back", &inverse_keys, &keys, kv_heads, -1.0),
        ] {
            let want = reference::partial_rope(&twice(before), &positions, &f, heads, sign, attention);
            // Two products below 10 of f32 factors, and their sum.
            assert_close(what, &ran.read::<f32>(value).unwrap(), &want, 2e-6, 1e-6);
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("x", [2, 12], DType::F32).unwrap());
    let table = g.import(&gpu.zeros("table", [8, 6], DType::F32).unwrap());
    let positions = g.import(&gpu.zeros("positions", [2], DType::U32).unwrap());
    let signed = g.import(&gpu.zeros("positions", [2], DType::I32).unwrap());
    let k = g.import(&gpu.zeros("k", [2, 6], DType::F32).unwrap());
    let other = g.import(&gpu.zeros("k", [1, 6], DType::F32).unwrap());
    assert!(rope::rope(&mut g, [(&x, 2), (&k, 1)], &table, &positions, 6, false).is_ok());
    assert!(rope::rope(&mut g, [(&x, 1), (&x, 1)], &table, &positions, 12, false).is_ok(), "the first 6 turn");
    for (pair, positions, head_dim) in [
        ([(&x, 3), (&k, 1)], &positions, 6),
        ([(&x, 2), (&k, 2)], &positions, 6),
        ([(&x, 2), (&other, 1)], &positions, 6),
        ([(&x, 3), (&x, 3)], &positions, 4),
        ([(&x, 2), (&k, 1)], &signed, 6),
    ] {
        assert!(rope::rope(&mut g, pair, &table, positions, head_dim, false).is_err());
    }
}
