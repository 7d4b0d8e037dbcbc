//! Sums whose terms several workgroups share (split-K): each stores its part, and another dispatch adds the parts.

use super::spec::{Base, Product, Spec, part_stride};
use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        parts: u32,
        stride: u32,
        out_stride: u32,
        out_first: u32,
        scale: f32,
    }
}

/// Invocations of a workgroup.
const LANES: usize = 64;

fn kernel(spec: &Spec) -> Kernel {
    spec.import_end(Kernel::new("product/parts", "sum"))
}

/// Records `product` with the terms of its sums in so many parts. `record` is given the product that stores the parts, to be specialised
/// by [`Spec::part`]. Errors: Shape.
pub(super) fn record(
    g: &mut Graph,
    product: &Product,
    parts: usize,
    record: impl FnOnce(&mut Graph, &Product) -> Result<()>,
) -> Result<()> {
    let (rows, cols, stride) = (product.rows, product.cols, part_stride(product.cols));
    let all = g.value([parts * rows, stride], DType::F32)?;
    let part = Product { bias: None, base: Base::None, scale: 1.0, y: &all, out_stride: stride, ..product.clone() };
    record(g, &part)?;
    let params = Params {
        rows: rows as u32,
        cols: cols as u32,
        parts: parts as u32,
        stride: stride as u32,
        out_stride: product.out_stride as u32,
        out_first: product.out_first as u32,
        scale: product.scale,
    };
    let end = product.end_args();
    let args: Vec<&Value> = [&all].into_iter().chain(end).collect();
    let groups = (rows * stride / 4).div_ceil(LANES);
    g.dispatch(kernel(&product.spec()), &params, &args, groups, (parts * rows * stride) as f64)
}

/// Every specialisation, one for each product.
pub(super) fn variants() -> Vec<Kernel> {
    Spec::all().iter().map(kernel).collect()
}
