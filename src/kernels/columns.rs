//! Parts of rows: columns out of wider rows, and back into them.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        cols: u32,
        first: u32,
        width: u32,
    }
}

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("columns", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["take", "put"].map(kernel).to_vec()
}

fn params(op: &str, part: [usize; 2], first: usize, whole: [usize; 2]) -> Result<Params> {
    let [rows, cols] = part;
    if rows != whole[0] || cols == 0 || first.checked_add(cols).is_none_or(|end| end > whole[1]) {
        let got = format!("[{rows}, {cols}] at column {first}");
        return Err(Error::shape(op, format!("columns of [{}, {}]", whole[0], whole[1]), got));
    }
    Ok(Params { len: (rows * cols) as u32, cols: cols as u32, first: first as u32, width: whole[1] as u32 })
}

/// y\[r, c\] = x\[r, first + c\]
///
/// x: [rows, width] f32; y: [rows, cols]. Errors: Shape.
pub fn take(g: &mut Graph, x: &Value, first: usize, cols: usize) -> Result<Value> {
    let (rows, width) = x.rows_cols();
    let params = params("take columns", [rows, cols], first, [rows, width])?;
    let y = g.value([rows, cols], DType::F32)?;
    g.dispatch(kernel("take"), &params, &[x, &y], (rows * cols).div_ceil(256), (rows * cols) as f64)?;
    Ok(y)
}

/// y\[r, first + c\] = x\[r, c\]; the other columns of y stay as they are
///
/// x: [rows, cols] f32; y: [rows, width]. Errors: Shape.
pub fn put(g: &mut Graph, x: &Value, y: &Value, first: usize) -> Result<()> {
    let ((rows, cols), (all, width)) = (x.rows_cols(), y.rows_cols());
    let params = params("put columns", [rows, cols], first, [all, width])?;
    g.dispatch(kernel("put"), &params, &[x, y], (rows * cols).div_ceil(256), (rows * cols) as f64)
}
