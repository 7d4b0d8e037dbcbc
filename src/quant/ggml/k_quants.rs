//! The K-quants: blocks of 256 whose sub-blocks have small integers as scales, and one f16 scales these.

use super::search::{self, Unit, affine, affine_error, inverse, nearest, symmetric, two_levels};
use super::{BlockType, MOST, SUBS, Scales, half_at};

/// Q2_K: 16 bytes, scale low and minimum high, then d, dmin. Q3_K: 12 bytes, then d. Q4_K, Q5_K: d, dmin, 12 bytes.
/// Q6_K: 16 signed bytes, then d.
pub(super) fn scales(ty: BlockType, head: &[u8], out: &mut Scales) {
    match ty {
        BlockType::Q2K => {
            let (d, dmin) = (half_at(head, 16), half_at(head, 18));
            for (out, byte) in out.iter_mut().zip(&head[..16]) {
                *out = (d * f32::from(byte & 15), -(dmin * f32::from(byte >> 4)));
            }
        }
        BlockType::Q3K => {
            let d = half_at(head, 12);
            for (i, out) in out.iter_mut().enumerate() {
                let low = head[i % 8] >> (4 * (i / 8)) & 15;
                let high = head[8 + i % 4] >> (2 * (i / 4)) & 3;
                out.0 = d * (f32::from(low | high << 4) - 32.0);
            }
        }
        BlockType::Q6K => {
            let d = half_at(head, 16);
            out.iter_mut().zip(&head[..16]).for_each(|(out, &byte)| out.0 = d * f32::from(byte as i8));
        }
        BlockType::Q4K | BlockType::Q5K => {
            let (d, dmin) = (half_at(head, 0), half_at(head, 2));
            for (i, out) in out[..8].iter_mut().enumerate() {
                let (scale, min) = read_six_bits(&head[4..16], i);
                *out = (d * f32::from(scale), -(dmin * f32::from(min)));
            }
        }
        BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => {
            unreachable!("one level of scales")
        }
        BlockType::Iq4Nl | BlockType::Iq4Xs => unreachable!("a table of levels"),
    }
}

/// Scale and minimum `i` of eight pairs of 6 bits in 12 bytes: the first four of both lie in the low bits of bytes 0..8,
/// of the others four bits in bytes 8..12 and two in the high bits of bytes 0..8.
fn read_six_bits(bytes: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        return (bytes[i] & 63, bytes[i + 4] & 63);
    }
    (bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4)
}

/// The inverse of [`read_six_bits`] on bytes that are zeros; `i` goes up.
fn write_six_bits(bytes: &mut [u8], i: usize, scale: u8, min: u8) {
    if i < 4 {
        (bytes[i], bytes[i + 4]) = (scale, min);
    } else {
        bytes[i + 4] = scale & 15 | (min & 15) << 4;
        bytes[i - 4] |= scale >> 4 << 6;
        bytes[i] |= min >> 4 << 6;
    }
}

/// Q3_K and Q6_K.
pub(super) fn encode_symmetric(ty: BlockType, x: &[f32], codes: &mut [u8], head: &mut [u8]) -> bool {
    let mut y = [0.0; MOST];
    // Half of the levels lie below zero.
    let (middle, bound) = if ty == BlockType::Q3K { (4.0, 32) } else { (32.0, 128) };
    codes.fill(middle as u8);
    head.fill(0);
    let Some(unit) = Unit::of(x, &mut y) else { return true };
    let level = |v: f32| nearest(v.clamp(-middle, middle - 1.0));
    let mut best = [0.0; SUBS];
    for (y, best) in y.chunks_exact(16).zip(&mut best) {
        let aims = (-9..=9).flat_map(|step| [0.1 * step as f32 - middle, 0.1 * step as f32 + middle - 1.0]);
        *best = symmetric(y, aims, level);
    }
    let chosen = two_levels(&y, 16, unit, &best, bound, level);
    let subs = y.chunks_exact(16).zip(codes.chunks_exact_mut(16)).zip(&chosen.integers).enumerate();
    for (i, ((y, codes), &integer)) in subs {
        let inverse_scale = inverse(chosen.step * integer as f32);
        codes.iter_mut().zip(y).for_each(|(code, v)| *code = (level(v * inverse_scale) + middle) as u8);
        if ty == BlockType::Q6K {
            head[i] = integer as i8 as u8;
        } else {
            let stored = (integer + 32) as u8;
            head[i % 8] |= (stored & 15) << (4 * (i / 8));
            head[8 + i % 4] |= (stored >> 4) << (2 * (i / 4));
        }
    }
    let d = if ty == BlockType::Q6K { 16 } else { 12 };
    head[d..d + 2].copy_from_slice(&chosen.d.to_le_bytes());
    chosen.d.is_finite()
}

