//! Flash attention through tiles in workgroup memory, on any device.

use super::spec::{Attention, HEAD_DIMS, Mask, Scores};
use crate::gpu::Kernel;

/// How many vec4s of a head a thread holds of each of its rows, at most: more suit the registers of GPUs; fewer suit drivers on the processor, which
/// spend seconds compiling long straight code.
pub(super) const SHARES: [u32; 2] = [4, 2];

/// Threads of a tile's workgroup.
const THREADS: usize = 128;

/// A tile kernel and the rows one of its workgroups owns. `share`: vec4s of a head that a thread holds of each of two rows, at most;
/// `pairs`: partial sums a score has.
fn tile_kernel(entry: &'static str, head_dim: usize, share: u32, pairs: usize, scores: Scores) -> (Kernel, usize) {
    let vec4s = head_dim / 4;
    let parts = vec4s.div_ceil(share as usize).next_power_of_two();
    let each = if parts == 1 { 1 } else { 2 };
    let stride = vec4s.next_multiple_of(parts);
    // Two tiles, the partial sums, segments and statistics of a block's rows; WebGPU grants 16384 bytes.
    let bytes = |block: usize| block * (2 * stride * 16 + each * THREADS * pairs * 4 + 12);
    let block = [8, 4, 2].into_iter().find(|&b| bytes(b) < 16000).expect("two rows fit for every head_dim up to 256");
    let kernel = Kernel::new("attention/tiles", entry)
        .with("HEAD_DIM", head_dim as u32)
        .with("PARTS", parts as u32)
        .with("EACH", each as u32)
        .with("BLOCK", block as u32);
    (scores.apply(kernel), THREADS / parts * each)
}

/// The kernel, and its workgroups for `spec`.
pub(super) fn kernel(entry: &'static str, spec: &Attention, share: u32, scores: Scores) -> (Kernel, usize) {
    let (kernel, rows) = specialised(entry, spec.head_dim, share, scores);
    let heads = if entry == "backward_kv" { spec.kv_heads } else { spec.heads };
    (kernel, spec.seq.div_ceil(rows) * heads * spec.batch)
}

fn specialised(entry: &'static str, head_dim: usize, share: u32, scores: Scores) -> (Kernel, usize) {
    match entry {
        "forward" => tile_kernel(entry, head_dim, share, 1, scores),
        // Twice the operands and sums a row.
        _ => tile_kernel(entry, head_dim, share / 2, 2, scores),
    }
}

/// The kernel of the sums over a row that both backward kernels read; every design uses it.
pub(super) fn statistics(head_dim: usize) -> Kernel {
    tile_kernel("statistics", head_dim, 4, 2, Scores::PLAIN).0
}

/// Every specialisation, for the usual lengths of a head.
pub(super) fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for head_dim in HEAD_DIMS {
        all.push(statistics(head_dim));
        for share in SHARES {
            for scores in Scores::of(head_dim) {
                all.push(specialised("forward", head_dim, share, scores).0);
                if scores.mask == Mask::Segments {
                    all.extend(
                        ["backward_q", "backward_kv"].map(|entry| specialised(entry, head_dim, share, scores).0),
                    );
                }
            }
        }
    }
    all
}
