//! Weights as plain floats: what a model is before, and after, it is quantized.

use super::checkpoint::{Basis, Checkpoint, Description, Parts, expect_own_basis};
use super::safetensors::TensorSpec;
use super::{Stored, Weights};
use crate::quant::{Packed, Scheme, listed};
use crate::{DType, Error, Result};
use serde_json::Value;

/// The layout of a model that is not quantized, to write what methods made of one as floats.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    scheme: Scheme,
    dtype: DType,
}

impl Plain {
    /// Errors: Unsupported for schemes other than f32, f16 and bf16.
    pub fn new(scheme: Scheme) -> Result<Plain> {
        let dtype = |scheme| match Stored::of(scheme) {
            Some(Stored::Plain(dtype)) => Some(dtype),
            _ => None,
        };
        match dtype(scheme) {
            Some(dtype) => Ok(Plain { scheme, dtype }),
            None => {
                let supported = listed(|scheme| dtype(scheme).is_some());
                Err(Error::unsupported("scheme for plain floats", scheme, supported))
            }
        }
    }
}

impl Checkpoint for Plain {
    fn is_quantized(&self, _: &Weights, _: &str) -> bool {
        false
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        Err(weights.missing(name))
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        Err(weights.missing(name))
    }

    fn weight_name(&self, _: &Weights, tensor: &str) -> Option<String> {
        Some(tensor.to_owned())
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        Ok(vec![TensorSpec::new(name, self.dtype, shape)])
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        expect_own_basis("plain", basis)?;
        if packed.scheme != self.scheme {
            return Err(Error::unsupported("scheme for plain floats", packed.scheme, self.scheme));
        }
        let bytes = &bytemuck::cast_slice::<u32, u8>(&packed.codes)[..packed.len() * self.dtype.size()];
        Ok(vec![(name.to_owned(), bytes.into())])
    }

    fn config(&self, _: DType) -> Result<Value> {
        Ok(Value::Null)
    }
}
