//! y = x · Wᵀ for a few rows of x, on drivers that run on the processor: lanes sum by shuffles.

use super::spec::{Entry, LowRows, Product, Spec};
use crate::{gpu::Kernel, kernels::decode::Lookup};

/// Rows of x at most.
pub(super) const MOST_ROWS: usize = 2;

/// Rows of the weight per cluster: a lane keeps the sum of one.
fn cluster_rows(sg: u32) -> u32 {
    sg.min(8)
}

/// The specialised kernel for up to `vectors` rows of x and a weight with rows of `width`, on a device with subgroups of these
/// sizes (smallest, largest).
pub(super) fn kernel((sg, lanes): (u32, u32), spec: &Spec, width: usize, vectors: usize) -> Kernel {
    let kernel = Kernel::new("product/gemv_subgroup", "forward")
        .with("SG", sg)
        .with("LANES", lanes)
        .with("WHOLE", u32::from(sg == lanes))
        .with("ROWS", cluster_rows(sg))
        .with("VECTORS", vectors as u32)
        .with("SHARED", u32::from(spec.may_share_scales(width)));
    spec.one_by_one().import(kernel, Lookup::Subgroup).subgroups()
}

/// Workgroups for `product`.
pub(super) fn groups((sg, lanes): (u32, u32), product: &Product) -> usize {
    product.cols.div_ceil((cluster_rows(sg) * (lanes / sg)) as usize)
}

/// Every specialisation, for devices with subgroups of one size and of several.
pub(super) fn variants(serves: fn(&Spec) -> bool) -> Vec<Kernel> {
    let all = Spec::all().into_iter().filter(serves);
    let forward = all.filter(|spec| spec.entry == Entry::Forward && spec.low != LowRows::None);
    forward.flat_map(|spec| [kernel((8, 8), &spec, 64, 1), kernel((4, 64), &spec, 40, 4)]).collect()
}
