use fourbit::kernels::logits::LogitShape;

/// Of one row: (loss, whether the label's logit is the first largest, dlogits at scale 1). Label below 0: ignored.
pub fn cross_entropy(logits: &[f64], label: i32) -> (f64, bool, Vec<f64>) {
    let Ok(label) = usize::try_from(label) else { return (0.0, false, vec![0.0; logits.len()]) };
    let largest = logits.iter().fold(f64::MIN, |m, v| m.max(*v));
    let sum: f64 = logits.iter().map(|v| (v - largest).exp()).sum();
    let mut d: Vec<f64> = logits.iter().map(|v| (v - largest).exp() / sum).collect();
    d[label] -= 1.0;
    let first = logits.iter().position(|v| *v == largest);
    (sum.ln() + largest - logits[label], first == Some(label), d)
}

/// What a shape makes of a product with the head, and its slope.
pub fn shaped(shape: LogitShape, x: f64) -> (f64, f64) {
    let factor = f64::from(shape.factor);
    match shape.soft_cap.map(f64::from) {
        None => (factor * x, factor),
        Some(cap) => {
            let t = (factor * x / cap).tanh();
            (cap * t, factor * (1.0 - t * t))
        }
    }
}
