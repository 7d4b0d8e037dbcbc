//! Making and reading a [`Packed`] weight on the host: the reference for what the kernels do.
//!
//! Codes that pad the last word are those of 0.0: the array is encoded as if zeros followed it.

use super::affine::{self, Affine};
use super::{Packed, Scheme, blockwise4, checked_len, dynamic8, ggml, pack_nibbles};
use crate::{Error, Result};
use half::{bf16, f16};

impl Packed {
    /// Rounds `x` to the numbers of `scheme`.
    ///
    /// x: `[rows * cols]`, shape: (rows, cols). Errors: Config for a bad block size or a number that the scheme cannot
    /// hold (NaN, infinity, beyond f16), Shape.
    pub fn quantize(scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Result<Packed> {
        scheme.validate()?;
        if checked_len(shape)? != x.len() {
            return Err(Error::shape("quantize", format!("{shape:?}"), format!("{} numbers", x.len())));
        }
        if let Some(i) = x.iter().position(|v| !v.is_finite()) {
            return Err(Error::config("tensor", format!("element {i} is {}: only finite numbers can be stored", x[i])));
        }
        match scheme {
            Scheme::F32 => Packed::new(scheme, shape, x.iter().map(|v| v.to_bits()).collect(), vec![], vec![]),
            Scheme::F16 | Scheme::BF16 => quantize_half(scheme, shape, x),
            Scheme::Nf4 { .. } => quantize_blockwise4(scheme, shape, x, blockwise4::encode_nf4),
            Scheme::Fp4 { .. } => quantize_blockwise4(scheme, shape, x, blockwise4::encode_fp4),
            Scheme::Int8 { symmetric, .. } => quantize_affine(scheme, shape, x, affine::INT8, symmetric),
            Scheme::Int4 { symmetric, .. } => quantize_affine(scheme, shape, x, affine::INT4, symmetric),
            Scheme::Q4_0 | Scheme::Q4_1 | Scheme::Q8_0 => ggml::quantize(scheme, shape, x),
        }
    }

    /// A weight from arrays in the device layout. Errors: Config, Shape where an array has another length.
    pub fn new(
        scheme: Scheme,
        shape: [usize; 2],
        codes: Vec<u32>,
        scales: Vec<u32>,
        nested: Vec<f32>,
    ) -> Result<Packed> {
        scheme.validate()?;
        let expected = scheme.words(checked_len(shape)?);
        let got = [codes.len(), scales.len(), nested.len()];
        if expected != got {
            let words = |[c, s, n]: [usize; 3]| format!("{c} words of codes, {s} of scales, {n} nested");
            return Err(Error::shape(format!("{} {shape:?}", scheme.name()), words(expected), words(got)));
        }
        Ok(Packed { scheme, shape, codes, scales, nested })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the three arrays: what the weight takes on the device.
    pub fn bytes(&self) -> usize {
        4 * (self.codes.len() + self.scales.len() + self.nested.len())
    }

    /// The bits of element `i`'s code.
    pub fn code(&self, i: usize) -> u32 {
        match self.scheme.code_bits() {
            32 => self.codes[i],
            16 => self.codes[i / 2] >> (16 * (i % 2)) & 0xffff,
            8 => self.codes[i / 4] >> (8 * (i % 4)) & 0xff,
            _ => self.codes[i / 8] >> (8 * (i % 8 / 2) + 4 * (1 - i % 2)) & 15,
        }
    }

    /// The absmax of block `b` of an NF4 or FP4 weight: `map[code] * nested + offset` where it is double-quantized.
    pub fn absmax(&self, b: usize) -> f32 {
        if !self.scheme.double_quant() {
            return f32::from_bits(self.scales[b]);
        }
        let code = self.scales[b / 4] >> (8 * (b % 4)) & 0xff;
        self.nested[1 + code as usize] * self.nested[257 + b / dynamic8::NESTED_BLOCK] + self.nested[0]
    }

    /// (d, m) of block `b` of a GGUF weight; m is 0 but for Q4_1.
    pub(super) fn ggml_scale(&self, b: usize) -> (f16, f16) {
        if self.scheme == Scheme::Q4_1 {
            let word = self.scales[b];
            return (f16::from_bits(word as u16), f16::from_bits((word >> 16) as u16));
        }
        (f16::from_bits((self.scales[b / 2] >> (16 * (b % 2))) as u16), f16::ZERO)
    }

    /// The numbers that the codes stand for: `[rows * cols]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let len = self.len();
        let code = |i: usize| self.code(i);
        match self.scheme {
            Scheme::F32 => (0..len).map(|i| f32::from_bits(code(i))).collect(),
            Scheme::F16 => (0..len).map(|i| f16::from_bits(code(i) as u16).to_f32()).collect(),
            Scheme::BF16 => (0..len).map(|i| bf16::from_bits(code(i) as u16).to_f32()).collect(),
            Scheme::Nf4 { .. } => self.by_block(|b| self.absmax(b), |c, &s| blockwise4::NF4[c as usize] * s),
            Scheme::Fp4 { .. } => self.by_block(|b| self.absmax(b), |c, &s| blockwise4::FP4[c as usize] * s),
            Scheme::Int8 { .. } => self.by_block(|b| self.affine(b), |c, &(s, z)| (c as i8 as f32 - z) * s),
            Scheme::Int4 { .. } => self.by_block(|b| self.affine(b), |c, &(s, z)| (c as f32 - z) * s),
            Scheme::Q4_0 => self.by_block(|b| self.ggml(b), |c, &(d, _)| (c as f32 - 8.0) * d),
            Scheme::Q4_1 => self.by_block(|b| self.ggml(b), |c, &(d, m)| c as f32 * d + m),
            Scheme::Q8_0 => self.by_block(|b| self.ggml(b), |c, &(d, _)| c as i8 as f32 * d),
        }
    }

    fn affine(&self, b: usize) -> (f32, f32) {
        (f32::from_bits(self.scales[2 * b]), f32::from_bits(self.scales[2 * b + 1]))
    }

    fn ggml(&self, b: usize) -> (f32, f32) {
        let (d, m) = self.ggml_scale(b);
        (d.to_f32(), m.to_f32())
    }

    fn by_block<S>(&self, scale: impl Fn(usize) -> S, value: impl Fn(u32, &S) -> f32) -> Vec<f32> {
        let (len, block) = (self.len(), self.scheme.block_size());
        let mut y = Vec::with_capacity(len);
        for (b, start) in (0..len).step_by(block).enumerate() {
            let scale = scale(b);
            y.extend((start..(start + block).min(len)).map(|i| value(self.code(i), &scale)));
        }
        y
    }
}

fn quantize_half(scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Result<Packed> {
    let bits = |v: f32| match scheme {
        Scheme::F16 => f16::from_f32(v).to_bits(),
        _ => bf16::from_f32(v).to_bits(),
    };
    // Rounding can carry a finite number to infinity: exponent bits all set.
    let infinite = if scheme == Scheme::F16 { 0x7c00 } else { 0x7f80 };
    if let Some(i) = x.iter().position(|&v| bits(v) & infinite == infinite) {
        let message = format!("element {i} is {}, too large for {}", x[i], scheme.name());
        return Err(Error::config("tensor", message));
    }
    let word = |pair: &[f32]| bits(pair[0]) as u32 | (pair.get(1).map_or(0, |&v| bits(v)) as u32) << 16;
    Packed::new(scheme, shape, x.chunks(2).map(word).collect(), vec![], vec![])
}

/// Calls `encode(block, codes)` for each block, the last one extended with zeros to whole words, and packs the codes.
fn encode_blocks(scheme: Scheme, x: &[f32], mut encode: impl FnMut(&[f32], &mut [u8])) -> Vec<u32> {
    let block_size = scheme.block_size();
    let per_word = scheme.codes_per_word();
    let mut words = Vec::with_capacity(x.len().div_ceil(per_word));
    let mut codes = vec![0u8; block_size];
    let mut last = Vec::new();
    for block in x.chunks(block_size) {
        let mut block = block;
        if !block.len().is_multiple_of(per_word) {
            last.extend_from_slice(block);
            last.resize(block.len().next_multiple_of(per_word), 0.0);
            block = &last;
        }
        let codes = &mut codes[..block.len()];
        encode(block, codes);
        match per_word {
            8 => words.extend(codes.chunks_exact(8).map(pack_nibbles)),
            _ => words.extend(codes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))),
        }
    }
    words
}

