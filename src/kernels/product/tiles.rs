//! Products through workgroup memory, for GPUs. Needs nothing beyond WebGPU's limits.

use super::spec::{Product, Spec, part_stride};
use crate::{
    gpu::{DeviceKind, Kernel},
    kernels::decode::Lookup,
    quant::Scheme,
};
use std::fmt;

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

/// Into how many parts the terms of a sum may be divided.
const PARTS: [usize; 5] = [1, 2, 4, 8, 16];
/// Terms of a part, at least.
const LEAST_TERMS: usize = 128;
/// Numbers that the parts of a result may be together: 64 MiB.
const MOST_NUMBERS: usize = 16 << 20;

/// What a kind of device is taken for. Nothing tells: cards of 2020 to 2025 have some 100 to 400 vector units, processors' GPUs 16 to 80.
/// Times are in turns of a vector unit, of some half a nanosecond.
struct Device {
    /// Vector units, each of which runs 64 invocations at a time.
    units: usize,
    /// From a load out of memory to its number.
    latency: usize,
    /// Of a dispatch and what it waits for.
    dispatch: usize,
    /// Bytes that memory moves in a turn.
    bytes: usize,
}

impl Device {
    fn of(kind: DeviceKind) -> Device {
        match kind {
            DeviceKind::Discrete => Device { units: 192, latency: 800, dispatch: 8_000, bytes: 256 },
            DeviceKind::Integrated | DeviceKind::Virtual | DeviceKind::Cpu | DeviceKind::Other => {
                Device { units: 32, latency: 800, dispatch: 8_000, bytes: 32 }
            }
        }
    }
}

/// A tile, and into how many parts the terms of its sums are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub tile: Tile,
    pub parts: usize,
}

impl Split {
    /// Those for a result [rows, cols] of sums of `depth` terms, the one that takes least time by this account first: the units run as
    /// many workgroups as there are, what an invocation takes is its sums divided by `share`, and only other workgroups hide the latency of
    /// its loads, in each turn of `step` terms; parts are stored, loaded and added by a dispatch of their own.
    pub(super) fn all(kind: DeviceKind, [rows, cols]: [usize; 2], depth: usize) -> Vec<Split> {
        let device = Device::of(kind);
        let stored = |parts: usize| parts * rows * part_stride(cols);
        let may = |split: &Split| {
            split.parts == 1 || (depth >= LEAST_TERMS * split.parts && stored(split.parts) <= MOST_NUMBERS)
        };
        let time = |&Split { tile, parts }: &Split| {
            let busy = (tile.groups_of([rows, cols]) * parts * tile.invocations()).div_ceil(64 * device.units);
            let own = tile.tm * tile.tn * tile.step * 100 / tile.share;
            let sums = (busy * own).max(device.latency + own) * depth.div_ceil(tile.step * parts);
            let adding = 2 * 4 * stored(parts) / device.bytes + device.dispatch;
            sums + if parts > 1 { adding } else { 0 }
        };
        let of = |tile: Tile| PARTS.map(|parts| Split { tile, parts });
        let mut all: Vec<Split> = TILES.into_iter().flat_map(of).filter(may).collect();
        all.sort_by_key(time);
        all
    }

    /// The specialised kernel.
    pub(super) fn kernel(&self, spec: &Spec) -> Kernel {
        let Split { tile, parts } = *self;
        let spec = if parts > 1 { spec.part() } else { *spec };
        let kernel = Kernel::new("product/tiles", spec.entry.name())
            .with("ROWS", tile.rows as u32)
            .with("COLS", tile.cols as u32)
            .with("TM", tile.tm as u32)
            .with("TN", tile.tn as u32)
            .with("STEP", tile.step as u32)
            .with("PARTS", parts as u32);
        spec.import(kernel, Lookup::Workgroup)
    }

    /// Workgroups for `product`.
    pub(super) fn groups(&self, product: &Product) -> usize {
        self.tile.groups_of([product.rows, product.cols]) * self.parts
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.tile.rows, self.tile.cols)?;
        if self.parts > 1 { write!(f, " in {} parts", self.parts) } else { Ok(()) }
    }
}

impl Tile {
    fn invocations(&self) -> usize {
        self.rows / self.tm * (self.cols / self.tn)
    }

    fn groups_of(&self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }
}

/// Every specialisation; of the tiles' sizes, which decoding does not know, all are there for floats and NF4.
pub(super) fn variants() -> Vec<Kernel> {
    let all = |spec: &Spec| matches!(spec.encoding.scheme, Scheme::F32 | Scheme::Nf4 { .. });
    let whole = |tile: Tile| Split { tile, parts: 1 };
    let splits = |spec: &Spec| match all(spec) {
        true => TILES.map(whole).into_iter().chain([Split { tile: TILES[1], parts: 4 }]).collect(),
        false => vec![whole(TILES[2])],
    };
    Spec::all().iter().flat_map(|spec| splits(spec).into_iter().map(|split| split.kernel(spec))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a card: rows and columns of the result, and terms of each sum.
    fn fastest(rows: usize, cols: usize, depth: usize) -> String {
        Split::all(DeviceKind::Discrete, [rows, cols], depth)[0].to_string()
    }

    #[test]
    fn larger_results_take_larger_tiles() {
        assert_eq!(fastest(16, 32768, 576), "16x64");
        assert_eq!(fastest(256, 1536, 576), "64x64");
        assert_eq!(fastest(1024, 1536, 576), "128x64");
        assert_eq!(fastest(2048, 4096, 4096), "128x128");
    }

    #[test]
    fn small_results_of_long_sums_are_computed_in_parts() {
        // The factors of an adapter: xa of 256 tokens, and the gradient of A of 2048.
        assert_eq!(fastest(256, 16, 4096), "64x64 in 16 parts");
        assert_eq!(fastest(16, 4096, 2048), "16x64 in 8 parts");
        assert_eq!(fastest(256, 576, 1536), "64x64 in 4 parts");
    }

    #[test]
    fn parts_are_long_and_fit() {
        for split in Split::all(DeviceKind::Discrete, [64, 64], 500) {
            assert!(split.parts <= 3, "{split}");
        }
        let large = Split::all(DeviceKind::Discrete, [4096, 4096], 1 << 20);
        assert!(large.iter().all(|split| split.parts == 1));
    }
}
