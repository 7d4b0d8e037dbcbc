//! Adding rows to the caches of keys and values.

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

/// keys\[position + t\] = k\[t\] and values\[position + t\] = v\[t\]; with a window \[(position + t) mod capacity\]
///
/// k, v: [tokens, width] f32; keys, values: [capacity, width] f32, width a multiple of 4; position: [1] u32, an imported tensor that
/// may change between runs. Without a window, rows past the capacity are dropped. Errors: Shape.
pub fn cache_append(
    g: &mut Graph,
    [k, v]: [&Value; 2],
    [keys, values]: [&Value; 2],
    position: &Value,
    window: Option<usize>,
) -> Result<()> {
    let (tokens, width) = k.rows_cols();
    let (capacity, _) = keys.rows_cols();
    if width == 0 || !width.is_multiple_of(4) || tokens > capacity {
        return Err(Error::shape("cache_append", format!("up to {capacity} rows, a multiple of 4 wide"), k.shape()));
    }
    for (what, value, rows) in
        [("k", k, tokens), ("v", v, tokens), ("keys", keys, capacity), ("values", values, capacity)]
    {
        expect(&format!("cache_append {what}"), value, DType::F32, &[rows, width])?;
    }
    expect("cache_append position", position, DType::U32, &[1])?;
    let wraps = window.is_some().into();
    let params = Params { tokens: tokens as u32, capacity: capacity as u32, width4: (width / 4) as u32, wraps };
    let groups = (tokens * width / 4).div_ceil(128);
    g.dispatch(kernel(), &params, &[k, v, position, keys, values], groups, 8.0 * (tokens * width) as f64)
}
