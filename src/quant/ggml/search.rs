//! Scales that make the squared error of a block small.
//!
//! For given codes the best scale (and offset) follow from linear least squares; for a given scale the best codes are the
//! nearest ones. A search goes over candidate scales, refits each to the codes it gives, keeps the best, and alternates
//! the two steps from there (Lloyd 1982). Two-level scales are then chosen with the codes they lead to, the integers
//! one by one among neighbours, the f16 of the whole block by least squares.

use half::f16;

/// Steps from the best candidate; the error hardly falls after the second.
const ALTERNATIONS: usize = 2;

/// A power of two near a block's largest magnitude. Searches work on x / unit, whose squares neither overflow nor vanish.
#[derive(Clone, Copy)]
pub(super) struct Unit(f64);

impl Unit {
    /// The unit of a block, and the block in it; `None` where all numbers are zeros. x, out: of the same length.
    pub(super) fn of(x: &[f32], out: &mut [f32]) -> Option<Unit> {
        let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        if largest == 0.0 {
            return None;
        }
        let unit = f64::from(largest).log2().floor().exp2();
        out.iter_mut().zip(x).for_each(|(out, &v)| *out = (f64::from(v) / unit) as f32);
        Some(Unit(unit))
    }

    /// The f16 nearest to value * unit, never 0 where the value is not, and what it is in the unit.
    pub(super) fn half(self, value: f32) -> (f16, f32) {
        let exact = f64::from(value) * self.0;
        let mut half = f16::from_f64(exact);
        if half.to_f32() == 0.0 && value != 0.0 {
            half = if value < 0.0 { -f16::MIN_POSITIVE_SUBNORMAL } else { f16::MIN_POSITIVE_SUBNORMAL };
        }
        (half, (half.to_f64() / self.0) as f32)
    }
}

/// The nearest whole number, ties to even, for |v| < 2^22. `f32::round_ties_even` is a call on older processors.
pub(super) fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

/// 1 / v, and 0 for 0.
pub(super) fn inverse(v: f32) -> f32 {
    if v == 0.0 { 0.0 } else { 1.0 / v }
}

/// (x - offset) / scale to the nearest code 0..=top.
pub(super) fn code(x: f32, inverse_scale: f32, offset: f32, top: f32) -> f32 {
    nearest(((x - offset) * inverse_scale).clamp(0.0, top))
}

/// sum (scale * code + offset - x)^2 with the nearest codes.
pub(super) fn affine_error(x: &[f32], scale: f32, offset: f32, top: f32) -> f32 {
    let inverse_scale = inverse(scale);
    let error = |v: f32| scale * code(v, inverse_scale, offset, top) + offset - v;
    x.iter().map(|&v| error(v) * error(v)).sum()
}

/// The scale >= 0 and offset <= 0 that least squares gives for the codes of (`inverse_scale`, `offset`), and how much of
/// sum x^2 they leave, but for that constant.
fn refit_affine(x: &[f32], inverse_scale: f32, offset: f32, top: f32) -> (f32, f32, f32) {
    let (mut q1, mut q2, mut qx, mut x1) = (0.0, 0.0, 0.0, 0.0);
    for &v in x {
        let q = code(v, inverse_scale, offset, top);
        q1 += q;
        q2 += q * q;
        qx += q * v;
        x1 += v;
    }
    let n = x.len() as f32;
    let determinant = n * q2 - q1 * q1;
    let mut scale = (n * qx - x1 * q1) / determinant;
    let mut offset = (q2 * x1 - q1 * qx) / determinant;
    if determinant <= 0.0 || offset > 0.0 {
        (scale, offset) = (qx * inverse(q2), 0.0);
    }
    let scale = scale.max(0.0);
    let left = scale * (scale * q2 + 2.0 * offset * q1 - 2.0 * qx) + offset * (n * offset - 2.0 * x1);
    (scale, offset, left)
}

