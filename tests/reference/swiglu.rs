fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect()
}

/// Returns (dgate, dup).
pub fn swiglu_backward(dh: &[f64], gate: &[f64], up: &[f64]) -> (Vec<f64>, Vec<f64>) {
    (0..dh.len())
        .map(|i| {
            let s = sigmoid(gate[i]);
            (dh[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s)), dh[i] * gate[i] * s)
        })
        .unzip()
}
