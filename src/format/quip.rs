//! QuIP# models, under the names of its authors' files.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.Qidxs` | I16 `[out, in / 8]` | E8P codes of eight numbers each |
//! | `X.SU` | F32 `[in]` | what the input's columns are multiplied by before their transform: ±1 unless fine-tuned |
//! | `X.SV` | F32 `[out]` | the same of the output's |
//! | `X.Wscale` | F32 `[1]` | of the whole weight |
//!
//! The authors' own files fuse layers, and their codes and dense factors are numbered in another way: this layout is fourbit's, and
//! other tools do not load it. Factors follow from the numbers of columns ([`crate::quant::hadamard`]), so that none is stored.

use super::checkpoint::{Basis, Checkpoint, Description, Module, Parts, base_of, weight_name};
use super::{Weights, fields::Fields, safetensors::TensorSpec};
use crate::quant::{Packed, Scheme, VECTOR, bytes_to_words, hadamard, lattice};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

/// The number of this way to write it.
const FORMAT: i64 = 1;

/// The layout of QuIP# models at 2 bits.
#[derive(Clone, Copy, Debug)]
pub struct Quip;

impl Quip {
    /// Errors: Unsupported for other code books, and for files of its authors' tools.
    pub fn from_config(f: &Fields<'_>) -> Result<Quip> {
        let (codebook, format) =
            (f.nullable_text("codebook")?.unwrap_or_default(), f.integer("fourbit_format", 0..=i64::MAX)?);
        if (codebook, format) != ("E8P", Some(FORMAT)) {
            let got = format!("codebook {codebook:?}, fourbit_format {format:?}");
            return Err(Error::unsupported("QuIP# files", got, format!("codebook \"E8P\", fourbit_format {FORMAT}")));
        }
        Ok(Quip)
    }
}

impl Checkpoint for Quip {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        Module::of(weights, name).is_some_and(|module| module.has("Qidxs"))
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        let module = Module::expect(weights, name)?;
        let codes = module.get("Qidxs")?.expect_dtype(DType::I16)?;
        let [rows, vectors] = module.matrix(&codes)?;
        let cols = vectors.checked_mul(VECTOR).ok_or_else(|| module.fail(format!("{vectors} vectors are too many")))?;
        module.get("SU")?.expect_shape(&[cols])?;
        module.get("SV")?.expect_shape(&[rows])?;
        module.get("Wscale")?.expect_shape(&[1])?;
        for extent in [rows, cols] {
            hadamard::split(extent).map_err(|e| module.fail(e.to_string()))?;
        }
        Ok(Description { scheme: Scheme::E8p, shape: [rows, cols], dtype: DType::BF16 })
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        let Description { scheme, shape, .. } = self.describe(weights, name)?;
        let module = Module::expect(weights, name)?;
        let (scale, _, _) = module.floats("Wscale")?;
        let codes = bytes_to_words(module.get("Qidxs")?.bytes);
        let scales = scale.into_iter().map(f32::to_bits).collect();
        Packed::new(scheme, shape, codes, scales, lattice::patterns().concat())
    }

    fn basis(&self, weights: &Weights, name: &str) -> Result<Option<Basis>> {
        self.describe(weights, name)?;
        let module = Module::expect(weights, name)?;
        let ((input, _, _), (output, _, _)) = (module.floats("SU")?, module.floats("SV")?);
        Ok(Some(Basis::Hadamard { input, output }))
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        weight_name(weights, tensor, "Qidxs", &["SU", "SV", "Wscale"])
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        let base = base_of(name)?;
        Scheme::E8p.validate_for(shape)?;
        let [rows, cols] = shape;
        Ok(vec![
            TensorSpec::new(format!("{base}.Qidxs"), DType::I16, [rows, cols / VECTOR]),
            TensorSpec::new(format!("{base}.SU"), DType::F32, [cols]),
            TensorSpec::new(format!("{base}.SV"), DType::F32, [rows]),
            TensorSpec::new(format!("{base}.Wscale"), DType::F32, [1]),
        ])
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        let base = base_of(name)?;
        if packed.scheme != Scheme::E8p {
            return Err(Error::unsupported("scheme for the QuIP# layout", packed.scheme, Scheme::E8p));
        }
        let Some(Basis::Hadamard { input, output }) = basis else {
            return Err(Error::unsupported("weights in the QuIP# layout", "no transforms", "Hadamard's around each"));
        };
        if [output.len(), input.len()] != packed.shape {
            let expected = format!("transforms of {:?}", packed.shape);
            return Err(Error::shape(name, expected, format!("{:?}", [output.len(), input.len()])));
        }
        let bytes = |values: &[f32]| bytemuck::cast_slice(values).to_vec().into();
        let codes = &bytemuck::cast_slice::<u32, u8>(&packed.codes)[..packed.len() / VECTOR * 2];
        Ok(vec![
            (format!("{base}.Qidxs"), codes.into()),
            (format!("{base}.SU"), bytes(input)),
            (format!("{base}.SV"), bytes(output)),
            (format!("{base}.Wscale"), bytemuck::cast_slice(&packed.scales[..1]).into()),
        ])
    }

    fn config(&self, _: DType) -> Result<Value> {
        Ok(json!({ "codebook": "E8P", "fourbit_format": FORMAT, "quant_method": "quip" }))
    }
}
