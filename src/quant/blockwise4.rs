//! The code books with one absmax per block: NF4, FP4, and NormalFloats of 3 and 2 bits.
//!
//! `code = encode(x * (1 / absmax))`, `y = table[code] * absmax`, absmax the largest |x| of the block.

/// NormalFloat-4: the values that the codes 0..=15 stand for (QLoRA, Dettmers et al. 2023).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// The NF4 code of `s` is the number of these that lie strictly below `s`: the midpoints of [`NF4`].
pub const NF4_THRESHOLDS: [f32; 15] = [
    -0.8480964,
    -0.6106329,
    -0.45999527,
    -0.33967942,
    -0.2346074,
    -0.13791174,
    -0.045525018,
    0.03979015,
    0.12025525,
    0.20352125,
    0.29201376,
    0.38931254,
    0.50166345,
    0.6427869,
    0.86147845,
];

/// FP4 (one sign, two exponent, one mantissa bit, scaled to reach 1): the values of the codes 0..=15.
pub const FP4: [f32; 16] = [
    0.0,
    0.0052083335,
    0.6666667,
    1.0,
    0.33333334,
    0.5,
    0.16666667,
    0.25,
    -0.0,
    -0.0052083335,
    -0.6666667,
    -1.0,
    -0.33333334,
    -0.5,
    -0.16666667,
    -0.25,
];

/// The rank of |s| among the FP4 magnitudes is the number of these strictly below it. They are short decimals near the
/// midpoints, not the midpoints themselves; files in the world were written with them.
pub const FP4_THRESHOLDS: [f32; 7] = [0.00260417, 0.0859375, 0.20833333, 0.29166666, 0.4166667, 0.583333, 0.8333333];

/// The FP4 code of the magnitude of a rank; bit 3 is the sign.
pub const FP4_BY_RANK: [u8; 8] = [0, 1, 6, 7, 4, 5, 2, 3];

/// A NormalFloat of 3 bits: NF4's construction for 8 values, 4 above zero and 3 below, at even quantiles of the normal
/// distribution between 1 - offset and offset, offset = 1 - (1 / 2^(k + 1) + 1 / (2 * (2^k - 1))) / 2, over the largest.
pub const NF3: [f32; 8] = [-1.0, -0.5350227, -0.24693143, 0.0, 0.18333748, 0.38199395, 0.6229857, 1.0];

/// The midpoints of [`NF3`].
pub const NF3_THRESHOLDS: [f32; 7] =
    [-0.76751135, -0.39097707, -0.12346572, 0.09166874, 0.28266572, 0.50248985, 0.81149287];

/// A NormalFloat of 2 bits, made like [`NF3`].
pub const NF2: [f32; 4] = [-1.0, 0.0, 0.43581816, 1.0];

/// The midpoints of [`NF2`].
pub const NF2_THRESHOLDS: [f32; 3] = [-0.5, 0.21790908, 0.7179091];

/// The NF4 code of 0.0.
pub const NF4_ZERO: u8 = 7;

/// The NF4 code of `s` in -1..=1.
pub fn encode_nf4(s: f32) -> u8 {
    NF4_THRESHOLDS.iter().map(|&t| (s > t) as u8).sum()
}

/// The NF3 code of `s` in -1..=1.
pub fn encode_nf3(s: f32) -> u8 {
    NF3_THRESHOLDS.iter().map(|&t| (s > t) as u8).sum()
}

/// The NF2 code of `s` in -1..=1.
pub fn encode_nf2(s: f32) -> u8 {
    NF2_THRESHOLDS.iter().map(|&t| (s > t) as u8).sum()
}

/// The FP4 code of `s` in -1..=1; bit 3 is set for every s < 0, those that round to zero included.
pub fn encode_fp4(s: f32) -> u8 {
    let rank: usize = FP4_THRESHOLDS.iter().map(|&t| (s.abs() > t) as usize).sum();
    FP4_BY_RANK[rank] | if s < 0.0 { 8 } else { 0 }
}

/// absmax = max |x|
///
/// A subnormal maximum counts as 0, since its reciprocal overflows and WGSL may flush it: such blocks become zeros.
pub fn absmax(block: &[f32]) -> f32 {
    let max = block.iter().fold(0.0f32, |m, &x| m.max(x.abs()));
    if max < f32::MIN_POSITIVE { 0.0 } else { max }
}

/// codes[i] = encode(block[i] * (1 / absmax)); an all-zero block takes the code of 0.0.
///
/// block, codes: equally long. Returns the absmax.
pub(super) fn encode_block(block: &[f32], encode: fn(f32) -> u8, codes: &mut [u8]) -> f32 {
    let absmax = absmax(block);
    // With a reciprocal of 0 every scaled value is 0, which is the all-zero rule.
    let inverse = if absmax == 0.0 { 0.0 } else { 1.0 / absmax };
    for (code, &x) in codes.iter_mut().zip(block) {
        // Adding +0.0 turns -0.0 into 0.0 and leaves every other number alone.
        *code = encode(x * inverse + 0.0);
    }
    absmax
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_value_encodes_to_its_code() {
        for code in 0..16u8 {
            assert_eq!(encode_nf4(NF4[code as usize]), code);
            if code != 8 {
                assert_eq!(encode_fp4(FP4[code as usize]), code);
            }
        }
        assert!((0..8).all(|code| encode_nf3(NF3[code as usize]) == code));
        assert!((0..4).all(|code| encode_nf2(NF2[code as usize]) == code));
        assert_eq!(encode_fp4(-0.0), 0);
        assert_eq!(encode_fp4(-1e-9), 8);
        assert_eq!(encode_nf4(0.0), NF4_ZERO);
    }

    #[test]
    fn a_threshold_takes_the_lower_code() {
        for (code, &t) in NF4_THRESHOLDS.iter().enumerate() {
            assert_eq!(encode_nf4(t), code as u8);
            assert_eq!(encode_nf4(t.next_up()), code as u8 + 1);
        }
    }

    #[test]
    fn zero_and_subnormal_blocks_become_zeros() {
        let mut codes = [9; 3];
        assert_eq!(encode_block(&[0.0, -0.0, 0.0], encode_nf4, &mut codes), 0.0);
        assert_eq!(codes, [NF4_ZERO; 3]);
        assert_eq!(encode_block(&[1e-39, -1e-39, 0.0], encode_fp4, &mut codes), 0.0);
        assert_eq!(codes.map(|c| FP4[c as usize]), [0.0; 3]);
    }
}
