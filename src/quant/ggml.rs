//! GGUF's blocks of 32: Q4_0, Q4_1 and Q8_0, and their way into the device layout.
//!
//! | type | a block in the file | value of element j |
//! |---|---|---|
//! | Q4_0 | f16 d, 16 bytes of nibbles | d * (code - 8) |
//! | Q4_1 | f16 d, f16 m, 16 bytes of nibbles | d * code + m |
//! | Q8_0 | f16 d, 32 signed bytes | d * code |
//!
//! In the file byte j of the nibbles holds element j low and element j + 16 high; on the device neighbours share a byte.

use super::{Packed, Scheme, pack_nibbles};
use crate::{Error, Result};
use half::f16;

/// Elements of a block.
pub const BLOCK: usize = 32;

/// Bytes of a block in a file; `None` for schemes that GGUF does not have.
pub const fn block_bytes(scheme: Scheme) -> Option<usize> {
    match scheme {
        Scheme::Q4_0 => Some(18),
        Scheme::Q4_1 => Some(20),
        Scheme::Q8_0 => Some(34),
        _ => None,
    }
}

/// A block taken apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Block {
    pub d: f16,
    /// Q4_1 only, else 0.
    pub m: f16,
    /// In element order; Q8_0's are two's complement.
    pub codes: [u8; BLOCK],
}

/// Blocks as they lie in a file to the device layout.
///
/// bytes: `[rows * cols / 32 * block_bytes]`; shape: (rows, cols), cols a multiple of 32. Errors: Shape, Unsupported.
pub fn unpack_blocks(scheme: Scheme, shape: [usize; 2], bytes: &[u8]) -> Result<Packed> {
    let size =
        block_bytes(scheme).ok_or_else(|| Error::unsupported("GGUF block type", scheme.name(), "q4_0, q4_1, q8_0"))?;
    let len = check_shape(scheme, shape)?;
    if Some(bytes.len()) != (len / BLOCK).checked_mul(size) {
        let expected = format!("{} bytes for {shape:?}", len / BLOCK * size);
        return Err(Error::shape(format!("{} blocks", scheme.name()), expected, bytes.len()));
    }
    let mut writer = Writer::new(scheme, len);
    for raw in bytes.chunks_exact(size) {
        writer.push(&read_block(scheme, raw));
    }
    Ok(writer.finish(shape))
}

/// out[i] = the value of element i (see the module's table).
///
/// bytes: `[blocks * block_bytes]`, out: `[blocks * 32]`; what is left over on either side is ignored.
pub fn decode_blocks(scheme: Scheme, bytes: &[u8], out: &mut [f32]) {
    let Some(size) = block_bytes(scheme) else { return };
    for (raw, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(BLOCK)) {
        let block = read_block(scheme, raw);
        let (d, m) = (block.d.to_f32(), block.m.to_f32());
        for (y, &code) in out.iter_mut().zip(&block.codes) {
            *y = match scheme {
                Scheme::Q4_0 => (code as f32 - 8.0) * d,
                Scheme::Q4_1 => code as f32 * d + m,
                _ => code as i8 as f32 * d,
            };
        }
    }
}

/// The blocks of a packed weight as GGUF stores them. Errors: Unsupported.
pub fn pack_blocks(packed: &Packed) -> Result<Vec<u8>> {
    let size = block_bytes(packed.scheme)
        .ok_or_else(|| Error::unsupported("GGUF block type", packed.scheme.name(), "q4_0, q4_1, q8_0"))?;
    let blocks = packed.len() / BLOCK;
    let mut bytes = Vec::with_capacity(blocks * size);
    for b in 0..blocks {
        let (d, m) = packed.ggml_scale(b);
        bytes.extend(d.to_le_bytes());
        if packed.scheme == Scheme::Q4_1 {
            bytes.extend(m.to_le_bytes());
        }
        let code = |j: usize| packed.code(b * BLOCK + j) as u8;
        if packed.scheme == Scheme::Q8_0 {
            bytes.extend((0..BLOCK).map(code));
        } else {
            bytes.extend((0..BLOCK / 2).map(|j| code(j) | code(j + BLOCK / 2) << 4));
        }
    }
    Ok(bytes)
}

