// A logit and its slope, as the product with the head gives it.
fn logit(i: u32) -> vec2<f32> {
    return vec2<f32>(logits[i], 1.0);
}
