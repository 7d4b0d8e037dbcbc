//! The weights of LLM.int8() (Dettmers et al. 2022), as bitsandbytes and transformers save and load them.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.weight` | I8 `[out, in]` | codes |
//! | `X.SCB` | F32 `[out]` | the largest magnitude of each row: `code * SCB / 127` |
//! | `X.weight_format` | U8 `[]` | 0: rows |

use super::checkpoint::{Basis, Description, Module, Parts, base_of, expect_own_basis};
use super::{Weights, safetensors::TensorSpec};
use crate::quant::{Packed, Scheme, affine_words, bytes_to_words};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

/// The paper's threshold for the columns that stay in halves.
pub const THRESHOLD: f32 = 6.0;

/// Whether the weight `name` is there in this layout.
pub fn is_quantized(weights: &Weights, name: &str) -> bool {
    Module::of(weights, name).is_some_and(|module| module.has("SCB"))
}

/// What a weight is; its dtype before is F16, in which LLM.int8() computes. Errors: as [`read`].
pub fn describe(weights: &Weights, name: &str) -> Result<Description> {
    let module = Module::expect(weights, name)?;
    let codes = module.get("weight")?.expect_dtype(DType::I8)?;
    let shape = module.matrix(&codes)?;
    module.get("SCB")?.expect_dtype(DType::F32)?.expect_shape(&shape[..1])?;
    if module.has("weight_format") && module.integer("weight_format")? != 0 {
        return Err(module.fail(format!("expected weight_format 0 (rows), got {}", module.integer("weight_format")?)));
    }
    let scheme = Scheme::int8(shape[1]);
    scheme.validate_for(shape).map_err(|e| module.fail(e.to_string()))?;
    Ok(Description { scheme, shape, dtype: DType::F16 })
}

/// A weight. Errors: MissingTensor, Format, Shape.
pub fn read(weights: &Weights, name: &str) -> Result<Packed> {
    let Description { scheme, shape, .. } = describe(weights, name)?;
    let module = Module::expect(weights, name)?;
    let (absmax, _, _) = module.floats("SCB")?;
    let scales = absmax.iter().map(|&a| ((f64::from(a) / 127.0) as f32, 0.0));
    let Scheme::Int { scale, .. } = scheme else { unreachable!("`describe` says integers") };
    let codes = bytes_to_words(module.get("weight")?.bytes);
    Packed::new(scheme, shape, codes, affine_words(scale, scales), vec![])
}

/// The tensors of a weight. Errors: Config.
pub fn specs(name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
    let base = base_of(name)?;
    Ok(vec![
        TensorSpec::new(name, DType::I8, shape),
        TensorSpec::new(format!("{base}.SCB"), DType::F32, [shape[0]]),
        TensorSpec::new(format!("{base}.weight_format"), DType::U8, []),
    ])
}

/// Names and bytes of the tensors that [`specs`] announces, for a weight of [`Scheme::int8`] by rows.
/// Errors: Unsupported for other schemes.
pub fn tensors<'a>(name: &str, packed: &'a Packed, basis: Option<&Basis>) -> Result<Parts<'a>> {
    let base = base_of(name)?;
    expect_own_basis("LLM.int8", basis)?;
    let scheme = Scheme::int8(packed.shape[1]);
    if packed.scheme != scheme {
        let got = format!("{:?}", packed.scheme);
        return Err(Error::unsupported("scheme for the LLM.int8 layout", got, format!("{scheme:?}")));
    }
    let codes = &bytemuck::cast_slice::<u32, u8>(&packed.codes)[..packed.len()];
    let absmax = |row: usize| (127.0 * f64::from(packed.affine(row).0)) as f32;
    let absmax: Vec<u8> = (0..packed.shape[0]).flat_map(|row| absmax(row).to_le_bytes()).collect();
    Ok(vec![
        (name.to_owned(), codes.into()),
        (format!("{base}.SCB"), absmax.into()),
        (format!("{base}.weight_format"), vec![0].into()),
    ])
}

/// The `quantization_config` of transformers, with its names and defaults; columns with a magnitude of at least `threshold`
/// stay in halves.
pub fn quantization_config(threshold: f32) -> Value {
    json!({
        "_load_in_4bit": false,
        "_load_in_8bit": true,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": false,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": threshold,
        "load_in_4bit": false,
        "load_in_8bit": true,
        "quant_method": "bitsandbytes",
    })
}
