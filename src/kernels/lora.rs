//! The dense f32 products of a low-rank adapter (LoRA, Hu et al. 2021): down, up's gradient, and the factors' gradients.
//!
//! The up product rides in [`matmul`](super::matmul::matmul). All use the shaders of [`super::matmul`] with a plain weight.

use super::matmul::{Base, Entry, Product, Weight, expect};
use crate::{
    DType, Error, Result,
    graph::{Graph, Value},
};

/// xa = x · Aᵀ
///
/// x: [.., in]; a: [rank, in]; xa: [rows, rank], f32. Errors: Shape.
pub fn down(g: &mut Graph, x: &Value, a: &Value) -> Result<Value> {
    let (rows, depth) = x.rows_cols();
    let cols = a.rows_cols().0;
    expect("lora::down", "a", a, [cols, depth])?;
    expect("lora::down", "x", x, [rows, depth])?;
    let y = g.value([rows, cols], DType::F32)?;
    dense(Entry::Forward, x, a, [rows, cols, depth], 1.0, Base::None, &y).record(g)?;
    Ok(y)
}

/// dxa = scale · dy · B
///
/// dy: [.., out]; b: [out, rank]; dxa: [rows, rank], f32. Errors: Shape.
pub fn up_backward(g: &mut Graph, dy: &Value, b: &Value, scale: f32) -> Result<Value> {
    let (rows, depth) = dy.rows_cols();
    let cols = b.rows_cols().1;
    expect("lora::up_backward", "b", b, [depth, cols])?;
    expect("lora::up_backward", "dy", dy, [rows, depth])?;
    let y = g.value([rows, cols], DType::F32)?;
    dense(Entry::Backward, dy, b, [rows, cols, depth], scale, Base::None, &y).record(g)?;
    Ok(y)
}

/// out = accumulate · out + scale · leftᵀ · right
///
/// left: [rows, p]; right: [rows, q]; out: [p, q]; accumulate: [1], f32: dB from (dy, xa), dA from (dxa, x). Where
/// `accumulate` is 0, `out` may hold anything. Errors: Shape.
pub fn weight_gradient(
    g: &mut Graph,
    left: &Value,
    right: &Value,
    scale: f32,
    out: &Value,
    accumulate: &Value,
) -> Result<()> {
    let op = "lora::weight_gradient";
    let (depth, rows) = left.rows_cols();
    let cols = right.rows_cols().1;
    expect(op, "left", left, [depth, rows])?;
    expect(op, "right", right, [depth, cols])?;
    expect(op, "out", out, [rows, cols])?;
    if accumulate.shape().len() != 1 || accumulate.dtype() != DType::F32 {
        return Err(Error::shape(op, "accumulate [1] f32", format!("{} {}", accumulate.shape(), accumulate.dtype())));
    }
    dense(Entry::Gradient, left, right, [rows, cols, depth], scale, Base::Gate(accumulate), out).record(g)
}

/// leftᵀ · right, as a value of its own
///
/// left: [rows, p]; right: [rows, q]; result: [p, q], f32: the gradient of a whole weight from (dy, x). Errors: Shape.
pub fn gradient(g: &mut Graph, left: &Value, right: &Value) -> Result<Value> {
    let op = "lora::gradient";
    let (depth, rows) = left.rows_cols();
    let cols = right.rows_cols().1;
    expect(op, "left", left, [depth, rows])?;
    expect(op, "right", right, [depth, cols])?;
    let out = g.value([rows, cols], DType::F32)?;
    dense(Entry::Gradient, left, right, [rows, cols, depth], 1.0, Base::None, &out).record(g)?;
    Ok(out)
}

/// out = accumulate · out + scale · x · Aᵀ
///
/// x: [rows, depth]; a: [cols, depth]; out: [rows, cols]; accumulate: [1], f32: dB from the gradient of a merged weight. Where
/// `accumulate` is 0, `out` may hold anything. Errors: Shape.
pub fn down_into(g: &mut Graph, x: &Value, a: &Value, scale: f32, out: &Value, accumulate: &Value) -> Result<()> {
    let op = "lora::down_into";
    let (rows, depth) = x.rows_cols();
    let cols = a.rows_cols().0;
    expect(op, "x", x, [rows, depth])?;
    expect(op, "a", a, [cols, depth])?;
    expect(op, "out", out, [rows, cols])?;
    accumulate.expect(op, &[1])?;
    dense(Entry::Forward, x, a, [rows, cols, depth], scale, Base::Gate(accumulate), out).record(g)
}

/// W + scale · B · A
///
/// w: [out, in]; b: [out, rank]; a: [rank, in]; result: [out, in], f32. Errors: Shape.
pub fn merged(g: &mut Graph, w: &Value, b: &Value, a: &Value, scale: f32) -> Result<Value> {
    let op = "lora::merged";
    let (rows, cols) = w.rows_cols();
    let rank = a.rows_cols().0;
    expect(op, "w", w, [rows, cols])?;
    expect(op, "b", b, [rows, rank])?;
    expect(op, "a", a, [rank, cols])?;
    let out = g.value([rows, cols], DType::F32)?;
    dense(Entry::Backward, b, a, [rows, cols, rank], scale, Base::Value(w), &out).record(g)?;
    Ok(out)
}

fn dense<'a>(
    entry: Entry,
    x: &'a Value,
    w: &Value,
    [rows, cols, depth]: [usize; 3],
    scale: f32,
    base: Base<'a>,
    y: &'a Value,
) -> Product<'a> {
    let stride = x.rows_cols().1;
    let weight = Weight::dense(w);
    Product {
        entry,
        x,
        stride,
        first: 0,
        weight,
        rows,
        cols,
        depth,
        low: None,
        bias: None,
        base,
        scale,
        y,
        out_stride: cols,
        out_first: 0,
    }
}
