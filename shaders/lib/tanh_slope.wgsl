// tanh(v) and its slope. Near 0 a polynomial: there 1 - e^-2v would cancel. The exponent is never positive.
fn tanh_slope(v: f32) -> vec2<f32> {
    let square = v * v;
    let near = v * (1.0 + square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488))));
    let e = exp(-2.0 * min(abs(v), 40.0));
    let far = sign(v) * (1.0 - e) / (1.0 + e);
    return vec2<f32>(select(far, near, square < 0.0625), 4.0 * e / ((1.0 + e) * (1.0 + e)));
}
