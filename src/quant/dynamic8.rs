//! The signed 8-bit dynamic map and the second quantization built on it: absmax values in one byte each.
//!
//! Double quantization (QLoRA, Dettmers et al. 2023): `offset = mean(absmax)`; over blocks of 256 absmax values,
//! `code = encode((absmax - offset) * (1 / nested))` with nested the largest |absmax - offset| of the block, and
//! `absmax = map[code] * nested + offset`.

use std::sync::LazyLock;

/// Absmax values that share one nested absmax.
pub const NESTED_BLOCK: usize = 256;

static MAP: LazyLock<[f32; 256]> = LazyLock::new(make_map);

/// The 256 values of the codes, ascending from -0.993 to 1.
///
/// Decade `10^(i - 6)`, i = 0..7, holds 2^i values a sign: the midpoints of 2^i equal steps from 0.1 to 1, times the
/// decade; 0 and 1 complete them. 8-Bit Approximations for Parallelism in Deep Learning, Dettmers 2015.
pub fn dynamic8_map() -> [f32; 256] {
    *MAP
}

fn make_map() -> [f32; 256] {
    let mut map = [0.0f32; 256];
    map[255] = 1.0;
    // map[127] stays 0: the positive values follow it, the negative ones mirror them.
    let mut at = 128;
    for i in 0..7 {
        let steps = 1usize << i;
        let step = (1.0f32 - 0.1) / steps as f32;
        // Torch fills a range from both ends with fused multiply-adds, which decides the last bit.
        let bound = |k: usize| match 2 * k < steps {
            true => step.mul_add(k as f32, 0.1),
            false => (-step).mul_add((steps - k) as f32, 1.0),
        };
        let decade = 10f64.powi(i - 6) as f32;
        for k in 0..steps {
            let value = decade * ((bound(k) + bound(k + 1)) / 2.0);
            map[at] = value;
            map[254 - at] = -value;
            at += 1;
        }
    }
    map
}

/// The code of the map value nearest to `s`; a tie takes the even code (the outcome of a binary search that starts at
/// code 127 and ends on an even one). NaN gives 0.
pub fn encode(s: f32) -> u8 {
    let map = &*MAP;
    let upper = map.partition_point(|&v| v < s).min(255);
    let lower = upper.saturating_sub(1);
    let middle = (map[upper] + map[lower]) * 0.5;
    let up = s > middle || (s == middle && upper % 2 == 0);
    if up { upper as u8 } else { lower as u8 }
}

/// Absmax values in 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedAbsmax {
    /// `[blocks]`
    pub codes: Vec<u8>,
    /// The mean of the absmax values.
    pub offset: f32,
    /// `[blocks.div_ceil(256)]`
    pub nested: Vec<f32>,
}

/// codes[b] = encode((absmax[b] - offset) * (1 / nested[b / 256]))
///
/// absmax: `[blocks]`. A nested block of equal values has nested = 0 and codes 0, as bitsandbytes writes it. The mean
/// is summed in f64; other orders of summation differ by about 1e-7 relative.
pub fn quantize_absmax(absmax: &[f32]) -> NestedAbsmax {
    let sum: f64 = absmax.iter().map(|&a| a as f64).sum();
    let offset = if absmax.is_empty() { 0.0 } else { (sum / absmax.len() as f64) as f32 };
    let mut codes = Vec::with_capacity(absmax.len());
    let mut nested = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK));
    for block in absmax.chunks(NESTED_BLOCK) {
        let max = block.iter().fold(0.0f32, |m, &a| m.max((a - offset).abs()));
        let max = if max < f32::MIN_POSITIVE { 0.0 } else { max };
        let inverse = 1.0 / max;
        codes.extend(block.iter().map(|&a| if max == 0.0 { 0 } else { encode((a - offset) * inverse) }));
        nested.push(max);
    }
    NestedAbsmax { codes, offset, nested }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_ascends_and_every_value_is_its_own_code() {
        let map = dynamic8_map();
        assert!(map.is_sorted_by(|a, b| a < b));
        for (code, &value) in map.iter().enumerate() {
            assert_eq!(encode(value), code as u8);
        }
        assert_eq!(encode(-2.0), 0);
        assert_eq!(encode(2.0), 255);
        assert_eq!(encode(f32::NAN), 0);
    }

    #[test]
    fn nested_values_return_within_half_a_step() {
        let absmax: Vec<f32> = (0..700).map(|i| 0.01 + (i * 37 % 101) as f32 * 0.003).collect();
        let q = quantize_absmax(&absmax);
        assert_eq!((q.codes.len(), q.nested.len()), (700, 3));
        let map = dynamic8_map();
        for (b, &a) in absmax.iter().enumerate() {
            let nested = q.nested[b / 256];
            let back = map[q.codes[b] as usize] * nested + q.offset;
            // The widest step of the map is 0.9 / 64.
            assert!((back - a).abs() <= nested * (0.45 / 64.0 + 1e-3), "{back} {a}");
        }
    }

    #[test]
    fn equal_values_have_no_spread() {
        let q = quantize_absmax(&[0.5; 3]);
        assert_eq!((q.codes, q.offset, q.nested), (vec![0; 3], 0.5, vec![0.0]));
    }
}
