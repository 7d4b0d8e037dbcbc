//! Tiles of every size: a product's result decides (`larger_results_take_larger_tiles` in src/kernels/product/tiles.rs).

use super::{Case, NF4, check};
use crate::support::without_subgroups;
use fourbit::quant::Scheme;

/// By turns of y and dx, results with ends that fill no tile, in rows of whole vec4s and others.
#[test]
fn tiles_of_every_size() {
    let case = |scheme| move |sizes| Case { scheme, sizes, rank: 8, bias: true, add: true };
    let whole = [[12, 640, 640], [130, 68, 72], [515, 132, 136], [2040, 500, 36], [2040, 36, 504]].map(case(NF4));
    let ragged = [[13, 641, 647], [131, 67, 71], [515, 131, 135], [2039, 501, 33]].map(case(Scheme::F32));
    check(without_subgroups(), whole.into_iter().chain(ragged).collect());
}
