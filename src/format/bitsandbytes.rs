//! bitsandbytes' 4-bit layout in safetensors files, as transformers saves and loads it.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X` | U8 `[ceil(n / 2), 1]` | codes, the even element high |
//! | `X.quant_map` | F32 `[16]` | the code book |
//! | `X.absmax` | F32 `[blocks]`; U8 when double-quantized | one scale per block |
//! | `X.nested_absmax` | F32 `[ceil(blocks / 256)]` | double-quantized: a scale of scales |
//! | `X.nested_quant_map` | F32 `[256]` | double-quantized: the 8-bit map |
//! | `X.quant_state.bitsandbytes__nf4` (or `fp4`) | U8 text | JSON: block size, dtype and shape before, offset |

use super::checkpoint::{Basis, Checkpoint, Description, Parts, Rounding, expect_own_basis};
use super::safetensors::{TensorSpec, Writer};
use super::{TensorView, Weights, fields::Fields, llm_int8};
use crate::quant::{self, Packed, Scheme, bytes_to_words, dynamic8, listed, nested_array};
use crate::{DType, Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;

/// Room for the JSON of a quant state; a real one takes about 170 bytes.
const STATE_LIMIT: usize = 320;
/// The scheme of LLM.int8.
const INT8: Scheme = Scheme::INT8_ROWS;

/// Weights in 4 bits that it holds; beside them stands [`INT8`].
const fn is_four_bit(scheme: Scheme) -> bool {
    matches!(scheme, Scheme::Nf4 { .. } | Scheme::Fp4 { .. })
}

/// All that it holds, in words.
fn supported() -> String {
    format!("{}, {INT8}", listed(is_four_bit))
}

#[derive(serde::Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

fn state_name(name: &str, kind: &str) -> String {
    format!("{name}.quant_state.bitsandbytes__{kind}")
}

/// Whether `name` is stored in this layout.
pub fn is_quantized(weights: &Weights, name: &str) -> bool {
    ["nf4", "fp4"].iter().any(|kind| weights.contains(&state_name(name, kind)))
}

/// The weight to whose quantization a tensor of this name belongs: `X.absmax`, `X.quant_map` and the like of X; of LLM.int8
/// `X.SCB` and `X.weight_format` of `X.weight`.
fn owner(name: &str) -> Option<String> {
    const PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
    const INT8_PARTS: [&str; 2] = [".SCB", ".weight_format"];
    let state = name.find(".quant_state.bitsandbytes__").map(|at| name[..at].to_owned());
    let part = || PARTS.iter().find_map(|part| name.strip_suffix(part)).map(str::to_owned);
    let int8 = || INT8_PARTS.iter().find_map(|part| name.strip_suffix(part)).map(|base| format!("{base}.weight"));
    state.or_else(part).or_else(int8)
}

/// Whether a tensor belongs to another one's quantization: `X.absmax`, `X.quant_map` and the like; of LLM.int8 too.
pub fn is_part(name: &str) -> bool {
    owner(name).is_some()
}

/// What a weight's quant state says: scheme, (out, in), and the dtype before.
struct Header {
    state: QuantState,
    scheme: Scheme,
    shape: [usize; 2],
    dtype: DType,
}

fn header(weights: &Weights, name: &str) -> Result<Header> {
    let kind = if weights.contains(&state_name(name, "nf4")) { "nf4" } else { "fp4" };
    let state_view = weights.get(&state_name(name, kind))?;
    let fail = |message: String| Error::format(state_view.path, format!("tensor {name}: {message}"));
    let state: QuantState = serde_json::from_slice(state_view.expect_dtype(DType::U8)?.bytes)
        .map_err(|e| fail(format!("its quant state is not the JSON expected: {e}")))?;
    if state.quant_type != kind {
        return Err(fail(format!("quant_type {:?} in a state named {kind}", state.quant_type)));
    }
    let dtype = parse_dtype(&state.dtype).ok_or_else(|| fail(format!("unknown dtype {:?}", state.dtype)))?;
    let [rows, cols] = state.shape[..] else {
        return Err(fail(format!("expected two extents, got {:?}", state.shape)));
    };
    let double_quant = weights.contains(&format!("{name}.nested_absmax"));
    let block_size = state.blocksize;
    let scheme = match kind {
        "nf4" => Scheme::Nf4 { block_size, double_quant },
        _ => Scheme::Fp4 { block_size, double_quant },
    };
    scheme.validate().map_err(|e| fail(e.to_string()))?;
    Ok(Header { state, scheme, shape: [rows, cols], dtype })
}

/// Reads the weight `name` with the dtype it had before. Errors: MissingTensor, Format where the parts disagree, Shape.
pub fn read(weights: &Weights, name: &str) -> Result<(Packed, DType)> {
    let Header { state, scheme, shape, dtype } = header(weights, name)?;
    let fail = |message: String| Error::format(weights.path(), format!("tensor {name}: {message}"));
    let len = quant::checked_len(shape)?;
    let (block_size, double_quant) = (state.blocksize, scheme.double_quant());
    let (table, zero) = match scheme {
        Scheme::Nf4 { .. } => (quant::NF4, quant::blockwise4::NF4_ZERO),
        _ => (quant::FP4, 0),
    };
    // The storage dtype is free (`bnb_4bit_quant_storage`), the bytes are the same.
    let codes = weights.get(name)?;
    if codes.bytes.len() != len.div_ceil(2) {
        return Err(fail(format!("{shape:?} takes {} bytes, got {}", len.div_ceil(2), codes.bytes.len())));
    }
    check_map(&weights.get(&format!("{name}.quant_map"))?, &table)?;
    let blocks = len.div_ceil(block_size);
    let absmax = weights.get(&format!("{name}.absmax"))?.expect_shape(&[blocks])?;
    let (scales, nested) = if double_quant {
        let nested = read_nested(weights, name, &state, blocks)?;
        (bytes_to_words(absmax.expect_dtype(DType::U8)?.bytes), nested)
    } else {
        check_finite(&absmax.expect_dtype(DType::F32)?)?;
        (bytes_to_words(absmax.bytes), vec![])
    };
    let packed = Packed::new(scheme, shape, quant::nibble_words(codes.bytes, len, zero), scales, nested)?;
    Ok((packed, dtype))
}

/// Offset, map and nested absmax values in the device layout.
fn read_nested(weights: &Weights, name: &str, state: &QuantState, blocks: usize) -> Result<Vec<f32>> {
    let absmax = weights.get(&format!("{name}.nested_absmax"))?;
    let absmax = absmax.expect_dtype(DType::F32)?.expect_shape(&[blocks.div_ceil(dynamic8::NESTED_BLOCK)])?;
    let fail = |message: String| Error::format(absmax.path, format!("tensor {name}: {message}"));
    if state.nested_blocksize != Some(dynamic8::NESTED_BLOCK) || state.nested_dtype.as_deref() != Some("float32") {
        let (size, dtype) = (state.nested_blocksize, &state.nested_dtype);
        return Err(fail(format!("expected nested blocks of 256 float32, got {size:?} {dtype:?}")));
    }
    let offset = state.nested_offset.map(|o| o as f32).filter(|o| o.is_finite());
    let offset = offset.ok_or_else(|| fail("its quant state has no finite nested_offset".into()))?;
    check_finite(&absmax)?;
    let map_view = weights.get(&format!("{name}.nested_quant_map"))?;
    check_map(&map_view, &dynamic8::dynamic8_map())?;
    let map = map_view.to_f32()?.try_into().expect("check_map saw 256 values");
    Ok(nested_array(offset, &map, &absmax.to_f32()?))
}

fn check_finite(view: &TensorView) -> Result<()> {
    match view.to_f32()?.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::format(view.path, format!("tensor {}: element {i} is not finite", view.name))),
    }
}

