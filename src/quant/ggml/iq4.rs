//! IQ4_NL and IQ4_XS: 4-bit codes into a table of uneven levels, denser near zero.

use super::search::{Unit, inverse, symmetric, two_levels};
use super::{BlockType, MOST, SUBS, Scales, half_at};
use half::f16;

/// What the codes stand for, times the scale.
pub const IQ4_LEVELS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// IQ4_NL: the head is d. IQ4_XS: d, u16 of the integers' two high bits, then their low nibbles, the even one low.
pub(super) fn scales(ty: BlockType, head: &[u8], out: &mut Scales) {
    let d = half_at(head, 0);
    if ty == BlockType::Iq4Nl {
        out[0].0 = d;
        return;
    }
    let high = u16::from_le_bytes([head[2], head[3]]);
    for (i, out) in out[..8].iter_mut().enumerate() {
        let low = head[4 + i / 2] >> (4 * (i % 2)) & 15;
        let integer = u16::from(low) | (high >> (2 * i) & 3) << 4;
        out.0 = d * (f32::from(integer) - 32.0);
    }
}

/// The code of the nearest level, for each half of a whole number from -127: levels are whole, so the middle between two
/// of them lies where a cell begins.
const NEAREST: [u8; 481] = {
    let mut cells = [0; 481];
    let (mut cell, mut code) = (0, 0);
    while cell < cells.len() {
        if code < 15 && cell as f32 >= IQ4_LEVELS[code] + IQ4_LEVELS[code + 1] + 254.0 {
            code += 1;
        }
        cells[cell] = code as u8;
        cell += 1;
    }
    cells
};

/// The code of the nearest level; in the middle the higher one.
fn code(v: f32) -> u8 {
    NEAREST[(2.0 * (v.clamp(-127.0, 113.0) + 127.0)) as usize]
}

fn level(v: f32) -> f32 {
    IQ4_LEVELS[code(v) as usize]
}

pub(super) fn encode(ty: BlockType, x: &[f32], codes: &mut [u8], head: &mut [u8]) -> bool {
    let mut y = [0.0; MOST];
    let y = &mut y[..x.len()];
    // Level 8 is the one nearest to 0, and integers are stored with 32 added.
    codes.fill(8);
    head.fill(0);
    let Some(unit) = Unit::of(x, y) else { return true };
    let mut best = [0.0; SUBS];
    let subs = x.len() / 32;
    for (y, best) in y.chunks_exact(32).zip(&mut best) {
        let aims = (-6..=6).flat_map(|step| [-127.0 + 2.0 * step as f32, 113.0 + 2.0 * step as f32]);
        *best = symmetric(y, aims, level);
    }
    let mut fill = |i: usize, scale: f32| {
        let inverse_scale = inverse(scale);
        let codes = codes[32 * i..].iter_mut().zip(&y[32 * i..32 * (i + 1)]);
        codes.for_each(|(c, &v)| *c = code(v * inverse_scale));
    };
    if ty == BlockType::Iq4Nl {
        let (d, step) = unit.half(best[0]);
        head[..2].copy_from_slice(&d.to_le_bytes());
        fill(0, step);
        return d.is_finite();
    }
    let chosen = two_levels(y, 32, unit, &best[..subs], 32, level);
    head[..2].copy_from_slice(&f16::to_le_bytes(chosen.d));
    for (i, &integer) in chosen.integers[..subs].iter().enumerate() {
        fill(i, chosen.step * integer as f32);
        let stored = (integer + 32) as u8;
        head[4 + i / 2] |= (stored & 15) << (4 * (i % 2));
        head[2 + i / 4] |= (stored >> 4) << (2 * (i % 4));
    }
    chosen.d.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_nearest() {
        for i in -5200..=4600 {
            let v = i as f32 / 40.0;
            let distance = |c: usize| (IQ4_LEVELS[c] - v).abs();
            let least = (0..16).map(distance).fold(f32::MAX, f32::min);
            assert_eq!(distance(code(v) as usize), least, "{v}");
        }
    }
}
