import tanh_slope

// soft_cap * tanh(factor * x / soft_cap) and its slope
fn logit(i: u32) -> vec2<f32> {
    let t = tanh_slope(params.factor * logits[i] / params.soft_cap);
    return vec2<f32>(params.soft_cap * t.x, params.factor * t.y);
}