/// The kernels have the code books built in: a file with another one would be read wrongly.
fn check_map(view: &TensorView, table: &[f32]) -> Result<()> {
    let map = view.expect_dtype(DType::F32)?.expect_shape(&[table.len()])?.to_f32()?;
    match map.iter().zip(table).position(|(a, b)| (a - b).abs() > 1e-6 || a.is_nan()) {
        None => Ok(()),
        Some(i) => {
            let message = format!("tensor {}: value {i} is {}, the standard map has {}", view.name, map[i], table[i]);
            Err(Error::format(view.path, message))
        }
    }
}

/// The tensors that a weight `name` of this scheme and shape takes in a file; give them to [`Writer::create`].
/// Errors: Unsupported for schemes other than NF4 and FP4, Config, Shape.
pub fn specs(name: &str, scheme: Scheme, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
    let (kind, block_size) = four_bit(scheme)?;
    scheme.validate()?;
    let len = quant::checked_len(shape)?;
    let blocks = len.div_ceil(block_size);
    let part = |suffix: &str, dtype, extent: usize| TensorSpec::new(format!("{name}.{suffix}"), dtype, [extent]);
    let mut specs = vec![
        TensorSpec::new(name, DType::U8, [len.div_ceil(2), 1]),
        part("quant_map", DType::F32, 16),
        TensorSpec::text(state_name(name, kind), STATE_LIMIT),
    ];
    if scheme.double_quant() {
        specs.push(part("absmax", DType::U8, blocks));
        specs.push(part("nested_absmax", DType::F32, blocks.div_ceil(dynamic8::NESTED_BLOCK)));
        specs.push(part("nested_quant_map", DType::F32, dynamic8::dynamic8_map().len()));
    } else {
        specs.push(part("absmax", DType::F32, blocks));
    }
    Ok(specs)
}

