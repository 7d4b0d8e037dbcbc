//! GPTQ's layout (Frantar et al. 2022), as GPTQModel, AutoGPTQ and transformers save and load it.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.qweight` | I32 `[in * bits / 32, out]` | codes: of each output a stream down its column |
//! | `X.qzeros` | I32 `[groups, out * bits / 32]` | zero points: of each group a stream along its row |
//! | `X.scales` | F16 `[groups, out]` | `(code - zero) * scale` |
//! | `X.g_idx` | I32 `[in]` | the group of each column |
//!
//! In `checkpoint_format` `gptq` zero points are stored less one, in `gptq_v2` as they are. The one is taken off whole words,
//! so that a zero point of 0 borrows from its neighbour (of 3 bits: off each field); reading adds it the same way.
//!
//! With act-order `g_idx` is no ascending sequence: columns are then read in the order of their groups, and the layer has to
//! put its input into that order.

use super::checkpoint::{Basis, Checkpoint, Description, Module, Parts, base_of, group_size, weight_name};
use super::groups::{self, Groups, blocks_of_row, field, integer_zero, set_field, stream_words, unsigned_code};
use super::{Weights, fields::Fields, safetensors::TensorSpec};
use crate::quant::{BlockSize, Packed, ScaleType, Scheme};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

const WIDTHS: [u8; 4] = [2, 3, 4, 8];

/// Weights in GPTQ's layout, with what the model's configuration says of them.
#[derive(Clone, Debug)]
pub struct Gptq {
    bits: usize,
    /// None: one group per row.
    group: BlockSize,
    symmetric: bool,
    act_order: bool,
    /// Whether zero points are stored less one.
    less_one: bool,
    calibration: Option<Calibration>,
}

/// How the numbers were found, which a configuration records beside them.
#[derive(Clone, Copy, Debug)]
struct Calibration {
    true_sequential: bool,
    static_groups: bool,
}

/// What a weight's parts say.
struct Header {
    bits: usize,
    description: Description,
    groups: Groups,
}

impl Gptq {
    /// From a `quantization_config`. Errors: Format, Unsupported.
    pub fn from_config(f: &Fields<'_>) -> Result<Gptq> {
        let bits = f.extent("bits")?;
        if !WIDTHS.iter().any(|&b| usize::from(b) == bits) {
            let widths = WIDTHS.map(|bits| bits.to_string()).join(", ");
            return Err(Error::unsupported("bits of a GPTQ model", bits, widths));
        }
        // Two names of one field, and a flag of AutoGPTQ's for a third format.
        let (named, short) = (f.nullable_text("checkpoint_format")?, f.nullable_text("format")?);
        let format = match named.or(short).unwrap_or("gptq") {
            _ if f.flag("is_marlin_format", false)? => "marlin",
            format => format,
        };
        let less_one = match format {
            "gptq" => true,
            "gptq_v2" => false,
            _ => return Err(Error::unsupported("checkpoint_format of a GPTQ model", format, "gptq, gptq_v2")),
        };
        if f.object("dynamic")?.is_some_and(|rules| rules.names().next().is_some()) {
            return Err(Error::unsupported("dynamic of a GPTQ model", "rules for single layers", "none"));
        }
        // How the numbers were found, and with which kernels they are multiplied.
        f.ignore(&[
            "backend",
            "batch_size",
            "block_name_to_quantize",
            "cache_block_outputs",
            "damp_auto_increment",
            "damp_percent",
            "dataset",
            "disable_exllama",
            "exllama_config",
            "max_input_length",
            "meta",
            "model_file_base_name",
            "model_name_or_path",
            "model_seqlen",
            "module_name_preceding_first_block",
            "modules_in_block_to_quantize",
            "pack_dtype",
            "pad_token_id",
            "quantizer",
            "static_groups",
            "tokenizer",
            "true_sequential",
            "use_cuda_fp16",
            "use_exllama",
            "mse",
            "offload_to_disk",
            "act_group_aware",
            "v2",
            "v2_alpha",
            "gptaq",
            "failsafe",
            "mock_quantization",
        ]);
        Ok(Gptq {
            bits,
            group: group_size(f, "group_size", 128)?,
            symmetric: f.flag("sym", true)?,
            act_order: f.flag("desc_act", false)?,
            less_one,
            calibration: None,
        })
    }

