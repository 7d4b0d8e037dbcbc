//! y = x · Wᵀ for a few rows of x, as in generating one token: bound by reading the weight, so every word is read once.
//!
//! Used by [`matmul`](super::matmul::matmul) by itself.

use super::{
    gemv_subgroup,
    matmul::{Entry, Product, Spec, import, prefers_subgroups},
    matmul_subgroup,
};
use crate::{
    Result,
    gpu::{Caps, Kernel},
    graph::Graph,
};

/// Rows of x at most, by workgroups and by subgroups.
const MOST_ROWS: [usize; 2] = [4, 2];
/// Rows of the weight a workgroup.
const ROWS: usize = 4;
/// Invocations of a workgroup.
const LANES: usize = 64;

/// Which of the two variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Workgroup,
    Subgroup,
}

/// The variant for `product`, where this kernel serves it.
pub(super) fn choose(caps: &Caps, product: &Product) -> Option<Choice> {
    let Spec { scheme, ragged, .. } = product.spec();
    let (choice, most) = match prefers_subgroups(caps) && matmul_subgroup::serves(scheme, ragged) {
        true => (Choice::Subgroup, MOST_ROWS[1]),
        false => (Choice::Workgroup, MOST_ROWS[0]),
    };
    (product.entry == Entry::Forward && (1..=most).contains(&product.rows)).then_some(choice)
}

/// Records the product.
pub(super) fn record(g: &mut Graph, product: &Product, choice: Choice) -> Result<()> {
    // Results lie apart by a row of the weight: they are stored one by one.
    let spec = Spec { ragged_y: true, ..product.spec() };
    let vectors = product.rows.next_power_of_two();
    let size = g.gpu().caps().subgroup_size;
    let (kernel, groups) = match choice {
        Choice::Workgroup => (kernel(&spec, vectors), product.cols.div_ceil(ROWS)),
        Choice::Subgroup => (
            gemv_subgroup::kernel(size, &spec, product.weight.width, vectors),
            product.cols.div_ceil(gemv_subgroup::rows(size)),
        ),
    };
    g.dispatch(kernel, &product.params(), &product.args(), groups, product.work())
}

fn kernel(spec: &Spec, vectors: usize) -> Kernel {
    let kernel = Kernel::new("gemv", "forward")
        .with("LANES", LANES as u32)
        .with("ROWS", ROWS as u32)
        .with("VECTORS", vectors as u32);
    import(kernel, spec, "decode_table")
}

/// What the kernels here are specialised for.
pub(super) fn specs() -> impl Iterator<Item = Spec> {
    let all = super::matmul::specs().into_iter().filter(|spec| spec.entry == Entry::Forward && spec.low.is_some());
    all.map(|spec| Spec { ragged_y: true, ..spec })
}

/// Every specialisation of the variant through workgroup memory.
pub fn variants() -> Vec<Kernel> {
    specs().map(|spec| kernel(&spec, 2)).collect()
}