/// The names and bytes of a packed weight's tensors, those that [`specs`] announces.
///
/// dtype: what the weight was before and what transformers computes it back to. Errors: Unsupported scheme or dtype.
pub fn tensors<'a>(name: &str, packed: &'a Packed, dtype: DType) -> Result<Vec<(String, Cow<'a, [u8]>)>> {
    let (kind, block_size) = four_bit(packed.scheme)?;
    let len = packed.len();
    let blocks = len.div_ceil(block_size);
    let table: &'static [f32] = if kind == "nf4" { &quant::NF4 } else { &FP4_ON_DISK };
    let words = |words: &'a [u32], len: usize| Cow::Borrowed(&bytemuck::cast_slice::<u32, u8>(words)[..len]);
    let mut parts = vec![
        (name.to_string(), words(&packed.codes, len.div_ceil(2))),
        (format!("{name}.quant_map"), bytemuck::cast_slice(table).into()),
        (state_name(name, kind), quant_state(packed, (kind, block_size), dtype)?.into_bytes().into()),
    ];
    if packed.scheme.double_quant() {
        parts.push((format!("{name}.absmax"), words(&packed.scales, blocks)));
        parts.push((format!("{name}.nested_absmax"), bytemuck::cast_slice(&packed.nested[257..]).into()));
        parts.push((format!("{name}.nested_quant_map"), bytemuck::cast_slice(&packed.nested[1..257]).into()));
    } else {
        parts.push((format!("{name}.absmax"), words(&packed.scales, 4 * blocks)));
    }
    Ok(parts)
}

/// Writes a packed weight's tensors. Errors: as [`tensors`] and [`Writer::write`].
pub fn write(writer: &mut Writer, name: &str, packed: &Packed, dtype: DType) -> Result<()> {
    tensors(name, packed, dtype)?.iter().try_for_each(|(name, bytes)| writer.write(name, bytes))
}

/// bitsandbytes writes +0.0 for code 8 too.
static FP4_ON_DISK: [f32; 16] = {
    let mut table = quant::FP4;
    table[8] = 0.0;
    table
};

fn four_bit(scheme: Scheme) -> Result<(&'static str, usize)> {
    scheme.expect("scheme for the 4-bit layout of bitsandbytes", is_four_bit)?;
    match scheme {
        Scheme::Nf4 { block_size, .. } | Scheme::Fp4 { block_size, .. } => Ok((scheme.name(), block_size)),
        _ => unreachable!("`is_four_bit` holds"),
    }
}

/// The JSON with Python's spacing and digits, so that bytes equal those of bitsandbytes.
fn quant_state(packed: &Packed, (kind, size): (&str, usize), dtype: DType) -> Result<String> {
    let dtype = torch_name("dtype of a 4-bit weight", dtype)?;
    let [rows, cols] = packed.shape;
    let mut text =
        format!(r#"{{"quant_type": "{kind}", "blocksize": {size}, "dtype": "{dtype}", "shape": [{rows}, {cols}]"#);
    if packed.scheme.double_quant() {
        let offset = python_float(packed.nested[0].into());
        text += &format!(r#", "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": {offset}"#);
    }
    text.push('}');
    Ok(text)
}

/// The shortest digits that return the number, in the notation of Python's `repr`.
fn python_float(v: f64) -> String {
    let magnitude = v.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{v:?}");
    }
    let text = format!("{v:e}");
    let (digits, exponent) = text.split_once('e').expect("{:e} writes an exponent");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// What Python computes in, under torch's names.
const TORCH: [(DType, &str); 3] = [(DType::F32, "float32"), (DType::F16, "float16"), (DType::BF16, "bfloat16")];

/// `what` is the dtype's part, for messages. Errors: Unsupported.
fn torch_name(what: &str, dtype: DType) -> Result<&'static str> {
    TORCH.into_iter().find(|row| row.0 == dtype).map(|row| row.1).ok_or_else(|| {
        let supported = TORCH.map(|row| row.0.to_string()).join(", ");
        Error::unsupported(what, dtype, supported)
    })
}

fn parse_dtype(name: &str) -> Option<DType> {
    TORCH.into_iter().find(|row| row.1 == name).map(|row| row.0)
}

/// The `quantization_config` of a model's `config.json`, with the names and defaults of transformers.
///
/// compute_dtype: what Python multiplies in. Errors: Unsupported scheme or dtype.
pub fn quantization_config(scheme: Scheme, compute_dtype: DType) -> Result<Value> {
    let (kind, _) = four_bit(scheme)?;
    let compute = torch_name("compute dtype", compute_dtype)?;
    Ok(json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": compute,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": scheme.double_quant(),
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    }))
}

