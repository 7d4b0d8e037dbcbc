//! Attention of new tokens against a KV cache.

use super::spec::{Attention, HEAD_DIMS, cap, caps_of, expect};
use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        tokens: u32,
        capacity: u32,
        heads: u32,
        kv_heads: u32,
        window: u32,
        scale: f32,
        splits: u32,
        soft_cap: f32,
    }
}

/// From so many tokens on the flash kernels, which share keys among queries, take over from the decoding kernel.
pub(super) const FLASH_TOKENS: usize = 4;
/// Keys of a split on devices with more workgroups to fill than a token has heads.
pub(super) const SPLIT: usize = 256;
/// Query heads that one workgroup serves, at most.
const MAX_REPEAT: usize = 8;

fn decode_kernel(head_dim: usize, repeat: usize, split: usize, capped: bool) -> Kernel {
    cap(kernel("decode", head_dim, repeat, split), capped)
}

fn combine_kernel(head_dim: usize) -> Kernel {
    kernel("combine", head_dim, 1, SPLIT)
}

fn kernel(entry: &'static str, head_dim: usize, repeat: usize, split: usize) -> Kernel {
    Kernel::new("attention/cached", entry)
        .with("HEAD_DIM", head_dim as u32)
        .with("REPEAT", repeat as u32)
        .with("SPLIT", split as u32)
}

/// Every specialisation, for the usual lengths of a head.
pub(super) fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS {
        all.push(combine_kernel(head_dim));
        for repeat in 1..=MAX_REPEAT {
            for &capped in caps_of(head_dim) {
                all.extend([0, SPLIT].map(|split| decode_kernel(head_dim, repeat, split, capped)));
            }
        }
    }
    all
}

/// [`attention_cached`](super::attention_cached) by the decoding kernel, which suits few tokens, with the keys of a token given to one workgroup per key
/// head or `split` over several. `spec.batch` is 1, `spec.seq` the number of tokens. Errors: Config, Shape.
pub fn decode(
    g: &mut Graph,
    spec: &Attention,
    q: &Value,
    k: &Value,
    v: &Value,
    position: &Value,
    split: bool,
) -> Result<Value> {
    spec.check()?;
    let (capacity, _) = k.rows_cols();
    expect("attention_cached position", position, DType::U32, &[1])?;
    spec.expect_rows("attention_cached q", q, spec.seq, spec.heads)?;
    spec.expect_rows("attention_cached k_cache", k, capacity, spec.kv_heads)?;
    spec.expect_rows("attention_cached v_cache", v, capacity, spec.kv_heads)?;
    let (tokens, heads, head_dim) = (spec.seq, spec.heads, spec.head_dim);
    let shared = heads / spec.kv_heads;
    let repeat =
        (1..=MAX_REPEAT.min(shared)).rev().find(|r| shared.is_multiple_of(*r)).expect("1 divides every number");
    let splits = if split { capacity.div_ceil(SPLIT) } else { 1 };
    let params = Params {
        tokens: tokens as u32,
        capacity: capacity as u32,
        heads: heads as u32,
        kv_heads: spec.kv_heads as u32,
        window: spec.window_u32(),
        scale: spec.scale,
        splits: splits as u32,
        soft_cap: spec.soft_cap_base_2(),
    };
    let capped = spec.soft_cap.is_some();
    let groups = tokens * (heads / repeat) * splits;
    let work = 4.0 * (tokens * heads * head_dim * capacity) as f64;
    let o = g.value(q.shape().clone(), DType::F32)?;
    if !split {
        g.dispatch(decode_kernel(head_dim, repeat, 0, capped), &params, &[q, k, v, position, &o], groups, work)?;
        return Ok(o);
    }
    let parts = g.value([tokens * heads, splits, head_dim + 4], DType::F32)?;
    g.dispatch(decode_kernel(head_dim, repeat, SPLIT, capped), &params, &[q, k, v, position, &parts], groups, work)?;
    let groups = (tokens * heads * head_dim / 4).div_ceil(128);
    g.dispatch(combine_kernel(head_dim), &params, &[&parts, &o], groups, 4.0 * parts.shape().len() as f64)?;
    Ok(o)
}
