//! y = x · Wᵀ for a few rows of x, as in generating one token: bound by reading the weight, so every word is read once. Sums
//! meet in workgroup memory.

use super::spec::{Entry, LowRows, Product, Spec};
use crate::{gpu::Kernel, kernels::decode::Lookup, quant::Scheme};
use std::fmt;

/// Rows of x at most.
pub(super) const MOST_ROWS: usize = 4;

/// Sizes of a workgroup's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Rows of the weight.
    rows: usize,
    /// Invocations.
    lanes: usize,
}

impl Share {
    /// Those to choose from; the first serves where nothing was measured.
    pub(super) const ALL: [Share; 5] = [
        Share { rows: 4, lanes: 64 },
        Share { rows: 4, lanes: 32 },
        Share { rows: 2, lanes: 64 },
        Share { rows: 8, lanes: 64 },
        Share { rows: 4, lanes: 128 },
    ];

    /// The specialised kernel for up to `vectors` rows of x.
    pub(super) fn kernel(&self, spec: &Spec, vectors: usize) -> Kernel {
        let kernel = Kernel::new("product/gemv", "forward")
            .with("LANES", self.lanes as u32)
            .with("ROWS", self.rows as u32)
            .with("VECTORS", vectors as u32);
        spec.one_by_one().import(kernel, Lookup::Workgroup)
    }

    /// Workgroups for `product`.
    pub(super) fn groups(&self, product: &Product) -> usize {
        product.cols.div_ceil(self.rows)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows by {} lanes", self.rows, self.lanes)
    }
}

/// Every specialisation; of the shares, which decoding does not know, all are there for NF4.
pub(super) fn variants() -> Vec<Kernel> {
    let shares = |spec: &Spec| match matches!(spec.encoding.scheme, Scheme::Nf4 { .. }) {
        true => &Share::ALL[..],
        false => &Share::ALL[..1],
    };
    let all: Vec<Spec> =
        Spec::all().into_iter().filter(|s| s.entry == Entry::Forward && s.low != LowRows::None).collect();
    all.iter().flat_map(|spec| shares(spec).iter().map(|share| share.kernel(spec, 2))).collect()
}
