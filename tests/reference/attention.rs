use fourbit::data::MASKED;

/// Sizes and mask of a case; `segments` is [batch, seq].
#[derive(Clone)]
pub struct Case {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f64,
    pub soft_cap: Option<f64>,
    pub window: Option<usize>,
    pub segments: Vec<u32>,
}

impl Case {
    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let segment = |t: usize| self.segments[b * self.seq + t];
        j <= i && self.window.is_none_or(|w| i - j < w) && segment(i) & !MASKED == segment(j) && segment(j) != 0
    }

    fn q_at(&self, b: usize, i: usize, h: usize) -> usize {
        ((b * self.seq + i) * self.heads + h) * self.head_dim
    }

    fn k_at(&self, b: usize, j: usize, h: usize) -> usize {
        let shared = self.heads / self.kv_heads;
        ((b * self.seq + j) * self.kv_heads + h / shared) * self.head_dim
    }

    /// Every (sequence, query, head) with the keys it sees and their probabilities, and the log-sum-exp.
    fn rows(&self, q: &[f64], k: &[f64]) -> Vec<Row> {
        let mut rows = Vec::new();
        for b in 0..self.batch {
            for i in 0..self.seq {
                for h in 0..self.heads {
                    let at = self.q_at(b, i, h);
                    let keys: Vec<usize> =
                        (0..self.seq).filter(|&j| self.sees(b, i, j)).map(|j| self.k_at(b, j, h)).collect();
                    let score =
                        |&key: &usize| (0..self.head_dim).map(|d| q[at + d] * k[key + d]).sum::<f64>() * self.scale;
                    let capped = |score: f64| match self.soft_cap {
                        None => (score, 1.0),
                        Some(cap) => (cap * (score / cap).tanh(), 1.0 - (score / cap).tanh().powi(2)),
                    };
                    let (scores, slopes): (Vec<f64>, Vec<f64>) = keys.iter().map(score).map(capped).unzip();
                    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                    let lse = top + sum.ln();
                    let p = scores.iter().map(|s| (s - lse).exp()).collect();
                    rows.push(Row { at, keys, p, slopes, lse: (!scores.is_empty()).then_some(lse) });
                }
            }
        }
        rows
    }
}

struct Row {
    at: usize,
    keys: Vec<usize>,
    p: Vec<f64>,
    /// Of the scores' soft cap.
    slopes: Vec<f64>,
    lse: Option<f64>,
}

/// o, and the log-sum-exp of each [token, head] that sees a key.
pub fn attention(c: &Case, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<Option<f64>>) {
    let mut o = vec![0.0; q.len()];
    let rows = c.rows(q, k);
    for row in &rows {
        for (key, p) in row.keys.iter().zip(&row.p) {
            for d in 0..c.head_dim {
                o[row.at + d] += p * v[key + d];
            }
        }
    }
    (o, rows.iter().map(|r| r.lse).collect())
}

/// dq, dk, dv
pub fn attention_backward(c: &Case, d_o: &[f64], q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for row in c.rows(q, k) {
        let dp: Vec<f64> =
            row.keys.iter().map(|key| (0..c.head_dim).map(|d| d_o[row.at + d] * v[key + d]).sum()).collect();
        let mean: f64 = dp.iter().zip(&row.p).map(|(dp, p)| dp * p).sum();
        for (((key, p), dp), slope) in row.keys.iter().zip(&row.p).zip(&dp).zip(&row.slopes) {
            let ds = p * (dp - mean) * slope * c.scale;
            for d in 0..c.head_dim {
                dq[row.at + d] += ds * k[key + d];
                dk[key + d] += ds * q[row.at + d];
                dv[key + d] += p * d_o[row.at + d];
            }
        }
    }
    (dq, dk, dv)
}
