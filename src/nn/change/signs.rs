//! QuIP#'s weight, whose two sign vectors become real numbers that are trained while its codes stay.

use super::Parameter;
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{
        dense, dequantize, diagonal,
        hadamard::{Hadamard, transpose},
    },
    nn::{Linear, Transform},
};

/// W = diag(left) · inner · diag(right), the weight of a layer between two Hadamard transforms with the signs of these taken out
/// (Tseng et al. 2024, section 5).
pub struct Signs {
    /// [out, in] f32
    inner: Tensor,
    /// Of the output's transform. [out]
    pub(crate) left: Parameter,
    /// Of the input's transform. [in]
    pub(crate) right: Parameter,
}

impl Signs {
    /// Makes real numbers of the signs of a layer's transforms; the layer then computes with them. Not trained yet.
    /// Errors: Shape for another layer, or a weight that one binding does not hold in f32; OutOfMemory, Device.
    pub fn of(gpu: &Gpu, linear: &mut Linear) -> Result<Signs> {
        let Some(Transform::Hadamard { input, output }) = &linear.transform else {
            return Err(Error::shape("training of signs", "a layer between Hadamard transforms", "another layer"));
        };
        let inner = inner(gpu, linear, input, output)?;
        let real = |map: &Hadamard| {
            let signs = gpu.tensor("signs of a transform", [map.cols()], DType::F32, &map.signs()?)?;
            Ok::<_, Error>((map.with_signs(&signs)?, Parameter::frozen(signs)))
        };
        let ((input, right), (output, left)) = (real(input)?, real(output)?);
        linear.transform = Some(Transform::Hadamard { input, output });
        Ok(Signs { inner, left, right })
    }

    pub(super) fn gradients(&self, g: &mut Graph, x: &Value, dy: &Value, accumulate: &Value) -> Result<()> {
        let (Some(dl), Some(dr)) = (&self.left.grads, &self.right.grads) else { return Ok(()) };
        let dw = dense::xt_w(g, dy, x)?;
        let [inner, l, r, dl, dr] = [&self.inner, &self.left.values, &self.right.values, dl, dr].map(|t| g.import(t));
        diagonal::left(g, &dw, &inner, &r, &dl, accumulate)?;
        diagonal::right(g, &dw, &inner, &l, &dr, accumulate)
    }
}

/// The weight of a layer between two transforms as if all their signs were 1: Uᵀ · W · T. [out, in] f32
fn inner(gpu: &Gpu, linear: &Linear, input: &Hadamard, output: &Hadamard) -> Result<Tensor> {
    let unsigned = |map: &Hadamard| {
        let ones = vec![1.0f32; map.cols()];
        map.with_signs(&gpu.tensor("signs of a transform", [map.cols()], DType::F32, &ones)?)
    };
    let (input, output) = (unsigned(input)?, unsigned(output)?);
    let mut g = Graph::new(gpu);
    let w = dequantize::dequantize(&mut g, &linear.weight)?;
    let w = input.backward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    let w = output.backward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    g.keep(&w);
    g.run()?.tensor(&w)
}