/// Weights in bitsandbytes' layouts, 4-bit or LLM.int8: each weight shows by its parts which one it has.
#[derive(Clone, Copy, Debug)]
pub struct Bitsandbytes {
    /// What to write.
    scheme: Option<Scheme>,
    /// Of LLM.int8.
    threshold: f32,
}

impl Default for Bitsandbytes {
    fn default() -> Bitsandbytes {
        Bitsandbytes { scheme: None, threshold: llm_int8::THRESHOLD }
    }
}

impl Bitsandbytes {
    /// From a `quantization_config`. Errors: Format.
    pub fn from_config(f: &Fields<'_>) -> Result<Bitsandbytes> {
        let threshold = f.number_or("llm_int8_threshold", f64::from(llm_int8::THRESHOLD))? as f32;
        // What else it says, each weight's parts say too, or it is about the dtype that Python computes in.
        f.ignore(&[
            "_load_in_4bit",
            "_load_in_8bit",
            "bnb_4bit_compute_dtype",
            "bnb_4bit_quant_storage",
            "bnb_4bit_quant_type",
            "bnb_4bit_use_double_quant",
            "llm_int8_enable_fp32_cpu_offload",
            "llm_int8_has_fp16_weight",
            "llm_int8_skip_modules",
            "load_in_4bit",
            "load_in_8bit",
        ]);
        Ok(Bitsandbytes { scheme: None, threshold })
    }

    /// For writing weights of this scheme: NF4, FP4, or [`Scheme::int8`] by rows for LLM.int8. Errors: Unsupported.
    pub fn new(scheme: Scheme) -> Result<Bitsandbytes> {
        if scheme != INT8 && !is_four_bit(scheme) {
            return Err(Error::unsupported("scheme for the bitsandbytes layout", scheme, supported()));
        }
        Ok(Bitsandbytes { scheme: Some(scheme), ..Bitsandbytes::default() })
    }

    /// For writing an LLM.int8 model whose columns with a magnitude of at least `threshold` are not rounded.
    pub fn with_threshold(self, threshold: f32) -> Bitsandbytes {
        Bitsandbytes { threshold, ..self }
    }

    fn scheme(&self) -> Result<Scheme> {
        self.scheme.ok_or_else(|| Error::unsupported("scheme for the bitsandbytes layout", "none", supported()))
    }
}

impl Checkpoint for Bitsandbytes {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        is_quantized(weights, name) || llm_int8::is_quantized(weights, name)
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        if !is_quantized(weights, name) {
            return llm_int8::describe(weights, name);
        }
        header(weights, name).map(|Header { scheme, shape, dtype, .. }| Description { scheme, shape, dtype })
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        if is_quantized(weights, name) { Ok(read(weights, name)?.0) } else { llm_int8::read(weights, name) }
    }

    fn rounding(&self, weights: &Weights, name: &str) -> Result<Option<Rounding>> {
        let rounding = match self.threshold {
            threshold if threshold > 0.0 => Rounding::LlmInt8 { threshold },
            _ => Rounding::Dynamic,
        };
        Ok(llm_int8::is_quantized(weights, name).then_some(rounding))
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        let owner = owner(tensor).filter(|owner| self.is_quantized(weights, owner));
        owner.is_none().then(|| tensor.to_owned())
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        match self.scheme()? {
            INT8 => llm_int8::specs(name, shape),
            scheme => specs(name, scheme, shape),
        }
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, dtype: DType) -> Result<Parts<'a>> {
        match self.scheme()? {
            INT8 => llm_int8::tensors(name, packed, basis),
            _ => {
                expect_own_basis("bitsandbytes", basis)?;
                tensors(name, packed, dtype)
            }
        }
    }

    fn config(&self, dtype: DType) -> Result<Value> {
        match self.scheme()? {
            INT8 => Ok(llm_int8::quantization_config(self.threshold)),
            scheme => quantization_config(scheme, dtype),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases =
            [(0.5, "0.5"), (2.0, "2.0"), (1e-5, "1e-05"), (1.5e-7, "1.5e-07"), (0.0001, "0.0001"), (0.0, "0.0")];
        for (v, text) in cases.into_iter().chain([(1e16, "1e+16"), (-3.25e-20, "-3.25e-20"), (1.5e300, "1.5e+300")]) {
            assert_eq!(python_float(v), text);
        }
        assert_eq!(python_float(0.314_939_3f32.into()), "0.3149392902851105");
    }
}
