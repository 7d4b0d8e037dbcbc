//! Rounding a tensor to the numbers of a scheme, at once.

use crate::{
    QuantizedTensor, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::quantize as kernel,
    quant::{Scheme, dynamic8_map, nested_array},
};

pub use crate::kernels::quantize::{encodes, rounds};

/// Rounds `source` to the numbers of `scheme`, bit for bit as [`crate::quant::Packed::quantize`] does; blocks whose largest magnitude is
/// subnormal count as zero there and here.
///
/// source: \[rows * cols\] f32, f16 or bf16 in any shape, which may exceed a binding; shape: (rows, cols); name: for
/// messages. Errors: Config for NaN, infinity or numbers that the scheme cannot hold; Shape; Unsupported for schemes whose
/// codes are searched for ([`rounds`]); OutOfMemory; Device.
pub fn quantize(gpu: &Gpu, name: &str, source: &Tensor, shape: [usize; 2], scheme: Scheme) -> Result<QuantizedTensor> {
    quantize_with(gpu, name, source, shape, scheme, kernel::lanes(gpu, scheme, shape))
}

/// [`quantize`] with `lanes` (1, 8 or 64) threads to a block; the result is the same.
pub fn quantize_with(
    gpu: &Gpu,
    name: &str,
    source: &Tensor,
    shape: [usize; 2],
    scheme: Scheme,
    lanes: u32,
) -> Result<QuantizedTensor> {
    kernel::check(name, source, shape, scheme)?;
    let target = QuantizedTensor::zeros(gpu, name, scheme, shape)?;
    if gpu.is_dry() || target.is_empty() {
        return Ok(target);
    }
    if let Some(nested) = target.nested() {
        let groups = nested.shape().len() - 257;
        nested.write(bytemuck::cast_slice(&nested_array(0.0, &dynamic8_map(), &vec![0.0; groups])))?;
    }
    let status = kernel::status(gpu)?;
    let mut g = Graph::new(gpu);
    kernel::record_tensor(&mut g, name, source, &target, Some(lanes), &status)?;
    g.run()?;
    kernel::report(name, scheme, &status.read::<u32>()?)?;
    Ok(target)
}

/// Rounds `source` to the numbers of `target` with the scales that it has already: for methods that choose scales and
/// values themselves.
///
/// source: \[rows * cols\], finite; target: integers, or a table with plain scales ([`encodes`]). Errors: Shape; Unsupported
/// for other schemes; Device.
pub fn encode(gpu: &Gpu, name: &str, source: &Tensor, target: &QuantizedTensor) -> Result<()> {
    kernel::check(name, source, target.shape(), target.scheme())?;
    target.scheme().expect("scheme to encode with given scales", encodes)?;
    let status = kernel::status(gpu)?;
    let mut g = Graph::new(gpu);
    kernel::record_tensor(&mut g, name, source, target, None, &status)?;
    g.run()?;
    gpu.wait()
}
