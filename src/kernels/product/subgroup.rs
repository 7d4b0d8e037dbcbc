//! Products without workgroup memory: operands spread over lanes, broadcast by shuffles.
//!
//! On a driver that runs on the processor every load is a scalar one, so speed follows the multiply-adds per load: a lane
//! holds 128 sums or more, and spilling them to the stack is cheap.

use super::spec::{Entry, Product, Spec};
use crate::{gpu::Kernel, kernels::decode::Lookup, quant::Scheme};
use std::fmt;

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

/// The most rows of the result that a lane holds, and its columns. Measured on lavapipe: larger tiles save loads, but their code leaves the
/// processor's instruction cache.
fn most(spec: &Spec) -> [usize; 2] {
    match spec.entry {
        Entry::Forward if spec.encoding.scheme == Scheme::F32 => [24, 4],
        Entry::Forward => [16, 4],
        // Codes that are not whole words are decoded by so much code that it is too much.
        Entry::Backward if spec.encoding.is_stream() => [16, 8],
        Entry::Backward => [24, 8],
        Entry::Gradient => [16, 8],
    }
}

/// Rows of the result that a lane may hold.
const HEIGHTS: [usize; 3] = [24, 16, 8];

impl Tile {
    /// The tiles for `product`, on a device with subgroups of these sizes (smallest, largest), the likely fastest first.
    pub(super) fn all((sg, lanes): (u32, u32), product: &Product, spec: &Spec) -> Vec<Tile> {
        let (sg, lanes) = (sg as usize, lanes as usize);
        let [highest, tn] = most(spec);
        // Reading the weight takes a tile about as long as three rows do.
        let cost = |tm: &usize| product.rows.div_ceil(*tm) * (tm + 3);
        let mut heights: Vec<usize> = HEIGHTS.into_iter().filter(|&tm| tm <= highest).collect();
        heights.sort_by_key(cost);
        let parts = match spec.may_split() {
            true => (sg / product.cols.div_ceil(tn).next_power_of_two()).max(1),
            false => 1,
        };
        let shared = spec.entry != Entry::Forward && parts == 1 && spec.may_share_scales(product.weight.width);
        heights.into_iter().map(|tm| Tile { sg, lanes, tm, tn, parts, shared }).collect()
    }

    /// The specialised kernel.
    pub(super) fn kernel(&self, spec: &Spec) -> Kernel {
        let kernel = Kernel::new("product/subgroup", spec.entry.name())
            .with("SG", self.sg as u32)
            .with("LANES", self.lanes as u32)
            .with("WHOLE", u32::from(self.sg == self.lanes))
            .with("TM", self.tm as u32)
            .with("TN", self.tn as u32)
            .with("PARTS", self.parts as u32)
            .with("REGS", (self.tm * self.parts).div_ceil(self.sg) as u32)
            .with("SHARED", u32::from(self.shared));
        spec.import(kernel, Lookup::Subgroup).subgroups()
    }

    /// Workgroups for `product`.
    pub(super) fn groups(&self, product: &Product) -> usize {
        let tiles = product.rows.div_ceil(self.tm) * product.cols.div_ceil(self.sg / self.parts * self.tn);
        tiles.div_ceil(self.lanes / self.sg)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.tm, self.tn)
    }
}

/// Every specialisation, for devices with subgroups of one size and of several.
pub(super) fn variants(serves: fn(&Spec) -> bool, serves_width: fn(&Spec, usize) -> bool) -> Vec<Kernel> {
    let mut all = Vec::new();
    for spec in Spec::all().into_iter().filter(serves) {
        let shared = spec.entry != Entry::Forward && spec.may_share_scales(64);
        let [tm, tn] = most(&spec);
        let tile = Tile { sg: 8, lanes: 8, tm, tn, parts: 1, shared };
        let parts = if spec.may_split() { 2 } else { 1 };
        let narrow = Tile { sg: 4, lanes: 64, tm: 16, tn: 4, parts, shared: false };
        all.extend(serves_width(&spec, usize::MAX).then(|| tile.kernel(&spec.long())));
        all.push(narrow.kernel(&spec));
    }
    all
}
