//! Affine integers: `code = round(x / scale) + zero_point`, `y = (code - zero_point) * scale`.
//!
//! The rules are those of torch's `MinMaxObserver` and `quantize_per_tensor`: rounding is half to even, the range is
//! widened to hold 0, codes are clamped. One pair (scale, zero point) serves a tensor, a channel (row) or a group,
//! by the block it is computed over.

/// Codes -128..=127.
pub const INT8: (i32, i32) = signed_codes(8);
/// Codes 0..=255.
pub const UINT8: (i32, i32) = unsigned_codes(8);
/// Codes 0..=15.
pub const INT4: (i32, i32) = unsigned_codes(4);

/// -2^(bits - 1) ..= 2^(bits - 1) - 1
pub const fn signed_codes(bits: u8) -> (i32, i32) {
    (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
}

/// 0 ..= 2^bits - 1
pub const fn unsigned_codes(bits: u8) -> (i32, i32) {
    (0, (1 << bits) - 1)
}

/// The codes in which [`Scheme::Int`](super::Scheme::Int) stores `bits`: bytes are signed, all else is unsigned. What a
/// code stands for does not depend on it, since the zero point moves along.
pub const fn stored_codes(bits: u8) -> (i32, i32) {
    if bits == 8 { signed_codes(8) } else { unsigned_codes(bits) }
}

/// A scale, a zero point and the range of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// The step between two codes; > 0.
    pub scale: f32,
    /// The code that stands for 0.0.
    pub zero_point: i32,
    /// The smallest code.
    pub min_code: i32,
    /// The largest code.
    pub max_code: i32,
}

impl Affine {
    /// Parameters for numbers from `low` to `high`, which are widened to hold 0:
    /// scale = (high - low) / (max_code - min_code), zero_point = min_code - round(low / scale);
    /// symmetric: scale = max(-low, high) / ((max_code - min_code) / 2), zero_point = the middle code.
    ///
    /// The scale is at least f32's epsilon, as in torch, so that a range of zeros has one.
    pub fn from_range(low: f32, high: f32, (min_code, max_code): (i32, i32), symmetric: bool) -> Affine {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let span = (max_code - min_code) as f32;
        if symmetric {
            let scale = ((-low).max(high) / (span / 2.0)).max(f32::EPSILON);
            let zero_point = if min_code < 0 { 0 } else { (max_code - min_code + 1) / 2 + min_code };
            return Affine { scale, zero_point, min_code, max_code };
        }
        let scale = ((high - low) / span).max(f32::EPSILON);
        let zero_point = (min_code - (low / scale).round_ties_even() as i32).clamp(min_code, max_code);
        Affine { scale, zero_point, min_code, max_code }
    }

    /// The same with another scale, such as the scale rounded to f16: the zero point follows it.
    pub fn with_scale(self, scale: f32, block: &[f32], symmetric: bool) -> Affine {
        let low = block.iter().copied().fold(0.0, f32::min);
        let zero_point = match symmetric {
            true => self.zero_point,
            false => (self.min_code - (low / scale).round_ties_even() as i32).clamp(self.min_code, self.max_code),
        };
        Affine { scale, zero_point, ..self }
    }

    /// Parameters for the numbers of one block.
    pub fn of_block(block: &[f32], codes: (i32, i32), symmetric: bool) -> Affine {
        let low = block.iter().copied().fold(0.0, f32::min);
        let high = block.iter().copied().fold(0.0, f32::max);
        Affine::from_range(low, high, codes, symmetric)
    }

    /// code = clamp(round(x * (1 / scale)) + zero_point)
    pub fn quantize(&self, x: f32) -> i32 {
        let steps = (x * (1.0 / self.scale)).round_ties_even();
        // Float-to-integer conversion saturates, and so must the sum.
        (steps as i32).saturating_add(self.zero_point).clamp(self.min_code, self.max_code)
    }

    /// y = (code - zero_point) * scale
    pub fn dequantize(&self, code: i32) -> f32 {
        (code - self.zero_point) as f32 * self.scale
    }

    /// y = dequantize(quantize(x)): what training with simulated quantization sees.
    pub fn fake_quantize(&self, x: f32) -> f32 {
        self.dequantize(self.quantize(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_exact_and_ends_are_reached() {
        for (low, high) in [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)] {
            for codes in [INT8, INT4] {
                let affine = Affine::from_range(low, high, codes, false);
                assert_eq!(affine.fake_quantize(0.0), 0.0);
                for end in [low, high] {
                    assert!((affine.fake_quantize(end) - end).abs() <= affine.scale, "{low} {high} {codes:?}");
                }
            }
        }
        assert_eq!(Affine::from_range(-1.0, 3.0, INT4, true).zero_point, 8);
        assert_eq!(Affine::from_range(-1.0, 3.0, INT8, true).zero_point, 0);
    }

    #[test]
    fn far_values_clamp() {
        let affine = Affine::from_range(-1.0, 1.0, INT8, false);
        assert_eq!(affine.quantize(f32::MAX), 127);
        assert_eq!(affine.quantize(f32::MIN), -128);
    }
}
