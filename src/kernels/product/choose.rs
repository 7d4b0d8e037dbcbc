//! Which design computes a product on a device, and by what sizes. The designs know nothing of each other.

use super::{
    gemv, gemv_rows, gemv_subgroup, parts,
    spec::{Entry, Product, Spec},
    subgroup::{self, Tile},
    tiles,
};
use crate::{
    Error, Result,
    gpu::{Caps, DeviceKind, Kernel},
    graph::Graph,
    quant::Scheme,
};
use std::{collections::HashSet, fmt, str::FromStr};

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

/// Whether they take results so wide: of gradients of such rows only narrow ones, whose sums several lanes share. Others SwiftShader
/// compiled for minutes, into gigabytes.
fn suits_width(spec: &Spec, cols: usize) -> bool {
    !spec.ragged || spec.entry != Entry::Gradient || cols <= 16
}

/// A way to compute a product: a design and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Gemv(gemv::Share),
    GemvRows,
    GemvSubgroup,
    Subgroup(subgroup::Tile),
    Tiles(tiles::Split),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Gemv(share) => write!(f, "gemv {share}"),
            Way::GemvRows => write!(f, "gemv_rows"),
            Way::GemvSubgroup => write!(f, "gemv_subgroup"),
            Way::Subgroup(tile) => write!(f, "subgroup {tile}"),
            Way::Tiles(split) => write!(f, "tiles {split}"),
        }
    }
}

/// The ways to compute `product`, the one that serves where nothing was measured first.
fn ways(caps: &Caps, product: &Product) -> Vec<Way> {
    let (spec, sizes) = (product.spec(), caps.subgroup_size);
    let subgroups = prefers_subgroups(caps) && suits_subgroups(&spec) && suits_width(&spec, product.cols);
    let most = if subgroups { gemv_subgroup::MOST_ROWS } else { gemv::MOST_ROWS };
    // Reading the weight is what takes long; the factors of adapters are small.
    let few = spec.entry == Entry::Forward && !product.weight.dense && product.rows <= most;
    match (few, subgroups) {
        (true, true) => {
            let rows = gemv_rows::serves(sizes, &long(caps, spec), product.weight.width).then_some(Way::GemvRows);
            rows.into_iter().chain([Way::GemvSubgroup]).collect()
        }
        (true, false) => gemv::Share::ALL.map(Way::Gemv).into(),
        (false, true) => Tile::all(sizes, product, &long(caps, spec)).into_iter().map(Way::Subgroup).collect(),
        (false, false) => {
            let splits = tiles::Split::all(caps.kind, [product.rows, product.cols], product.depth);
            splits.into_iter().map(Way::Tiles).collect()
        }
    }
}

/// What reads the most of x gains by loads of 64 bits.
fn long(caps: &Caps, spec: Spec) -> Spec {
    if caps.long_loads { spec.long() } else { spec }
}