/// Scales and minima of sub-blocks, as integers, and what they are multiplied with.
#[derive(Clone, Copy)]
struct Pairs {
    d: (half::f16, f32),
    dmin: (half::f16, f32),
    integers: [(i32, i32); SUBS],
}

impl Pairs {
    fn affine(&self, i: usize) -> (f32, f32) {
        self.of(self.integers[i])
    }

    fn of(&self, (scale, min): (i32, i32)) -> (f32, f32) {
        (self.d.1 * scale as f32, -(self.dmin.1 * min as f32))
    }
}

/// Q2_K, Q4_K and Q5_K.
pub(super) fn encode_affine(ty: BlockType, x: &[f32], codes: &mut [u8], head: &mut [u8]) -> bool {
    let mut y = [0.0; MOST];
    codes.fill(0);
    head.fill(0);
    let Some(unit) = Unit::of(x, &mut y) else { return true };
    let (sub, bound) = if ty == BlockType::Q2K { (16, 15) } else { (32, 63) };
    let top = ((1 << ty.layout().bits) - 1) as f32;
    let mut best = [(0.0, 0.0); SUBS];
    y.chunks_exact(sub).zip(&mut best).for_each(|(y, best)| *best = affine(y, top));
    let search = PairSearch { x: &y, sub, top, bound };
    let pairs = search.refine(unit, search.start(unit, &best[..MOST / sub]));
    for (i, (y, codes)) in y.chunks_exact(sub).zip(codes.chunks_exact_mut(sub)).enumerate() {
        let (scale, offset) = pairs.affine(i);
        let inverse_scale = inverse(scale);
        codes.iter_mut().zip(y).for_each(|(code, &v)| *code = search::code(v, inverse_scale, offset, top) as u8);
        let (scale, min) = (pairs.integers[i].0 as u8, pairs.integers[i].1 as u8);
        match ty {
            BlockType::Q2K => head[i] = scale | min << 4,
            BlockType::Q4K | BlockType::Q5K => write_six_bits(&mut head[4..], i, scale, min),
            BlockType::Q3K | BlockType::Q6K | BlockType::Iq4Nl | BlockType::Iq4Xs => unreachable!("no minima"),
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => {
                unreachable!("one level of scales")
            }
        }
    }
    let at = if ty == BlockType::Q2K { 16 } else { 0 };
    head[at..at + 2].copy_from_slice(&pairs.d.0.to_le_bytes());
    head[at + 2..at + 4].copy_from_slice(&pairs.dmin.0.to_le_bytes());
    pairs.d.0.is_finite() && pairs.dmin.0.is_finite()
}

struct PairSearch<'a> {
    x: &'a [f32],
    sub: usize,
    top: f32,
    /// The largest integer.
    bound: i32,
}

