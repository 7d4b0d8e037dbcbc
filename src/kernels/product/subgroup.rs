//! Products without workgroup memory: operands spread over lanes, broadcast by shuffles.
//!
//! On a driver that runs on the processor every load is a scalar one, so speed follows the multiply-adds per load: a lane
//! holds 128 sums or more, and spilling them to the stack is cheap.

use super::spec::{Entry, Product, Spec};
use crate::{gpu::Kernel, kernels::decode::Lookup, quant::Scheme};

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

impl Tile {
    /// The tile for `product`, on a device with subgroups of these sizes (smallest, largest).
    pub(super) fn of((sg, lanes): (u32, u32), product: &Product, spec: &Spec) -> Tile {
        let (sg, lanes) = (sg as usize, lanes as usize);
        let tm = |most: usize| most.min(product.rows.div_ceil(8).next_power_of_two() * 8);
        // Measured on lavapipe: larger tiles save loads, but their code leaves the processor's instruction cache.
        let (tm, tn) = match spec.entry {
            Entry::Forward if spec.encoding.scheme == Scheme::F32 => (tm(32), 4),
            Entry::Forward => (tm(16), 4),
            Entry::Backward | Entry::Gradient => (tm(16), 8),
        };
        let parts = match spec.may_split() {
            true => (sg / product.cols.div_ceil(tn).next_power_of_two()).max(1),
            false => 1,
        };
        let shared = spec.entry != Entry::Forward && parts == 1 && spec.may_share_scales(product.weight.width);
        Tile { sg, lanes, tm, tn, parts, shared }
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

/// Every specialisation, for devices with subgroups of one size and of several.
pub(super) fn variants(serves: fn(&Spec) -> bool) -> Vec<Kernel> {
    let mut all = Vec::new();
    for spec in Spec::all().into_iter().filter(serves) {
        let shared = spec.entry != Entry::Forward && spec.may_share_scales(64);
        let tile = Tile { sg: 8, lanes: 8, tm: 16, tn: 8, parts: 1, shared };
        let parts = if spec.may_split() { 2 } else { 1 };
        let narrow = Tile { sg: 4, lanes: 64, tm: 16, tn: 4, parts, shared: false };
        all.extend([tile.kernel(&spec), narrow.kernel(&spec)]);
    }
    all
}
