//! The layouts `pack-quantized` and `int-quantized` of compressed-tensors, as llm-compressor, vLLM and transformers save and
//! load them.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.weight_packed` | I32 `[out, ceil(in * bits / 32)]` | codes: of each output a stream along its row |
//! | `X.weight_shape` | I64 `[2]` | (out, in) |
//! | `X.weight` | I8 `[out, in]` | `int-quantized`: codes as they are, in place of the two above |
//! | `X.weight_scale` | float `[out, groups]`, or one number | `(code - zero) * scale` |
//! | `X.weight_zero_point` | as the scale, I8; packed: I32 `[ceil(out * bits / 32), groups]` | only where asymmetric |
//! | `X.weight_g_idx` | I32 `[in]` | the group of each column, where act-order shuffled them |
//!
//! Packed codes and zero points are stored with 2^(bits - 1) added. Of models that round activations too (W8A8),
//! [`Checkpoint::rounding`] describes symmetric 8 bits, one scale per token or one for all (`X.input_scale`).

use super::checkpoint::{Basis, Checkpoint, Description, Module, Parts, Rounding, base_of, expect_own_basis};
use super::groups::{
    self, Groups, blocks_of_row, field, integer_zero, scale_dtype, set_field, stream_words, unsigned_code,
};
use super::{Stored, TensorView, Weights, fields::Fields, safetensors::TensorSpec};
use crate::quant::{BlockSize, Packed, ScaleType, Scheme};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

const WIDTHS: [u8; 7] = [2, 3, 4, 5, 6, 7, 8];
const SCALES: [ScaleType; 2] = [ScaleType::F16, ScaleType::F32];
const PACKED: &str = "pack-quantized";
const PLAIN: &str = "int-quantized";

/// Weights in compressed-tensors' layouts, with what the model's configuration says of them.
#[derive(Clone, Debug)]
pub struct CompressedTensors {
    /// Widths of the groups of layers.
    widths: Vec<usize>,
    /// What to write; PLAIN for 8 bits.
    scheme: Scheme,
    inputs: Inputs,
}

/// What the configuration says of the layers' inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inputs {
    AsTheyAre,
    /// 8 bits, one scale per token.
    Dynamic,
    /// 8 bits, `X.input_scale`.
    Static,
}

impl Inputs {
    /// `None` for another rounding than those that are known. Errors: Format, also for fields that are not known.
    fn of(args: Option<Fields<'_>>) -> Result<Option<Inputs>> {
        let Some(f) = args else { return Ok(Some(Inputs::AsTheyAre)) };
        let (kind, bits) = (f.text("type")?.unwrap_or("int"), f.extent_or("num_bits", 8)?);
        let symmetric = f.flag("symmetric", true)? && kind == "int" && bits == 8;
        // Besides true and false, "local" is known there.
        let dynamic =
            if f.get("dynamic").is_some_and(Value::is_string) { None } else { Some(f.flag("dynamic", false)?) };
        let strategy = f.nullable_text("strategy")?;
        // The strategy gives the extents, and what was observed is in the scales.
        f.ignore(&[
            "group_size",
            "block_structure",
            "actorder",
            "observer",
            "observer_kwargs",
            "scale_dtype",
            "zp_dtype",
        ]);
        f.refuse_unknown()?;
        Ok(match (symmetric, dynamic, strategy) {
            (true, Some(true), Some("token")) => Some(Inputs::Dynamic),
            (true, Some(false), Some("tensor") | None) => Some(Inputs::Static),
            _ => None,
        })
    }

    /// What all groups of layers say, and what of it cannot be done: another rounding, or one for some layers alone. Then no
    /// layer is taken to round.
    fn of_all(groups: &[(&str, Option<Inputs>)]) -> (Inputs, Option<String>) {
        if let Some((name, _)) = groups.iter().find(|(_, inputs)| inputs.is_none()) {
            let known = "symmetric 8 bits, a dynamic scale a token or a static one a tensor";
            return (Inputs::AsTheyAre, Some(format!("input_activations of {name} are not {known}")));
        }
        let first = groups.first().and_then(|group| group.1).unwrap_or(Inputs::AsTheyAre);
        match groups.iter().find(|group| group.1 != Some(first)) {
            None => (first, None),
            Some((other, _)) => {
                let message = format!("input_activations of {} and {other} differ", groups[0].0);
                (Inputs::AsTheyAre, Some(message))
            }
        }
    }
}