impl PairSearch<'_> {
    fn error(&self, pairs: &Pairs) -> f32 {
        let subs = self.x.chunks_exact(self.sub).enumerate();
        subs.map(|(i, x)| (x, pairs.affine(i)))
            .map(|(x, (scale, offset))| affine_error(x, scale, offset, self.top))
            .sum()
    }

    /// Rounds the sub-blocks' own best scales to integers, for some d and dmin near those that just reach the largest.
    fn start(&self, unit: Unit, best: &[(f32, f32)]) -> Pairs {
        let largest = best.iter().fold((0.0f32, 0.0f32), |a, b| (a.0.max(b.0), a.1.max(-b.1)));
        // Few integers leave much to choose from; with 63 the refinement finds as much.
        let tries = if self.bound < 32 { 5 } else { 1 };
        let ends = (0..tries).map(|i| self.bound as f32 - 0.5 * i as f32);
        let mut least = None;
        for (end, end_min) in ends.clone().flat_map(|a| ends.clone().map(move |b| (a, b))) {
            let mut pairs =
                Pairs { d: unit.half(largest.0 / end), dmin: unit.half(largest.1 / end_min), integers: [(0, 0); SUBS] };
            let integer = |v: f32| (nearest(v) as i32).clamp(0, self.bound);
            for (pair, best) in pairs.integers.iter_mut().zip(best) {
                *pair = (integer(best.0 * inverse(pairs.d.1)), integer(-best.1 * inverse(pairs.dmin.1)));
            }
            let error = if tries == 1 { 0.0 } else { self.error(&pairs) };
            if least.is_none_or(|(e, _)| error < e) {
                least = Some((error, pairs));
            }
        }
        least.expect("there is at least one candidate").1
    }

    /// Alternates between integers (the neighbours with the least error) and d, dmin (least squares).
    fn refine(&self, unit: Unit, start: Pairs) -> Pairs {
        let (mut best, mut least, mut now) = (start, f32::MAX, start);
        for _ in 0..3 {
            let mut error = 0.0;
            for (i, x) in self.x.chunks_exact(self.sub).enumerate() {
                let (chosen, e) = self.neighbour(x, &now, now.integers[i]);
                now.integers[i] = chosen;
                error += e;
            }
            if error >= least {
                break;
            }
            (best, least) = (now, error);
            let (d, dmin) = self.refit(&now);
            (now.d, now.dmin) = (unit.half(d), unit.half(dmin));
        }
        best
    }

    fn neighbour(&self, x: &[f32], pairs: &Pairs, (scale, min): (i32, i32)) -> ((i32, i32), f32) {
        let mut best = ((scale, min), f32::MAX);
        for (a, b) in (-1..=1).flat_map(|a| (-1..=1).map(move |b| (a, b))) {
            let pair = ((scale + a).clamp(0, self.bound), (min + b).clamp(0, self.bound));
            let (scale, offset) = pairs.of(pair);
            let error = affine_error(x, scale, offset, self.top);
            if error < best.1 {
                best = (pair, error);
            }
        }
        best
    }

    /// d and dmin >= 0 with the least sum (d * scale * code - dmin * min - x)^2 for the codes that there are.
    fn refit(&self, pairs: &Pairs) -> (f32, f32) {
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, x) in self.x.chunks_exact(self.sub).enumerate() {
            let (scale, offset) = pairs.affine(i);
            let inverse_scale = inverse(scale);
            let (integer, b) = (pairs.integers[i].0 as f32, pairs.integers[i].1 as f32);
            for &v in x {
                let a = integer * search::code(v, inverse_scale, offset, self.top);
                aa += a * a;
                ab += a * b;
                bb += b * b;
                ax += a * v;
                bx += b * v;
            }
        }
        if bb == 0.0 {
            return (ax * inverse(aa), pairs.dmin.1);
        }
        let determinant = aa * bb - ab * ab;
        let (d, dmin) = ((ax * bb - bx * ab) / determinant, (ax * ab - bx * aa) / determinant);
        if determinant > 0.0 && d >= 0.0 && dmin >= 0.0 { (d, dmin) } else { (pairs.d.1, pairs.dmin.1) }
    }
}
