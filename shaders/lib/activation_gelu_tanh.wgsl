import activated
import sigmoid

// gelu(v) = v * (1 + tanh(u)) / 2 = v * sigmoid(2 u) with u = sqrt(2 / pi) * (v + 0.044715 v^3), and its slope
fn activation(v: Element) -> Activated {
    let square = v * v;
    let twice = 1.5957691216 * v * (1.0 + 0.044715 * square);
    let s = sigmoid(twice);
    let rate = 1.5957691216 * (1.0 + 0.134145 * square);
    return Activated(v * s, s * (1.0 + v * rate * sigmoid(-twice)));
}
