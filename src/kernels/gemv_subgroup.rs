//! The variant of [`gemv`](super::gemv) that sums by shuffles.

use super::{
    gemv,
    matmul::{Spec, import},
    matmul_subgroup::serves,
};
use crate::gpu::Kernel;

/// Rows of the weight a cluster: a lane keeps the sum of one.
fn cluster_rows(sg: u32) -> u32 {
    sg.min(8)
}

/// Rows of the weight a workgroup, on a device with subgroups of `size` (smallest, largest).
pub(super) fn rows((sg, lanes): (u32, u32)) -> usize {
    (cluster_rows(sg) * (lanes / sg)) as usize
}

/// The specialised kernel for a weight with rows of `width`.
pub(super) fn kernel((sg, lanes): (u32, u32), spec: &Spec, width: usize, vectors: usize) -> Kernel {
    let block = spec.scheme.block_size();
    let shared = block > 0 && !spec.ragged && width % 32 == 0 && block % 32 == 0;
    let kernel = Kernel::new("gemv_subgroup", "forward")
        .with("SG", sg)
        .with("LANES", lanes)
        .with("WHOLE", u32::from(sg == lanes))
        .with("ROWS", cluster_rows(sg))
        .with("VECTORS", vectors as u32)
        .with("SHARED", u32::from(shared));
    import(kernel, spec, "decode_table_subgroup").subgroups()
}

/// Every specialisation, for devices with subgroups of one size and of several.
pub fn variants() -> Vec<Kernel> {
    let served = gemv::specs().filter(|spec| serves(spec.scheme, spec.ragged));
    served.flat_map(|spec| [kernel((8, 8), &spec, 64, 1), kernel((4, 64), &spec, 40, 4)]).collect()
}
