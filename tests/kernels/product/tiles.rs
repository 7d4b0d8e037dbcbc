//! Tiles of every size. Which a product takes is no matter of the kernels (`Split` in src/kernels/product/tiles.rs): here each is asked
//! for.

use super::{Case, NF4};
use crate::support::without_subgroups;
use fourbit::quant::Scheme;

/// y and dx, with results whose ends fill no tile, in rows of whole vec4s and others.
#[test]
fn tiles_of_every_size() {
    let Some(gpu) = without_subgroups() else { return };
    let case = |scheme, sizes| Case { scheme, sizes, rank: 8, bias: true, add: true };
    for tile in ["16x64", "64x64", "128x64", "128x128"] {
        for case in [case(NF4, [130, 132, 136]), case(Scheme::F32, [131, 129, 137])] {
            case.check_by(&gpu, &format!("tiles {tile}"));
        }
    }
}
