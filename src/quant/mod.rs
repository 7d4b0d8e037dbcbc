//! How numbers are stored: the CPU specification of every scheme, which the kernels match bit for bit.
//!
//! A *scheme* says how a weight is laid out; choosing the numbers is a *method* (round-to-nearest here). Nothing in
//! this module touches files or the GPU.
//!
//! # Device layout
//!
//! A weight `[rows, cols]` (out, in) is three arrays of 32-bit words. Its elements are numbered flat, `i = row * cols +
//! col`; blocks run over that numbering and may cross rows.
//!
//! | scheme | `codes` | `scales` | `nested` |
//! |---|---|---|---|
//! | F32 | the bits | – | – |
//! | F16, BF16 | two to a word, the even element low | – | – |
//! | NF4, FP4 | eight to a word (see below) | f32 absmax a block | – |
//! | NF4, FP4 double-quantized | the same | u8 code of the absmax, four to a word | f32: offset, 256 map values, one absmax per 256 blocks |
//! | Int4 | eight to a word (unsigned 0..15) | f32 scale, f32 zero point a block | – |
//! | Int8 | four to a word (two's complement), element `i` in byte `i % 4` | f32 scale, f32 zero point a block | – |
//! | Q4_0 | eight to a word | f16 d, two to a word | – |
//! | Q4_1 | eight to a word | f16 d (low half), f16 m (high half) | – |
//! | Q8_0 | four to a word | f16 d, two to a word | – |
//!
//! Nibbles lie as bitsandbytes packs them: byte `b` holds element `2b` in its high and `2b + 1` in its low nibble, and
//! words are little-endian, so element `i` of a word starts at bit `8 * (i / 2) + 4 * (1 - i % 2)`.

use crate::{Error, Result};

pub mod affine;
pub mod blockwise4;
pub mod dynamic8;
pub mod ggml;
mod packed;

pub use blockwise4::{FP4, FP4_THRESHOLDS, NF4, NF4_THRESHOLDS};
pub use dynamic8::dynamic8_map;
pub use packed::{bytes_to_words, nested_array};

/// How a weight's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// 32-bit floats.
    F32,
    /// IEEE halves.
    F16,
    /// bfloat16.
    BF16,
    /// NormalFloat-4 (QLoRA, Dettmers et al. 2023): `table[code] * absmax`.
    Nf4 {
        /// Elements that share one absmax: a power of two from 32 to 4096.
        block_size: usize,
        /// Whether the absmax values are themselves held in 8 bits.
        double_quant: bool,
    },
    /// 4-bit floats as bitsandbytes defines them: `table[code] * absmax`.
    Fp4 {
        /// Elements that share one absmax: a power of two from 32 to 4096.
        block_size: usize,
        /// Whether the absmax values are themselves held in 8 bits.
        double_quant: bool,
    },
    /// Affine 8-bit, codes -128..=127: `(code - zero_point) * scale`.
    Int8 {
        /// Elements that share one scale and zero point; a multiple of 8.
        block_size: usize,
        /// Whether the zero point is 0.
        symmetric: bool,
    },
    /// Affine 4-bit, codes 0..=15: `(code - zero_point) * scale`.
    Int4 {
        /// Elements that share one scale and zero point; a multiple of 8.
        block_size: usize,
        /// Whether the zero point is 8 (the middle).
        symmetric: bool,
    },
    /// GGUF blocks of 32: `d * (code - 8)`.
    Q4_0,
    /// GGUF blocks of 32: `d * code + m`.
    Q4_1,
    /// GGUF blocks of 32: `d * code`, codes -128..=127.
    Q8_0,
}

impl Scheme {
    /// Elements that share a scale; 0 for plain floats.
    pub const fn block_size(self) -> usize {
        match self {
            Scheme::F32 | Scheme::F16 | Scheme::BF16 => 0,
            Scheme::Nf4 { block_size, .. }
            | Scheme::Fp4 { block_size, .. }
            | Scheme::Int8 { block_size, .. }
            | Scheme::Int4 { block_size, .. } => block_size,
            Scheme::Q4_0 | Scheme::Q4_1 | Scheme::Q8_0 => 32,
        }
    }

