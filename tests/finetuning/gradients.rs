//! The gradients of all that a block learns against finite differences of the whole block in f64.

use crate::{
    reference::{attention, glu::glu, norm::rms_norm, product, rope, transposed, wide},
    support::{Rng, assert_close, gpu, packed},
};
use fourbit::{
    DType, Gpu,
    arch::RopeScaling,
    graph::Graph,
    kernels::{QuantizedTensor, glu::Activation, hadamard::Hadamard, rope::RopeTable, squared_error::squared_error},
    method::train_block,
    model::Block,
    nn::{
        Adapted, Attention, Context, FeedForward, Keys, Linear, Parameter, Pass, Projections, RmsNorm, StepValues,
        Transform,
    },
    quant::{
        Packed, Scheme,
        hadamard::{FACTOR_SEED, factor, split},
    },
};

const TOKENS: usize = 5;
const HIDDEN: usize = 16;
const EPS: f64 = 1e-5;
/// [out, in] of the block's linear layers: two heads of 8, one of keys and values.
const SHAPES: [[usize; 2]; 7] = [[16, 16], [8, 16], [8, 16], [16, 16], [24, 16], [24, 16], [16, 24]];
/// Of the block's linear layers: every kind of layer, in both halves of the block.
const SCHEMES: [Scheme; 7] =
    [Scheme::Aqlm, Scheme::E8p, Scheme::Aqlm, Scheme::E8p, Scheme::Aqlm, Scheme::F32, Scheme::E8p];

fn store(index: usize) -> Packed {
    let [rows, cols] = SHAPES[index];
    let values: Vec<f32> = Rng(index as u64 + 40).normals(rows * cols).iter().map(|v| 0.3 * v).collect();
    let mut weight = packed(SCHEMES[index], SHAPES[index], &values);
    // Softmax and silu are to be in the middle of their range.
    if weight.scheme != Scheme::F32 {
        weight.scales.iter_mut().for_each(|s| *s = (0.2 * f32::from_bits(*s)).to_bits());
    }
    weight
}

fn norm(index: usize) -> Vec<f32> {
    Rng(index as u64 + 60).normals(HIDDEN).iter().map(|v| 0.5 + 0.2 * v).collect()
}

fn block(gpu: &Gpu) -> Block {
    let linear = |index: usize| {
        let ([rows, cols], name) = (SHAPES[index], format!("layer {index}"));
        let weight = QuantizedTensor::upload(gpu, &name, &store(index)).unwrap();
        let between = || Transform::Hadamard {
            input: Hadamard::new(gpu, cols, index as u64).unwrap(),
            output: Hadamard::new(gpu, rows, index as u64 + 20).unwrap(),
        };
        let input = (SCHEMES[index] == Scheme::E8p).then(between);
        Adapted::new(name, Linear { transform: input, ..Linear::new(weight, None) })
    };
    let norm = |index| {
        let weight = gpu.tensor("norm", [HIDDEN], DType::F32, &norm(index)).unwrap();
        RmsNorm { weight: Parameter::frozen(weight), offset: 0.0, eps: EPS as f32 }
    };
    Block {
        attention_norm: Some(norm(0)),
        attention: Attention {
            qkv: Projections::apart([linear(0), linear(1), linear(2)]),
            o: linear(3),
            q_norm: None,
            k_norm: None,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0 / 8f32.sqrt(),
            soft_cap: None,
            window: None,
            rope: Some(0),
        },
        after_attention_norm: None,
        feed_forward_norm: Some(norm(1)),
        feed_forward: FeedForward {
            gate_up: Projections::apart([linear(4), linear(5)]),
            down: linear(6),
            activation: Activation::Silu,
        },
        after_feed_forward_norm: None,
        residual_factor: 1.0,
    }
}

/// The Walsh-Hadamard transform times the factor, without signs. [n, n]
fn hadamard(n: usize) -> Vec<f64> {
    let (order, twos) = split(n).unwrap();
    let (small, scale) = (factor(order, FACTOR_SEED), f64::from(1u32 << twos).sqrt());
    let entry = |r: usize, c: usize| {
        let walsh = if ((r / order) & (c / order)).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
        walsh / scale * f64::from(small[r % order * order + c % order])
    };
    (0..n * n).map(|i| entry(i / n, i % n)).collect()
}

/// The weight of layer `index` from what it learns.
fn dense(index: usize, learned: &[Vec<f64>]) -> Vec<f64> {
    let ([rows, cols], stored) = (SHAPES[index], store(index));
    match SCHEMES[index] {
        Scheme::F32 => learned[0].clone(),
        Scheme::E8p => {
            let (left, right) = (&learned[0], &learned[1]);
            // Uᵀ · W · T
            let inner = product(&wide(&stored.dequantize()), &transposed(&hadamard(cols), cols), cols);
            let inner = product(&transposed(&hadamard(rows), rows), &transposed(&inner, cols), rows);
            (0..rows * cols).map(|i| left[i / cols] * inner[i] * right[i % cols]).collect()
        }
        _ => {
            let (books, scales) = (&learned[0], &learned[1]);
            let number = |i: usize| {
                let code = stored.codes[i / 16] >> (16 * (i / 8 % 2));
                let (a, b) = ((code & 255) as usize, 256 + (code >> 8 & 255) as usize);
                scales[i / cols] * (books[8 * a + i % 8] + books[8 * b + i % 8])
            };
            (0..rows * cols).map(number).collect()
        }
    }
}

