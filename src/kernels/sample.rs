//! Choice of the next token.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        cols: u32,
    }
}

fn kernel() -> Kernel {
    Kernel::new("sample", "argmax").with("LANES", 256).with("SIDE", 16)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
}

/// ids\[r\] = the first index of the largest logits\[r\]
///
/// logits: [rows, vocabulary] or [vocabulary] f32; ids: [rows] u32. Errors: Shape.
pub fn argmax(g: &mut Graph, logits: &Value) -> Result<Value> {
    let (rows, cols) = logits.rows_cols();
    if rows == 0 || cols == 0 {
        return Err(Error::shape("argmax", "at least one logit", logits.shape()));
    }
    let ids = g.value([rows], DType::U32)?;
    let params = Params { cols: cols as u32 };
    g.dispatch(kernel(), &params, &[logits, &ids], rows, 8.0 * (rows * cols) as f64)?;
    Ok(ids)
}
