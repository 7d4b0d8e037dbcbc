//! Products through workgroup memory, for GPUs. Needs nothing beyond WebGPU's limits.

use super::spec::{Product, Spec};
use crate::{
    gpu::{DeviceKind, Kernel},
    kernels::decode::Lookup,
    quant::Scheme,
};

/// Sizes of a workgroup's and an invocation's share of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Of a workgroup.
    rows: usize,
    cols: usize,
    /// Of an invocation: 4 x 4, 8 x 4 or 8 x 8.
    tm: usize,
    tn: usize,
    /// Terms of the sums that are in workgroup memory at a time.
    step: usize,
    /// How many percent of the vector instructions are multiply-adds, those that fill the tile counted in: of NF4 forward on AMD's cards
    /// (docs/shader-cost.md).
    share: usize,
}

/// The tiles to choose from. With the table of a code book each stays within WebGPU's 16 KiB of workgroup memory.
const TILES: [Tile; 4] = [
    Tile { rows: 16, cols: 64, tm: 4, tn: 4, step: 16, share: 60 },
    Tile { rows: 64, cols: 64, tm: 4, tn: 4, step: 16, share: 70 },
    Tile { rows: 128, cols: 64, tm: 8, tn: 4, step: 16, share: 77 },
    Tile { rows: 128, cols: 128, tm: 8, tn: 8, step: 8, share: 84 },
];

impl Tile {
    /// The tile that takes least time for a result of rows x columns by this account: a device has so many vector units, each of which
    /// runs 64 invocations at a time, and what an invocation takes is its sums divided by `share`.
    fn fastest(kind: DeviceKind, result: [usize; 2]) -> Tile {
        // Nothing tells how many there are: cards of 2020 to 2025 have some 100 to 400, processors' GPUs 16 to 80.
        let units = if kind == DeviceKind::Discrete { 192 } else { 32 };
        let time = |tile: &Tile| {
            let busy = (tile.groups_of(result) * tile.invocations()).div_ceil(64 * units);
            busy * tile.tm * tile.tn * 1000 / tile.share
        };
        TILES.into_iter().min_by_key(time).expect("there are tiles")
    }

    fn invocations(&self) -> usize {
        self.rows / self.tm * (self.cols / self.tn)
    }

    /// The tile for `product`.
    pub(super) fn of(kind: DeviceKind, product: &Product) -> Tile {
        Tile::fastest(kind, [product.rows, product.cols])
    }

    /// The specialised kernel.
    pub(super) fn kernel(&self, spec: &Spec) -> Kernel {
        let kernel = Kernel::new("product/tiles", spec.entry.name())
            .with("ROWS", self.rows as u32)
            .with("COLS", self.cols as u32)
            .with("TM", self.tm as u32)
            .with("TN", self.tn as u32)
            .with("STEP", self.step as u32);
        spec.import(kernel, Lookup::Workgroup)
    }

    /// Workgroups for `product`.
    pub(super) fn groups(&self, product: &Product) -> usize {
        self.groups_of([product.rows, product.cols])
    }

    fn groups_of(&self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }
}

/// Every specialisation; of the tiles' sizes, which decoding does not know, all are there for floats and NF4.
pub(super) fn variants() -> Vec<Kernel> {
    let all = |spec: &Spec| matches!(spec.encoding.scheme, Scheme::F32 | Scheme::Nf4 { .. });
    let tiles = |spec: &Spec| if all(spec) { TILES.to_vec() } else { vec![TILES[2]] };
    Spec::all().iter().flat_map(|spec| tiles(spec).into_iter().map(|tile| tile.kernel(spec))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_results_take_larger_tiles() {
        let sizes = |kind, result| {
            let tile = Tile::fastest(kind, result);
            [tile.rows, tile.cols]
        };
        // tests/kernels/product/tiles.rs runs these on a device that is no card.
        let other = [([12, 640], [16, 64]), ([130, 68], [64, 64]), ([515, 132], [128, 64]), ([2040, 500], [128, 128])];
        for (result, tile) in other {
            assert_eq!(sizes(DeviceKind::Integrated, result), tile, "{result:?}");
        }
        // SmolLM2's and a 7B model's on a card.
        assert_eq!(sizes(DeviceKind::Discrete, [256, 576]), [64, 64]);
        assert_eq!(sizes(DeviceKind::Discrete, [16, 4096]), [16, 64]);
        assert_eq!(sizes(DeviceKind::Discrete, [2048, 4096]), [128, 128]);
    }
}
