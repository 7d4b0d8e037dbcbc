//! Sums of flat arrays, and one row out of many.

use crate::{
    DType, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        scale: f32,
        cols: u32,
    }
}

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("elementwise", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["add", "accumulate", "assign", "scale_columns", "scaled_columns", "scale_rows", "add_row", "take_row"]
        .map(kernel)
        .to_vec()
}

/// y = a + scale · b
///
/// a, b, y: any shape, f32. Errors: Shape where a and b differ.
pub fn add(g: &mut Graph, a: &Value, b: &Value, scale: f32) -> Result<Value> {
    b.expect("add", a.shape())?;
    let y = g.value(a.shape().clone(), DType::F32)?;
    let len = a.shape().len();
    let params = Params { len: len as u32, scale, cols: 0 };
    g.dispatch(kernel("add"), &params, &[a, b, &y], len.div_ceil(256), 2.0 * len as f64)?;
    Ok(y)
}

/// y += scale · b
///
/// b, y: any shape, f32. Errors: Shape where they differ.
pub fn accumulate(g: &mut Graph, y: &Value, b: &Value, scale: f32) -> Result<()> {
    b.expect("accumulate", y.shape())?;
    let len = y.shape().len();
    let params = Params { len: len as u32, scale, cols: 0 };
    g.dispatch(kernel("accumulate"), &params, &[b, y], len.div_ceil(256), 2.0 * len as f64)
}

/// y = scale · b, into memory that is there already
///
/// b, y: any shape, f32. Errors: Shape where they differ.
pub fn assign(g: &mut Graph, y: &Value, b: &Value, scale: f32) -> Result<()> {
    b.expect("assign", y.shape())?;
    let len = y.shape().len();
    let params = Params { len: len as u32, scale, cols: 0 };
    g.dispatch(kernel("assign"), &params, &[b, y], len.div_ceil(256), len as f64)
}

/// scale · b
///
/// b: any shape, f32. Errors: none but those of the graph.
pub fn scaled(g: &mut Graph, b: &Value, scale: f32) -> Result<Value> {
    let y = g.value(b.shape().clone(), DType::F32)?;
    assign(g, &y, b, scale)?;
    Ok(y)
}

/// y\[r, c\] *= b\[c\]
///
/// y: [.., cols]; b: [cols], f32. Errors: Shape.
pub fn scale_columns(g: &mut Graph, y: &Value, b: &Value) -> Result<()> {
    with_vector(g, "scale_columns", y, b, y.rows_cols().1)
}

/// y\[r, c\] = a\[r, c\] · b\[c\]
///
/// a, y: [.., cols]; b: [cols], f32. Errors: Shape.
pub fn scaled_columns(g: &mut Graph, a: &Value, b: &Value) -> Result<Value> {
    let (len, cols) = (a.shape().len(), a.rows_cols().1);
    b.expect("scaled_columns", &[cols])?;
    let y = g.value(a.shape().clone(), DType::F32)?;
    let params = Params { len: len as u32, scale: 1.0, cols: cols as u32 };
    g.dispatch(kernel("scaled_columns"), &params, &[a, b, &y], len.div_ceil(256), len as f64)?;
    Ok(y)
}

/// y\[r, c\] *= b\[r\]
///
/// y: [rows, cols]; b: [rows], f32. Errors: Shape.
pub fn scale_rows(g: &mut Graph, y: &Value, b: &Value) -> Result<()> {
    with_vector(g, "scale_rows", y, b, y.rows_cols().0)
}

/// y\[r, c\] += b\[c\]
///
/// y: [.., cols]; b: [cols], f32. Errors: Shape.
pub fn add_row(g: &mut Graph, y: &Value, b: &Value) -> Result<()> {
    with_vector(g, "add_row", y, b, y.rows_cols().1)
}

fn with_vector(g: &mut Graph, entry: &'static str, y: &Value, b: &Value, expected: usize) -> Result<()> {
    b.expect(entry, &[expected])?;
    let (len, cols) = (y.shape().len(), y.rows_cols().1);
    let params = Params { len: len as u32, scale: 1.0, cols: cols as u32 };
    g.dispatch(kernel(entry), &params, &[b, y], len.div_ceil(256), len as f64)
}

/// y[0, c] = a[row, c], where `row` is read on the device
///
/// a: [rows, cols] f32; row: [1] u32, below rows; y: [1, cols]. Errors: Shape.
pub fn take_row(g: &mut Graph, a: &Value, row: &Value) -> Result<Value> {
    row.expect("take_row", &[1])?;
    let (_, cols) = a.rows_cols();
    let y = g.value([1, cols], DType::F32)?;
    let params = Params { len: cols as u32, scale: 0.0, cols: 0 };
    g.dispatch(kernel("take_row"), &params, &[a, &y, row], cols.div_ceil(256), cols as f64)?;
    Ok(y)
}
