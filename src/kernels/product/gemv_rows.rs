//! y = x · Wᵀ for a few rows of x and codes of four bits, on drivers that run on the processor: lanes own rows of the weight.

use super::spec::{Entry, LowRows, Operand, Product, Spec};
use crate::{
    gpu::Kernel,
    kernels::decode::{Lookup, Unit},
};

/// Rows of the weight that a lane owns.
const ROWS: usize = 2;
/// Lanes of the workgroup and of every subgroup.
const LANES: u32 = 8;

/// Whether the design takes products of this kind, with rows of the weight of `width`.
pub(super) fn serves(sizes: (u32, u32), spec: &Spec, width: usize) -> bool {
    let blocks = spec.encoding.block.is_some_and(|block| block == 32 || block % 64 == 0);
    sizes == (LANES, LANES) && spec.operand == Operand::Long && blocks && spec.encoding.has_words() && width % 64 == 0
}

/// The specialised kernel for up to `vectors` rows of x.
pub(super) fn kernel(spec: &Spec, vectors: usize) -> Kernel {
    let blocks = if spec.encoding.block == Some(32) { 2 } else { 1 };
    let kernel = Kernel::new("product/gemv_rows", "forward")
        .with("SG", LANES)
        .with("WHOLE", 1)
        .with("ROWS", ROWS as u32)
        .with("VECTORS", vectors as u32)
        .with("BLOCKS", blocks);
    spec.one_by_one().import_by(kernel, Unit::SixtyFour, Lookup::Subgroup).subgroups()
}

/// Workgroups for `product`.
pub(super) fn groups(product: &Product) -> usize {
    product.cols.div_ceil(ROWS * LANES as usize)
}

/// Every specialisation.
pub(super) fn variants() -> Vec<Kernel> {
    let all = Spec::all().into_iter().map(|spec| spec.long());
    let taken = all.filter(|spec| serves((LANES, LANES), spec, 64));
    taken
        .filter(|spec| spec.entry == Entry::Forward && spec.low != LowRows::None)
        .map(|spec| kernel(&spec, 1))
        .collect()
}
