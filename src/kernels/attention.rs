//! Causal grouped-query flash attention over whole sequences, forward and backward.
//!
//! Scores never reach memory: the forward pass keeps the log-sum-exp of each row, and the backward pass computes the
//! probabilities again. Nothing is summed by atomics, so the same input gives the same bits.

use super::attention_lanes;
use crate::{
    DType, Error, Result,
    gpu::{Caps, DeviceKind, Kernel},
    graph::{Graph, Value},
};

/// The sizes of an attention layer over `batch` sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head: a multiple of 4, at most 256.
    pub head_dim: usize,
    /// Factor of the scores, 1/√head_dim as a rule.
    pub scale: f32,
    /// How many keys a query sees, itself included; `None`: all before it.
    pub window: Option<usize>,
}

/// Which kernels do the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// Tiles in workgroup memory, on any device; a thread holds at most so many vec4s of a head. More suit the registers of
    /// GPUs; fewer suit drivers on the processor, which spend seconds compiling long straight code.
    Tiles(u32),
    /// A row a lane, operands passed round by shuffles, in subgroups of exactly so many lanes: software drivers.
    Lanes(u32),
}

impl Design {
    /// Tiles for GPUs.
    pub const WIDE: Design = Design::Tiles(8);
    /// Tiles for drivers on the processor.
    pub const NARROW: Design = Design::Tiles(2);

    /// The design that serves a device best. Tiles take part where heads are too long for a lane's registers.
    pub fn of(caps: &Caps, head_dim: usize) -> Design {
        let (least, most) = caps.subgroup_size;
        let fits =
            least == most && attention_lanes::LANES.contains(&least) && head_dim <= attention_lanes::MAX_HEAD_DIM;
        match caps.kind {
            DeviceKind::Cpu if caps.subgroups && fits => Design::Lanes(least),
            DeviceKind::Cpu => Design::NARROW,
            _ => Design::WIDE,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    seq: u32,
    capacity: u32,
    heads: u32,
    kv_heads: u32,
    window: u32,
    scale: f32,
}

/// Where a query's visible keys are told: a snippet of `shaders/lib`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// [batch, seq] segments.
    Segments,
    /// [1] position of the first query in a cache.
    Position,
}

impl Mask {
    pub(super) fn apply(self, kernel: Kernel) -> Kernel {
        match self {
            Mask::Segments => kernel,
            Mask::Position => kernel.import("mask_segments", "mask_position"),
        }
    }
}

/// Threads of a tile's workgroup.
const THREADS: usize = 128;

/// A tile kernel and the rows one of its workgroups owns. `share`: vec4s of a head that a thread holds, at most;
/// `pairs`: partial sums a score has.
fn tile_kernel(entry: &'static str, head_dim: usize, share: u32, pairs: usize, mask: Mask) -> (Kernel, usize) {
    let vec4s = head_dim / 4;
    let parts = vec4s.div_ceil(share as usize).next_power_of_two();
    let stride = vec4s.next_multiple_of(parts);
    // Two tiles, the partial sums, segments and statistics of a block's rows; WebGPU grants 16384 bytes.
    let bytes = |block: usize| block * (2 * stride * 16 + THREADS * pairs * 4 + 12);
    let block = [8, 4].into_iter().find(|&b| bytes(b) < 16000).expect("four rows fit for every head_dim up to 256");
    let kernel = Kernel::new("attention", entry)
        .with("HEAD_DIM", head_dim as u32)
        .with("PARTS", parts as u32)
        .with("BLOCK", block as u32);
    (mask.apply(kernel), THREADS / parts)
}

fn forward_kernel(design: Design, head_dim: usize, mask: Mask) -> (Kernel, usize) {
    match design {
        Design::Tiles(share) => tile_kernel("forward", head_dim, share, 1, mask),
        Design::Lanes(lanes) => attention_lanes::kernel("forward", head_dim, lanes, mask),
    }
}

fn backward_kernel(design: Design, entry: &'static str, head_dim: usize) -> (Kernel, usize) {
    match design {
        // Twice the operands and sums a row.
        Design::Tiles(share) => tile_kernel(entry, head_dim, share / 2, 2, Mask::Segments),
        Design::Lanes(lanes) => attention_lanes::kernel(entry, head_dim, lanes, Mask::Segments),
    }
}

fn statistics_kernel(head_dim: usize) -> Kernel {
    tile_kernel("statistics", head_dim, 4, 2, Mask::Segments).0
}

/// Lengths of a head that models have; other multiples of 4 work alike.
pub(super) const HEAD_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];

/// Every specialisation, for the usual lengths of a head.
pub fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS {
        all.push(statistics_kernel(head_dim));
        for design in [Design::WIDE, Design::NARROW] {
            all.push(forward_kernel(design, head_dim, Mask::Segments).0);
            all.push(forward_kernel(design, head_dim, Mask::Position).0);
            all.push(backward_kernel(design, "backward_q", head_dim).0);
            all.push(backward_kernel(design, "backward_kv", head_dim).0);
        }
    }
    all
}

