import score

// The probability p and ds = p * (dp - delta) * slope, out of (base-2 score, dp = dO . v) and (lse, delta).
fn score_gradient(score: vec2<f32>, row: vec2<f32>, seen: bool) -> vec2<f32> {
    // Masked before the exponential: the lse of a row without keys would make it overflow.
    let z = capped(score.x);
    let p = exp2(select(-200.0, z.x - row.x * LOG2_E, seen));
    return select(vec2<f32>(0.0), vec2<f32>(p, p * (score.y - row.y) * z.y), seen);
}