/// Where a weight's codes are.
enum Codes<'a> {
    /// One stream per row, of so many words.
    Packed(usize),
    Bytes(TensorView<'a>),
}

struct Header<'a> {
    bits: usize,
    description: Description,
    groups: Groups,
    /// Columns of the scales; 0 where one number serves all.
    scale_cols: usize,
    codes: Codes<'a>,
}

impl CompressedTensors {
    /// From a `quantization_config`. Errors: Format, Unsupported.
    pub fn from_config(f: &Fields<'_>) -> Result<CompressedTensors> {
        let (mut widths, mut inputs) = (Vec::new(), Vec::new());
        let format = f.nullable_text("format")?.unwrap_or(PACKED);
        let groups = f.object("config_groups")?;
        let names: Vec<String> = groups.iter().flat_map(|groups| groups.names().map(str::to_owned)).collect();
        for name in &names {
            let Some(group) = groups.as_ref().map(|groups| groups.object(name)).transpose()?.flatten() else {
                continue;
            };
            if let Some(bits) = width(&group, name, format)? {
                widths.push(bits);
                inputs.push((name.as_str(), Inputs::of(group.object("input_activations")?)?));
                group.refuse_unknown()?;
            }
        }
        refuse_extras(f)?;
        widths.sort_unstable();
        widths.dedup();
        let (inputs, ignored) = Inputs::of_all(&inputs);
        if let Some(ignored) = ignored {
            log::warn!(
                "compressed-tensors: {ignored}; inputs are left as they are, so that outputs may differ a little"
            );
        }
        Ok(CompressedTensors { widths, scheme: Scheme::int(4, 128), inputs })
    }

    /// For writing weights of this scheme, [`Scheme::Int`]: of 8 bits `int-quantized`, of fewer `pack-quantized`.
    /// Errors: Unsupported.
    pub fn new(scheme: Scheme) -> Result<CompressedTensors> {
        let (bits, _) = groups::int_scheme("compressed-tensors", scheme, &WIDTHS, &SCALES)?;
        Ok(CompressedTensors { widths: vec![bits.into()], scheme, inputs: Inputs::AsTheyAre })
    }

    /// For writing a W8A8 model, whose layers round their inputs to 8 bits with one scale per token.
    pub fn with_dynamic_inputs(self) -> CompressedTensors {
        CompressedTensors { inputs: Inputs::Dynamic, ..self }
    }

    /// For writing a model whose layers round their inputs to 8 bits with one scale each.
    pub fn with_static_inputs(self) -> CompressedTensors {
        CompressedTensors { inputs: Inputs::Static, ..self }
    }

