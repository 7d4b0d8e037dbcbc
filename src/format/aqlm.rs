//! AQLM's layout (Egiazarian et al. 2024), as the package `aqlm` and transformers save and load it, with two code books of
//! 256 vectors of 8 (2x8).
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.codes` | I8 `[out, in / 8, 2]` | the vector's number in each code book, as an unsigned byte |
//! | `X.codebooks` | float `[2, 256, 1, 8]` | vectors: `(book0[code0] + book1[code1]) * scale` |
//! | `X.scales` | float `[out, 1, 1, 1]` | one scale per row |
//!
//! They are written as F32.

use super::checkpoint::{Basis, Checkpoint, Description, Module, Parts, base_of, expect_own_basis, weight_name};
use super::{Weights, fields::Fields, safetensors::TensorSpec};
use crate::quant::{Packed, Scheme, VECTOR, bytes_to_words};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

/// Shape of the code books.
const BOOKS: [usize; 4] = [2, 256, 1, VECTOR];

/// Weights in AQLM's layout.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aqlm;

impl Aqlm {
    /// From a `quantization_config`. Errors: Format, Unsupported for other code books than 2x8 of 8 inputs and 1 output.
    pub fn from_config(f: &Fields<'_>) -> Result<Aqlm> {
        for (field, default, only) in [
            ("num_codebooks", 1, 2),
            ("nbits_per_codebook", 16, 8),
            ("in_group_size", 8, VECTOR),
            ("out_group_size", 1, 1),
        ] {
            let got = f.extent_or(field, default)?;
            if got != only {
                return Err(Error::unsupported(format!("{field} of an AQLM model"), got, only));
            }
        }
        f.ignore(&["linear_weights_not_to_quantize"]);
        Ok(Aqlm)
    }
}

impl Checkpoint for Aqlm {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        Module::of(weights, name).is_some_and(|module| module.has("codebooks"))
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        let module = Module::expect(weights, name)?;
        let codes = module.get("codes")?.expect_dtype(DType::I8)?;
        let (rows, vectors) = match *codes.shape {
            [rows, vectors, 2] if rows * vectors > 0 => (rows, vectors),
            _ => return Err(module.fail(format!("expected codes of [out, in / 8, 2], got {:?}", codes.shape))),
        };
        module.get("codebooks")?.expect_shape(&BOOKS)?;
        module.get("scales")?.expect_shape(&[rows, 1, 1, 1])?;
        let shape = [rows, vectors * VECTOR];
        let scheme = Scheme::Aqlm;
        scheme.validate_for(shape).map_err(|e| module.fail(e.to_string()))?;
        Ok(Description { scheme, shape, dtype: module.float_dtype("codebooks")? })
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        let Description { scheme, shape, .. } = self.describe(weights, name)?;
        let module = Module::expect(weights, name)?;
        let ((books, _, _), (scales, _, _)) = (module.floats("codebooks")?, module.floats("scales")?);
        let codes = bytes_to_words(module.get("codes")?.bytes);
        Packed::new(scheme, shape, codes, scales.into_iter().map(f32::to_bits).collect(), books)
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        weight_name(weights, tensor, "codes", &["codebooks", "scales"])
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        let base = base_of(name)?;
        Scheme::Aqlm.validate_for(shape)?;
        Ok(vec![
            TensorSpec::new(format!("{base}.codes"), DType::I8, [shape[0], shape[1] / VECTOR, 2]),
            TensorSpec::new(format!("{base}.codebooks"), DType::F32, BOOKS),
            TensorSpec::new(format!("{base}.scales"), DType::F32, [shape[0], 1, 1, 1]),
        ])
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        let base = base_of(name)?;
        expect_own_basis("AQLM", basis)?;
        if packed.scheme != Scheme::Aqlm {
            return Err(Error::unsupported("scheme for the AQLM layout", packed.scheme.name(), Scheme::Aqlm.name()));
        }
        let codes = &bytemuck::cast_slice::<u32, u8>(&packed.codes)[..packed.len() / VECTOR * 2];
        Ok(vec![
            (format!("{base}.codes"), codes.into()),
            (format!("{base}.codebooks"), bytemuck::cast_slice(&packed.nested).into()),
            (format!("{base}.scales"), bytemuck::cast_slice(&packed.scales).into()),
        ])
    }

    fn config(&self, _: DType) -> Result<Value> {
        Ok(json!({
            "in_group_size": VECTOR,
            // transformers 4 names weights here, transformers 5 modules.
            "linear_weights_not_to_quantize": ["lm_head", "lm_head.weight"],
            "nbits_per_codebook": 8,
            "num_codebooks": 2,
            "out_group_size": 1,
            "quant_method": "aqlm",
        }))
    }
}
