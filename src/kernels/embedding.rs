//! Token embedding out of a table in any storage scheme.

use super::QuantizedTensor;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::Scheme,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    cols: u32,
    first_row: u32,
    rows: u32,
    end_row: u32,
}

fn kernel(code: &'static str, cols: usize) -> Kernel {
    let lanes = if cols <= 1024 { 64 } else { 256 };
    Kernel::new("embedding", "gather").import("code", code).with("LANES", lanes)
}

fn code(scheme: Scheme) -> Result<&'static str> {
    match scheme {
        Scheme::F32 => Ok("code_f32"),
        Scheme::F16 => Ok("code_f16"),
        Scheme::BF16 => Ok("code_bf16"),
        other => Err(Error::unsupported("scheme of an embedding", other.name(), "f32, f16, bf16")),
    }
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["code_f32", "code_f16", "code_bf16"].iter().flat_map(|c| [kernel(c, 1), kernel(c, usize::MAX)]).collect()
}

/// x\[r\] = table\[ids\[r\]\]
///
/// ids: [rows] u32; table: [vocabulary, cols]; x: [rows, cols] f32. An id past the vocabulary gives zeros: refuse it before.
/// Errors: Shape, Unsupported.
pub fn embed(g: &mut Graph, ids: &Value, table: &QuantizedTensor) -> Result<Value> {
    embed_within(g, ids, table, u64::MAX)
}

/// [`embed`] with shards of the table of at most `limit` bytes.
pub fn embed_within(g: &mut Graph, ids: &Value, table: &QuantizedTensor, limit: u64) -> Result<Value> {
    let [vocabulary, cols] = table.shape();
    if ids.dtype() != DType::U32 || table.is_empty() {
        let got = format!("{} and {vocabulary} rows", ids.dtype());
        return Err(Error::shape("embed", "ids of U32 and a table with rows", got));
    }
    let rows = ids.shape().len();
    let x = g.value([rows, cols], DType::F32)?;
    let kernel = kernel(code(table.scheme())?, cols);
    for shard in table.shards_within(limit) {
        let last = shard.row0 + shard.rows == vocabulary;
        let params = Params {
            cols: cols as u32,
            first_row: shard.row0 as u32,
            rows: shard.rows as u32,
            end_row: if last { u32::MAX } else { (shard.row0 + shard.rows - 1) as u32 },
        };
        let mut args = shard.args(g);
        args.extend([ids.clone(), x.clone()]);
        let args: Vec<&Value> = args.iter().collect();
        g.dispatch(kernel.clone(), &params, &args, rows, 12.0 * (rows * cols) as f64)?;
    }
    Ok(x)
}
