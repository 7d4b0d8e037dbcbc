//! Rounding to codes of a step, and how it depends on the step (LSQ, Esser et al. 2020).

/// Of q(x) = (clamp(round(x / step) + zero, low, high) - zero) · step: whether x lies between the ends, and dq / dstep, where
/// rounding itself has the slope 1. The code is that of f32, as rounding is defined; the slope is exact.
pub fn slope(x: f32, step: f32, zero: f32, (low, high): (f32, f32)) -> (bool, f64) {
    let rounded = (x * (1.0 / step)).round_ties_even();
    match rounded + zero {
        code if code < low => (false, f64::from(low - zero)),
        code if code > high => (false, f64::from(high - zero)),
        _ => (true, f64::from(rounded) - f64::from(x) / f64::from(step)),
    }
}

/// What the gradient of a step of `count` numbers is multiplied by: 1 / sqrt(count · the largest code).
pub fn factor(count: usize, largest: u32) -> f64 {
    1.0 / (count as f64 * f64::from(largest)).sqrt()
}
