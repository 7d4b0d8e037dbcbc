//! Rounding of a layer's input to 8 bits before the product.

use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{
        QuantizedTensor, product, product_int8,
        quantize_rows::{self, Scale},
    },
};

/// How the input of a layer is rounded: symmetric, to the codes -127 to 127.
///
/// Only the forward pass rounds: the backward pass takes the rounding for the identity, and low-rank updates see the input as
/// it was. Where the weight's scheme is [`Scheme::int8`](crate::quant::Scheme::int8) of rows, codes are multiplied with codes
/// and summed as integers. In other schemes, and for the few rows of generation, the input is rounded to the same numbers
/// in floats and goes through the usual product, whose result differs by f32's rounding alone.
#[derive(Clone, Debug)]
pub enum InputRounding {
    /// Each token (row) has a scale of its own: its largest magnitude / 127.
    Dynamic,
    /// One scale for all that the layer ever sees, found by calibration; what lies beyond 127 of its steps is clipped.
    Static {
        /// [1] f32
        scale: Tensor,
    },
    /// LLM.int8() (Dettmers et al. 2022): columns of the batch that hold a magnitude of at least `threshold` stay in
    /// halves, the others are rounded as in `Dynamic`, by the largest magnitude of the token below `threshold`: as in bitsandbytes,
    /// those in columns that stay in halves count too.
    LlmInt8 {
        /// The paper's is 6.
        threshold: f32,
    },
}

/// Fewer rows go through the products for few rows.
const FEW: usize = 8;

impl InputRounding {
    /// Q(x) · Wᵀ + bias
    ///
    /// x: [.., in]; w: [out, in]; bias: [out]; result: [.., out], f32. Errors: Shape.
    pub fn product(&self, g: &mut Graph, x: &Value, w: &QuantizedTensor, bias: Option<&Value>) -> Result<Value> {
        if x.rows_cols().0 < FEW || !product_int8::serves(w) {
            let rounded = self.round(g, x)?;
            return product::matmul(g, &rounded, w, None, bias, None);
        }
        let outliers = self.outliers(g, x)?;
        let given = self.given(g);
        let rows = quantize_rows::quantize(g, x, scale(&given, &outliers))?;
        let kept = outliers.as_ref().map(|outliers| product_int8::Kept { x, columns: &outliers.list });
        product_int8::matmul(g, &rows, w, kept, bias)
    }

    /// Q(x): x as the product sees it. x: [.., in] f32. Errors: Shape.
    pub fn round(&self, g: &mut Graph, x: &Value) -> Result<Value> {
        let outliers = self.outliers(g, x)?;
        let given = self.given(g);
        quantize_rows::round(g, x, scale(&given, &outliers))
    }

    fn outliers(&self, g: &mut Graph, x: &Value) -> Result<Option<quantize_rows::Outliers>> {
        match self {
            InputRounding::LlmInt8 { threshold } => quantize_rows::outliers(g, x, *threshold).map(Some),
            _ => Ok(None),
        }
    }

    fn given(&self, g: &mut Graph) -> Option<Value> {
        match self {
            InputRounding::Static { scale } => Some(g.import(scale)),
            _ => None,
        }
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> u64 {
        match self {
            InputRounding::Static { scale } => scale.bytes(),
            _ => 0,
        }
    }
}

fn scale<'a>(given: &'a Option<Value>, outliers: &'a Option<quantize_rows::Outliers>) -> Scale<'a> {
    match (given, outliers) {
        (Some(scale), _) => Scale::Given(scale),
        (None, Some(outliers)) => Scale::WithoutOutliers(outliers),
        (None, None) => Scale::Row,
    }
}