/// (scale >= 0, offset <= 0) with a small sum (scale * code + offset - x)^2 over codes 0..=top.
pub(super) fn affine(x: &[f32], top: f32) -> (f32, f32) {
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(f32::MIN, f32::max);
    if high <= low {
        // A constant below zero, or nothing but zeros.
        return (0.0, low);
    }
    let mut best = (0.0, low, f32::MAX);
    for step in -10..=10 {
        let fit = refit_affine(x, (top + 0.1 * step as f32) / (high - low), low, top);
        if fit.2 < best.2 {
            best = fit;
        }
    }
    for _ in 0..ALTERNATIONS {
        let fit = refit_affine(x, inverse(best.0), best.1, top);
        if fit.2 < best.2 {
            best = fit;
        }
    }
    (best.0, best.1)
}

/// sum (scale * level - x)^2 with the nearest levels.
pub(super) fn symmetric_error(x: &[f32], scale: f32, level: impl Fn(f32) -> f32) -> f32 {
    let inverse_scale = inverse(scale);
    let error = |v: f32| scale * level(v * inverse_scale) - v;
    x.iter().map(|&v| error(v) * error(v)).sum()
}

/// A scale of either sign with a small sum (scale * level - x)^2, where `level` rounds x / scale to a level.
///
/// Candidates bring the x of largest magnitude to `aims`, levels at the two ends of the range.
pub(super) fn symmetric(x: &[f32], aims: impl Iterator<Item = f32>, level: impl Fn(f32) -> f32) -> f32 {
    let extreme = x.iter().fold(0.0f32, |e, &v| if v.abs() > e.abs() { v } else { e });
    if extreme == 0.0 {
        return 0.0;
    }
    // (scale, share of sum x^2 that it explains)
    let refit = |inverse_scale: f32| {
        let (mut q2, mut qx) = (0.0, 0.0);
        for &v in x {
            let q = level(v * inverse_scale);
            q2 += q * q;
            qx += q * v;
        }
        (qx * inverse(q2), qx * qx * inverse(q2))
    };
    let mut best = (0.0, f32::MIN);
    let mut keep = |fit: (f32, f32)| {
        if fit.1 > best.1 {
            best = fit;
        }
        best.0
    };
    let mut scale = 0.0;
    for aim in aims {
        scale = keep(refit(aim / extreme));
    }
    for _ in 0..ALTERNATIONS {
        scale = keep(refit(inverse(scale)));
    }
    scale
}

/// Two-level scales: d (an f16) for the block, and an integer -bound..bound for each sub-block.
pub(super) struct Levels {
    pub d: f16,
    /// d in the block's unit.
    pub step: f32,
    pub integers: [i32; super::SUBS],
}

/// Chooses two-level scales for sub-blocks of `sub` elements whose own best scales are `scales`.
pub(super) fn two_levels(
    x: &[f32],
    sub: usize,
    unit: Unit,
    scales: &[f32],
    bound: i32,
    level: impl Fn(f32) -> f32 + Copy,
) -> Levels {
    let largest = scales.iter().fold(0.0f32, |e, &v| if v.abs() > e.abs() { v } else { e });
    // The negative end of the integers reaches one further.
    let (d, step) = unit.half(largest / -(bound as f32));
    let mut best = Levels { d, step, integers: [0; super::SUBS] };
    let mut integers = best.integers;
    integers.iter_mut().zip(scales).for_each(|(l, s)| *l = (s * inverse(step)) as i32);
    let (mut now, mut least) = ((d, step), f32::MAX);
    for _ in 0..=ALTERNATIONS {
        let (mut error, mut products, mut squares) = (0.0, 0.0, 0.0);
        for (x, l) in x.chunks_exact(sub).zip(&mut integers) {
            let near = |l: i32| l.clamp(-bound, bound - 1);
            let candidates =
                [near(*l - 1), near(*l), near(*l + 1)].map(|l| (symmetric_error(x, now.1 * l as f32, level), l));
            let chosen = candidates.into_iter().fold((f32::MAX, 0), |a, b| if b.0 < a.0 { b } else { a });
            error += chosen.0;
            *l = chosen.1;
            let inverse_scale = inverse(now.1 * *l as f32);
            for &v in x {
                let q = *l as f32 * level(v * inverse_scale);
                products += q * v;
                squares += q * q;
            }
        }
        if error >= least {
            break;
        }
        least = error;
        best = Levels { d: now.0, step: now.1, integers };
        now = unit.half(products * inverse(squares));
    }
    best
}
