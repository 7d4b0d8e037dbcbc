/// transformers' default, linear and llama3 inverse frequencies, by its own case distinction.
pub fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f64 / head_dim as f64)).collect()
}

pub fn llama3(plain: &[f64], factor: f64, low: f64, high: f64, context: f64) -> Vec<f64> {
    let wavelength = |f: f64| 2.0 * std::f64::consts::PI / f;
    plain
        .iter()
        .map(|&f| {
            if wavelength(f) < context / high {
                f
            } else if wavelength(f) > context / low {
                f / factor
            } else {
                let smooth = (context / wavelength(f) - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        })
        .collect()
}

/// x: [rows, heads, head_dim]
pub fn rope(x: &[f64], positions: &[u32], frequencies: &[f64], heads: usize, sign: f64) -> Vec<f64> {
    partial_rope(x, positions, frequencies, heads, sign, 1.0)
}

/// As many features of a head as there are frequencies for turn, and are multiplied by `attention`. x: [rows, heads, head_dim]
pub fn partial_rope(
    x: &[f64],
    positions: &[u32],
    frequencies: &[f64],
    heads: usize,
    sign: f64,
    attention: f64,
) -> Vec<f64> {
    let (half, head_dim) = (frequencies.len(), x.len() / positions.len() / heads);
    let mut y = x.to_vec();
    for (r, p) in positions.iter().enumerate() {
        for h in 0..heads {
            for (i, f) in frequencies.iter().enumerate() {
                let (at, angle) = ((r * heads + h) * head_dim + i, sign * f64::from(*p) * f);
                let (c, s) = (attention * angle.cos(), attention * angle.sin());
                y[at] = x[at] * c - x[at + half] * s;
                y[at + half] = x[at + half] * c + x[at] * s;
            }
        }
    }
    y
}
