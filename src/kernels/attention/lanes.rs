//! Flash attention with one row per lane, for software drivers: the kernels behind [`Design::Lanes`](super::Design).
//!
//! On lavapipe a load costs some thirty multiply-adds and a barrier far more, so each operand is loaded once per
//! subgroup and passed round by shuffles; see `shaders/attention/tiles.wgsl` for the design that GPUs want.

use super::spec::{HEAD_DIMS, Mask, Scores};
use crate::gpu::Kernel;

/// Subgroup sizes of software drivers: SwiftShader and SSE machines have 4, AVX machines 8.
pub const LANES: [u32; 2] = [4, 8];

/// Longest head whose rows are kept in a lane: on processors a lane's registers lie in the cache, and tiles are ten times as slow.
pub const MAX_HEAD_DIM: usize = 256;

/// The kernel and the rows one of its workgroups owns.
pub(super) fn kernel(entry: &'static str, head_dim: usize, lanes: u32, scores: Scores) -> (Kernel, usize) {
    let kernel = Kernel::new("attention/lanes", entry).with("HEAD_DIM", head_dim as u32).with("LANES", lanes);
    (scores.apply(kernel.subgroups()), lanes as usize)
}

/// Every specialisation, for the usual lengths of a head.
pub(super) fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS.into_iter().filter(|&d| d <= MAX_HEAD_DIM) {
        for lanes in LANES {
            for scores in Scores::of(head_dim) {
                all.push(kernel("forward", head_dim, lanes, scores).0);
                if scores.mask == Mask::Segments {
                    all.extend(["backward_q", "backward_kv"].map(|entry| kernel(entry, head_dim, lanes, scores).0));
                }
            }
        }
    }
    all
}
