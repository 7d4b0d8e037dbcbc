//! AQLM's weight, whose code books and row scales are trained while its codes stay.

use super::Parameter;
use crate::{
    Error, Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{QuantizedTensor, codebook::Codes, dense},
    quant::Scheme,
};

/// What is real of a weight that is the sum of two vectors of code books for every eight numbers, times one scale per row
/// (Egiazarian et al. 2024, section 3.4).
pub struct Codebooks {
    codes: Codes,
    /// `[2 * 256 * 8]`
    pub(crate) books: Parameter,
    /// [out]
    pub(crate) scales: Parameter,
}

impl Codebooks {
    /// Those of a weight, sharing its memory, not trained yet. codes: its codes, sorted. Errors: Shape for another scheme.
    pub fn of(weight: &QuantizedTensor, codes: Codes) -> Result<Codebooks> {
        let (Scheme::Aqlm, Some(scales), Some(books)) = (weight.scheme(), weight.scales(), weight.nested()) else {
            return Err(Error::shape("training of code books", "a weight of aqlm", weight.scheme()));
        };
        let scales = Tensor::view(scales.buffer.clone(), scales.offset, [weight.rows()].into(), crate::DType::F32);
        let (books, scales) = (Parameter::frozen(books.clone()), Parameter::frozen(scales));
        Ok(Codebooks { codes, books, scales })
    }

    pub(super) fn gradients(&self, g: &mut Graph, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
        let (Some(books), Some(scales)) = (&self.books.grads, &self.scales.grads) else { return Ok(()) };
        let dw = dense::xt_w(g, dy, x)?;
        let values = [&self.books.values, &self.scales.values].map(|t| g.import(t));
        let grads = [books, scales].map(|t| g.import(t));
        self.codes.gradient(g, &dw, values.each_ref(), grads.each_ref(), accumulate)
    }
}
