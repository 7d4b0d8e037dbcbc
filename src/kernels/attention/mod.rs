//! Causal grouped-query flash attention over whole sequences, forward and backward, and against a cache.
//!
//! Scores never reach memory: the forward pass keeps the log-sum-exp of each row, and the backward pass computes the
//! probabilities again. Nothing is summed by atomics, so the same input gives the same bits. The designs (`tiles`, `lanes`, and
//! `cached` for the few tokens of decoding) import `spec` and never each other.

mod cached;
mod lanes;
mod spec;
mod tiles;

pub use cached::decode;
pub use lanes::{LANES, MAX_HEAD_DIM};
pub use spec::Attention;

use crate::{
    DType, Error, Result,
    gpu::{Caps, DeviceKind, Kernel},
    graph::{Graph, Value},
};
use spec::Mask;
pub(super) use spec::expect;

/// Which kernels do the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// Tiles in workgroup memory, on any device; a thread holds at most so many vec4s of each of two rows.
    Tiles(u32),
    /// Whole rows in a lane, operands passed round by shuffles, in subgroups of exactly so many lanes: software drivers.
    Lanes {
        /// How many.
        lanes: u32,
        /// Whether rows are loaded as integers of 64 bits.
        long: bool,
    },
}

impl Design {
    /// Tiles for GPUs.
    pub const WIDE: Design = Design::Tiles(tiles::SHARES[0]);
    /// Tiles for drivers on the processor.
    pub const NARROW: Design = Design::Tiles(tiles::SHARES[1]);

    /// The design that serves a device best. Tiles take part where heads are too long for a lane's registers.
    pub fn of(caps: &Caps, head_dim: usize) -> Design {
        let (least, most) = caps.subgroup_size;
        let fits = least == most && lanes::LANES.contains(&least) && head_dim <= lanes::MAX_HEAD_DIM;
        match caps.kind {
            DeviceKind::Cpu if caps.subgroups && fits => Design::Lanes { lanes: least, long: caps.long_loads },
            DeviceKind::Cpu => Design::NARROW,
            DeviceKind::Discrete | DeviceKind::Integrated | DeviceKind::Virtual | DeviceKind::Other => Design::WIDE,
        }
    }
}

/// The kernel of an entry point, and its workgroups.
fn kernel(design: Design, entry: &'static str, spec: &Attention, mask: Mask) -> (Kernel, usize) {
    match design {
        Design::Tiles(share) => tiles::kernel(entry, spec, share, spec.scores(mask)),
        Design::Lanes { lanes, long } => lanes::kernel(entry, spec, (lanes, long), spec.scores(mask)),
    }
}

/// Every specialisation of every design, for the usual lengths of a head.
pub fn variants() -> Vec<Kernel> {
    let mut all = tiles::variants();
    all.extend(lanes::variants());
    all.extend(cached::variants());
    all
}

/// o = softmax(s + mask) v, lse = log Σ exp(s + mask), with s = scale · q kᵀ, or cap · tanh(scale · q kᵀ / cap)
///
/// q, o: [batch·seq, heads·head_dim]; k, v: [batch·seq, kv_heads·head_dim]; segments: [batch, seq] u32; lse: [batch·seq, heads];
/// the rest f32. Query i sees key j where j <= i, i − j < window and both have the same nonzero segment: 0 is padding, equal
/// numbers are one document. A token whose segment has its highest bit set is seen by none, and sees what it would without.
/// A row that sees nothing gives o = 0 and lse = −1e38. Query head h reads key head h / (heads/kv_heads). Errors: Config, Shape. FlashAttention-2, Dao 2023.
pub fn attention(
    g: &mut Graph,
    spec: &Attention,
    q: &Value,
    k: &Value,
    v: &Value,
    segments: &Value,
) -> Result<(Value, Value)> {
    let design = Design::of(g.gpu().caps(), spec.head_dim);
    attention_with(g, design, spec, q, k, v, segments)
}

/// [`attention`] by the kernels of one design. Errors: Config, Shape; Unsupported, when built, where the device lacks them.
pub fn attention_with(
    g: &mut Graph,
    design: Design,
    spec: &Attention,
    q: &Value,
    k: &Value,
    v: &Value,
    segments: &Value,
) -> Result<(Value, Value)> {
    spec.check()?;
    expect("attention segments", segments, DType::U32, &[spec.batch, spec.seq])?;
    record_forward(g, design, spec, [q, k, v], segments, spec.seq, Mask::Segments)
}

/// The forward kernel over keys of `capacity` rows a sequence.
fn record_forward(
    g: &mut Graph,
    design: Design,
    spec: &Attention,
    [q, k, v]: [&Value; 3],
    mask: &Value,
    capacity: usize,
    kind: Mask,
) -> Result<(Value, Value)> {
    spec.expect_queries("attention q", q)?;
    spec.expect_rows("attention k", k, spec.batch * capacity, spec.kv_heads)?;
    spec.expect_rows("attention v", v, spec.batch * capacity, spec.kv_heads)?;
    let o = g.value(q.shape().clone(), DType::F32)?;
    let lse = g.value([spec.batch * spec.seq, spec.heads], DType::F32)?;
    let (kernel, groups) = kernel(design, "forward", spec, kind);
    let work = 4.0 * spec.products(capacity);
    g.dispatch(kernel, &spec.params(capacity), &[q, k, v, mask, &o, &lse], groups, work)?;
    Ok((o, lse))
}

