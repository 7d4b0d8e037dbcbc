//! The variant of the products without workgroup memory: operands spread over lanes, broadcast by shuffles.
//!
//! On a driver that runs on the processor every load is a scalar one, so speed follows the multiply-adds per load: a lane
//! holds 128 sums or more, and spilling them to the stack is cheap.

use super::matmul::{Entry, Product, Spec, import, prefers_subgroups, specs};

use crate::{
    gpu::{Caps, Kernel},
    quant::Scheme,
};

/// Sizes of a lane's, a cluster's and a workgroup's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Lanes of a cluster: the smallest subgroup of the device.
    sg: usize,
    /// Invocations of a workgroup: the largest subgroup of the device.
    lanes: usize,
    /// Rows of the result a lane holds.
    tm: usize,
    /// Columns of the result a lane holds; 8 but forward.
    tn: usize,
    /// Lanes that share the sums of a narrow result.
    parts: usize,
    /// Whether four lanes load the scales of four rows.
    shared: bool,
}

/// The tile for `product`, where the device is one for this variant.
pub(super) fn choose(caps: &Caps, product: &Product) -> Option<Tile> {
    let ragged = product.weight.width % 8 != 0;
    if !prefers_subgroups(caps) || !serves(product.weight.scheme, ragged) {
        return None;
    }
    let (sg, lanes) = (caps.subgroup_size.0 as usize, caps.subgroup_size.1 as usize);
    let block = product.weight.scheme.block_size();
    // Each lane has one scale a row for its run of words, which parts of a sum would not share.
    let splits = product.low.is_none() && (product.entry != Entry::Forward || block == 0 || ragged);
    let parts = |tn: usize| match splits {
        true => (sg / product.cols.div_ceil(tn).next_power_of_two()).max(1),
        false => 1,
    };
    let tm = |most: usize| most.min(product.rows.div_ceil(8).next_power_of_two() * 8);
    // Measured on lavapipe: larger tiles save loads, but their code leaves the processor's instruction cache.
    let (tm, tn) = match product.entry {
        Entry::Forward if product.weight.scheme == Scheme::F32 => (tm(32), 4),
        Entry::Forward => (tm(16), 4),
        Entry::Backward | Entry::Gradient => (tm(16), 8),
    };
    let parts = parts(tn);
    let shared = block > 0 && !ragged && product.weight.width % 32 == 0 && block % 32 == 0 && parts == 1;
    Some(Tile { sg, lanes, tm, tn, parts, shared: shared && product.entry != Entry::Forward })
}

/// Whether the subgroup variants exist for a scheme. Rows that begin inside a word are decoded number by number: unrolled,
/// that takes drivers long to compile and is not worth it, but for floats, where it is the shape of low ranks.
pub(super) fn serves(scheme: Scheme, ragged: bool) -> bool {
    !ragged || scheme == Scheme::F32
}

impl Tile {
    /// The specialised kernel.
    pub(super) fn kernel(&self, spec: &Spec) -> Kernel {
        let kernel = Kernel::new("matmul_subgroup", spec.entry.name())
            .with("SG", self.sg as u32)
            .with("LANES", self.lanes as u32)
            .with("WHOLE", u32::from(self.sg == self.lanes))
            .with("TM", self.tm as u32)
            .with("TN", self.tn as u32)
            .with("PARTS", self.parts as u32)
            .with("REGS", (self.tm * self.parts).div_ceil(self.sg) as u32)
            .with("SHARED", u32::from(self.shared));
        import(kernel, spec, "decode_table_subgroup").subgroups()
    }

    /// Workgroups for `product`.
    pub(super) fn groups(&self, product: &Product) -> usize {
        let tiles = product.rows.div_ceil(self.tm) * product.cols.div_ceil(self.sg / self.parts * self.tn);
        tiles.div_ceil(self.lanes / self.sg)
    }
}

/// Every specialisation, for devices with subgroups of one size and of several.
pub fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for spec in specs().into_iter().filter(|spec| serves(spec.scheme, spec.ragged)) {
        let block = spec.scheme.block_size();
        let free = spec.low.is_none() && (spec.entry != Entry::Forward || block == 0 || spec.ragged);
        let shared = spec.entry != Entry::Forward && block > 0 && block % 32 == 0 && !spec.ragged;
        let tile = Tile { sg: 8, lanes: 8, tm: 16, tn: 8, parts: 1, shared };
        let narrow = Tile { sg: 4, lanes: 64, tm: 16, tn: 4, parts: if free { 2 } else { 1 }, shared: false };
        all.extend([tile.kernel(&spec), narrow.kernel(&spec)]);
    }
    all
}