fn quantize_blockwise4(scheme: Scheme, shape: [usize; 2], x: &[f32], encode: fn(f32) -> u8) -> Result<Packed> {
    let mut absmax = Vec::with_capacity(x.len().div_ceil(scheme.block_size()));
    let codes = encode_blocks(scheme, x, |block, codes| absmax.push(blockwise4::encode_block(block, encode, codes)));
    if !scheme.double_quant() {
        return Packed::new(scheme, shape, codes, absmax.iter().map(|a| a.to_bits()).collect(), vec![]);
    }
    let q = dynamic8::quantize_absmax(&absmax);
    Packed::new(
        scheme,
        shape,
        codes,
        bytes_to_words(&q.codes),
        nested_array(q.offset, &dynamic8::dynamic8_map(), &q.nested),
    )
}

fn quantize_affine(scheme: Scheme, shape: [usize; 2], x: &[f32], range: (i32, i32), symmetric: bool) -> Result<Packed> {
    let mut scales = Vec::with_capacity(2 * x.len().div_ceil(scheme.block_size()));
    let codes = encode_blocks(scheme, x, |block, codes| {
        let affine = Affine::of_block(block, range, symmetric);
        scales.extend([affine.scale.to_bits(), (affine.zero_point as f32).to_bits()]);
        codes.iter_mut().zip(block).for_each(|(code, &v)| *code = affine.quantize(v) as u8);
    });
    if let Some(b) = scales.chunks_exact(2).position(|s| !f32::from_bits(s[0]).is_finite()) {
        return Err(Error::config("tensor", format!("the range of block {b} is beyond f32")));
    }
    Packed::new(scheme, shape, codes, scales, vec![])
}

