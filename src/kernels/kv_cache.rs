//! Adding rows to a cache of keys or values.

use super::attention::expect;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        tokens: u32,
        capacity: u32,
        width4: u32,
        wraps: u32,
    }
}

fn kernel() -> Kernel {
    Kernel::new("kv_cache", "append")
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
}

/// cache\[position + t\] = rows\[t\]; with a window cache\[(position + t) mod capacity\]
///
/// rows: [tokens, width] f32, cache: [capacity, width] f32, width a multiple of 4; position: [1] u32, an imported tensor that
/// may change between runs. Without a window, rows past the capacity are dropped. Errors: Shape.
pub fn cache_append(g: &mut Graph, rows: &Value, cache: &Value, position: &Value, window: Option<usize>) -> Result<()> {
    let (tokens, width) = rows.rows_cols();
    let (capacity, _) = cache.rows_cols();
    if width == 0 || !width.is_multiple_of(4) || tokens > capacity {
        return Err(Error::shape("cache_append", format!("up to {capacity} rows, a multiple of 4 wide"), rows.shape()));
    }
    expect("cache_append rows", rows, DType::F32, &[tokens, width])?;
    expect("cache_append cache", cache, DType::F32, &[capacity, width])?;
    expect("cache_append position", position, DType::U32, &[1])?;
    let wraps = window.is_some().into();
    let params = Params { tokens: tokens as u32, capacity: capacity as u32, width4: (width / 4) as u32, wraps };
    let groups = (tokens * width / 4).div_ceil(128);
    g.dispatch(kernel(), &params, &[rows, position, cache], groups, 4.0 * (tokens * width) as f64)
}
