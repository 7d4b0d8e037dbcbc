//! Half-quadratic quantization of a tensor, at once.

use crate::{
    Error, QuantizedTensor, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{hqq as kernel, quantize::status},
    quant::Scheme,
};

pub use crate::kernels::hqq::{HalfQuadratic, serves};

/// Affine codes whose zero points make |w - (code - zero) * scale|^p small, p < 1: outliers may be far off where that
/// serves the rest
///
/// source: [rows * cols] f32, f16 or bf16 in any shape, which may exceed a binding; shape: (rows, cols); scheme:
/// asymmetric integers of 2 to 8 bits. Scales are those of the blocks' ranges; zero points are fractional. Errors: Config for NaN, infinity, options and ranges beyond the scales; Shape; Unsupported;
/// OutOfMemory; Device. Half-Quadratic Quantization, Badri & Shaji 2023.
pub fn hqq(
    gpu: &Gpu,
    name: &str,
    source: &Tensor,
    shape: [usize; 2],
    scheme: Scheme,
    options: &HalfQuadratic,
) -> Result<QuantizedTensor> {
    scheme.expect("scheme for hqq", serves)?;
    kernel::check(name, source, shape, options)?;
    let target = QuantizedTensor::zeros(gpu, name, scheme, shape)?;
    if gpu.is_dry() || target.is_empty() {
        return Ok(target);
    }
    let status = status(gpu)?;
    let mut g = Graph::new(gpu);
    kernel::record(&mut g, name, source, &target, options, &status)?;
    g.run()?;
    report(name, &status.read::<u32>()?)?;
    Ok(target)
}

fn report(name: &str, status: &[u32]) -> Result<()> {
    if status[0] > 0 {
        let message = format!("{} elements are not finite; only finite numbers can be stored", status[0]);
        return Err(Error::config(name, message));
    }
    if status[2] > 0 {
        return Err(Error::config(name, format!("the range of block {} is beyond its scale", !status[2])));
    }
    Ok(())
}