/// Offset, map and nested absmax values as the device holds them: `[257 + blocks.div_ceil(256)]`.
pub fn nested_array(offset: f32, map: &[f32; 256], nested: &[f32]) -> Vec<f32> {
    let mut array = Vec::with_capacity(257 + nested.len());
    array.push(offset);
    array.extend_from_slice(map);
    array.extend_from_slice(nested);
    array
}

/// Bytes to little-endian words, the last one filled with zeros.
pub fn bytes_to_words(bytes: &[u8]) -> Vec<u32> {
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: [Scheme; 12] = [
        Scheme::F32,
        Scheme::F16,
        Scheme::BF16,
        Scheme::Nf4 { block_size: 64, double_quant: false },
        Scheme::Nf4 { block_size: 32, double_quant: true },
        Scheme::Fp4 { block_size: 128, double_quant: false },
        Scheme::Fp4 { block_size: 64, double_quant: true },
        Scheme::Int8 { block_size: 24, symmetric: false },
        Scheme::Int8 { block_size: 64, symmetric: true },
        Scheme::Int4 { block_size: 32, symmetric: false },
        Scheme::Int4 { block_size: 40, symmetric: true },
        Scheme::Q4_0,
    ];

    fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.3).collect()
    }

    #[test]
    fn every_scheme_returns_near_numbers_on_awkward_shapes() {
        for scheme in SCHEMES.into_iter().chain([Scheme::Q4_1, Scheme::Q8_0]) {
            for shape in [[1, 1], [3, 63], [7, 257], [5, 64], [0, 32]] {
                if matches!(scheme, Scheme::Q4_0 | Scheme::Q4_1 | Scheme::Q8_0) && shape[1] % 32 != 0 {
                    continue;
                }
                let x = numbers(shape[0] * shape[1]);
                let packed = Packed::quantize(scheme, shape, &x).unwrap();
                let y = packed.dequantize();
                assert_eq!(y.len(), x.len());
                assert_eq!(packed.bytes(), 4 * scheme.words(x.len()).iter().sum::<usize>());
                // Half of the widest gap between two codes, NF4's and FP4's being 0.3 and 0.33 of absmax 0.3, plus
                // the error of an 8-bit absmax.
                let tolerance = match scheme.code_bits() {
                    4 => 0.055,
                    8 => 0.3 / 127.0,
                    _ => 0.3 / 256.0,
                };
                for (a, b) in x.iter().zip(&y) {
                    assert!((a - b).abs() <= tolerance, "{scheme:?} {shape:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn codes_that_pad_the_last_word_are_zeros() {
        let scheme = Scheme::Nf4 { block_size: 64, double_quant: false };
        let packed = Packed::quantize(scheme, [1, 3], &[1.0, -1.0, 1.0]).unwrap();
        assert_eq!(packed.codes, [0x7777_f7f0]);
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        for scheme in SCHEMES {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = numbers(64);
                x[9] = bad;
                let error = Packed::quantize(scheme, [2, 32], &x).unwrap_err().to_string();
                assert!(error.contains("element 9"), "{error}");
            }
            assert!(Packed::quantize(scheme, [2, 32], &numbers(63)).is_err());
        }
        assert!(Packed::quantize(Scheme::F16, [1, 1], &[65520.0]).is_err());
        assert!(Packed::quantize(Scheme::BF16, [1, 1], &[f32::MAX]).is_err());
        let wide = Scheme::Int8 { block_size: 8, symmetric: false };
        assert!(Packed::quantize(wide, [1, 2], &[f32::MAX, f32::MIN]).is_err());
        assert!(Packed::quantize(Scheme::Nf4 { block_size: 48, double_quant: false }, [1, 1], &[1.0]).is_err());
        assert!(Packed::new(Scheme::F32, [1, 2], vec![0], vec![], vec![]).is_err());
        assert!(Packed::quantize(Scheme::F32, [usize::MAX, 2], &[]).is_err());
    }
}
