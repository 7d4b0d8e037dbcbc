//! The blocks of 32 with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, by ggml's reference rule.

use super::{BlockType, Scales, half_at};
use half::f16;

/// The head is d, or d and m.
pub(super) fn scales(ty: BlockType, head: &[u8], out: &mut Scales) {
    out[0] = (half_at(head, 0), if ty.has_offset() { half_at(head, 2) } else { 0.0 });
}

/// Qn_0: d = extreme / -2^(n - 1), code = min(2^n - 1, floor(x / d + 2^(n - 1) + 0.5)), extreme the first x of largest
/// magnitude. Qn_1: d = (max - min) / (2^n - 1), m = min, code = min(2^n - 1, floor((x - m) / d + 0.5)).
/// Q8_0: d = max |x| / 127, code = round(x / d), half away from zero.
///
/// x / d is x * (1 / d) with d still in f32; only the stored d is an f16.
pub(super) fn encode(ty: BlockType, x: &[f32], codes: &mut [u8], head: &mut [u8]) -> bool {
    let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
    let top = (1u32 << ty.layout().bits) as f32 - 1.0;
    let (d, m) = match ty {
        BlockType::Q8_0 => {
            let d = x.iter().fold(0.0f32, |a, &v| a.max(v.abs())) / 127.0;
            let id = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, &v)| *code = (v * id).round() as i8 as u8);
            (d, 0.0)
        }
        BlockType::Q4_0 | BlockType::Q5_0 => {
            // Starting with the first keeps the sign of a block of zeros, as gguf has it.
            let extreme = x.iter().fold(x[0], |e, &v| if v.abs() > e.abs() { v } else { e });
            let middle = (top + 1.0) / 2.0;
            let d = extreme / -middle;
            let id = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, &v)| *code = ((v * id + (middle + 0.5)) as u8).min(top as u8));
            (d, 0.0)
        }
        BlockType::Q4_1 | BlockType::Q5_1 => {
            let min = x.iter().copied().fold(f32::MAX, f32::min);
            let max = x.iter().copied().fold(f32::MIN, f32::max);
            let d = (max - min) / top;
            let id = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, &v)| *code = (((v - min) * id + 0.5) as u8).min(top as u8));
            (d, min)
        }
        BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
            unreachable!("two levels of scales")
        }
        BlockType::Iq4Nl | BlockType::Iq4Xs => unreachable!("a table of levels"),
    };
    let (d, m) = (f16::from_f32(d), f16::from_f32(m));
    head[..2].copy_from_slice(&d.to_le_bytes());
    if ty.has_offset() {
        head[2..4].copy_from_slice(&m.to_le_bytes());
    }
    d.is_finite() && m.is_finite()
}
