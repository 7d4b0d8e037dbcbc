//! Products of bytes through workgroup memory, for GPUs.

use super::spec::Spec;
use crate::gpu::Kernel;

/// Rows and columns of the tile of one workgroup.
const TILE: usize = 64;

fn kernel(spec: Spec) -> Kernel {
    spec.import(Kernel::new("product_int8/tiles", "tiled"))
}

/// The kernel and its workgroups for a product of `rows` with `cols` rows of a weight.
pub(super) fn choose(spec: Spec, rows: usize, cols: usize) -> (Kernel, usize) {
    (kernel(spec), rows.div_ceil(TILE) * cols.div_ceil(TILE))
}

/// Every specialisation.
pub(super) fn variants() -> Vec<Kernel> {
    Spec::all().map(kernel).collect()
}
