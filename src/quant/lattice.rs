//! QuIP#'s lattice code book E8P: 65536 points of E8 shifted by a quarter, from 256 patterns of magnitudes.

use super::VECTOR;

/// The point of a code. Bits 8..16 choose the pattern, bits 0..7 are the signs of elements 0..7 (set: negative), bit 7 the
/// shift (set: +1/4, else -1/4). The last element's sign makes the number of negations even; patterns whose points have an
/// odd number hold a negative last element.
pub fn decode(code: u16, pattern: &[f32; VECTOR]) -> [f32; VECTOR] {
    let signs = code & 127;
    let signs = signs | ((signs.count_ones() as u16 & 1) << 7);
    let shift = if code & 128 == 0 { -0.25 } else { 0.25 };
    std::array::from_fn(|t| if signs >> t & 1 == 0 { pattern[t] + shift } else { shift - pattern[t] })
}
