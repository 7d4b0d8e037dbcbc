// factor * x and its slope
fn logit(i: u32) -> vec2<f32> {
    return vec2<f32>(params.factor * logits[i], params.factor);
}