/// How many tensors layer `index` learns.
fn count(index: usize) -> usize {
    if SCHEMES[index] == Scheme::F32 { 1 } else { 2 }
}

/// The block's output. learned: as `train_block` orders it. x: [TOKENS, HIDDEN]
fn forward(learned: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let mut at = 0;
    let weights: Vec<Vec<f64>> = (0..7)
        .map(|index| {
            at += count(index);
            dense(index, &learned[at - count(index)..at])
        })
        .collect();
    let layer = |index: usize, x: &[f64]| product(x, &weights[index], SHAPES[index][1]);
    let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let case = attention::Case {
        batch: 1,
        seq: TOKENS,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        scale: 1.0 / 8f64.sqrt(),
        soft_cap: None,
        window: None,
        segments: vec![1; TOKENS],
    };
    let (positions, frequencies): (Vec<u32>, _) = ((0..TOKENS as u32).collect(), rope::frequencies(1e4, 8));
    let (n, _) = rms_norm(x, &learned[at], EPS);
    let q = rope::rope(&layer(0, &n), &positions, &frequencies, 2, 1.0);
    let k = rope::rope(&layer(1, &n), &positions, &frequencies, 1, 1.0);
    let (attended, _) = attention::attention(&case, &q, &k, &layer(2, &n));
    let x1 = add(x, &layer(3, &attended));
    let (m, _) = rms_norm(&x1, &learned[at + 1], EPS);
    add(&x1, &layer(6, &glu(Activation::Silu, &layer(4, &m), &layer(5, &m))))
}

#[test]
fn gradients_of_a_blocks_error_equal_finite_differences() {
    let Some(gpu) = gpu() else { return };
    let mut block = block(&gpu);
    let store = train_block(&gpu, &mut block, true).unwrap();
    let (x, wanted) = (Rng(1).normals(TOKENS * HIDDEN), Rng(2).normals(TOKENS * HIDDEN));
    let accumulate = gpu.zeros("accumulate", [1], DType::F32).unwrap();
    let tensor = |shape: &[usize], values: &[f32]| gpu.tensor("t", shape, DType::F32, values).unwrap();
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let table = RopeTable::new(1e4, 8, &RopeScaling::None, TOKENS, TOKENS).unwrap().upload(&gpu).unwrap();
    let mut y = Vec::new();
    // Once into empty memory, once more on top of it.
    for keep in [0.0f32, 1.0] {
        accumulate.write(bytemuck::cast_slice(&[keep])).unwrap();
        let mut g = Graph::new(&gpu);
        let step = StepValues { seed: None, accumulate: g.import(&accumulate) };
        let cx = Context {
            batch: 1,
            seq: TOKENS,
            positions: g.import(&gpu.tensor("positions", [TOKENS], DType::U32, &positions).unwrap()),
            ropes: vec![g.import(&table)],
            pass: Pass::training(step),
        };
        let segments = g.import(&gpu.tensor("segments", [1, TOKENS], DType::U32, &[1u32; TOKENS]).unwrap());
        let [tx, want] = [&x, &wanted].map(|v| g.import(&tensor(&[TOKENS, HIDDEN], v)));
        let errors = g.import(&gpu.zeros("errors", [TOKENS], DType::F32).unwrap());
        let (out, saved) = block.forward(&mut g, &tx, &cx, Keys::Own(&segments)).unwrap();
        // The loss is half the squared error.
        let dy = squared_error(&mut g, &out, &want, 1.0, &errors).unwrap();
        block.gradients(&mut g, &saved, &dy, &cx).unwrap();
        g.keep(&out);
        y = g.run().unwrap().read::<f32>(&out).unwrap();
    }

    let learned: Vec<Vec<f64>> = store.iter().map(|(_, t)| wide(&t.values.read::<f32>().unwrap())).collect();
    assert_eq!(learned.len(), 15);
    let (x, wanted) = (wide(&x), wide(&wanted));
    assert_close("y", &y, &forward(&learned, &x), 2e-5, 1e-5);
    let loss = |learned: &[Vec<f64>]| {
        let y = forward(learned, &x);
        0.5 * y.iter().zip(&wanted).map(|(y, w)| (y - w).powi(2)).sum::<f64>()
    };
    for (i, (_, parameter)) in store.iter().enumerate() {
        let got = parameter.grads.as_ref().unwrap().read::<f32>().unwrap();
        let largest = got.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(largest > 1e-3, "tensor {i} has a gradient");
        // Of a code book the vectors that are in use have one; all entries of the others.
        let mut entries: Vec<usize> = (0..got.len()).filter(|&e| got.len() < 4096 || got[e] != 0.0).collect();
        let step = entries.len().div_ceil(12);
        entries = entries.into_iter().step_by(step).collect();
        for e in entries {
            let mut moved = learned.clone();
            let mut at = |by: f64| {
                moved[i][e] = learned[i][e] + by;
                loss(&moved)
            };
            let want = 2.0 * (at(1e-5) - at(-1e-5)) / 2e-5;
            // Differences are good to 1e-8; f32 sums of a few dozen terms of the size of the largest.
            let slack = 3e-5 * f64::from(largest) + 1e-4 * want.abs();
            assert!((f64::from(got[e]) - want).abs() < slack, "tensor {i}, entry {e}: got {}, want {want}", got[e]);
        }
    }
}
