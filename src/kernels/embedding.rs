//! Token embedding out of a table in any storage scheme.

use super::{
    QuantizedTensor,
    decode::{Encoding, Lookup, Unit, decode},
    expect,
};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::Scheme,
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

fn kernel(entry: &'static str, encoding: Encoding, cols: usize) -> Kernel {
    decode(Kernel::new("embedding", entry).with("LANES", lanes(cols)), encoding, Unit::One, Lookup::Private)
}

fn lanes(cols: usize) -> u32 {
    if cols <= 1024 { 64 } else { 256 }
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let sizes = [1, usize::MAX];
    let gather = Encoding::all().flat_map(|encoding| sizes.map(|cols| kernel("gather", encoding, cols)));
    let floats = Encoding::new(Scheme::F32, [1, 64]);
    gather
        .chain(["fade", "scatter"].into_iter().flat_map(|entry| sizes.map(|cols| kernel(entry, floats, cols))))
        .collect()
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
    gather(g, ids, table, 0, u32::MAX, factor, &x)?;
    Ok(x)
}

/// x\[r\] = factor · table\[ids\[r\] − first\] where that is a row of the table; other rows of x stay as they are
///
/// ids: [rows] u32; table: [count, cols]; x: [rows, cols] f32, such as what [`embed`] gave, with zeros for these ids. Errors: Shape.
pub fn embed_beyond(
    g: &mut Graph,
    ids: &Value,
    first: usize,
    table: &QuantizedTensor,
    factor: f32,
    x: &Value,
) -> Result<()> {
    let op = "embed_beyond";
    let ([count, cols], rows) = (table.shape(), ids.shape().len());
    expect(op, "x", x, [rows, cols])?;
    if ids.dtype() != DType::U32
        || table.is_empty()
        || first.checked_add(count).is_none_or(|end| end > u32::MAX as usize)
    {
        let got = format!("{}, {count} rows from {first}", ids.dtype());
        return Err(Error::shape(op, "ids of U32 and a table with rows below 2^32", got));
    }
    gather(g, ids, table, first, (first + count - 1) as u32, factor, x)
}

/// One dispatch per shard. first: the id of the table's first row; end: ids up to here are the last shard's to write.
fn gather(
    g: &mut Graph,
    ids: &Value,
    table: &QuantizedTensor,
    first: usize,
    end: u32,
    factor: f32,
    x: &Value,
) -> Result<()> {
    let ([count, cols], rows, encoding) = (table.shape(), ids.shape().len(), Encoding::of(table));
    let kernel = kernel("gather", encoding, cols);
    for shard in table.shards() {
        let past = shard.row0 + shard.rows;
        let params = Params {
            cols: cols as u32,
            first_row: (first + shard.row0) as u32,
            rows: shard.rows as u32,
            block: encoding.block(),
            first_block: shard.first_block,
            end_row: if past == count { end } else { (first + past - 1) as u32 },
            factor,
        };
        let mut args = shard.args(g);
        args.extend([ids.clone(), x.clone()]);
        let args: Vec<&Value> = args.iter().collect();
        g.dispatch(kernel.clone(), &params, &args, rows, 12.0 * (rows * cols) as f64)?;
    }
    Ok(())
}

/// dtable\[ids\[r\] − first\] += factor · dx\[r\], after dtable ← accumulate · dtable where that is given
///
/// ids: [rows] u32, those that are no row of the table are passed over; dx: [rows, cols]; dtable: [vocabulary, cols]; accumulate: [1], f32: where it is 0, `dtable` may hold anything. Rows
/// with one id are added in their order, so that the sum has the same bits in each run. Errors: Shape.
pub fn embed_backward(
    g: &mut Graph,
    ids: &Value,
    first: usize,
    dx: &Value,
    factor: f32,
    dtable: &Value,
    accumulate: Option<&Value>,
) -> Result<()> {
    let op = "embed_backward";
    let ((vocabulary, cols), rows) = (dtable.rows_cols(), ids.shape().len());
    expect(op, "dtable", dtable, [vocabulary, cols])?;
    expect(op, "dx", dx, [rows, cols])?;
    if ids.dtype() != DType::U32 || vocabulary == 0 || first + vocabulary > u32::MAX as usize {
        let got = format!("{}, {vocabulary} rows from {first}", ids.dtype());
        return Err(Error::shape(op, "ids of U32 and a table with rows below 2^32", got));
    }
    let floats = Encoding::new(Scheme::F32, [1, 64]);
    let params = Params {
        cols: cols as u32,
        first_row: first as u32,
        rows: rows as u32,
        block: floats.block(),
        first_block: 0,
        end_row: (first + vocabulary - 1) as u32,
        factor,
    };
    if let Some(accumulate) = accumulate {
        expect(op, "accumulate", accumulate, [1, 1])?;
        let len = vocabulary * cols;
        let fade = Params { rows: len as u32, ..params };
        let groups = len.div_ceil(lanes(cols) as usize);
        g.dispatch(kernel("fade", floats, cols), &fade, &[accumulate, dtable], groups, len as f64)?;
    }
    let work = (rows * rows + 2 * rows * cols) as f64;
    g.dispatch(kernel("scatter", floats, cols), &params, &[ids, dx, dtable], rows, work)
}
