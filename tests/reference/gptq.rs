//! GPTQ by its definition: dense inverses and one column at a time.

/// What is asked for.
pub struct Task<'a> {
    /// [rows, cols]
    pub w: &'a [f64],
    /// [cols, cols]
    pub h: &'a [f64],
    pub cols: usize,
    pub group: usize,
    pub bits: u32,
    pub symmetric: bool,
    /// The numbers in -1..=1 that codes stand for, in any order, where they are no integers.
    pub table: Option<&'a [f32]>,
    /// Scales as f32 numbers, or as halves.
    pub half: bool,
    pub damping: f64,
    pub act_order: bool,
    pub static_groups: bool,
}

/// The values, and of each the distance (in steps) of what was rounded from the nearest tie, along with the place at which its
/// column was rounded.
pub struct Rounded {
    pub values: Vec<f64>,
    pub ties: Vec<f64>,
    pub place: Vec<usize>,
}

struct Pair {
    scale: f64,
    zero: f64,
    /// Distance of the zero point from a tie.
    tie: f64,
}

fn tie(x: f64) -> f64 {
    (x - x.floor() - 0.5).abs()
}

/// What `quant::affine` says of a range, in f64 but for the scale's own rounding.
fn pair(task: &Task, numbers: impl Iterator<Item = f64>) -> Pair {
    let (low, high) = numbers.fold((0.0f64, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
    if task.table.is_some() {
        return Pair { scale: f64::from((-low).max(high) as f32), zero: 0.0, tie: 0.5 };
    }
    let steps = f64::from((1u32 << task.bits) - 1);
    let range = if task.symmetric { (-low).max(high) * 2.0 } else { high - low };
    let scale = (range / steps).max(f64::from(f32::EPSILON));
    let scale = if task.half { half::f16::from_f64(scale).to_f64() } else { f64::from(scale as f32) };
    let middle = f64::from(1u32 << (task.bits - 1));
    match task.symmetric {
        true => Pair { scale, zero: middle, tie: 0.5 },
        false => Pair { scale, zero: (-low / scale).round_ties_even().clamp(0.0, steps), tie: tie(-low / scale) },
    }
}

/// A⁻¹ by elimination with the largest pivot.
fn inverse(a: &[f64], n: usize) -> Vec<f64> {
    let mut a = a.to_vec();
    let mut out: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
    for c in 0..n {
        let pivot = (c..n).max_by(|&i, &j| a[i * n + c].abs().total_cmp(&a[j * n + c].abs())).unwrap();
        for k in 0..n {
            a.swap(c * n + k, pivot * n + k);
            out.swap(c * n + k, pivot * n + k);
        }
        let d = a[c * n + c];
        for k in 0..n {
            a[c * n + k] /= d;
            out[c * n + k] /= d;
        }
        for r in (0..n).filter(|&r| r != c) {
            let f = a[r * n + c];
            for k in 0..n {
                a[r * n + k] -= f * a[c * n + k];
                out[r * n + k] -= f * out[c * n + k];
            }
        }
    }
    out
}

/// The nearest number of a table to x, and the distance of x from the nearest tie in parts of the gap that it lies in.
fn of_table(table: &[f32], x: f64) -> (f64, f64) {
    let mut sorted: Vec<f64> = table.iter().map(|&v| f64::from(v)).collect();
    sorted.sort_by(f64::total_cmp);
    let best = sorted.iter().copied().min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs())).unwrap();
    let gaps = sorted.windows(2).filter(|pair| pair[1] > pair[0]);
    let tie = gaps.map(|pair| (x - 0.5 * (pair[0] + pair[1])).abs() / (pair[1] - pair[0])).fold(0.5, f64::min);
    (best, tie)
}

pub fn gptq(task: &Task) -> Rounded {
    let n = task.cols;
    let rows = task.w.len() / n;
    let (mut h, mut w) = (task.h.to_vec(), task.w.to_vec());
    for c in 0..n {
        if h[c * n + c] == 0.0 {
            h[c * n + c] = 1.0;
            (0..rows).for_each(|r| w[r * n + c] = 0.0);
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    if task.act_order {
        order.sort_by(|&a, &b| h[b * n + b].total_cmp(&h[a * n + a]));
    }
    let mean = (0..n).map(|c| h[c * n + c]).sum::<f64>() / n as f64;
    (0..n).for_each(|c| h[c * n + c] += task.damping * mean);
    let permuted: Vec<f64> = (0..n * n).map(|k| h[order[k / n] * n + order[k % n]]).collect();
    let first = inverse(&permuted, n);
    let steps = f64::from((1u32 << task.bits) - 1);
    let mut out = Rounded { values: vec![0.0; w.len()], ties: vec![0.5; w.len()], place: vec![0; n] };
    for r in 0..rows {
        let row = &mut w[r * n..(r + 1) * n];
        let fixed: Vec<Pair> =
            (0..n / task.group).map(|b| pair(task, row[b * task.group..][..task.group].iter().copied())).collect();
        let mut moving: Option<Pair> = None;
        // The inverse of what is left of H, one column smaller each time.
        let mut inv = first.clone();
        for i in 0..n {
            let c = order[i];
            out.place[c] = i;
            let dynamic = !(task.act_order && task.static_groups);
            if dynamic && i % task.group == 0 {
                moving = Some(pair(task, order[i..i + task.group].iter().map(|&c| row[c])));
            }
            let p = if dynamic { moving.as_ref().unwrap() } else { &fixed[c / task.group] };
            let x = if p.scale > 0.0 { row[c] / p.scale } else { 0.0 };
            let (q, tie) = match task.table {
                Some(table) => of_table(table, x),
                None => ((x.round_ties_even() + p.zero).clamp(0.0, steps) - p.zero, tie(x).min(p.tie)),
            };
            let q = q * p.scale;
            out.values[r * n + c] = q;
            out.ties[r * n + c] = tie;
            let e = (row[c] - q) / inv[i * n + i];
            for j in i + 1..n {
                row[order[j]] -= e * inv[i * n + j];
            }
            let d = inv[i * n + i];
            let line: Vec<f64> = inv[i * n..(i + 1) * n].to_vec();
            for a in i + 1..n {
                for b in i + 1..n {
                    inv[a * n + b] -= line[a] * line[b] / d;
                }
            }
        }
    }
    out
}
