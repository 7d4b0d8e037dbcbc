//! Products through workgroup memory, for GPUs. Needs nothing beyond WebGPU's limits.

use super::spec::{Product, Spec};
use crate::{gpu::Kernel, kernels::decode::Lookup};

/// Rows and columns of the tile of one workgroup.
const TILE: usize = 64;
/// Terms of the sums that are in workgroup memory at a time.
const STEP: usize = 32;

/// The specialised kernel.
pub(super) fn kernel(spec: &Spec) -> Kernel {
    let kernel = Kernel::new("product/tiles", spec.entry.name()).with("TILE", TILE as u32).with("STEP", STEP as u32);
    spec.import(kernel, Lookup::Memory)
}

/// Workgroups for `product`.
pub(super) fn groups(product: &Product) -> usize {
    product.rows.div_ceil(TILE) * product.cols.div_ceil(TILE)
}

/// Every specialisation.
pub(super) fn variants() -> Vec<Kernel> {
    Spec::all().iter().map(kernel).collect()
}
