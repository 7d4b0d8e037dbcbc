//! Attention at the heads of the shapes.

use crate::{
    DType, Result,
    arch::Architecture,
    bench::case::{Case, Check, Inputs, check_some, kept, read},
    kernels::{
        attention::{Attention, attention, attention_backward, attention_cached},
        kv_cache::cache_append,
    },
};

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let mut all = Vec::new();
    for shape in shapes {
        for tokens in [256, 1024] {
            all.extend([forward(spec(shape, tokens)), backward(spec(shape, tokens))]);
        }
        for filled in [256, 1024] {
            all.push(decode(spec(shape, 1), filled));
        }
        all.push(append(shape.attention.kv_heads * shape.attention.head_dim));
    }
    all
}

fn spec(shape: &Architecture, seq: usize) -> Attention {
    let of = shape.attention;
    Attention {
        batch: 1,
        seq,
        heads: of.heads,
        kv_heads: of.kv_heads,
        head_dim: of.head_dim,
        scale: of.scale,
        soft_cap: of.soft_cap,
        window: None,
    }
}

fn name(what: &str, spec: &Attention, tokens: usize) -> String {
    format!("{what}/{tokens}/{}of{}x{}", spec.heads, spec.kv_heads, spec.head_dim)
}

/// Pairs of a query and a key that it sees.
fn pairs(seq: usize) -> f64 {
    (seq * (seq + 1) / 2) as f64
}

/// Query, key and value, large enough that weights differ.
fn qkv(inputs: &mut Inputs, spec: &Attention, keys: usize) -> Result<[crate::gpu::Tensor; 3]> {
    let (q, _) = inputs.spread([spec.seq, spec.heads * spec.head_dim], 2.0)?;
    let (k, _) = inputs.spread([keys, spec.kv_heads * spec.head_dim], 2.0)?;
    let (v, _) = inputs.floats([keys, spec.kv_heads * spec.head_dim])?;
    Ok([q, k, v])
}

