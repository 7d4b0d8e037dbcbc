//! Token embedding out of a table in any storage scheme.

use super::{
    QuantizedTensor,
    decode::{Encoding, Lookup, Unit, decode},
};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        cols: u32,
        first_row: u32,
        rows: u32,
        block: u32,
        first_block: u32,
        end_row: u32,
        factor: f32,
    }
}

fn kernel(encoding: Encoding, cols: usize) -> Kernel {
    let lanes = if cols <= 1024 { 64 } else { 256 };
    decode(Kernel::new("embedding", "gather").with("LANES", lanes), encoding, Unit::One, Lookup::Private)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    Encoding::all().flat_map(|encoding| [kernel(encoding, 1), kernel(encoding, usize::MAX)]).collect()
}

/// x\[r\] = factor · table\[ids\[r\]\]
///
/// ids: [rows] u32; table: [vocabulary, cols]; x: [rows, cols] f32. An id past the vocabulary gives zeros: refuse it before.
/// Errors: Shape.
pub fn embed(g: &mut Graph, ids: &Value, table: &QuantizedTensor, factor: f32) -> Result<Value> {
    let [vocabulary, cols] = table.shape();
    if ids.dtype() != DType::U32 || table.is_empty() {
        let got = format!("{} and {vocabulary} rows", ids.dtype());
        return Err(Error::shape("embed", "ids of U32 and a table with rows", got));
    }
    let rows = ids.shape().len();
    let x = g.value([rows, cols], DType::F32)?;
    let encoding = Encoding::of(table);
    let kernel = kernel(encoding, cols);
    for shard in table.shards() {
        let last = shard.row0 + shard.rows == vocabulary;
        let params = Params {
            cols: cols as u32,
            first_row: shard.row0 as u32,
            rows: shard.rows as u32,
            block: encoding.block(),
            first_block: shard.first_block,
            end_row: if last { u32::MAX } else { (shard.row0 + shard.rows - 1) as u32 },
            factor,
        };
        let mut args = shard.args(g);
        args.extend([ids.clone(), x.clone()]);
        let args: Vec<&Value> = args.iter().collect();
        g.dispatch(kernel.clone(), &params, &args, rows, 12.0 * (rows * cols) as f64)?;
    }
    Ok(x)
}
