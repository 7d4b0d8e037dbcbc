//! The numbers that a packed weight stands for. Products decode on the fly and never come here; tests, merging and export do.

use super::{
    QuantizedTensor,
    decode::{Encoding, Lookup, SCHEMES, Unit, decode},
};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::Scheme,
};
use std::ops::Range;

crate::graph::params! {
    struct Params {
        len: u32,
        first: u32,
        out_first: u32,
        block: u32,
        first_block: u32,
    }
}

/// `unit`: the elements per thread.
fn kernel(encoding: Encoding, unit: Unit) -> Kernel {
    let kernel = decode(Kernel::new("dequantize", "values"), encoding, unit, Lookup::Private);
    kernel.import("write", if unit == Unit::One { "write_one" } else { "write_eight" })
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let block_size = 64;
    let mut schemes = SCHEMES.to_vec();
    for double_quant in [false, true] {
        schemes.extend([Scheme::Nf4 { block_size, double_quant }, Scheme::Fp4 { block_size, double_quant }]);
    }
    // Blocks of affine schemes need be no powers of two.
    schemes.extend((2..=8).flat_map(|bits| [Scheme::int(bits, 24), Scheme::int(bits, 64)]));
    let mut seen = std::collections::HashSet::new();
    schemes.retain(|&scheme| seen.insert(scheme));
    let encodings = schemes.into_iter().map(|scheme| Encoding::new(scheme, [1, 64]));
    encodings.flat_map(|encoding| [kernel(encoding, Unit::Eight), kernel(encoding, Unit::One)]).collect()
}

/// y[r, c] = the value of the code of w[r, c]
///
/// w: [rows, cols] in any scheme; y: [rows, cols] f32, exact up to one rounding of each product and sum. Errors: Shape
/// where y exceeds a binding: take [`dequantize_rows`].
pub fn dequantize(g: &mut Graph, w: &QuantizedTensor) -> Result<Value> {
    dequantize_rows(g, w, 0..w.rows())
}

/// [`dequantize`] for a range of rows: [rows.len(), cols]. Errors: Shape.
pub fn dequantize_rows(g: &mut Graph, w: &QuantizedTensor, rows: Range<usize>) -> Result<Value> {
    if rows.start > rows.end || rows.end > w.rows() {
        return Err(Error::shape("dequantize", format!("rows up to {}", w.rows()), format!("{rows:?}")));
    }
    let (cols, encoding) = (w.cols(), Encoding::of(w));
    let y = g.value([rows.len(), cols], DType::F32)?;
    for shard in w.shards() {
        let from = rows.start.max(shard.row0);
        let to = rows.end.min(shard.row0 + shard.rows);
        if from >= to {
            continue;
        }
        let len = (to - from) * cols;
        let (first, out_first) = ((from - shard.row0) * cols, (from - rows.start) * cols);
        let whole = [len, first, out_first, encoding.block.unwrap_or(8)].iter().all(|n| n % 8 == 0);
        let (unit, threads) = if whole { (Unit::Eight, len / 8) } else { (Unit::One, len) };
        let params = Params {
            len: threads as u32,
            first: first as u32,
            out_first: out_first as u32,
            block: encoding.block(),
            first_block: shard.first_block,
        };
        let mut args = shard.args(g);
        args.push(y.clone());
        let args: Vec<&Value> = args.iter().collect();
        g.dispatch(kernel(encoding, unit), &params, &args, threads.div_ceil(256), 8.0 * len as f64)?;
    }
    Ok(y)
}