    /// For writing weights of this scheme: [`Scheme::int`] of 2, 3, 4 or 8 bits, in `checkpoint_format` `gptq`.
    /// Errors: Unsupported.
    pub fn new(scheme: Scheme, act_order: bool) -> Result<Gptq> {
        let (bits, group) = groups::int_scheme("GPTQ", scheme, &WIDTHS, &[ScaleType::F16])?;
        let symmetric = matches!(scheme, Scheme::Int { symmetric: true, .. });
        Ok(Gptq { bits: bits.into(), group, symmetric, act_order, less_one: true, calibration: None })
    }

    /// Records in the configuration whether each layer was calibrated with what the quantized layers before it give, and
    /// whether scales were chosen before columns were reordered. Otherwise neither is recorded.
    pub fn with_calibration(self, true_sequential: bool, static_groups: bool) -> Gptq {
        Gptq { calibration: Some(Calibration { true_sequential, static_groups }), ..self }
    }

    fn header(&self, module: &Module) -> Result<Header> {
        let scales = module.get("scales")?;
        let [count, out] = module.matrix(&scales)?;
        let qweight = module.get("qweight")?.expect_dtype(DType::I32)?;
        let qzeros = module.get("qzeros")?.expect_dtype(DType::I32)?;
        let [words, _] = module.matrix(&qweight)?;
        let [_, zero_words] = module.matrix(&qzeros)?;
        // A model may have layers of several widths: the sizes decide.
        let fits = |bits: &usize| stream_words(out, *bits) == zero_words;
        let widths = [self.bits, 2, 3, 4, 8];
        let bits = widths.into_iter().find(fits);
        let bits = bits.ok_or_else(|| module.fail(format!("{zero_words} words of zero points for {out} outputs")))?;
        let index = if module.has("g_idx") { Some(module.get("g_idx")?.to_i64()?) } else { None };
        let cols = index.as_ref().map_or(words * 32 / bits, Vec::len);
        qweight.expect_shape(&[stream_words(cols, bits), out])?;
        qzeros.expect_shape(&[count, zero_words])?;
        let groups = match &index {
            Some(index) => Groups::from_index(module, index, count)?,
            None => Groups::contiguous(module, cols, self.group, count)?,
        };
        let (shape, dtype) = ([out, cols], module.float_dtype("scales")?);
        let scheme = groups.scheme(module, bits, self.symmetric, dtype, shape)?;
        Ok(Header { bits, description: Description { scheme, shape, dtype }, groups })
    }
}

