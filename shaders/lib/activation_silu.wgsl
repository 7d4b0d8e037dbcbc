import sigmoid

// silu(v) = v * sigmoid(v), and its slope
fn activation(v: f32) -> vec2<f32> {
    let s = sigmoid(v);
    // sigmoid(-v) rather than 1 - s, which cancels for large v.
    return vec2<f32>(v * s, s * (1.0 + v * sigmoid(-v)));
}