impl Product<'_> {
    /// Records the product: by the way that was measured to be the fastest, or else by the one that should be. Errors: Config for a
    /// choice out of a file that this device does not have.
    pub(in crate::kernels) fn record(&self, g: &mut Graph) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        let gpu = g.gpu().clone();
        let ways = ways(gpu.caps(), self);
        let choices = gpu.choices();
        let way = match choices.is_used() {
            false => ways[0],
            true => {
                let names: Vec<String> = ways.iter().map(Way::to_string).collect();
                ways[choices.of(&self.class().to_string(), &names)?]
            }
        };
        self.record_by(g, way)
    }

    fn record_by(&self, g: &mut Graph, way: Way) -> Result<()> {
        let caps = g.gpu().caps();
        let (spec, sizes) = (self.spec(), caps.subgroup_size);
        let vectors = self.rows.next_power_of_two();
        match way {
            Way::Gemv(share) => self.dispatch(g, share.kernel(&spec, vectors), share.groups(self)),
            Way::GemvRows => {
                let kernel = gemv_rows::kernel(&long(caps, spec), vectors);
                self.dispatch(g, kernel, gemv_rows::groups(self))
            }
            Way::GemvSubgroup => {
                let kernel = gemv_subgroup::kernel(sizes, &spec, self.weight.width, vectors);
                self.dispatch(g, kernel, gemv_subgroup::groups(sizes, self))
            }
            Way::Subgroup(tile) => {
                let kernel = tile.kernel(&long(caps, spec));
                self.dispatch(g, kernel, tile.groups(self))
            }
            Way::Tiles(split) if split.parts == 1 => self.dispatch(g, split.kernel(&spec), split.groups(self)),
            Way::Tiles(split) => {
                parts::record(g, self, split.parts, |g, part| part.dispatch(g, split.kernel(&spec), split.groups(part)))
            }
        }
    }

    /// The products that are computed the same way.
    fn class(&self) -> Class {
        let scheme = (!self.weight.dense).then(|| self.spec().encoding.scheme);
        Class { entry: self.entry, scheme, rows: self.rows, cols: self.cols, depth: self.depth }
    }
}

/// Products that are computed the same way: of the same kind and sizes. What is added to them makes little difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    pub entry: Entry,
    /// Of the weight; `None`: it is a factor of an adapter, or another value of a recording.
    pub scheme: Option<Scheme>,
    /// Of the result.
    rows: usize,
    /// Of the result.
    cols: usize,
    /// Terms of each sum.
    depth: usize,
}

/// How a class calls what is no weight.
const NO_WEIGHT: &str = "values";

/// Such as `forward nf4 256x1536x576`: rows and columns of the result, and terms of each sum.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Class { entry, scheme, rows, cols, depth } = self;
        let weight = scheme.map_or(NO_WEIGHT.to_owned(), |scheme| scheme.to_string());
        write!(f, "{} {weight} {rows}x{cols}x{depth}", entry.name())
    }
}

impl FromStr for Class {
    type Err = Error;

    /// Errors: Config.
    fn from_str(text: &str) -> Result<Class> {
        let fail = || Error::config("choices", format!("`{text}` is no product such as forward nf4 256x1536x576"));
        let [entry, weight, sizes] = text.split(' ').collect::<Vec<_>>().try_into().map_err(|_| fail())?;
        let entry = Entry::ALL.into_iter().find(|known| known.name() == entry).ok_or_else(fail)?;
        let scheme = if weight == NO_WEIGHT { None } else { Some(weight.parse().map_err(|_| fail())?) };
        let sizes = sizes.split('x').map(|size| size.parse().map_err(|_| fail()));
        let [rows, cols, depth] = sizes.collect::<Result<Vec<usize>>>()?.try_into().map_err(|_| fail())?;
        Ok(Class { entry, scheme, rows, cols, depth })
    }
}

impl Class {
    /// Shape of the weight.
    pub(crate) fn weight(&self) -> [usize; 2] {
        match self.entry {
            Entry::Forward => [self.cols, self.depth],
            Entry::Backward | Entry::Gradient => [self.depth, self.cols],
        }
    }

    /// Shape of what it is multiplied by.
    pub(crate) fn operand(&self) -> [usize; 2] {
        match self.entry {
            Entry::Forward | Entry::Backward => [self.rows, self.depth],
            Entry::Gradient => [self.depth, self.rows],
        }
    }
}

/// Every specialisation of every design.
pub fn variants() -> Vec<Kernel> {
    let mut all = tiles::variants();
    all.extend(subgroup::variants(suits_subgroups, suits_width));
    all.extend(parts::variants());
    all.extend(gemv::variants());
    all.extend(gemv_rows::variants());
    all.extend(gemv_subgroup::variants(suits_subgroups));
    // What is stored in parts is the same for many products, and so is their sum.
    let mut known = HashSet::new();
    all.retain(|kernel| known.insert(kernel.clone()));
    all
}