/// Rounds to nearest by ggml's reference rule. Errors: Shape, Config where a scale is beyond f16.
pub(super) fn quantize(scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Result<Packed> {
    let len = check_shape(scheme, shape)?;
    let mut writer = Writer::new(scheme, len);
    for (b, block) in x.chunks_exact(BLOCK).enumerate() {
        let block = encode_block(scheme, block);
        if !block.d.is_finite() || !block.m.is_finite() {
            let message = format!("block {b} has numbers too large for {}, whose scale is an f16", scheme.name());
            return Err(Error::config("tensor", message));
        }
        writer.push(&block);
    }
    Ok(writer.finish(shape))
}

/// IQ4_NL and IQ4_XS: the values of the codes.
pub const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The numbers of a weight of super-blocks, or of one whose codes stand for table values.
pub(super) fn dequantize(packed: &Packed) -> Vec<f32> {
    let value = |i: usize| {
        let code = packed.code(i);
        let (scale, min) = block_scale(packed, i / packed.scheme.block_size());
        match packed.scheme {
            Scheme::Iq4Nl | Scheme::Iq4Xs => scale * f32::from(IQ4[code as usize]),
            Scheme::Q3K => scale * (code as f32 - 4.0),
            Scheme::Q6K => scale * (code as f32 - 32.0),
            _ => scale * code as f32 - min,
        }
    };
    (0..packed.len()).map(value).collect()
}

/// (scale, min) of block `b`, the super-block's d and dmin multiplied in.
fn block_scale(packed: &Packed, b: usize) -> (f32, f32) {
    let words = |count: usize, per: usize| &packed.scales[b / per * count..(b / per + 1) * count];
    let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
    let byte = |words: &[u32], i: usize| words[i / 4] >> (8 * (i % 4)) & 255;
    match packed.scheme {
        Scheme::Q2K => {
            let (w, s) = (words(5, 16), byte(words(5, 16), b % 16));
            (half(w[4]) * (s & 15) as f32, half(w[4] >> 16) * (s >> 4) as f32)
        }
        Scheme::Q3K => {
            // Four bits in nibbles of the first 8 bytes, the upper two in pairs of the last four.
            let (w, j) = (words(4, 16), b % 16);
            let s = byte(w, j % 8) >> (4 * (j / 8)) & 15 | (byte(w, 8 + j % 4) >> (2 * (j / 4)) & 3) << 4;
            (half(w[3]) * (s as i32 - 32) as f32, 0.0)
        }
        Scheme::Q4K | Scheme::Q5K => {
            let (w, j) = (words(4, 8), b % 8);
            let (s, m) = match j < 4 {
                true => (byte(&w[1..], j) & 63, byte(&w[1..], j + 4) & 63),
                // The upper two bits are those that the first eight bytes do not use.
                false => (
                    byte(&w[1..], j + 4) & 15 | byte(&w[1..], j - 4) >> 6 << 4,
                    byte(&w[1..], j + 4) >> 4 | byte(&w[1..], j) >> 6 << 4,
                ),
            };
            (half(w[0]) * s as f32, half(w[0] >> 16) * m as f32)
        }
        Scheme::Q6K => {
            let w = words(5, 16);
            (half(w[4]) * byte(w, b % 16) as i8 as f32, 0.0)
        }
        Scheme::Iq4Xs => {
            let (w, j) = (words(2, 8), b % 8);
            let s = byte(&w[1..], j / 2) >> (4 * (j % 2)) & 15 | (w[0] >> (16 + 2 * j) & 3) << 4;
            (half(w[0]) * (s as i32 - 32) as f32, 0.0)
        }
        _ => {
            let (d, m) = packed.ggml_scale(b);
            (d.to_f32(), m.to_f32())
        }
    }
}

fn check_shape(scheme: Scheme, shape: [usize; 2]) -> Result<usize> {
    if block_bytes(scheme).is_none() {
        return Err(Error::unsupported("GGUF block type", scheme.name(), "q4_0, q4_1, q8_0"));
    }
    if !shape[1].is_multiple_of(BLOCK) {
        let expected = "a multiple of 32 columns, which the blocks of GGUF need";
        return Err(Error::shape(scheme.name(), expected, format!("{shape:?}")));
    }
    super::checked_len(shape)
}

fn read_block(scheme: Scheme, raw: &[u8]) -> Block {
    let half_at = |i: usize| f16::from_le_bytes([raw[i], raw[i + 1]]);
    let mut codes = [0; BLOCK];
    let (m, start) = if scheme == Scheme::Q4_1 { (half_at(2), 4) } else { (f16::ZERO, 2) };
    if scheme == Scheme::Q8_0 {
        codes.copy_from_slice(&raw[start..]);
    } else {
        for (j, &byte) in raw[start..].iter().enumerate() {
            codes[j] = byte & 15;
            codes[j + BLOCK / 2] = byte >> 4;
        }
    }
    Block { d: half_at(0), m, codes }
}

/// Q4_0: d = extreme / -8, code = min(15, floor(x / d + 8.5)), extreme the first x of largest magnitude.
/// Q4_1: d = (max - min) / 15, m = min, code = min(15, floor((x - m) / d + 0.5)).
/// Q8_0: d = max |x| / 127, code = round(x / d), half away from zero.
///
/// x / d is x * (1 / d) with d still in f32; only the stored d is an f16.
fn encode_block(scheme: Scheme, x: &[f32]) -> Block {
    let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut codes = [0u8; BLOCK];
    let (d, m) = match scheme {
        Scheme::Q4_0 => {
            let extreme = x.iter().fold(0.0f32, |e, &v| if v.abs() > e.abs() { v } else { e });
            let d = extreme / -8.0;
            let id = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, &v)| *code = ((v * id + 8.5) as u8).min(15));
            (d, 0.0)
        }
        Scheme::Q4_1 => {
            let min = x.iter().copied().fold(f32::MAX, f32::min);
            let max = x.iter().copied().fold(f32::MIN, f32::max);
            let d = (max - min) / 15.0;
            let id = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, &v)| *code = (((v - min) * id + 0.5) as u8).min(15));
            (d, min)
        }
        _ => {
            let d = x.iter().fold(0.0f32, |a, &v| a.max(v.abs())) / 127.0;
            let id = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, &v)| *code = (v * id).round() as i8 as u8);
            (d, 0.0)
        }
    };
    Block { d: f16::from_f32(d), m: f16::from_f32(m), codes }
}

