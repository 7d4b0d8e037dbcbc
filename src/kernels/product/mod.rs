//! Products with a weight in any scheme, and the products of low-rank updates, which ride along.
//!
//! `spec` says what a product is. Each design computes it its own way: `tiles` through workgroup memory, `subgroup` by
//! shuffles, and the `gemv`s for a few rows; `parts` adds what workgroups share. They import `spec` and never each other. `choose` stands on top.
//! A shader is specialised by how the weight is stored, by whether rows begin at whole words, and by the device.

mod choose;
mod gemv;
mod gemv_rows;
mod gemv_subgroup;
mod parts;
mod spec;
mod subgroup;
mod tiles;

pub(crate) use choose::Class;
pub(super) use choose::prefers_subgroups;
pub use choose::variants;
pub(crate) use spec::Entry;
pub(super) use spec::{Base, Product};

use super::{QuantizedTensor, expect};
use crate::{
    DType, Result,
    graph::{Graph, Value},
};
use spec::{Low, Weight};

/// A low-rank term of a product: `scale · xa · factor`.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rows, rank]`: x·Aᵀ forward, dy·B backward.
    pub xa: &'a Value,
    /// B `[out, rank]` forward, A `[rank, in]` backward.
    pub factor: &'a Value,
    /// alpha / rank
    pub scale: f32,
}

/// y = x · Wᵀ + scale · xa · Bᵀ + bias + add
///
/// x: [.., in]; w: [out, in]; bias: [out]; add, y: [.., out], f32. Errors: Shape. LoRA, Hu et al. 2021; QLoRA, Dettmers et al.
/// 2023.
pub fn matmul(
    g: &mut Graph,
    x: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    bias: Option<&Value>,
    add: Option<&Value>,
) -> Result<Value> {
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(w.rows());
    let y = g.value(shape, DType::F32)?;
    matmul_into(g, x, w, update, bias, add, &y)?;
    Ok(y)
}

/// [`matmul`] into `y`: [.., out], which may be rows of a larger value.
pub fn matmul_into(
    g: &mut Graph,
    x: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    bias: Option<&Value>,
    add: Option<&Value>,
    y: &Value,
) -> Result<()> {
    let (rows, _) = x.rows_cols();
    let cols = w.rows();
    let op = "matmul";
    expect(op, "x", x, [rows, w.cols()])?;
    expect(op, "y", y, [rows, cols])?;
    if let Some(bias) = bias {
        expect(op, "bias", bias, [1, cols])?;
    }
    if let Some(add) = add {
        expect(op, "add", add, [rows, cols])?;
    }
    let base = add.map_or(Base::None, Base::Value);
    let low = update.map(|u| Low::new(op, u, rows, |rank| [cols, rank])).transpose()?;
    for shard in w.shards() {
        let weight = Weight::shard(g, w, &shard);
        let out_first = shard.row0;
        let product = Product::new(Entry::Forward, x, weight, y);
        Product { low: low.as_ref(), bias, base, out_first, ..product }.record(g)?;
    }
    Ok(())
}

/// dx = dy · W + scale · xa · A + add
///
/// dy: [.., out]; w: [out, in]; xa: [.., rank], here dy·B; add, dx: [.., in], f32. Errors: Shape. The gradient of
/// [`matmul`] with respect to x, out of the same packed weight.
pub fn matmul_dx(
    g: &mut Graph,
    dy: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    add: Option<&Value>,
) -> Result<Value> {
    let mut shape = dy.shape().to_vec();
    shape.pop();
    shape.push(w.cols());
    let dx = g.value(shape, DType::F32)?;
    matmul_dx_into(g, dy, w, update, add, &dx)?;
    Ok(dx)
}

/// [`matmul_dx`] into `dx`: [.., in], which may be rows of a larger value.
pub fn matmul_dx_into(
    g: &mut Graph,
    dy: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    add: Option<&Value>,
    dx: &Value,
) -> Result<()> {
    let op = "matmul_dx";
    let (rows, _) = dy.rows_cols();
    let cols = w.cols();
    expect(op, "dy", dy, [rows, w.rows()])?;
    expect(op, "dx", dx, [rows, cols])?;
    if let Some(add) = add {
        expect(op, "add", add, [rows, cols])?;
    }
    let low = update.map(|u| Low::new(op, u, rows, |rank| [rank, cols])).transpose()?;
    for (i, shard) in w.shards().enumerate() {
        let weight = Weight::shard(g, w, &shard);
        let base = match add {
            _ if i > 0 => Base::Itself,
            Some(add) => Base::Value(add),
            None => Base::None,
        };
        let low = low.as_ref().filter(|_| i == 0);
        Product { first: shard.row0, low, base, ..Product::new(Entry::Backward, dy, weight, dx) }.record(g)?;
    }
    Ok(())
}