/// dv = pᵀ dO, ds = p ∘ (dO vᵀ − rowsum(dO ∘ o)) ∘ ds/d(scale · q kᵀ), dq = scale · ds k, dk = scale · dsᵀ q, with p = exp(s − lse)
///
/// Shapes as in [`attention`], whose o and lse these are; returns (dq, dk, dv), dk and dv summed over the query heads of a
/// key head. Rows that see nothing, and keys that nothing sees, get zeros. Errors: Config, Shape. FlashAttention-2, Dao 2023.
#[expect(clippy::too_many_arguments, reason = "the operands of the formula")]
pub fn attention_backward(
    g: &mut Graph,
    spec: &Attention,
    d_o: &Value,
    q: &Value,
    k: &Value,
    v: &Value,
    o: &Value,
    lse: &Value,
    segments: &Value,
) -> Result<(Value, Value, Value)> {
    let design = Design::of(g.gpu().caps(), spec.head_dim);
    attention_backward_with(g, design, spec, d_o, q, k, v, o, lse, segments)
}

/// [`attention_backward`] by the kernels of one design. Errors: Config, Shape; Unsupported, when built, where the device
/// lacks them.
#[expect(clippy::too_many_arguments, reason = "the operands of the formula")]
pub fn attention_backward_with(
    g: &mut Graph,
    design: Design,
    spec: &Attention,
    d_o: &Value,
    q: &Value,
    k: &Value,
    v: &Value,
    o: &Value,
    lse: &Value,
    segments: &Value,
) -> Result<(Value, Value, Value)> {
    spec.check()?;
    let (rows, head_dim) = (spec.batch * spec.seq, spec.head_dim);
    for (op, x) in [("attention_backward dO", d_o), ("attention_backward q", q), ("attention_backward o", o)] {
        spec.expect_queries(op, x)?;
    }
    spec.expect_rows("attention_backward k", k, rows, spec.kv_heads)?;
    spec.expect_rows("attention_backward v", v, rows, spec.kv_heads)?;
    expect("attention_backward lse", lse, DType::F32, &[rows, spec.heads])?;
    expect("attention_backward segments", segments, DType::U32, &[spec.batch, spec.seq])?;

    let stats = g.value([rows, spec.heads, 2], DType::F32)?;
    // The kernel sees one sequence of batch * seq rows.
    let flat = Attention { batch: 1, seq: rows, ..*spec }.params(rows);
    let groups = (rows * spec.heads).div_ceil(64);
    g.dispatch(tiles::statistics(head_dim), &flat, &[d_o, o, lse, &stats], groups, (4 * q.shape().len()) as f64)?;

    let params = spec.params(spec.seq);
    let dq = g.value(q.shape().clone(), DType::F32)?;
    let (backward_q, groups) = kernel(design, "backward_q", spec, Mask::Segments);
    let args = [q, k, v, segments, d_o, &stats, &dq];
    g.dispatch(backward_q, &params, &args, groups, 6.0 * spec.products(spec.seq))?;

    let dk = g.value(k.shape().clone(), DType::F32)?;
    let dv = g.value(v.shape().clone(), DType::F32)?;
    let (backward_kv, groups) = kernel(design, "backward_kv", spec, Mask::Segments);
    let args = [q, k, v, segments, d_o, &stats, &dk, &dv];
    g.dispatch(backward_kv, &params, &args, groups, 8.0 * spec.products(spec.seq))?;
    Ok((dq, dk, dv))
}

/// o\[t\] = softmax(s\[t\]) v, with s as in [`attention`], over cache rows 0 ..= position + t
///
/// q, o: [tokens, heads·head_dim]; k_cache, v_cache: [capacity, kv_heads·head_dim] f32, the rows of these tokens included
/// (see [`cache_append`](super::kv_cache::cache_append)); position: [1] u32, an imported tensor that may change between
/// runs. `spec.batch` is 1, `spec.seq` the number of tokens. Without a window, positions at or past the capacity are held at its last
/// row. With one, only the last `window` positions are seen, and position p lies in row p mod capacity: the capacity holds all
/// positions, or `window` + `spec.seq` - 1 of them. Errors: Config, Shape.
pub fn attention_cached(
    g: &mut Graph,
    spec: &Attention,
    q: &Value,
    k_cache: &Value,
    v_cache: &Value,
    position: &Value,
) -> Result<Value> {
    spec.check()?;
    expect("attention_cached position", position, DType::U32, &[1])?;
    let (capacity, _) = k_cache.rows_cols();
    if capacity < spec.seq {
        return Err(Error::shape(
            "attention_cached",
            format!("a cache of at least {} rows", spec.seq),
            k_cache.shape(),
        ));
    }
    if spec.seq >= cached::FLASH_TOKENS {
        let design = Design::of(g.gpu().caps(), spec.head_dim);
        let operands = [q, k_cache, v_cache];
        return Ok(record_forward(g, design, spec, operands, position, capacity, Mask::Position)?.0);
    }
    // Software drivers have two to a few dozen cores: the heads fill them, and a second dispatch costs more than it brings.
    let split = g.gpu().caps().kind != DeviceKind::Cpu && capacity > cached::SPLIT;
    cached::decode(g, spec, q, k_cache, v_cache, position, split)
}
