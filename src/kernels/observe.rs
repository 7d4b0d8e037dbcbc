//! What observers see of a tensor that passes by batch after batch: range, histogram, and what rounding costs.

use super::reduce;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

/// Words of the range of a tensor: the bits of low, high, average low and average high; then how many numbers were not
/// finite, and how many batches there were. Zeros before the first batch.
pub const RANGE: usize = 6;
/// Sums of [`errors`], each over every so-many-th element.
pub const PARTS: usize = 4096;

crate::graph::params! {
    #[derive(Default)]
    struct Params {
        len: u32,
        bins: u32,
        threads: u32,
        block: u32,
        first: u32,
        rate: f32,
    }
}

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("observe", entry).with("PARTS", PARTS as u32)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["join_range", "histogram", "errors"].map(kernel).to_vec()
}

/// low = min(low, min x), high = max(high, max x), average += rate · (x's own range - average); the first batch sets all
///
/// x: any shape, f32, one batch; range: [`RANGE`] words. Only finite numbers are looked at. The average is that of torch's
/// `MovingAverageMinMaxObserver`. Errors: Shape.
pub fn join_range(g: &mut Graph, x: &Value, range: &Value, rate: f32) -> Result<()> {
    check("join_range", range, DType::U32, RANGE)?;
    let batch = reduce::min_max(g, x, x.shape().len().max(1))?;
    let args = [&batch.low, &batch.high, &batch.non_finite, range];
    g.dispatch(kernel("join_range"), &Params { rate, ..Params::default() }, &args, 1, 16.0)
}

/// counts\[min(floor(|x| · (bins / m)), bins - 1)\] += 1 for every finite x, m = max(-low, high) of `range`
///
/// x: any shape, f32; range: [`RANGE`] words that know x already; counts: [bins] u32. Where m is below 1e-30 all numbers
/// are in the first bin. Sums are of integers, so that their order does not matter. Errors: Shape.
pub fn histogram(g: &mut Graph, x: &Value, range: &Value, counts: &Value) -> Result<()> {
    check("histogram", range, DType::U32, RANGE)?;
    let (len, bins) = (x.shape().len(), counts.shape().len());
    if bins == 0 || x.dtype() != DType::F32 {
        return Err(Error::shape("histogram", "f32 numbers and at least one bin", format!("{} {bins}", x.dtype())));
    }
    let threads = len.div_ceil(64);
    let params = Params { len: len as u32, bins: bins as u32, threads: threads as u32, ..Params::default() };
    g.dispatch(kernel("histogram"), &params, &[x, range, counts], threads.div_ceil(64), 12.0 * len as f64)
}

/// Which numbers are held without being clipped.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// The least and the largest number of each block. [blocks, 2] f32
    pub limits: &'a Value,
    /// Elements of a block; more than there are for one block.
    pub block: usize,
    /// The number of x's first element, in the order that blocks run over.
    pub first: usize,
}

/// sums\[t\] += (Σ (x\[i\] - y\[i\])², Σ x\[i\]²), clipped\[t\] += the number of x\[i\] beyond the limits of block
/// (first + i) / block, over i = t, t + PARTS, …
///
/// x, y: the same shape, f32; sums: \[[`PARTS`], 2\] f32; clipped: [`PARTS`] u32. The signal-to-quantization-noise ratio
/// of y is the ratio of the two sums over all parts. Errors: Shape.
pub fn errors(g: &mut Graph, x: &Value, y: &Value, held: Limits, sums: &Value, clipped: &Value) -> Result<()> {
    y.expect("errors", x.shape())?;
    check("errors", sums, DType::F32, 2 * PARTS)?;
    check("errors", clipped, DType::U32, PARTS)?;
    let (len, Limits { limits, block, first }) = (x.shape().len(), held);
    check("errors", limits, DType::F32, limits.shape().len())?;
    if block == 0 || 2 * (first + len).div_ceil(block) > limits.shape().len() || first + len > u32::MAX as usize {
        let expected = format!("limits of blocks of {block} up to element {}", first + len);
        return Err(Error::shape("errors", expected, limits.shape()));
    }
    let block = block.min(u32::MAX as usize);
    let params = Params { len: len as u32, block: block as u32, first: first as u32, ..Params::default() };
    g.dispatch(kernel("errors"), &params, &[x, y, limits, sums, clipped], PARTS / 64, 8.0 * len as f64)
}

fn check(op: &str, value: &Value, dtype: DType, len: usize) -> Result<()> {
    match value.dtype() == dtype && value.shape().len() == len {
        true => Ok(()),
        false => Err(Error::shape(op, format!("{dtype} [{len}]"), format!("{} {}", value.dtype(), value.shape()))),
    }
}
