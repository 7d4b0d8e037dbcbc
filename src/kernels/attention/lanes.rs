//! Flash attention with whole rows in a lane, for software drivers: the kernels behind [`Design::Lanes`](super::Design).
//!
//! On lavapipe a load costs some thirty multiply-adds and a barrier far more, so each operand is loaded once per
//! subgroup and passed round by shuffles; see `shaders/attention/tiles.wgsl` for the design that GPUs want.

use super::spec::{Attention, HEAD_DIMS, Mask, Scores};
use crate::gpu::Kernel;

/// Subgroup sizes of software drivers: SwiftShader and SSE machines have 4, AVX machines 8.
pub const LANES: [u32; 2] = [4, 8];

/// Longest head whose rows are kept in a lane: on processors a lane's registers lie in the cache, and tiles are ten times as slow.
pub const MAX_HEAD_DIM: usize = 256;

/// Numbers of a head's row that a lane holds of each operand, at most, beside the entry points that hold so many: with more rows each load
/// serves more of them, until the lane's registers and the code leave the processor's first caches. Measured on lavapipe.
const MOST: [(&str, usize); 3] = [("forward", 192), ("backward_q", 192), ("backward_kv", 128)];

/// The kernel, and its workgroups for `spec`. `long`: whether the device may load integers of 64 bits.
pub(super) fn kernel(
    entry: &'static str,
    spec: &Attention,
    (lanes, long): (u32, bool),
    scores: Scores,
) -> (Kernel, usize) {
    let (kernel, rows) = specialised(entry, spec.head_dim, (lanes, long), scores);
    // Queries of all heads of a key head are one sequence.
    let all = if entry == "backward_kv" { spec.seq } else { spec.seq * (spec.heads / spec.kv_heads) };
    (kernel, all.div_ceil(rows * lanes as usize) * spec.kv_heads * spec.batch)
}

fn specialised(entry: &'static str, head_dim: usize, (lanes, long): (u32, bool), scores: Scores) -> (Kernel, usize) {
    let (_, most) = MOST.into_iter().find(|(name, _)| *name == entry).expect("one of the three");
    let rows = (most / head_dim).clamp(1, 4);
    let kernel = Kernel::new("attention/lanes", entry)
        .with("HEAD_DIM", head_dim as u32)
        .with("LANES", lanes)
        .with("ROWS", rows as u32)
        .with("SG", lanes)
        .with("WHOLE", 1);
    let kernel = match long && head_dim.is_multiple_of(8) {
        true => kernel.import("attention_rows", "attention_rows_long").long(),
        false => kernel,
    };
    (scores.apply(kernel.subgroups()), rows)
}

/// Every specialisation, for the usual lengths of a head.
pub(super) fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS.into_iter().filter(|&d| d <= MAX_HEAD_DIM) {
        for device in LANES.into_iter().flat_map(|lanes| [(lanes, false), (lanes, true)]) {
            for scores in Scores::of(head_dim) {
                all.push(specialised("forward", head_dim, device, scores).0);
                if scores.mask == Mask::Segments {
                    all.extend(
                        ["backward_q", "backward_kv"].map(|entry| specialised(entry, head_dim, device, scores).0),
                    );
                }
            }
        }
    }
    all
}