impl Attention {
    /// Errors: Config where the sizes contradict each other.
    pub(super) fn check(&self) -> Result<()> {
        let fail = |name: &str, message: String| Err(Error::config(name, message));
        if self.batch == 0 || self.seq == 0 {
            return fail("attention", format!("expected at least one token, got [{}, {}]", self.batch, self.seq));
        }
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("expected heads in a multiple of kv_heads, got {} and {}", self.heads, self.kv_heads);
            return fail("num_attention_heads", message);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(4) || self.head_dim > 256 {
            return fail("head_dim", format!("expected a multiple of 4 up to 256, got {}", self.head_dim));
        }
        if self.window == Some(0) {
            return fail("sliding_window", "expected at least 1, got 0".to_owned());
        }
        if !self.scale.is_finite() {
            return fail("attention scale", format!("expected a finite number, got {}", self.scale));
        }
        Ok(())
    }

    fn params(&self, capacity: usize) -> Params {
        Params {
            seq: self.seq as u32,
            capacity: capacity as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            window: self.window_u32(),
            scale: self.scale,
        }
    }

    pub(super) fn window_u32(&self) -> u32 {
        self.window.map_or(u32::MAX, |w| u32::try_from(w).unwrap_or(u32::MAX))
    }

    /// Pairs of a query and a key it may see, times the elements of a head, over all heads.
    fn products(&self, capacity: usize) -> f64 {
        let seen = self.window.unwrap_or(usize::MAX).min(capacity) as f64;
        let pairs =
            if capacity == self.seq { seen * (self.seq as f64 - (seen - 1.0) / 2.0) } else { self.seq as f64 * seen };
        pairs * (self.batch * self.heads * self.head_dim) as f64
    }

    fn expect_queries(&self, op: &str, x: &Value) -> Result<()> {
        self.expect_rows(op, x, self.batch * self.seq, self.heads)
    }

    pub(super) fn expect_rows(&self, op: &str, x: &Value, rows: usize, heads: usize) -> Result<()> {
        expect(op, x, DType::F32, &[rows, heads * self.head_dim])
    }
}

/// Errors: Shape where type or extents differ.
pub(super) fn expect(op: &str, x: &Value, dtype: DType, shape: &[usize]) -> Result<()> {
    match x.dtype() == dtype && **x.shape() == *shape {
        true => Ok(()),
        false => Err(Error::shape(op, format!("{dtype} {shape:?}"), format!("{} {}", x.dtype(), x.shape()))),
    }
}

/// o = softmax(scale · q kᵀ + mask) v, lse = log Σ exp(scale · q kᵀ + mask)
///
/// q, o: [batch·seq, heads·head_dim]; k, v: [batch·seq, kv_heads·head_dim]; segments: [batch, seq] u32; lse: [batch·seq, heads];
/// the rest f32. Query i sees key j where j <= i, i − j < window and both have the same nonzero segment: 0 is padding, equal
/// numbers are one document. With its highest bit set a segment's token is seen by none, and sees what it does without. A row that sees nothing gives o = 0 and lse = −1e38. Query head h reads key head h / (heads/kv_heads).
/// Errors: Config, Shape. FlashAttention-2, Dao 2023.
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
pub(super) fn record_forward(
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
    let (kernel, rows) = forward_kernel(design, spec.head_dim, kind);
    let groups = spec.seq.div_ceil(rows) * spec.heads * spec.batch;
    let work = 4.0 * spec.products(capacity);
    g.dispatch(kernel, &spec.params(capacity), &[q, k, v, mask, &o, &lse], groups, work)?;
    Ok((o, lse))
}

/// dv = pᵀ dO, ds = p ∘ (dO vᵀ − rowsum(dO ∘ o)), dq = scale · ds k, dk = scale · dsᵀ q, with p = exp(scale · q kᵀ − lse)
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
    g.dispatch(statistics_kernel(head_dim), &flat, &[d_o, o, lse, &stats], groups, (4 * q.shape().len()) as f64)?;

    let params = spec.params(spec.seq);
    let dq = g.value(q.shape().clone(), DType::F32)?;
    let (kernel, tile) = backward_kernel(design, "backward_q", head_dim);
    let groups = spec.seq.div_ceil(tile) * spec.heads * spec.batch;
    let args = [q, k, v, segments, d_o, &stats, &dq];
    g.dispatch(kernel, &params, &args, groups, 6.0 * spec.products(spec.seq))?;

    let dk = g.value(k.shape().clone(), DType::F32)?;
    let dv = g.value(v.shape().clone(), DType::F32)?;
    let (kernel, tile) = backward_kernel(design, "backward_kv", head_dim);
    let groups = spec.seq.div_ceil(tile) * spec.kv_heads * spec.batch;
    let args = [q, k, v, segments, d_o, &stats, &dk, &dv];
    g.dispatch(kernel, &params, &args, groups, 8.0 * spec.products(spec.seq))?;
    Ok((dq, dk, dv))
}
