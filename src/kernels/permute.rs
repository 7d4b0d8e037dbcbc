//! Columns of a matrix in another order.

use super::expect;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        cols: u32,
    }
}

fn kernel() -> Kernel {
    Kernel::new("permute", "permute")
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
}

/// y\[r, c\] = x\[r, columns\[c\]\]
///
/// x, y: [.., cols] f32; columns: [cols] u32, each below cols: whoever uploads them checks that. With the inverse order it
/// undoes itself, and that is its gradient too. Errors: Shape.
pub fn permute(g: &mut Graph, x: &Value, columns: &Value) -> Result<Value> {
    let (rows, cols) = x.rows_cols();
    expect("permute", "x", x, [rows, cols])?;
    if columns.shape().dims() != [cols] || columns.dtype() != DType::U32 {
        let got = format!("{} {}", columns.shape(), columns.dtype());
        return Err(Error::shape("permute", format!("columns [{cols}] {}", DType::U32), got));
    }
    let y = g.value(x.shape().clone(), DType::F32)?;
    let len = rows * cols;
    let params = Params { len: len as u32, cols: cols as u32 };
    g.dispatch(kernel(), &params, &[x, columns, &y], len.div_ceil(256), 2.0 * len as f64)?;
    Ok(y)
}
