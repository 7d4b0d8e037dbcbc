/// Returns (y, rstd).
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let rstd: Vec<f64> = x
        .chunks(w.len())
        .map(|row| 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / w.len() as f64 + eps).sqrt())
        .collect();
    let y = x.iter().enumerate().map(|(i, v)| v * rstd[i / w.len()] * w[i % w.len()]).collect();
    (y, rstd)
}

pub fn rms_norm_backward(dy: &[f64], x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let cols = w.len();
    let (_, rstd) = rms_norm(x, w, eps);
    let mut dx = Vec::new();
    for (r, rstd) in rstd.iter().enumerate() {
        let row = r * cols..(r + 1) * cols;
        let (x, dy) = (&x[row.clone()], &dy[row]);
        let mean = (0..cols).map(|c| dy[c] * w[c] * x[c]).sum::<f64>() / cols as f64;
        dx.extend((0..cols).map(|c| rstd * (dy[c] * w[c] - x[c] * rstd * rstd * mean)));
    }
    dx
}
