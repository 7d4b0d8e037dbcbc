/// One array under AdamW with constants (betas, eps, weight decay), as torch.optim.AdamW steps it.
pub struct AdamW {
    pub param: Vec<f64>,
    pub m: Vec<f64>,
    pub v: Vec<f64>,
}

impl AdamW {
    pub fn step(&mut self, grad: &[f64], t: i32, lr: f64, (b1, b2): (f64, f64), eps: f64, decay: f64) {
        for (i, g) in grad.iter().enumerate() {
            self.param[i] *= 1.0 - lr * decay;
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g * g;
            let denominator = self.v[i].sqrt() / (1.0 - b2.powi(t)).sqrt() + eps;
            self.param[i] -= lr / (1.0 - b1.powi(t)) * self.m[i] / denominator;
        }
    }
}

/// (norm, coefficient) of torch.nn.utils.clip_grad_norm_
pub fn clip<'a>(grads: impl Iterator<Item = &'a f64>, max_norm: f64) -> (f64, f64) {
    let norm = grads.map(|g| g * g).sum::<f64>().sqrt();
    (norm, if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 })
}
