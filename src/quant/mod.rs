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
//! | NF4, FP4 | eight to a word (see below) | f32 absmax per block | – |
//! | NF4, FP4 double-quantized | the same | u8 code of the absmax, four to a word | f32: offset, 256 map values, one absmax per 256 blocks |
//! | NF3, NF2 | by width | f32 absmax per block | – |
//! | Int | by width; unsigned, but for 8 bits | scale and zero point per block: two f32, or two f16 (scale low) | – |
//! | MXFP4 | eight to a word | u8 exponent (E8M0) a block, four to a word | – |
//! | NVFP4 | eight to a word | u8 scale (E4M3) a block, four to a word | f32 scale of the tensor |
//! | Q4_0, Q5_0, Q8_0, IQ4_NL | by width | f16 d, two to a word | – |
//! | Q4_1, Q5_1 | by width | f16 d (low half), f16 m (high half) | – |
//! | Q2_K, Q6_K | by width | 5 words a super-block: the file's 16 bytes of scales, then d (low half) and dmin | – |
//! | Q3_K | by width | 4 words a super-block: the file's 12 bytes of scales, then d | – |
//! | Q4_K, Q5_K | by width | 4 words a super-block: d and dmin, then the file's 12 bytes of scales | – |
//! | IQ4_XS | by width | 2 words a super-block: d (low half) and the scales' high bits, then their low bits | – |
//! | E8P | 16 bits per vector of 8, the even vector low | one f32 | f32: 256 vectors |
//! | AQLM | two bytes per vector of 8, one per code book | f32 per row | f32: 2 x 256 vectors |
//!
//! Codes by width: of 8 bits, element `i` is byte `i` (two's complement); nibbles lie as bitsandbytes packs them: byte `b`
//! holds element `2b` in its high and `2b + 1` in its low nibble; codes of 2, 3, 5, 6 and 7 bits are a stream, element `i`
//! in bits `width * i ..` counted from the lowest bit of the first word. Words are little-endian, and codes lie in the order
//! of the elements, whatever order a file has.
// A scheme, or a type of numbers, that is new must not fall through to what another one means.
#![warn(clippy::wildcard_enum_match_arm)]

use crate::{Error, Result};

pub mod affine;
pub mod blockwise4;
pub mod dynamic8;
pub mod float4;
pub mod ggml;
pub mod hadamard;
pub mod lattice;
mod notation;
mod packed;
mod scheme;

pub(crate) use notation::listed;

pub use blockwise4::{FP4, FP4_THRESHOLDS, NF4, NF4_THRESHOLDS};
pub use dynamic8::dynamic8_map;
pub use packed::{affine_words, bytes_to_words, nested_array};
pub use scheme::{BlockSize, SUPER_BLOCK, ScaleType, Scheme, VECTOR};

/// A weight in its device layout (see the module's table), on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// How the numbers are stored.
    pub scheme: Scheme,
    /// (rows, cols) = (out features, in features).
    pub shape: [usize; 2],
    /// `[scheme.words(shape)[0]]`
    pub codes: Vec<u32>,
    /// `[scheme.words(shape)[1]]`
    pub scales: Vec<u32>,
    /// `[scheme.words(shape)[2]]`
    pub nested: Vec<f32>,
}

/// Eight codes, each below 16, to a word.
pub(crate) fn pack_nibbles(codes: &[u8]) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|b| codes[2 * b] << 4 | codes[2 * b + 1]))
}

/// Codes of `bits` (2 to 8) each, in their element order, to words; the last word is filled with `zero`.
pub fn pack_codes(bits: usize, codes: &[u8], zero: u8) -> Vec<u32> {
    let at = |i: usize| codes.get(i).copied().unwrap_or(zero);
    match bits {
        4 => (0..codes.len().div_ceil(8))
            .map(|w| pack_nibbles(&std::array::from_fn::<u8, 8, _>(|t| at(8 * w + t))))
            .collect(),
        8 => (0..codes.len().div_ceil(4)).map(|w| u32::from_le_bytes(std::array::from_fn(|t| at(4 * w + t)))).collect(),
        _ => {
            let words = (codes.len() * bits).div_ceil(32);
            let mut all = Vec::with_capacity(words);
            let (mut held, mut filled, mut next) = (0u64, 0, 0);
            for _ in 0..words {
                while filled < 32 {
                    held |= u64::from(at(next)) << filled;
                    (filled, next) = (filled + bits, next + 1);
                }
                all.push(held as u32);
                (held, filled) = (held >> 32, filled - 32);
            }
            all
        }
    }
}

/// Words of a stream of `len` codes of `bits` each.
pub(crate) const fn stream_words(len: usize, bits: usize) -> usize {
    // In whole words first: the bits of all elements may not fit a usize.
    len / 32 * bits + (len % 32 * bits).div_ceil(32)
}

/// The greatest common divisor.
pub const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
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
