import tanh_slope

// soft_cap * tanh(score / soft_cap) and its slope; both in base 2
fn capped(score: f32) -> vec2<f32> {
    let t = tanh_slope(score / params.soft_cap);
    return vec2<f32>(params.soft_cap * t.x, t.y);
}
