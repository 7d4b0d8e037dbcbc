//! The codes of a weight, read back and sorted.

use crate::{
    Result,
    gpu::Gpu,
    kernels::{QuantizedTensor, codebook::Codes},
};

/// The codes of an AQLM weight, sorted on the host. Errors: Shape for other schemes, and for weights that are empty or do not fit
/// one binding; Device, OutOfMemory.
pub fn sort(gpu: &Gpu, weight: &QuantizedTensor) -> Result<Codes> {
    Codes::new(gpu, weight, &Codes::words(weight)?.read()?)
}
