//! Which design computes a product on a device. The designs know nothing of each other.

use super::{
    gemv, gemv_rows, gemv_subgroup,
    spec::{Entry, Product, Spec},
    subgroup::{self, Tile},
    tiles,
};
use crate::{
    Result,
    gpu::{Caps, DeviceKind, Kernel},
    graph::Graph,
    quant::Scheme,
};

/// Whether the subgroup designs suit the device: they do where lanes are those of a processor's vector unit.
pub(in crate::kernels) fn prefers_subgroups(caps: &Caps) -> bool {
    let (low, high) = caps.subgroup_size;
    caps.subgroups && caps.kind == DeviceKind::Cpu && low.is_power_of_two() && (4..=64).contains(&low) && high <= 128
}

/// Whether the subgroup designs take a product. Rows that begin inside a word are decoded element by element: unrolled,
/// that takes drivers long to compile and is not worth it, but for floats, where it is the shape of low ranks.
fn suits_subgroups(spec: &Spec) -> bool {
    !spec.ragged || spec.encoding.scheme == Scheme::F32
}

/// The kernel for `product`, and its workgroups.
fn choose(caps: &Caps, product: &Product) -> (Kernel, usize) {
    let (spec, sizes) = (product.spec(), caps.subgroup_size);
    let subgroups = prefers_subgroups(caps) && suits_subgroups(&spec);
    // What reads the most of x gains by them.
    let long = if caps.long_loads { spec.long() } else { spec };
    let most = if subgroups { gemv_subgroup::MOST_ROWS } else { gemv::MOST_ROWS };
    // Reading the weight is what takes long; the factors of adapters are small.
    let few = spec.entry == Entry::Forward && !product.weight.dense && product.rows <= most;
    let vectors = product.rows.next_power_of_two();
    match (few, subgroups) {
        (true, true) if gemv_rows::serves(sizes, &long, product.weight.width) => {
            (gemv_rows::kernel(&long, vectors), gemv_rows::groups(product))
        }
        (true, true) => {
            (gemv_subgroup::kernel(sizes, &spec, product.weight.width, vectors), gemv_subgroup::groups(sizes, product))
        }
        (true, false) => (gemv::kernel(&spec, vectors), gemv::groups(product)),
        (false, true) => {
            let tile = Tile::of(sizes, product, &long);
            (tile.kernel(&long), tile.groups(product))
        }
        (false, false) => {
            let tile = tiles::Tile::of(caps.kind, product);
            (tile.kernel(&spec), tile.groups(product))
        }
    }
}

impl Product<'_> {
    /// Records the product by the design that suits the device.
    pub(in crate::kernels) fn record(&self, g: &mut Graph) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        let (kernel, groups) = choose(g.gpu().caps(), self);
        g.dispatch(kernel, &self.params(), &self.args(), groups, self.work())
    }
}

/// Every specialisation of every design.
pub fn variants() -> Vec<Kernel> {
    let mut all = tiles::variants();
    all.extend(subgroup::variants(suits_subgroups));
    all.extend(gemv::variants());
    all.extend(gemv_rows::variants());
    all.extend(gemv_subgroup::variants(suits_subgroups));
    all
}
