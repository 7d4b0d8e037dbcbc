//! HQQ's layout (Badri & Shaji 2023), as the package `hqq` encodes a layer's state for safetensors.
//!
//! | tensor | dtype and shape | contents |
//! |---|---|---|
//! | `X.W_q` | U8 `[blocks / n, group]`; 3 bits: I32 `[ceil(blocks / 10), group]` | codes |
//! | `X.scale`, `X.zero` | float `[blocks, 1]` | `(code - zero) * scale`; zero points are no integers |
//! | `X.shape` | I64 `[2]` | (out, in) |
//! | `X.nbits`, `X.group_size`, `X.axis`, `X.packing`, ... | one number or a text | settings |
//!
//! Blocks run over the flat numbering of the weight and may cross rows (axis 1). A byte or word holds elements of n blocks
//! that lie `rows of W_q` apart, the first one in the highest bits. With axis 0, elements of a group lie far apart; that is
//! refused.

use super::checkpoint::{Basis, Checkpoint, Description, Module, Parts, base_of, expect_own_basis, weight_name};
use super::groups::{self, code_offset, scale_dtype, unsigned_code};
use super::{Weights, fields::Fields, safetensors::TensorSpec};
use crate::quant::{self, BlockSize, Packed, ScaleType, Scheme, affine_words, pack_codes};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

const WIDTHS: [u8; 4] = [2, 3, 4, 8];
const SCALES: [ScaleType; 2] = [ScaleType::F16, ScaleType::F32];

/// Weights in HQQ's layout. Each layer says its own bits and group size; those here are for writing.
#[derive(Clone, Debug)]
pub struct Hqq {
    scheme: Scheme,
}

struct Header {
    bits: usize,
    description: Description,
}

/// How codes of a width lie in the bytes or words of `W_q`.
struct Packing {
    name: &'static str,
    dtype: DType,
    /// Elements to a byte or word.
    lanes: usize,
    bits: usize,
}

impl Packing {
    fn of(bits: usize) -> Packing {
        match bits {
            2 => Packing { name: "2bit_u8", dtype: DType::U8, lanes: 4, bits },
            3 => Packing { name: "3bit_32", dtype: DType::I32, lanes: 10, bits },
            4 => Packing { name: "4bit_u8", dtype: DType::U8, lanes: 2, bits },
            _ => Packing { name: "8bit_u8", dtype: DType::U8, lanes: 1, bits },
        }
    }

    /// Rows of `W_q`; none where the blocks do not fill whole rows, which only the packing of 3 bits allows.
    fn rows(&self, blocks: usize) -> Option<usize> {
        (self.bits == 3 || blocks.is_multiple_of(self.lanes)).then(|| blocks.div_ceil(self.lanes))
    }

    fn shift(&self, lane: usize) -> usize {
        self.bits * (self.lanes - 1 - lane)
    }
}

impl Hqq {
    /// From a `quantization_config`, whose settings the layers repeat.
    pub fn from_config(f: &Fields<'_>) -> Result<Hqq> {
        f.ignore(&["quant_config", "skip_modules"]);
        Ok(Hqq { scheme: Scheme::int(4, 64) })
    }

    /// For writing weights of this scheme: [`Scheme::Int`] of 2, 3, 4 or 8 bits. Errors: Unsupported.
    pub fn new(scheme: Scheme) -> Result<Hqq> {
        groups::int_scheme("HQQ", scheme, &WIDTHS, &SCALES)?;
        Ok(Hqq { scheme })
    }

