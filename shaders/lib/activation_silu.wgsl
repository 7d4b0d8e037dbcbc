import activated
import sigmoid

// silu(v) = v * sigmoid(v), and its slope
fn activation(v: Element) -> Activated {
    let s = sigmoid(v);
    // sigmoid(-v) rather than 1 - s, which cancels for large v.
    return Activated(v * s, s * (1.0 + v * sigmoid(-v)));
}
