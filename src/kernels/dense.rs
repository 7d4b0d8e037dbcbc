//! Products of two plain f32 matrices, with the shaders of [`super::product`]: the factors of an adapter and their gradients,
//! orthogonal transforms, Hessians.

use super::{
    expect,
    product::{Base, Entry, Product},
};
use crate::{
    DType, Error, Result,
    graph::{Graph, Value},
};

/// y = x · Wᵀ
///
/// x: [.., in]; w: [out, in]; y: [rows, out], f32. Errors: Shape.
pub fn x_wt(g: &mut Graph, x: &Value, w: &Value) -> Result<Value> {
    let (rows, depth) = x.rows_cols();
    let cols = w.rows_cols().0;
    expect("x_wt", "w", w, [cols, depth])?;
    expect("x_wt", "x", x, [rows, depth])?;
    let y = g.value([rows, cols], DType::F32)?;
    Product::dense(Entry::Forward, x, w, &y).record(g)?;
    Ok(y)
}

/// y = scale · x · W
///
/// x: [.., out]; w: [out, in]; y: [rows, in], f32. Errors: Shape.
pub fn x_w(g: &mut Graph, x: &Value, w: &Value, scale: f32) -> Result<Value> {
    let (rows, depth) = x.rows_cols();
    let cols = w.rows_cols().1;
    expect("x_w", "w", w, [depth, cols])?;
    expect("x_w", "x", x, [rows, depth])?;
    let y = g.value([rows, cols], DType::F32)?;
    Product { scale, ..Product::dense(Entry::Backward, x, w, &y) }.record(g)?;
    Ok(y)
}

/// y = xᵀ · W
///
/// x: [rows, p]; w: [rows, q]; y: [p, q], f32: the gradient of a whole weight from (dy, x). Errors: Shape.
pub fn xt_w(g: &mut Graph, x: &Value, w: &Value) -> Result<Value> {
    let (depth, rows) = x.rows_cols();
    let cols = w.rows_cols().1;
    expect("xt_w", "x", x, [depth, rows])?;
    expect("xt_w", "w", w, [depth, cols])?;
    let y = g.value([rows, cols], DType::F32)?;
    Product::dense(Entry::Gradient, x, w, &y).record(g)?;
    Ok(y)
}

/// y ← accumulate · y + scale · x · Wᵀ
///
/// x: [rows, depth]; w: [cols, depth]; y: [rows, cols]; accumulate: [1], f32: dB from the gradient of a merged weight. Where
/// `accumulate` is 0, `y` may hold anything. Errors: Shape.
pub fn x_wt_into(g: &mut Graph, x: &Value, w: &Value, scale: f32, y: &Value, accumulate: &Value) -> Result<()> {
    let op = "x_wt_into";
    let (rows, depth) = x.rows_cols();
    let cols = w.rows_cols().0;
    expect(op, "x", x, [rows, depth])?;
    expect(op, "w", w, [cols, depth])?;
    expect(op, "y", y, [rows, cols])?;
    expect_gate(op, accumulate)?;
    let base = Base::Gate(accumulate);
    Product { scale, base, ..Product::dense(Entry::Forward, x, w, y) }.record(g)
}

/// y ← accumulate · y + scale · xᵀ · W
///
/// x: [rows, p]; w: [rows, q]; y: [p, q]; accumulate: [1], f32: dB from (dy, xa), dA from (dxa, x). Where `accumulate` is 0,
/// `y` may hold anything. Errors: Shape.
pub fn xt_w_into(g: &mut Graph, x: &Value, w: &Value, scale: f32, y: &Value, accumulate: &Value) -> Result<()> {
    let op = "xt_w_into";
    let (depth, rows) = x.rows_cols();
    let cols = w.rows_cols().1;
    expect(op, "x", x, [depth, rows])?;
    expect(op, "w", w, [depth, cols])?;
    expect(op, "y", y, [rows, cols])?;
    expect_gate(op, accumulate)?;
    let base = Base::Gate(accumulate);
    Product { scale, base, ..Product::dense(Entry::Gradient, x, w, y) }.record(g)
}

/// W + scale · B · A
///
/// w: [out, in]; b: [out, rank]; a: [rank, in]; result: [out, in], f32. Errors: Shape.
pub fn merged(g: &mut Graph, w: &Value, b: &Value, a: &Value, scale: f32) -> Result<Value> {
    let op = "merged";
    let (rows, cols) = w.rows_cols();
    let rank = a.rows_cols().0;
    expect(op, "w", w, [rows, cols])?;
    expect(op, "b", b, [rows, rank])?;
    expect(op, "a", a, [rank, cols])?;
    let y = g.value([rows, cols], DType::F32)?;
    let base = Base::Value(w);
    Product { scale, base, ..Product::dense(Entry::Backward, b, a, &y) }.record(g)?;
    Ok(y)
}

fn expect_gate(op: &str, accumulate: &Value) -> Result<()> {
    if accumulate.shape().len() == 1 && accumulate.dtype() == DType::F32 {
        return Ok(());
    }
    Err(Error::shape(op, "accumulate [1] f32", format!("{} {}", accumulate.shape(), accumulate.dtype())))
}