    /// Bits of one code.
    pub const fn code_bits(self) -> usize {
        match self {
            Scheme::F32 => 32,
            Scheme::F16 | Scheme::BF16 => 16,
            Scheme::Int8 { .. } | Scheme::Q8_0 => 8,
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Int4 { .. } | Scheme::Q4_0 | Scheme::Q4_1 => 4,
        }
    }

    /// Codes in one 32-bit word.
    pub const fn codes_per_word(self) -> usize {
        32 / self.code_bits()
    }

    /// Whether the scales are themselves quantized.
    pub const fn double_quant(self) -> bool {
        matches!(self, Scheme::Nf4 { double_quant: true, .. } | Scheme::Fp4 { double_quant: true, .. })
    }

    /// The name used in files, flags and shader snippets (`nf4`, `q4_1`, ...).
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::F32 => "f32",
            Scheme::F16 => "f16",
            Scheme::BF16 => "bf16",
            Scheme::Nf4 { .. } => "nf4",
            Scheme::Fp4 { .. } => "fp4",
            Scheme::Int8 { .. } => "int8",
            Scheme::Int4 { .. } => "int4",
            Scheme::Q4_0 => "q4_0",
            Scheme::Q4_1 => "q4_1",
            Scheme::Q8_0 => "q8_0",
        }
    }

    /// Words of `codes`, `scales` and `nested` for `len` elements.
    pub const fn words(self, len: usize) -> [usize; 3] {
        let codes = len.div_ceil(self.codes_per_word());
        let blocks = if self.block_size() == 0 { 0 } else { len.div_ceil(self.block_size()) };
        match self {
            Scheme::F32 | Scheme::F16 | Scheme::BF16 => [codes, 0, 0],
            Scheme::Nf4 { double_quant: true, .. } | Scheme::Fp4 { double_quant: true, .. } => {
                [codes, blocks.div_ceil(4), 257 + blocks.div_ceil(256)]
            }
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Q4_1 => [codes, blocks, 0],
            Scheme::Int8 { .. } | Scheme::Int4 { .. } => [codes, 2 * blocks, 0],
            Scheme::Q4_0 | Scheme::Q8_0 => [codes, blocks.div_ceil(2), 0],
        }
    }

    /// Checks the block size. Errors: Config.
    pub fn validate(self) -> Result<()> {
        let block = self.block_size();
        match self {
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } if !block.is_power_of_two() || !(32..=4096).contains(&block) => {
                Err(Error::config("block_size", format!("{block} is no power of two from 32 to 4096")))
            }
            Scheme::Int8 { .. } | Scheme::Int4 { .. } if block == 0 || !block.is_multiple_of(8) => {
                Err(Error::config("block_size", format!("{block} is no positive multiple of 8")))
            }
            _ => Ok(()),
        }
    }
}

/// A weight in its device layout (see the module's table), on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// How the numbers are stored.
    pub scheme: Scheme,
    /// (rows, cols) = (out features, in features).
    pub shape: [usize; 2],
    /// `[scheme.words(rows * cols)[0]]`
    pub codes: Vec<u32>,
    /// `[scheme.words(rows * cols)[1]]`
    pub scales: Vec<u32>,
    /// `[scheme.words(rows * cols)[2]]`
    pub nested: Vec<f32>,
}

/// Eight codes, each below 16, to a word.
pub(crate) fn pack_nibbles(codes: &[u8]) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|b| codes[2 * b] << 4 | codes[2 * b + 1]))
}

/// rows * cols. Errors: Shape where it overflows or the bytes of f32 would.
pub(crate) fn checked_len(shape: [usize; 2]) -> Result<usize> {
    let len = shape[0].checked_mul(shape[1]).filter(|len| len.checked_mul(8).is_some());
    len.ok_or_else(|| Error::shape("weight", "a number of elements that fits memory", format!("{shape:?}")))
}

/// Bytes of nibbles to words; what lies beyond `len` elements becomes `zero`, the code of 0.0.
pub(crate) fn nibble_words(bytes: &[u8], len: usize, zero: u8) -> Vec<u32> {
    let mut words = bytes_to_words(bytes);
    let codes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    codes[len.div_ceil(2)..].fill(zero << 4 | zero);
    if len % 2 == 1 {
        codes[len / 2] = codes[len / 2] & 0xf0 | zero;
    }
    words
}