    fn header(&self, module: &Module) -> Result<Header> {
        let bits = module.integer("nbits")?;
        if !WIDTHS.iter().any(|&b| i64::from(b) == bits) {
            return Err(module.fail(format!("expected nbits of 2, 3, 4 or 8, got {bits}")));
        }
        if module.integer("axis")? != 1 {
            return Err(module.fail("expected axis 1, got a group along the outputs"));
        }
        for part in ["quant_scale", "quant_zero"] {
            if module.has(part) && module.integer(part)? != 0 {
                return Err(module.fail(format!("expected scales and zero points that are not quantized, got {part}")));
            }
        }
        let (bits, packing) = (bits as usize, Packing::of(bits as usize));
        let named = module.get("packing")?;
        if named.bytes != packing.name.as_bytes() {
            let got = String::from_utf8_lossy(named.bytes);
            return Err(module.fail(format!("expected the packing {}, got {got}", packing.name)));
        }
        let shape = module.get("shape")?.to_i64()?;
        let extents: Vec<usize> = shape.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
        let shape: [usize; 2] =
            extents.try_into().map_err(|_| module.fail(format!("expected two extents in its shape, got {shape:?}")))?;
        let len = quant::checked_len(shape).map_err(|e| module.fail(e.to_string()))?;
        let blocks = module.get("scale")?.len();
        let block_size = len.checked_div(blocks).unwrap_or(0);
        if block_size * blocks != len {
            return Err(module.fail(format!("{blocks} scales do not divide {shape:?}")));
        }
        module.get("zero")?.expect_shape(module.get("scale")?.shape)?;
        let rows = packing.rows(blocks).ok_or_else(|| module.fail(format!("{blocks} blocks in {}", packing.name)))?;
        // Codes may be viewed as another dtype (`view_as_float`); the bytes are the same.
        let (bytes, expected) = (module.get("W_q")?.bytes.len(), rows * block_size * packing.dtype.size());
        if bytes != expected {
            return Err(module.fail(format!("{shape:?} of {bits} bits takes {expected} bytes of W_q, got {bytes}")));
        }
        let dtype = module.float_dtype("scale")?;
        // Zero points are no integers: less 128, they need not be halves.
        let halves = dtype == DType::F16 && module.float_dtype("zero")? == DType::F16 && bits != 8;
        let scale = if halves { ScaleType::F16 } else { ScaleType::F32 };
        let scheme = Scheme::Int { bits: bits as u8, block: block_size.into(), symmetric: false, scale };
        scheme.validate_for(shape).map_err(|e| module.fail(e.to_string()))?;
        Ok(Header { bits, description: Description { scheme, shape, dtype } })
    }
}

impl Checkpoint for Hqq {
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool {
        Module::of(weights, name).is_some_and(|module| module.has("W_q"))
    }

    fn describe(&self, weights: &Weights, name: &str) -> Result<Description> {
        self.header(&Module::expect(weights, name)?).map(|h| h.description)
    }

