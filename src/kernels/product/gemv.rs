//! y = x · Wᵀ for a few rows of x, as in generating one token: bound by reading the weight, so every word is read once. Sums
//! meet in workgroup memory.

use super::spec::{Entry, LowRows, Product, Spec};
use crate::{gpu::Kernel, kernels::decode::Lookup};

/// Rows of x at most.
pub(super) const MOST_ROWS: usize = 4;
/// Rows of the weight per workgroup.
const ROWS: usize = 4;
/// Invocations of a workgroup.
const LANES: usize = 64;

/// The specialised kernel for up to `vectors` rows of x.
pub(super) fn kernel(spec: &Spec, vectors: usize) -> Kernel {
    let kernel = Kernel::new("product/gemv", "forward")
        .with("LANES", LANES as u32)
        .with("ROWS", ROWS as u32)
        .with("VECTORS", vectors as u32);
    spec.one_by_one().import(kernel, Lookup::Workgroup)
}

/// Workgroups for `product`.
pub(super) fn groups(product: &Product) -> usize {
    product.cols.div_ceil(ROWS)
}

/// Every specialisation.
pub(super) fn variants() -> Vec<Kernel> {
    let all = Spec::all().into_iter();
    all.filter(|s| s.entry == Entry::Forward && s.low != LowRows::None).map(|spec| kernel(&spec, 2)).collect()
}