    fn header<'a>(&self, module: &Module<'a>) -> Result<Header<'a>> {
        let (codes, shape, bits) = match module.has("weight_packed") {
            true => self.packed_header(module)?,
            false => {
                let view = module.get("weight")?.expect_dtype(DType::I8)?;
                let shape = module.matrix(&view)?;
                (Codes::Bytes(view), shape, 8)
            }
        };
        let [rows, cols] = shape;
        let scale = module.get("weight_scale")?;
        let scale_cols = match *scale.shape {
            [] | [1] | [1, 1] => 0,
            [r, groups] if r == rows && groups > 0 => groups,
            _ => return Err(module.fail(format!("expected [{rows}, groups] scales, got {:?}", scale.shape))),
        };
        let count = scale_cols.max(1);
        let index = match module.has("weight_g_idx") {
            true => Some(module.get("weight_g_idx")?.expect_shape(&[cols])?.to_i64()?),
            false => None,
        };
        // An index that was made and never filled in: all -1 is how compressed-tensors says that columns lie in order.
        let groups = if let Some(index) = index.filter(|index| index.iter().any(|&group| group != -1)) {
            Groups::from_index(module, &index, count)?
        } else {
            if cols % count != 0 {
                return Err(module.fail(format!("{count} groups do not divide rows of {cols} columns")));
            }
            Groups::contiguous(module, cols, BlockSize::Elements(cols / count), count)?
        };
        let asymmetric = module.has("weight_zero_point");
        if asymmetric {
            let zeros = module.get("weight_zero_point")?;
            match codes {
                Codes::Packed(..) if scale_cols > 0 => {
                    zeros.expect_dtype(DType::I32)?.expect_shape(&[stream_words(rows, bits), scale_cols])?
                }
                _ => zeros.expect_dtype(DType::I8)?.expect_shape(scale.shape)?,
            };
        }
        let dtype = module.float_dtype("weight_scale")?;
        let scheme = groups.scheme(module, bits, !asymmetric, dtype, shape)?;
        Ok(Header { bits, description: Description { scheme, shape, dtype }, groups, scale_cols, codes })
    }

    fn packed_header<'a>(&self, module: &Module<'a>) -> Result<(Codes<'a>, [usize; 2], usize)> {
        let view = module.get("weight_packed")?.expect_dtype(DType::I32)?;
        let [rows, words] = module.matrix(&view)?;
        let shape = module.get("weight_shape")?.to_i64()?;
        let cols = match shape[..] {
            [r, c] if r == rows as i64 && c >= 0 => c as usize,
            _ => return Err(module.fail(format!("{rows} rows of codes for a weight of {shape:?}"))),
        };
        let mut fitting = self.widths.iter().filter(|&&bits| stream_words(cols, bits) == words);
        match (fitting.next(), fitting.next()) {
            (Some(&bits), None) => Ok((Codes::Packed(words), [rows, cols], bits)),
            _ => {
                let widths = &self.widths;
                Err(module.fail(format!("{words} words for rows of {cols} columns in one of {widths:?} bits")))
            }
        }
    }

    fn is_plain(&self) -> bool {
        self.scheme.code_bits() == 8
    }

    fn symmetric(&self) -> bool {
        matches!(self.scheme, Scheme::Int { symmetric: true, .. })
    }
}

/// Bits of a group's weights; `None` where they are floats. Errors: Format, Unsupported.
fn width(group: &Fields<'_>, name: &str, format: &str) -> Result<Option<usize>> {
    let format = group.nullable_text("format")?.unwrap_or(format);
    if !matches!(format, PACKED | PLAIN | "naive-quantized" | "dense") {
        let what = format!("format of {name} in a compressed-tensors model");
        return Err(Error::unsupported(what, format, format!("{PACKED}, {PLAIN}")));
    }
    if group.object("output_activations")?.is_some() {
        let what = format!("output_activations of {name} in a compressed-tensors model");
        return Err(Error::unsupported(what, "rounded outputs", "none"));
    }
    group.ignore(&["targets"]);
    let Some(weights) = group.object("weights")? else { return Ok(None) };
    let (kind, bits) = (weights.text("type")?.unwrap_or("int"), weights.extent_or("num_bits", 8)?);
    if kind != "int" || !WIDTHS.iter().any(|&width| usize::from(width) == bits) {
        let what = format!("weights of {name} in a compressed-tensors model");
        let widths = WIDTHS.map(|bits| bits.to_string()).join(", ");
        return Err(Error::unsupported(what, format!("{kind} of {bits} bits"), format!("int of {widths} bits")));
    }
    // These are read off the tensors: extents, and whether there are zero points and indices of groups.
    weights.flag("symmetric", true)?;
    weights.nullable_text("strategy")?;
    weights.ignore(&["group_size", "actorder", "block_structure", "dynamic", "observer", "observer_kwargs"]);
    weights.ignore(&["scale_dtype", "zp_dtype"]);
    weights.refuse_unknown()?;
    Ok(Some(bits))
}

