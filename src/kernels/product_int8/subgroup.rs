//! Products of bytes without workgroup memory, for drivers that run on the processor.

use super::spec::Spec;
use crate::gpu::{Caps, Kernel};

/// Columns of the result a lane holds.
const TN: usize = 4;

/// `sg`: lanes of a cluster, the smallest subgroup of the device; `lanes` of a workgroup, the largest; `tm`: rows a cluster
/// holds.
fn kernel(spec: Spec, sg: usize, lanes: usize, tm: usize) -> Kernel {
    let kernel = Kernel::new("product_int8/subgroup", "forward")
        .with("SG", sg as u32)
        .with("LANES", lanes as u32)
        .with("WHOLE", u32::from(sg == lanes))
        .with("TM", tm as u32)
        .with("REGS", tm.div_ceil(sg) as u32);
    spec.import(kernel).subgroups()
}

/// The kernel and its workgroups for a product of `rows` with `cols` rows of a weight.
pub(super) fn choose(caps: &Caps, spec: Spec, rows: usize, cols: usize) -> (Kernel, usize) {
    let (sg, lanes) = (caps.subgroup_size.0 as usize, caps.subgroup_size.1 as usize);
    let tm = if rows <= 8 { 8 } else { 16 };
    let tiles = rows.div_ceil(tm) * cols.div_ceil(sg * TN);
    (kernel(spec, sg, lanes, tm), tiles.div_ceil(lanes / sg))
}

/// Every specialisation, for devices with subgroups of one size and of several.
pub(super) fn variants() -> Vec<Kernel> {
    Spec::all().flat_map(|spec| [kernel(spec, 8, 8, 16), kernel(spec, 4, 64, 8)]).collect()
}