/// Weights that query `row` of a head gives to the first `keys` keys.
fn weights(spec: &Attention, [q, k]: [&[f32]; 2], row: usize, keys: usize, head: usize) -> Vec<f64> {
    let key_head = head / (spec.heads / spec.kv_heads);
    let query = &q[(row * spec.heads + head) * spec.head_dim..][..spec.head_dim];
    let score = |key: usize| {
        let key = &k[(key * spec.kv_heads + key_head) * spec.head_dim..][..spec.head_dim];
        let product: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        let score = f64::from(spec.scale) * product;
        spec.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = (0..keys).map(score).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
    scores.into_iter().map(|score| (score - most).exp() / sum).collect()
}

/// Element `col` of what query `row`, which sees `keys` keys, gets.
fn expected(spec: &Attention, [q, k, v]: [&[f32]; 3], row: usize, keys: usize, col: usize) -> f64 {
    let (head, within) = (col / spec.head_dim, col % spec.head_dim);
    let key_head = head / (spec.heads / spec.kv_heads);
    let value = |key: usize| f64::from(v[(key * spec.kv_heads + key_head) * spec.head_dim + within]);
    weights(spec, [q, k], row, keys, head).iter().enumerate().map(|(key, weight)| weight * value(key)).sum()
}

fn forward(spec: Attention) -> Case {
    let flops = 4.0 * pairs(spec.seq) * (spec.heads * spec.head_dim) as f64;
    Case::program(name("forward", &spec, spec.seq), flops, move |inputs| {
        let tensors = qkv(inputs, &spec, spec.seq)?;
        let [q, k, v] = tensors.each_ref().map(|tensor| inputs.graph.import(tensor));
        let segments = inputs.words([1, spec.seq], |_| 1)?;
        let (o, _) = attention(&mut inputs.graph, &spec, &q, &k, &v, &segments)?;
        let o = kept(inputs, &o);
        Ok(check(spec, tensors, o, |row| row + 1))
    })
}

fn check(
    spec: Attention,
    tensors: [crate::gpu::Tensor; 3],
    o: crate::graph::Value,
    keys: impl Fn(usize) -> usize + 'static,
) -> Check {
    Box::new(move |program| {
        let [q, k, v] = read(tensors.each_ref())?;
        check_some(program, &o, 1e-4, |row, col| expected(&spec, [&q, &k, &v], row, keys(row), col))
    })
}

/// Five products of the pairs; the scores of the forward pass are computed again.
fn backward(spec: Attention) -> Case {
    let flops = 10.0 * pairs(spec.seq) * (spec.heads * spec.head_dim) as f64;
    Case::program(name("backward", &spec, spec.seq), flops, move |inputs| {
        let tensors = qkv(inputs, &spec, spec.seq)?;
        let (gradient, d_o) = inputs.floats([spec.seq, spec.heads * spec.head_dim])?;
        // o and lse come from the forward pass, which is not to be timed again.
        let mut first = crate::graph::Graph::new(&inputs.gpu());
        let [q, k, v] = tensors.each_ref().map(|tensor| first.import(tensor));
        let ones = inputs.gpu().tensor("bench", [1, spec.seq], DType::U32, &vec![1u32; spec.seq])?;
        let segments = first.import(&ones);
        let (o, lse) = attention(&mut first, &spec, &q, &k, &v, &segments)?;
        first.keep(&o);
        first.keep(&lse);
        let ran = first.run()?;
        let (o, lse) = (ran.tensor(&o)?, ran.tensor(&lse)?);
        let g = &mut inputs.graph;
        let [q, k, v] = tensors.each_ref().map(|tensor| g.import(tensor));
        let (o, lse, segments) = (g.import(&o), g.import(&lse), g.import(&ones));
        let (_, _, dv) = attention_backward(g, &spec, &d_o, &q, &k, &v, &o, &lse, &segments)?;
        let dv = kept(inputs, &dv);
        Ok(Box::new(move |program: &_| {
            let [q, k, gradient] = read([&tensors[0], &tensors[1], &gradient])?;
            let (width, group) = (spec.heads * spec.head_dim, spec.heads / spec.kv_heads);
            check_some(program, &dv, 1e-3, |key, col| {
                let (key_head, within) = (col / spec.head_dim, col % spec.head_dim);
                let of_query = |query: usize, head: usize| {
                    let weight = weights(&spec, [&q, &k], query, query + 1, head)[key];
                    weight * f64::from(gradient[query * width + head * spec.head_dim + within])
                };
                let heads = key_head * group..(key_head + 1) * group;
                (key..spec.seq)
                    .flat_map(|query| heads.clone().map(move |head| (query, head)))
                    .map(|(q, h)| of_query(q, h))
                    .sum()
            })
        }))
    })
}

/// One token against a cache that holds `filled` others.
fn decode(spec: Attention, filled: usize) -> Case {
    let keys = filled + 1;
    let flops = 4.0 * keys as f64 * (spec.heads * spec.head_dim) as f64;
    Case::program(name("decode", &spec, filled), flops, move |inputs| {
        let tensors = qkv(inputs, &spec, keys)?;
        let [q, k, v] = tensors.each_ref().map(|tensor| inputs.graph.import(tensor));
        let position = inputs.words([1], |_| filled as u32)?;
        let o = attention_cached(&mut inputs.graph, &spec, &q, &k, &v, &position)?;
        let o = kept(inputs, &o);
        Ok(check(spec, tensors, o, move |_| keys))
    })
}

fn append(width: usize) -> Case {
    const ROWS: usize = 512;
    let capacity = 1024;
    Case::program(format!("append/{ROWS}x{width}"), 0.0, move |inputs| {
        let (rows_tensor, rows) = inputs.floats([ROWS, width])?;
        let (_, keys) = inputs.floats([capacity, width])?;
        let (cache_tensor, cache) = inputs.floats([capacity, width])?;
        let [before] = read([&cache_tensor])?;
        let position = inputs.words([1], |_| 100)?;
        cache_append(&mut inputs.graph, [&rows, &rows], [&keys, &cache], &position, None)?;
        Ok(Box::new(move |program: &_| {
            let [rows] = read([&rows_tensor])?;
            check_some(program, &cache, 0.0, |row, col| match row.checked_sub(100).filter(|&row| row < ROWS) {
                Some(row) => f64::from(rows[row * width + col]),
                None => f64::from(before[row * width + col]),
            })
        }))
    })
}
