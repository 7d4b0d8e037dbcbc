//! Absmax values to 8 bits: the second step of double quantization.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        partials: u32,
    }
}

/// Absmax values that one workgroup sums.
const SUMMED: usize = 4096;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("double_quantize", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["partial_sums", "offset", "absmax_codes"].map(kernel).to_vec()
}

/// offset = mean(absmax); codes[b] = encode((absmax[b] - offset) * (1 / nested[b / 256]))
///
/// absmax: \[blocks\] f32, normal numbers or zeros; status: \[4\] u32, the last one the bits of the largest absmax;
/// nested: \[257 + blocks / 256\] f32, of which the 256 map values are read and the rest is written; codes: \[blocks / 4\]
/// u32. The sum is exact, so the result equals [`crate::quant::dynamic8::quantize_absmax`] on every device.
/// Errors: Shape. Dettmers et al. 2023.
pub fn double_quantize(g: &mut Graph, absmax: &Value, status: &Value, nested: &Value, codes: &Value) -> Result<()> {
    let len = absmax.shape().len();
    if len == 0 {
        return Ok(());
    }
    status.expect("double_quantize", &[4])?;
    nested.expect("double_quantize", &[257 + len.div_ceil(256)])?;
    codes.expect("double_quantize", &[len.div_ceil(4)])?;
    // The long division shifts a remainder below the length by one bit.
    if len > 1 << 31 {
        return Err(Error::shape("double_quantize", "at most 2^31 blocks", len));
    }
    let partials = len.div_ceil(SUMMED);
    let params = Params { len: len as u32, partials: partials as u32 };
    let sums = g.value([partials, 3], DType::U32)?;
    let work = 16.0 * len as f64;
    g.dispatch(kernel("partial_sums"), &params, &[absmax, status, &sums], partials, work)?;
    g.dispatch(kernel("offset"), &params, &[status, &sums, nested], 1, 20.0 * partials as f64 + 5000.0)?;
    g.dispatch(kernel("absmax_codes"), &params, &[absmax, nested, codes], len.div_ceil(256), 2.0 * work)
}
