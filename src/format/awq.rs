//! AWQ's layout `gemm` (Lin et al. 2023), as AutoAWQ, GPTQModel and transformers save and load it.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.qweight` | I32 `[in, out / 8]` | codes, eight outputs to a word |
//! | `X.qzeros` | I32 `[groups, out / 8]` | zero points, the same way |
//! | `X.scales` | F16 `[groups, out]` | `(code - zero) * scale` |
//!
//! Nibble i of a word, from the lowest, is output 0, 2, 4, 6, 1, 3, 5, 7 of its eight.

use super::checkpoint::{
    Basis, Checkpoint, Description, Module, Parts, base_of, expect_own_basis, group_size, weight_name,
};
use super::groups::{self, Groups, blocks_of_row, integer_zero};
use super::{Weights, fields::Fields, safetensors::TensorSpec};
use crate::quant::{BlockSize, Packed, ScaleType, Scheme};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

/// The nibble of each of eight outputs.
const NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Weights in AWQ's layout `gemm`, with what the model's configuration says of them.
#[derive(Clone, Debug)]
pub struct Awq {
    /// None: one group per row.
    group: BlockSize,
}

struct Header {
    description: Description,
    groups: Groups,
}

impl Awq {
    /// From a `quantization_config`, or AutoAWQ's `quant_config.json` with its names. Errors: Format, Unsupported.
    pub fn from_config(f: &Fields<'_>) -> Result<Awq> {
        let either = |name: &'static str, old: &'static str| if f.has(old) { old } else { name };
        let bits = f.extent(either("bits", "w_bit"))?;
        if bits != 4 {
            return Err(Error::unsupported("bits of an AWQ model", bits, 4));
        }
        let (version, format) = (f.nullable_text("version")?, f.nullable_text("format")?);
        let version = version.or(format).unwrap_or("gemm").to_ascii_lowercase();
        if version != "gemm" {
            return Err(Error::unsupported("version of an AWQ model", version, "gemm"));
        }
        if !f.flag("zero_point", true)? {
            return Err(Error::unsupported("zero_point of an AWQ model", false, true));
        }
        f.ignore(&["backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse"]);
        Ok(Awq { group: group_size(f, either("group_size", "q_group_size"), 128)? })
    }

    /// For writing weights of this scheme: [`Scheme::int`] of 4 bits. Errors: Unsupported.
    pub fn new(scheme: Scheme) -> Result<Awq> {
        let (_, group) = groups::int_scheme("AWQ", scheme, &[4], &[ScaleType::F16])?;
        Ok(Awq { group })
    }

    fn header(&self, module: &Module) -> Result<Header> {
        let scales = module.get("scales")?;
        let [count, out] = module.matrix(&scales)?;
        let qweight = module.get("qweight")?.expect_dtype(DType::I32)?;
        let [cols, _] = module.matrix(&qweight)?;
        if out % 8 != 0 {
            return Err(module.fail(format!("expected a multiple of 8 outputs, got {out}")));
        }
        qweight.expect_shape(&[cols, out / 8])?;
        module.get("qzeros")?.expect_dtype(DType::I32)?.expect_shape(&[count, out / 8])?;
        let groups = Groups::contiguous(module, cols, self.group, count)?;
        let (shape, dtype) = ([out, cols], module.float_dtype("scales")?);
        let scheme = groups.scheme(module, 4, false, dtype, shape)?;
        Ok(Header { description: Description { scheme, shape, dtype }, groups })
    }
}

/// Output `row` of line `line` of a matrix of words of `out` outputs.
fn nibble(words: &[u32], out: usize, line: usize, row: usize) -> u32 {
    words[line * (out / 8) + row / 8] >> (4 * NIBBLE[row % 8]) & 15
}

fn set_nibble(words: &mut [u32], out: usize, line: usize, row: usize, value: u32) {
    words[line * (out / 8) + row / 8] |= value << (4 * NIBBLE[row % 8]);
}

impl Checkpoint for Awq {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        Module::of(weights, name).is_some_and(|module| module.has("qweight"))
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        self.header(&Module::expect(weights, name)?).map(|h| h.description)
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        let module = Module::expect(weights, name)?;
        let Header { description: Description { scheme, shape, .. }, groups } = self.header(&module)?;
        let ((qweight, _), (qzeros, _), (scales, _, _)) =
            (module.words("qweight")?, module.words("qzeros")?, module.floats("scales")?);
        let out = shape[0];
        groups.pack(
            scheme,
            shape,
            |row, column| nibble(&qweight, out, column, row),
            |row, group| (scales[group * out + row], nibble(&qzeros, out, group, row) as f32),
        )
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        weight_name(weights, tensor, "qweight", &["qzeros", "scales"])
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        let base = base_of(name)?;
        let [out, cols] = shape;
        if out % 8 != 0 {
            return Err(Error::shape(name, "a multiple of 8 rows for AWQ", format!("{shape:?}")));
        }
        let count = blocks_of_row(name, Scheme::int_per(4, self.group), shape)?;
        let part = |suffix: &str, dtype, shape: [usize; 2]| TensorSpec::new(format!("{base}.{suffix}"), dtype, shape);
        Ok(vec![
            part("qweight", DType::I32, [cols, out / 8]),
            part("qzeros", DType::I32, [count, out / 8]),
            part("scales", DType::F16, [count, out]),
        ])
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        let base = base_of(name)?;
        expect_own_basis("AWQ", basis)?;
        groups::int_scheme("AWQ", packed.scheme, &[4], &[ScaleType::F16])?;
        let ([out, cols], count) = (packed.shape, blocks_of_row(name, packed.scheme, packed.shape)?);
        let (mut qweight, mut qzeros) = (vec![0; cols * (out / 8)], vec![0; count * (out / 8)]);
        for row in 0..out {
            (0..cols).for_each(|c| set_nibble(&mut qweight, out, c, row, packed.code(row * cols + c)));
            for group in 0..count {
                set_nibble(&mut qzeros, out, group, row, integer_zero(name, packed, row * count + group)?);
            }
        }
        let transposed = (0..count).flat_map(|group| (0..out).map(move |row| row * count + group));
        Ok(vec![
            (format!("{base}.qweight"), groups::word_bytes(&qweight).into()),
            (format!("{base}.qzeros"), groups::word_bytes(&qzeros).into()),
            (format!("{base}.scales"), groups::scale_bytes(packed, transposed).into()),
        ])
    }

    fn config(&self, _: DType) -> Result<Value> {
        Ok(json!({
            "bits": 4,
            "group_size": groups::group_field(self.group),
            "modules_to_not_convert": null,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": true,
        }))
    }
}