    fn read(&self, weights: &Weights, name: &str) -> Result<Packed> {
        let module = Module::expect(weights, name)?;
        let Header { bits, description: Description { scheme, shape, .. } } = self.header(&module)?;
        let ((scales, _, _), (zeros, _, _)) = (module.floats("scale")?, module.floats("zero")?);
        let (packing, offset, block) =
            (Packing::of(bits), code_offset(scheme), shape[0] * shape[1] / scales.len().max(1));
        let stored = module.get("W_q")?.bytes;
        let lane_len = stored.len() / packing.dtype.size();
        let (size, mask) = (packing.dtype.size(), ((1u32 << bits) - 1) as u8);
        let codes: Vec<u8> = (0..scales.len() * block)
            .map(|i| {
                let (at, shift) = (size * (i % lane_len), packing.shift(i / lane_len));
                // Fields of 3 bits straddle bytes.
                let word = stored[at..at + size].iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
                ((word >> shift) as u8 & mask).wrapping_sub(offset)
            })
            .collect();
        let Scheme::Int { scale, .. } = scheme else { unreachable!("the header says integers") };
        let pairs = scales.iter().zip(&zeros).map(|(&s, &z)| (s, z - f32::from(offset)));
        let padding = zeros.last().map_or(0, |&z| z as i32 as u8 & mask);
        Packed::new(scheme, shape, pack_codes(bits, &codes, padding), affine_words(scale, pairs), vec![])
    }

    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String> {
        // For their names, which no scheme changes.
        let settings = settings(self.scheme, 1);
        let parts: Vec<_> =
            ["scale", "zero", "shape"].into_iter().chain(settings.iter().map(|(name, ..)| *name)).collect();
        weight_name(weights, tensor, "W_q", &parts)
    }

    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>> {
        let base = base_of(name)?;
        let scheme = self.scheme;
        scheme.validate_for(shape)?;
        let Scheme::Int { bits, block, scale, .. } = scheme else { unreachable!("`new` takes integers") };
        let block_size = block.size(shape);
        let (len, packing) = (quant::checked_len(shape)?, Packing::of(bits.into()));
        let blocks = len / block_size.max(1);
        let rows = packing.rows(blocks).filter(|_| blocks * block_size == len).ok_or_else(|| {
            let expected = format!("a multiple of {} blocks of {block_size} for HQQ", packing.lanes);
            Error::shape(name, expected, format!("{shape:?}"))
        })?;
        let part = |suffix: &str, dtype, shape: &[usize]| TensorSpec::new(format!("{base}.{suffix}"), dtype, shape);
        let mut specs = vec![
            part("W_q", packing.dtype, &[rows, block_size]),
            part("scale", scale_dtype(scale), &[blocks, 1]),
            part("zero", scale_dtype(scale), &[blocks, 1]),
            part("shape", DType::I64, &[2]),
        ];
        let settings = settings(scheme, block_size);
        specs.extend(settings.iter().map(|(suffix, dtype, shape, _)| part(suffix, *dtype, shape)));
        Ok(specs)
    }

    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, _: DType) -> Result<Parts<'a>> {
        let base = base_of(name)?;
        expect_own_basis("HQQ", basis)?;
        groups::int_scheme("HQQ", packed.scheme, &WIDTHS, &SCALES)?;
        let (bits, block) = (packed.scheme.code_bits(), packed.block_size().unwrap_or(1));
        let (packing, blocks) = (Packing::of(bits), packed.len() / block);
        let missing = || Error::shape(name, format!("whole rows of {}", packing.name), format!("{blocks} blocks"));
        let lane_len = packing.rows(blocks).ok_or_else(missing)? * block;
        let mut words = vec![0u32; lane_len];
        for i in 0..packed.len() {
            words[i % lane_len] |= unsigned_code(packed, i) << packing.shift(i / lane_len);
        }
        let codes: Vec<u8> = match packing.dtype {
            DType::U8 => words.iter().map(|&word| word as u8).collect(),
            _ => groups::word_bytes(&words),
        };
        let offset = f32::from(code_offset(packed.scheme));
        let zeros = (0..blocks).map(|b| packed.affine(b).1 + offset);
        let zeros: Vec<u8> = match packed.scheme {
            Scheme::Int { scale: ScaleType::F16, .. } => {
                zeros.flat_map(|z| half::f16::from_f32(z).to_le_bytes()).collect()
            }
            _ => zeros.flat_map(f32::to_le_bytes).collect(),
        };
        let shape: Vec<u8> = packed.shape.iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
        let mut parts: Parts = vec![
            (format!("{base}.W_q"), codes.into()),
            (format!("{base}.scale"), groups::scale_bytes(packed, 0..blocks).into()),
            (format!("{base}.zero"), zeros.into()),
            (format!("{base}.shape"), shape.into()),
        ];
        let settings = settings(packed.scheme, block);
        parts.extend(settings.into_iter().map(|(suffix, _, _, bytes)| (format!("{base}.{suffix}"), bytes.into())));
        Ok(parts)
    }

    fn config(&self, _: DType) -> Result<Value> {
        let bits = self.scheme.code_bits();
        let group = match self.scheme.block() {
            Some(BlockSize::Elements(size)) => json!(size),
            Some(BlockSize::Row | BlockSize::Tensor) | None => json!(null),
        };
        let params = json!({
            "nbits": bits, "channel_wise": true, "group_size": group,
            "optimize": true, "round_zero": bits == 4, "axis": 1, "view_as_float": false,
        });
        let quant_config = json!({ "weight_quant_params": params });
        Ok(json!({ "quant_config": quant_config, "quant_method": "hqq", "skip_modules": ["lm_head"] }))
    }
}

/// Name, dtype, extents and bytes of the settings that a layer's state repeats.
fn settings(scheme: Scheme, block_size: usize) -> Vec<(&'static str, DType, Vec<usize>, Vec<u8>)> {
    let number = |name, n: usize| (name, DType::I32, vec![], (n as i32).to_le_bytes().to_vec());
    let flag = |name, on: bool| (name, DType::U8, vec![], vec![u8::from(on)]);
    let text = |name, text: &str| (name, DType::U8, vec![text.len()], text.as_bytes().to_vec());
    let bits = scheme.code_bits();
    let halves = matches!(scheme, Scheme::Int { scale: ScaleType::F16, .. });
    vec![
        number("nbits", bits),
        number("group_size", block_size),
        number("axis", 1),
        text("packing", Packing::of(bits).name),
        text("compute_dtype", if halves { "torch.float16" } else { "torch.float32" }),
        text("unpack_view_dtype", "torch.uint8"),
        flag("channel_wise", true),
        flag("optimize", true),
        flag("round_zero", bits == 4),
        flag("view_as_float", false),
        flag("quant_scale", false),
        flag("quant_zero", false),
        flag("offload_meta", false),
        flag("encoded_state_dict", true),
        flag("stores_quant_config", true),
    ]
}
