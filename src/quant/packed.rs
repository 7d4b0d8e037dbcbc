//! Making and reading a [`Packed`] weight on the host: the reference for what the kernels do.
//!
//! Codes that pad the last word are those of 0.0 in the last block.

use super::affine::{self, Affine};
use super::{Packed, ScaleType, Scheme, VECTOR, blockwise4, checked_len, dynamic8, float4, ggml, lattice, pack_codes};
use crate::{Error, Result};
use half::{bf16, f16};

impl Packed {
    /// Rounds `x` to the numbers of `scheme`: [`Packed::quantize_named`] for numbers without a name.
    pub fn quantize(scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Result<Packed> {
        Packed::quantize_named("tensor", scheme, shape, x)
    }

    /// Rounds `x` to the numbers of `scheme`. `what` is whose numbers they are, in words, for messages.
    ///
    /// x: `[rows * cols]`, shape: (rows, cols). Errors: Config for a bad block size, and with `what` for a number that the
    /// scheme cannot hold (NaN, infinity, beyond f16); Shape; Unsupported for schemes whose codes a method chooses.
    pub fn quantize_named(what: &str, scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Result<Packed> {
        let scheme = scheme.resolve(shape);
        scheme.expect("scheme to round to", |scheme| !scheme.is_vector())?;
        scheme.validate_for(shape)?;
        if checked_len(shape)? != x.len() {
            return Err(Error::shape("quantize", format!("{shape:?}"), format!("{} numbers", x.len())));
        }
        if let Some(i) = x.iter().position(|v| !v.is_finite()) {
            return Err(Error::config(what, format!("element {i} is {}: only finite numbers can be stored", x[i])));
        }
        match scheme {
            Scheme::F32 => Packed::new(scheme, shape, x.iter().map(|v| v.to_bits()).collect(), vec![], vec![]),
            Scheme::F16 => quantize_half(what, scheme, shape, x, |v| f16::from_f32(v).to_bits(), 0x7c00),
            Scheme::BF16 => quantize_half(what, scheme, shape, x, |v| bf16::from_f32(v).to_bits(), 0x7f80),
            Scheme::Nf4 { .. } => quantize_table(scheme, shape, x, blockwise4::encode_nf4),
            Scheme::Fp4 { .. } => quantize_table(scheme, shape, x, blockwise4::encode_fp4),
            Scheme::Nf3 { .. } => quantize_table(scheme, shape, x, blockwise4::encode_nf3),
            Scheme::Nf2 { .. } => quantize_table(scheme, shape, x, blockwise4::encode_nf2),
            Scheme::Int { bits, symmetric, scale, .. } => {
                quantize_affine(what, scheme, shape, x, (bits, symmetric, scale))
            }
            Scheme::Mxfp4 => float4::quantize_mxfp4(shape, x),
            Scheme::Nvfp4 => float4::quantize_nvfp4(shape, x),
            Scheme::Ggml(ty) => ggml::quantize(what, ty, shape, x),
            Scheme::E8p | Scheme::Aqlm => unreachable!("refused above"),
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
        let scheme = scheme.resolve(shape);
        scheme.validate_for(shape)?;
        checked_len(shape)?;
        let expected = scheme.words(shape);
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

    /// Elements that share a scale; none for plain floats.
    pub fn block_size(&self) -> Option<usize> {
        self.scheme.block_size(self.shape)
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
            4 => self.codes[i / 8] >> (8 * (i % 8 / 2) + 4 * (1 - i % 2)) & 15,
            bits => {
                let (word, shift) = (i / 32 * bits + i % 32 * bits / 32, i % 32 * bits % 32);
                let next = if shift + bits > 32 { self.codes[word + 1] } else { 0 };
                ((u64::from(next) << 32 | u64::from(self.codes[word])) >> shift) as u32 & ((1 << bits) - 1)
            }
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

    /// The numbers that the codes stand for: `[rows * cols]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let len = self.len();
        let code = |i: usize| self.code(i);
        match self.scheme {
            Scheme::F32 => (0..len).map(|i| f32::from_bits(code(i))).collect(),
            Scheme::F16 => (0..len).map(|i| f16::from_bits(code(i) as u16).to_f32()).collect(),
            Scheme::BF16 => (0..len).map(|i| bf16::from_bits(code(i) as u16).to_f32()).collect(),
            Scheme::Nf4 { .. } => self.by_table(&blockwise4::NF4),
            Scheme::Fp4 { .. } => self.by_table(&blockwise4::FP4),
            Scheme::Nf3 { .. } => self.by_table(&blockwise4::NF3),
            Scheme::Nf2 { .. } => self.by_table(&blockwise4::NF2),
            Scheme::Int { bits: 8, .. } => self.by_block(|b| self.affine(b), |c, &(s, z)| (c as i8 as f32 - z) * s),
            Scheme::Int { .. } => self.by_block(|b| self.affine(b), |c, &(s, z)| (c as f32 - z) * s),
            Scheme::Mxfp4 => self.by_block(|b| float4::e8m0(self.scale_byte(b)), |c, s| float4::E2M1[c as usize] * s),
            Scheme::Nvfp4 => {
                let scale = |b| float4::e4m3(self.scale_byte(b)) * self.nested[0];
                self.by_block(scale, |c, s| float4::E2M1[c as usize] * s)
            }
            Scheme::E8p => self.vectors(|code, vector| lattice::decode(code, &vector(usize::from(code >> 8)))),
            Scheme::Aqlm => self.vectors(|code, vector| {
                let (a, b) = (vector(usize::from(code & 255)), vector(256 + usize::from(code >> 8)));
                std::array::from_fn(|t| a[t] + b[t])
            }),
            Scheme::Ggml(ty) => ggml::dequantize(ty, self),
        }
    }

    /// (scale, zero point) of block `b` of a weight of affine integers.
    pub fn affine(&self, b: usize) -> (f32, f32) {
        let Scheme::Int { scale, .. } = self.scheme else { panic!("{} has no zero points", self.scheme) };
        match scale {
            ScaleType::F16 => {
                let word = self.scales[b];
                (f16::from_bits(word as u16).to_f32(), f16::from_bits((word >> 16) as u16).to_f32())
            }
            ScaleType::F32 => (f32::from_bits(self.scales[2 * b]), f32::from_bits(self.scales[2 * b + 1])),
        }
    }

    fn scale_byte(&self, b: usize) -> u8 {
        (self.scales[b / 4] >> (8 * (b % 4))) as u8
    }

    fn by_table(&self, table: &[f32]) -> Vec<f32> {
        self.by_block(|b| self.absmax(b), |c, &s| table[c as usize] * s)
    }

    /// Values of codes that stand for vectors: of E8P one of 256 patterns with signs and a shift (see the
    /// [module of the lattice](super)), of AQLM the sum of two. `value` is told a code, and how to look up a vector.
    fn vectors(&self, value: impl Fn(u16, &dyn Fn(usize) -> [f32; VECTOR]) -> [f32; VECTOR]) -> Vec<f32> {
        let block = self.block_size().unwrap_or(VECTOR);
        let mut y = Vec::with_capacity(self.len());
        for v in 0..self.len() / VECTOR {
            let code = (self.codes[v / 2] >> (16 * (v % 2))) as u16;
            let scale = f32::from_bits(self.scales[v * VECTOR / block]);
            let vector = |n: usize| -> [f32; VECTOR] { std::array::from_fn(|t| self.nested[VECTOR * n + t]) };
            y.extend(value(code, &vector).map(|x| x * scale));
        }
        y
    }

    fn by_block<S>(&self, scale: impl Fn(usize) -> S, value: impl Fn(u32, &S) -> f32) -> Vec<f32> {
        let (len, block) = (self.len(), self.block_size().unwrap_or(1).max(1));
        let mut y = Vec::with_capacity(len);
        for (b, start) in (0..len).step_by(block).enumerate() {
            let scale = scale(b);
            y.extend((start..(start + block).min(len)).map(|i| value(self.code(i), &scale)));
        }
        y
    }
}

/// `bits`: of a number of the scheme; `infinite`: the bits of its exponent. Rounding can carry a finite number to infinity,
/// where all of these are set.
fn quantize_half(
    what: &str,
    scheme: Scheme,
    shape: [usize; 2],
    x: &[f32],
    bits: impl Fn(f32) -> u16,
    infinite: u16,
) -> Result<Packed> {
    if let Some(i) = x.iter().position(|&v| bits(v) & infinite == infinite) {
        let message = format!("element {i} is {}, too large for {}", x[i], scheme.name());
        return Err(Error::config(what, message));
    }
    let word = |pair: &[f32]| bits(pair[0]) as u32 | (pair.get(1).map_or(0, |&v| bits(v)) as u32) << 16;
    Packed::new(scheme, shape, x.chunks(2).map(word).collect(), vec![], vec![])
}

/// Calls `encode(block, codes)` for each block and packs the codes; what pads the last word is the code of 0.0 there.
fn encode_blocks(
    scheme: Scheme,
    shape: [usize; 2],
    x: &[f32],
    mut encode: impl FnMut(&[f32], &mut [u8]) -> u8,
) -> Vec<u32> {
    let mut codes = vec![0u8; x.len()];
    let mut zero = 0;
    let block = scheme.block_size(shape).unwrap_or(1).max(1);
    for (block, codes) in x.chunks(block).zip(codes.chunks_mut(block)) {
        zero = encode(block, codes);
    }
    pack_codes(scheme.code_bits(), &codes, zero)
}

fn quantize_table(scheme: Scheme, shape: [usize; 2], x: &[f32], encode: fn(f32) -> u8) -> Result<Packed> {
    let mut absmax = Vec::new();
    let codes = encode_blocks(scheme, shape, x, |block, codes| {
        absmax.push(blockwise4::encode_block(block, encode, codes));
        encode(0.0)
    });
    if !scheme.double_quant() {
        return Packed::new(scheme, shape, codes, absmax.iter().map(|a| a.to_bits()).collect(), vec![]);
    }
    let q = dynamic8::quantize_absmax(&absmax);
    let nested = nested_array(q.offset, &dynamic8::dynamic8_map(), &q.nested);
    Packed::new(scheme, shape, codes, bytes_to_words(&q.codes), nested)
}

/// `(bits, symmetric, scale)`: those of the scheme, [`Scheme::Int`].
fn quantize_affine(
    what: &str,
    scheme: Scheme,
    shape: [usize; 2],
    x: &[f32],
    (bits, symmetric, scale): (u8, bool, ScaleType),
) -> Result<Packed> {
    let mut scales = Vec::new();
    let mut beyond = None;
    let codes = encode_blocks(scheme, shape, x, |block, codes| {
        let mut affine = Affine::of_block(block, affine::stored_codes(bits), symmetric);
        if scale == ScaleType::F16 {
            affine = affine.with_scale(f16::from_f32(affine.scale).to_f32(), block, symmetric);
        }
        if !affine.scale.is_finite() {
            beyond.get_or_insert(scales.len());
        }
        scales.push((affine.scale, affine.zero_point as f32));
        codes.iter_mut().zip(block).for_each(|(code, &v)| *code = affine.quantize(v) as u8);
        affine.quantize(0.0) as u8
    });
    if let Some(b) = beyond {
        let scale = if scale == ScaleType::F16 { "f16" } else { "f32" };
        return Err(Error::config(what, format!("the range of block {b} is beyond {scale}")));
    }
    Packed::new(scheme, shape, codes, affine_words(scale, scales), vec![])
}

/// Scales and zero points as the device holds them.
pub fn affine_words(scale: ScaleType, pairs: impl IntoIterator<Item = (f32, f32)>) -> Vec<u32> {
    let pairs = pairs.into_iter();
    match scale {
        ScaleType::F32 => pairs.flat_map(|(s, z)| [s.to_bits(), z.to_bits()]).collect(),
        ScaleType::F16 => {
            let bits = |v: f32| u32::from(f16::from_f32(v).to_bits());
            pairs.map(|(s, z)| bits(s) | bits(z) << 16).collect()
        }
    }
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
    use crate::quant::BlockSize;

    const SCHEMES: [Scheme; 20] = [
        Scheme::F32,
        Scheme::F16,
        Scheme::BF16,
        Scheme::Nf4 { block_size: 64, double_quant: false },
        Scheme::Nf4 { block_size: 32, double_quant: true },
        Scheme::Fp4 { block_size: 128, double_quant: false },
        Scheme::Fp4 { block_size: 64, double_quant: true },
        Scheme::int(8, 24).with_f32_scales(),
        Scheme::int8(64),
        Scheme::int(4, 32),
        Scheme::int(4, 40).symmetric(),
        Scheme::int(5, 64).symmetric().with_f32_scales().with_block(BlockSize::Row),
        Scheme::int_per(6, BlockSize::Tensor),
        Scheme::int(7, 64),
        Scheme::int(3, 32),
        Scheme::int(2, 32),
        Scheme::Nf3 { block_size: 64 },
        Scheme::Nf2 { block_size: 32 },
        Scheme::Mxfp4,
        Scheme::Nvfp4,
    ];

    fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.3).collect()
    }

    #[test]
    fn every_scheme_returns_near_numbers_on_awkward_shapes() {
        for scheme in SCHEMES.into_iter().chain(Scheme::all().filter(|scheme| !scheme.is_vector())) {
            for shape in [[1, 1], [3, 63], [7, 257], [5, 64], [2, 256], [0, 32]] {
                if scheme.is_ggml() && scheme.validate_for(shape).is_err() {
                    continue;
                }
                let x = numbers(shape[0] * shape[1]);
                let packed = Packed::quantize(scheme, shape, &x).unwrap();
                let y = packed.dequantize();
                assert_eq!(y.len(), x.len());
                assert_eq!(packed.bytes(), 4 * packed.scheme.words(packed.shape).iter().sum::<usize>());
                // Half of the widest gap between two codes of numbers up to 0.3, plus the error of a rounded scale: NF4's and
                // FP4's widest are 0.3 and 0.33 of it, those of NF3 and NF2 0.46 and 1; MXFP4 clips at 6/8 of the range.
                // GGUF's blocks without offsets may miss one end by a step.
                let tolerance = match (scheme, scheme.code_bits()) {
                    (Scheme::Ggml(_), bits) => 0.6 / f64::from(1 << bits) as f32,
                    (Scheme::Mxfp4, _) => 0.08,
                    (Scheme::Nf3 { .. }, _) => 0.075,
                    (_, 4) => 0.055,
                    (Scheme::Nf2 { .. }, _) => 0.151,
                    (_, 16 | 32) => 0.3 / 256.0,
                    (_, bits) => 1.15 * 0.3 / (f64::from(1 << bits) - 1.0) as f32,
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
        let wide = Scheme::int(8, 8).with_f32_scales();
        assert!(Packed::quantize(wide, [1, 2], &[f32::MAX, f32::MIN]).is_err());
        assert!(Packed::quantize(Scheme::int(4, 8), [1, 2], &[1e9, 0.0]).is_err());
        assert!(Packed::quantize(Scheme::int(4, 12), [1, 24], &[0.0; 24]).is_err());
        assert!(
            Scheme::E8p.validate_for([1 << 15, 1 << 16]).is_ok()
                && Scheme::E8p.validate_for([1 << 16, 1 << 16]).is_err()
        );
        assert!(Packed::quantize(Scheme::int(9, 32), [1, 32], &[0.0; 32]).is_err());
        assert!(Packed::quantize(Scheme::E8p, [1, 32], &[0.0; 32]).is_err());
        assert!(Packed::quantize(Scheme::Nf4 { block_size: 48, double_quant: false }, [1, 1], &[1.0]).is_err());
        assert!(Packed::new(Scheme::F32, [1, 2], vec![0], vec![], vec![]).is_err());
        assert!(Packed::quantize(Scheme::F32, [usize::MAX, 2], &[]).is_err());
    }
}