impl Checkpoint for Gptq {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        Module::of(weights, name).is_some_and(|module| module.has("qweight"))
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        self.header(&Module::expect(weights, name)?).map(|h| h.description)
    }

    fn basis(&self, weights: &Weights, name: &str) -> Result<Option<Basis>> {
        self.header(&Module::expect(weights, name)?).map(|h| h.groups.order.map(Basis::Order))
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        let module = Module::expect(weights, name)?;
        let Header { bits, description: Description { scheme, shape, .. }, groups } = self.header(&module)?;
        let (qweight, [_, out]) = module.words("qweight")?;
        let (mut qzeros, [_, zero_words]) = module.words("qzeros")?;
        let (scales, _, _) = module.floats("scales")?;
        let one_a_field = self.less_one && bits == 3;
        if self.less_one && !one_a_field {
            qzeros.iter_mut().for_each(|word| *word = word.wrapping_add(ones(bits)));
        }
        let zero = |row: usize, group: usize| {
            let stored = field(&qzeros, bits, group * zero_words, 1, row);
            if one_a_field { (stored + 1) & 7 } else { stored }
        };
        groups.pack(
            scheme,
            shape,
            |row, column| field(&qweight, bits, row, out, column),
            |row, group| (scales[group * out + row], zero(row, group) as f32),
        )
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        weight_name(weights, tensor, "qweight", &["qzeros", "scales", "g_idx"])
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        let base = base_of(name)?;
        let [out, cols] = shape;
        if out % 32 != 0 || cols % 32 != 0 {
            return Err(Error::shape(name, "multiples of 32 rows and columns for GPTQ", format!("{shape:?}")));
        }
        let count = blocks_of_row(name, Scheme::int_per(self.bits as u8, self.group), shape)?;
        let part = |suffix: &str, dtype, shape: &[usize]| TensorSpec::new(format!("{base}.{suffix}"), dtype, shape);
        Ok(vec![
            part("qweight", DType::I32, &[stream_words(cols, self.bits), out]),
            part("qzeros", DType::I32, &[count, stream_words(out, self.bits)]),
            part("scales", DType::F16, &[count, out]),
            part("g_idx", DType::I32, &[cols]),
        ])
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        let base = base_of(name)?;
        let ([out, cols], bits) = (packed.shape, self.bits);
        groups::int_scheme("GPTQ", packed.scheme, &[bits as u8], &[ScaleType::F16])?;
        let count = blocks_of_row(name, packed.scheme, packed.shape)?;
        let block = cols / count.max(1);
        let order = match basis {
            None => None,
            Some(Basis::Order(order)) => Some(&order[..]),
            Some(other) => return Err(other.refused_by("GPTQ")),
        };
        if order.is_some_and(|order| order.len() != cols) {
            return Err(Error::shape(name, format!("an order of {cols} columns"), order.map_or(0, <[u32]>::len)));
        }
        let column = |position: usize| order.map_or(position, |order| order[position] as usize);
        let mut qweight = vec![0; stream_words(cols, bits) * out];
        let zero_words = stream_words(out, bits);
        let mut qzeros = vec![0; count * zero_words];
        let mut g_idx = vec![0u32; cols];
        for row in 0..out {
            for p in 0..cols {
                set_field(&mut qweight, bits, row, out, column(p), unsigned_code(packed, row * cols + p));
            }
            for group in 0..count {
                let zero = integer_zero(name, packed, row * count + group)?;
                let zero = if bits == 3 && self.less_one { zero.wrapping_sub(1) & 7 } else { zero };
                set_field(&mut qzeros, bits, group * zero_words, 1, row, zero);
            }
        }
        if bits != 3 && self.less_one {
            qzeros.iter_mut().for_each(|word| *word = word.wrapping_sub(ones(bits)));
        }
        (0..cols).for_each(|p| g_idx[column(p)] = (p / block) as u32);
        let transposed = (0..count).flat_map(|group| (0..out).map(move |row| row * count + group));
        Ok(vec![
            (format!("{base}.qweight"), groups::word_bytes(&qweight).into()),
            (format!("{base}.qzeros"), groups::word_bytes(&qzeros).into()),
            (format!("{base}.scales"), groups::scale_bytes(packed, transposed).into()),
            (format!("{base}.g_idx"), groups::word_bytes(&g_idx).into()),
        ])
    }

    fn config(&self, _: DType) -> Result<Value> {
        let mut config = json!({
            "bits": self.bits,
            "checkpoint_format": if self.less_one { "gptq" } else { "gptq_v2" },
            "desc_act": self.act_order,
            "group_size": groups::group_field(self.group),
            "lm_head": false,
            "quant_method": "gptq",
            "sym": self.symmetric,
        });
        if let Some(Calibration { true_sequential, static_groups }) = self.calibration {
            config["true_sequential"] = true_sequential.into();
            config["static_groups"] = static_groups.into();
        }
        Ok(config)
    }
}

/// A word with 1 in each of its fields.
fn ones(bits: usize) -> u32 {
    u32::MAX / ((1 << bits) - 1)
}
