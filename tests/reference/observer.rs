//! Ranges for rounding, by looking at every number, and the entropy calibration written out as its description has it.

/// Counts of the magnitudes in `bins` equal parts of 0 to the largest.
pub fn histogram(x: &[f32], bins: usize) -> Vec<u32> {
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let inverse = if largest > 1e-30 { bins as f32 / largest } else { 0.0 };
    let mut counts = vec![0; bins];
    x.iter().for_each(|v| counts[((v.abs() * inverse) as usize).min(bins - 1)] += 1);
    counts
}

/// Σ (x - q(x))², q rounding to multiples of clip / levels and clipping at clip.
pub fn squared_error(x: &[f32], clip: f64, levels: f64) -> f64 {
    let step = clip / levels;
    let error = |v: f64| v - (v / step).round().clamp(-levels, levels) * step;
    x.iter().map(|v| error(f64::from(*v)).powi(2)).sum()
}

/// The divergence of each candidate: `kept` of the bins, from `levels` to all. P: those bins, with what lies beyond added to
/// the last one. Q: the bins put into `levels` equal ranges, and each range's sum spread evenly over those of its bins that
/// are not empty.
pub fn divergences(counts: &[f64], levels: usize) -> Vec<(usize, f64)> {
    let candidate = |kept: usize| {
        let mut p = counts[..kept].to_vec();
        p[kept - 1] += counts[kept..].iter().sum::<f64>();
        let mut sums = vec![0.0; levels];
        let mut filled = vec![0.0; levels];
        // The largest l with l * kept / levels <= b, by whole numbers.
        let level = |b: usize| ((b + 1) * levels - 1) / kept;
        for b in (0..kept).filter(|&b| counts[b] > 0.0) {
            sums[level(b)] += counts[b];
            filled[level(b)] += 1.0;
        }
        let q: Vec<f64> =
            (0..kept).map(|b| if counts[b] > 0.0 { sums[level(b)] / filled[level(b)] } else { 0.0 }).collect();
        let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
        let term = |(p, q): (&f64, &f64)| match (*p / sum_p, *q / sum_q) {
            (0.0, _) => 0.0,
            (_, 0.0) => f64::INFINITY,
            (p, q) => p * (p / q).ln(),
        };
        // 0 / 0 where nothing is inside.
        if sum_q == 0.0 { f64::INFINITY } else { p.iter().zip(&q).map(term).sum() }
    };
    (levels..=counts.len()).map(|kept| (kept, candidate(kept))).collect()
}