/// Errors: Unsupported for transforms, sparsity and a rounded cache of keys and values.
fn refuse_extras(f: &Fields<'_>) -> Result<()> {
    for field in ["transform_config", "sparsity_config", "kv_cache_scheme"] {
        let Some(value) = f.object(field)? else { continue };
        if value.names().next().is_some() && value.nullable_text("format")? != Some("dense") {
            let got = f.get(field).map_or_else(String::new, Value::to_string);
            return Err(Error::unsupported(format!("{field} of a compressed-tensors model"), got, "none"));
        }
    }
    f.ignore(&["global_compression_ratio", "ignore", "quantization_status", "run_compressed", "version"]);
    f.ignore(&["is_quantization_compressed"]);
    Ok(())
}

impl Checkpoint for CompressedTensors {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        Module::of(weights, name).is_some_and(|module| {
            let bytes = || module.get("weight").is_ok_and(|view| view.stored == Stored::Plain(DType::I8));
            module.has("weight_packed") || (module.has("weight_scale") && bytes())
        })
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        self.header(&Module::expect(weights, name)?).map(|h| h.description)
    }

    fn basis(&self, weights: &Weights, name: &str) -> Result<Option<Basis>> {
        self.header(&Module::expect(weights, name)?).map(|h| h.groups.order.map(Basis::Order))
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        let module = Module::expect(weights, name)?;
        let Header { bits, description: Description { scheme, shape, .. }, groups, scale_cols, codes } =
            self.header(&module)?;
        let (scales, _, _) = module.floats("weight_scale")?;
        let middle = 1i64 << (bits - 1);
        let at = |row: usize, group: usize| if scale_cols == 0 { 0 } else { row * scale_cols + group };
        let zeros: Vec<f32> = match (module.has("weight_zero_point"), &codes) {
            (false, _) => vec![middle as f32; scales.len()],
            (true, Codes::Packed(..)) if scale_cols > 0 => {
                let (words, _) = module.words("weight_zero_point")?;
                let zero = |i: usize| field(&words, bits, i % scale_cols, scale_cols, i / scale_cols) as f32;
                (0..scales.len()).map(zero).collect()
            }
            _ => {
                let zeros = module.get("weight_zero_point")?.to_i64()?;
                zeros.into_iter().map(|zero| (zero + middle) as f32).collect()
            }
        };
        let pair = |row, group| (scales[at(row, group)], zeros[at(row, group)]);
        match codes {
            Codes::Bytes(view) => {
                let cols = shape[1];
                groups.pack(scheme, shape, |row, c| u32::from(view.bytes[row * cols + c] ^ 0x80), pair)
            }
            Codes::Packed(words) => {
                let (stream, _) = module.words("weight_packed")?;
                groups.pack(scheme, shape, |row, c| field(&stream, bits, row * words, 1, c), pair)
            }
        }
    }

    fn rounding(&self, weights: &Weights, name: &str) -> Result<Option<Rounding>> {
        match self.inputs {
            _ if !self.is_quantized(weights, name) => Ok(None),
            Inputs::AsTheyAre => Ok(None),
            Inputs::Dynamic => Ok(Some(Rounding::Dynamic)),
            Inputs::Static => {
                let module = Module::expect(weights, name)?;
                match module.floats("input_scale")?.0[..] {
                    [scale] if scale > 0.0 => Ok(Some(Rounding::Static(scale))),
                    ref all => Err(module.fail(format!("expected one positive input_scale, got {all:?}"))),
                }
            }
        }
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        const PARTS: [&str; 4] = ["weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"];
        const OTHERS: [&str; 4] = ["input_scale", "input_zero_point", "output_scale", "output_zero_point"];
        match tensor.rsplit_once('.') {
            Some((base, "weight_packed")) => Some(format!("{base}.weight")),
            Some((base, part)) if PARTS.contains(&part) || OTHERS.contains(&part) => {
                (!self.is_quantized(weights, &format!("{base}.weight"))).then(|| tensor.to_owned())
            }
            _ => Some(tensor.to_owned()),
        }
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        let base = base_of(name)?;
        let Scheme::Int { bits, scale, .. } = self.scheme else { unreachable!("`new` takes integers") };
        let ([out, cols], bits) = (shape, bits as usize);
        let count = blocks_of_row(name, self.scheme, shape)?;
        let part = |suffix: &str, dtype, shape: &[usize]| TensorSpec::new(format!("{base}.{suffix}"), dtype, shape);
        let mut specs = vec![part("weight_scale", scale_dtype(scale), &[out, count])];
        if self.is_plain() {
            specs.push(part("weight", DType::I8, &shape));
        } else {
            specs.push(part("weight_packed", DType::I32, &[out, stream_words(cols, bits)]));
            specs.push(part("weight_shape", DType::I64, &[2]));
        }
        match (self.symmetric(), self.is_plain()) {
            (true, _) => {}
            (false, true) => specs.push(part("weight_zero_point", DType::I8, &[out, count])),
            (false, false) => specs.push(part("weight_zero_point", DType::I32, &[stream_words(out, bits), count])),
        }
        if self.inputs == Inputs::Static {
            specs.push(part("input_scale", DType::F32, &[1]));
        }
        Ok(specs)
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        let base = base_of(name)?;
        expect_own_basis("compressed-tensors", basis)?;
        let bits = self.scheme.code_bits();
        groups::int_scheme("compressed-tensors", packed.scheme, &[bits as u8], &SCALES)?;
        let ([out, cols], count) = (packed.shape, blocks_of_row(name, packed.scheme, packed.shape)?);
        let mut zeros = Vec::with_capacity(out * count);
        for b in 0..out * count {
            zeros.push(integer_zero(name, packed, b)?);
            if self.symmetric() && zeros[b] != 1 << (bits - 1) {
                let message =
                    format!("block {b} has the zero point {}, which a symmetric scheme does not have", zeros[b]);
                return Err(Error::config(name, message));
            }
        }
        let mut parts: Parts =
            vec![(format!("{base}.weight_scale"), groups::scale_bytes(packed, 0..out * count).into())];
        if self.is_plain() {
            parts.push((format!("{base}.weight"), bytemuck::cast_slice::<u32, u8>(&packed.codes)[..out * cols].into()));
        } else {
            let words = stream_words(cols, bits);
            let mut stream = vec![0; out * words];
            for i in 0..packed.len() {
                set_field(&mut stream, bits, i / cols * words, 1, i % cols, unsigned_code(packed, i));
            }
            parts.push((format!("{base}.weight_packed"), groups::word_bytes(&stream).into()));
            let shape: Vec<u8> = packed.shape.iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
            parts.push((format!("{base}.weight_shape"), shape.into()));
        }
        if !self.symmetric() {
            let bytes: Vec<u8> = if self.is_plain() {
                zeros.iter().map(|&zero| zero as u8 ^ 0x80).collect()
            } else {
                let mut stream = vec![0; stream_words(out, bits) * count];
                zeros.iter().enumerate().for_each(|(b, &zero)| {
                    set_field(&mut stream, bits, b % count, count, b / count, zero);
                });
                groups::word_bytes(&stream)
            };
            parts.push((format!("{base}.weight_zero_point"), bytes.into()));
        }
        Ok(parts)
    }

    fn input_tensors(&self, name: &str, rounding: Option<Rounding>) -> Result<Parts<'static>> {
        match (self.inputs, rounding) {
            (Inputs::Static, Some(Rounding::Static(scale))) => {
                Ok(vec![(format!("{}.input_scale", base_of(name)?), scale.to_le_bytes().to_vec().into())])
            }
            (Inputs::Static, _) => Err(Error::config(name, "its layer has no static scale for its input")),
            _ => Ok(Vec::new()),
        }
    }

    fn config(&self, _: DType) -> Result<Value> {
        let format = if self.is_plain() { PLAIN } else { PACKED };
        let (group, strategy) = match self.scheme.block() {
            Some(BlockSize::Elements(size)) => (json!(size), "group"),
            Some(BlockSize::Row | BlockSize::Tensor) | None => (json!(null), "channel"),
        };
        let weights = json!({
            "actorder": null, "block_structure": null, "dynamic": false, "group_size": group,
            "num_bits": self.scheme.code_bits(), "strategy": strategy, "symmetric": self.symmetric(), "type": "int",
        });
        let inputs = |dynamic: bool, strategy: &str| {
            json!({
                "actorder": null, "block_structure": null, "dynamic": dynamic, "group_size": null, "num_bits": 8,
                "observer": null, "observer_kwargs": {}, "strategy": strategy, "symmetric": true, "type": "int",
            })
        };
        let inputs = match self.inputs {
            Inputs::Dynamic => inputs(true, "token"),
            Inputs::Static => inputs(false, "tensor"),
            Inputs::AsTheyAre => json!(null),
        };
        let group = json!({
            "format": format, "input_activations": inputs, "output_activations": null, "targets": ["Linear"],
            "weights": weights,
        });
        Ok(json!({
            "config_groups": {"group_0": group},
            "format": format,
            "global_compression_ratio": null,
            "ignore": ["lm_head"],
            "kv_cache_scheme": null,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_inputs_that_are_not_known_are_refused() {
        let of = |field: &str, value: Value| {
            let mut args = json!({"type": "int", "num_bits": 8, "symmetric": true, "dynamic": true, "strategy": "token",
                "group_size": null, "block_structure": null, "actorder": null, "observer": null, "observer_kwargs": {}});
            args[field] = value;
            let group = json!({"input_activations": args});
            let group = Fields::new(&group, "config.json".as_ref()).unwrap();
            Inputs::of(group.object("input_activations").unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(of("scale_dtype", Value::Null), Ok(Some(Inputs::Dynamic)));
        assert_eq!(of("rotation", Value::Null), Ok(Some(Inputs::Dynamic)));
        let message = of("rotation", json!("hadamard")).unwrap_err();
        assert!(message.contains("input_activations.rotation is \"hadamard\": this field is not known"), "{message}");
    }

    #[test]
    fn inputs_that_cannot_be_rounded_as_told_are_named() {
        let args = |symmetric: bool, bits: u32, dynamic: bool, strategy: &str| json!({"type": "int", "num_bits": bits, "symmetric": symmetric, "dynamic": dynamic, "strategy": strategy});
        let (token, tensor) = (args(true, 8, true, "token"), args(true, 8, false, "tensor"));
        let of = |values: &[Value]| {
            let names = ["group_0", "group_1"];
            let inputs = |value: &Value| {
                let group = json!({"input_activations": value});
                let group = Fields::new(&group, "config.json".as_ref()).unwrap();
                Inputs::of(group.object("input_activations").unwrap()).unwrap()
            };
            let groups: Vec<_> = names.into_iter().zip(values.iter().map(inputs)).collect();
            Inputs::of_all(&groups)
        };
        assert_eq!(of(&[]), (Inputs::AsTheyAre, None));
        assert_eq!(of(&[Value::Null, Value::Null]), (Inputs::AsTheyAre, None));
        assert_eq!(of(&[token.clone(), token.clone()]), (Inputs::Dynamic, None));
        assert_eq!(of(std::slice::from_ref(&tensor)), (Inputs::Static, None));
        let others = [args(false, 8, true, "token"), args(true, 4, true, "token"), args(true, 8, true, "group")];
        for other in others.into_iter().chain([json!({"type": "float", "num_bits": 8})]) {
            let (inputs, ignored) = of(&[token.clone(), other.clone()]);
            assert_eq!(inputs, Inputs::AsTheyAre);
            assert!(ignored.is_some_and(|text| text.contains("group_1")), "{other}");
        }
        for other in [Value::Null, tensor] {
            let (inputs, ignored) = of(&[token.clone(), other]);
            assert_eq!(inputs, Inputs::AsTheyAre);
            assert!(ignored.is_some_and(|text| text.contains("group_0 and group_1 differ")));
        }
    }
}