struct Writer {
    scheme: Scheme,
    codes: Vec<u32>,
    halves: Vec<u16>,
}

impl Writer {
    fn new(scheme: Scheme, len: usize) -> Writer {
        let [codes, scales, _] = scheme.words(len);
        Writer { scheme, codes: Vec::with_capacity(codes), halves: Vec::with_capacity(2 * scales) }
    }

    fn push(&mut self, block: &Block) {
        self.halves.push(block.d.to_bits());
        if self.scheme == Scheme::Q4_1 {
            self.halves.push(block.m.to_bits());
        }
        if self.scheme == Scheme::Q8_0 {
            let word = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
            self.codes.extend(block.codes.chunks_exact(4).map(word));
        } else {
            self.codes.extend(block.codes.chunks_exact(8).map(pack_nibbles));
        }
    }

    fn finish(mut self, shape: [usize; 2]) -> Packed {
        if self.halves.len() % 2 == 1 {
            self.halves.push(0);
        }
        let scales = self.halves.chunks_exact(2).map(|h| h[0] as u32 | (h[1] as u32) << 16).collect();
        Packed { scheme: self.scheme, shape, codes: self.codes, scales, nested: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_blocks_return_unchanged() {
        for scheme in [Scheme::Q4_0, Scheme::Q4_1, Scheme::Q8_0] {
            for blocks in [1, 3] {
                let bytes: Vec<u8> = (0..blocks * block_bytes(scheme).unwrap()).map(|i| (i * 37 + 11) as u8).collect();
                let packed = unpack_blocks(scheme, [blocks, 32], &bytes).unwrap();
                assert_eq!(pack_blocks(&packed).unwrap(), bytes);
                let mut y = vec![0.0; blocks * 32];
                decode_blocks(scheme, &bytes, &mut y);
                let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert_eq!(bits(y), bits(packed.dequantize()));
            }
        }
    }

    #[test]
    fn a_block_by_hand() {
        // d = 0.5, m = -1; element 0 is the low nibble of byte 0, element 16 its high nibble.
        let mut raw = vec![0u8; 20];
        raw[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        raw[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        raw[4] = 0xf3;
        let y = unpack_blocks(Scheme::Q4_1, [1, 32], &raw).unwrap().dequantize();
        assert_eq!((y[0], y[16], y[1]), (0.5 * 3.0 - 1.0, 0.5 * 15.0 - 1.0, -1.0));
    }

    #[test]
    fn wrong_lengths_and_columns_are_refused() {
        assert!(matches!(unpack_blocks(Scheme::Q4_0, [1, 32], &[0; 17]), Err(Error::Shape { .. })));
        assert!(matches!(unpack_blocks(Scheme::Q4_0, [2, 16], &[0; 18]), Err(Error::Shape { .. })));
        assert!(matches!(unpack_blocks(Scheme::F16, [1, 32], &[0; 64]), Err(Error::Unsupported { .. })));
        assert!(matches!(Packed::quantize(Scheme::Q8_0, [1, 32], &[1e38; 32]), Err(Error::Config { .. })));
    }
}
