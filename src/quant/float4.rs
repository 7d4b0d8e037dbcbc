//! 4-bit floats with narrow block scales: MXFP4 and NVFP4.
//!
//! Elements are E2M1: sign, two bits of exponent, one of mantissa; the magnitudes are [`E2M1`]'s first eight.
//!
//! | scheme | block | value |
//! |---|---|---|
//! | MXFP4 | 32 | `E2M1[code] * 2^(e - 127)` |
//! | NVFP4 | 16 | `E2M1[code] * e4m3(s) * scale of the tensor` |
//!
//! Sources: OCP Microscaling Formats (MX) Specification 1.0; NVIDIA's description of NVFP4.

use super::{Packed, Scheme, bytes_to_words, checked_len, pack_codes};
use crate::Result;

/// The values of the codes 0..=15.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The largest value of E4M3.
pub const E4M3_MAX: f32 = 448.0;

/// The code of the value nearest to `x`, ties to the even code, beyond 6 the code of 6; bit 3 is the sign.
pub fn encode_e2m1(x: f32) -> u8 {
    let a = x.abs();
    // Midpoints; where the tie goes to the upper code, equality counts.
    let above = [a > 0.25, a >= 0.75, a > 1.25, a >= 1.75, a > 2.5, a >= 3.5, a > 5.0];
    let code: u8 = above.iter().map(|&b| u8::from(b)).sum();
    code | if x < 0.0 { 8 } else { 0 }
}

/// 2^(e - 127); the code 0 is 2^-127, 255 is not a number.
pub fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        e => f32::from_bits(u32::from(e) << 23),
    }
}

/// The value of an unsigned E4M3 number (bias 7, no infinity); 127 is not a number.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, f32::from(code & 7));
    match (exponent, code & 127) {
        (_, 127) => f32::NAN,
        (0, _) => mantissa / 512.0,
        (e, _) => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(e) + 120) << 23),
    }
}

/// The E4M3 code nearest to `x` >= 0, ties to even; at most 448.
pub fn encode_e4m3(x: f32) -> u8 {
    let x = x.min(E4M3_MAX);
    // Below 2^-6 the codes are multiples of 2^-9; above, three bits of mantissa are kept.
    if x < 1.0 / 64.0 {
        return (x * 512.0).round_ties_even() as u8;
    }
    let bits = x.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    ((rounded >> 20) - (120 << 3)) as u8
}

/// e = floor(log2(absmax)) - 2, which brings the largest element to 4..8, of which 6 is the most; at least 2^-126.
pub fn mx_exponent(absmax: f32) -> u8 {
    let exponent = (absmax.to_bits() >> 23) as i32;
    (exponent - 2).max(1) as u8
}

pub(super) fn quantize_mxfp4(shape: [usize; 2], x: &[f32]) -> Result<Packed> {
    let len = checked_len(shape)?;
    let (mut codes, mut scales) = (Vec::with_capacity(len), Vec::with_capacity(len.div_ceil(32)));
    for block in x.chunks(32) {
        let e = mx_exponent(super::blockwise4::absmax(block));
        // A power of two: the product is exact unless it is subnormal, where it rounds to zero anyway.
        let inverse = 1.0 / e8m0(e);
        codes.extend(block.iter().map(|&v| encode_e2m1(v * inverse)));
        scales.push(e);
    }
    Packed::new(Scheme::Mxfp4, shape, pack_codes(4, &codes, 0), bytes_to_words(&scales), vec![])
}

/// The scale of the tensor brings the largest block's scale to 448: absmax / (6 * 448); 1 for zeros.
pub fn nv_scale(absmax: f32) -> f32 {
    let scale = absmax / (6.0 * E4M3_MAX);
    if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
}

pub(super) fn quantize_nvfp4(shape: [usize; 2], x: &[f32]) -> Result<Packed> {
    let len = checked_len(shape)?;
    let scale = nv_scale(super::blockwise4::absmax(x));
    let (mut codes, mut scales) = (Vec::with_capacity(len), Vec::with_capacity(len.div_ceil(16)));
    for block in x.chunks(16) {
        let s = encode_e4m3(super::blockwise4::absmax(block) / 6.0 / scale);
        let step = e4m3(s) * scale;
        let inverse = if step < f32::MIN_POSITIVE { 0.0 } else { 1.0 / step };
        codes.extend(block.iter().map(|&v| encode_e2m1(v * inverse)));
        scales.push(s);
    }
    Packed::new(Scheme::Nvfp4, shape, pack_codes(4, &codes, 0), bytes_to_words(&scales), vec![scale])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_encodes_to_its_code() {
        for code in 0..16u8 {
            assert_eq!(encode_e2m1(E2M1[code as usize]), if code == 8 { 0 } else { code });
        }
        for code in 0..127u8 {
            assert_eq!(encode_e4m3(e4m3(code)), code);
        }
        assert_eq!(
            (e4m3(0x38), e4m3(0x7e), e4m3(1), e8m0(127), e8m0(1)),
            (1.0, 448.0, 1.0 / 512.0, 1.0, f32::MIN_POSITIVE)
        );
    }

    #[test]
    fn ties_go_to_even_codes_and_large_values_saturate() {
        let ties = [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6), (100.0, 7)];
        for (x, code) in ties {
            assert_eq!((encode_e2m1(x), encode_e2m1(-x)), (code, code | 8), "{x}");
        }
        // Between 16 (code 88) and 18 (code 89) lies 17.
        assert_eq!((encode_e4m3(17.0), encode_e4m3(19.0), encode_e4m3(1e9)), (88, 90, 126));
    }

    #[test]
    fn blocks_by_hand() {
        // absmax 5: exponent 2 - 2 = 0, so the scale is 1 and 5 ties to 4.
        let mut x = vec![0.0; 32];
        (x[0], x[1], x[31]) = (5.0, -0.7, 3.1);
        let packed = Packed::quantize(Scheme::Mxfp4, [1, 32], &x).unwrap();
        let y = packed.dequantize();
        assert_eq!((packed.scales[0], y[0], y[1], y[31]), (127, 4.0, -0.5, 3.0));
        let y = Packed::quantize(Scheme::Nvfp4, [2, 16], &x).unwrap().dequantize();
        // The first block's scale is the largest, so its largest element is met to rounding.
        assert!((y[0] - 5.0).abs() < 1e-5, "{y:?}");
        assert!(Packed::quantize(Scheme::Nvfp4, [1, 5], &[0.0; 5]).unwrap().dequantize().iter().all(|&v| v == 0.0));
    }
}
