use fourbit::kernels::glu::Activation;
use std::f64::consts::PI;

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// Its value and its slope.
fn activation(kind: Activation, v: f64) -> (f64, f64) {
    match kind {
        Activation::Silu => {
            let s = sigmoid(v);
            (v * s, s * (1.0 + v * (1.0 - s)))
        }
        Activation::GeluTanh => {
            let u = (2.0 / PI).sqrt() * (v + 0.044715 * v.powi(3));
            let du = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * v * v);
            let slope = if u.abs() > 300.0 { 0.0 } else { du / u.cosh().powi(2) };
            (0.5 * v * (1.0 + u.tanh()), 0.5 * (1.0 + u.tanh()) + 0.5 * v * slope)
        }
    }
}

pub fn glu(kind: Activation, gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(&g, u)| activation(kind, g).0 * u).collect()
}

/// Returns (dgate, dup).
pub fn glu_backward(kind: Activation, dh: &[f64], gate: &[f64], up: &[f64]) -> (Vec<f64>, Vec<f64>) {
    (0..dh.len())
        .map(|i| {
            let (value, slope) = activation(kind, gate[i]);
            (dh[i] * up[i] * slope, dh[i] * value)
        })
        .unzip()
}
