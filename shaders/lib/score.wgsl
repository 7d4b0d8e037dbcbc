// A score and its slope, as the product of query and key gives it.
fn capped(score: f32) -> vec2<f32> {
    return vec2<f32>(score, 1.0);
}
