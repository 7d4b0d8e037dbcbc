use crate::{
    reference::central_differences,
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    graph::Graph,
    kernels::preference::{Comparison, METRICS, Pairs, weigh},
};

/// A batch of pairs as the loss of each token, with prompts, answers and padding of any length.
struct Batch {
    seq: usize,
    losses: Vec<f32>,
    correct: Vec<f32>,
    labels: Vec<i32>,
    answer: Vec<f32>,
    reference: Vec<f32>,
}

impl Batch {
    /// by: what the loss of each token is spread over.
    fn new(pairs: usize, seq: usize, by: f32) -> Batch {
        let mut rng = Rng((pairs * seq) as u64);
        let tokens = 2 * pairs * seq;
        let mut batch = Batch {
            seq,
            losses: rng.normals(tokens).iter().map(|v| by * v.abs() + 0.01).collect(),
            correct: vec![0.0; tokens],
            labels: vec![-100; tokens],
            answer: vec![0.0; tokens],
            reference: Vec::new(),
        };
        for row in 0..2 * pairs {
            let prompt = (rng.bits() % (seq as u64 / 2)) as usize;
            let end = prompt + 1 + (rng.bits() % (seq - prompt) as u64) as usize;
            for t in 0..seq {
                let i = row * seq + t;
                if t >= end {
                    batch.losses[i] = 0.0;
                    continue;
                }
                batch.labels[i] = 7;
                batch.correct[i] = (rng.bits() % 2) as f32;
                batch.answer[i] = f32::from(u8::from(t >= prompt));
            }
            batch.reference.push(-by * (end - prompt) as f32 * 0.7);
        }
        batch
    }

    fn pairs(&self) -> usize {
        self.reference.len() / 2
    }

    fn sum(&self, row: usize, of: impl Fn(usize) -> f64) -> f64 {
        (row * self.seq..(row + 1) * self.seq).map(of).sum()
    }

    /// The loss of the step, from that of each token, with metrics as [`weigh`] sums them.
    fn loss(&self, dpo: bool, beta: f64, scale: [f64; 2], losses: &[f64]) -> (f64, [f64; METRICS]) {
        let (mut loss, mut m) = (0.0, [0.0; METRICS]);
        for p in 0..self.pairs() {
            let rows = [2 * p, 2 * p + 1];
            let log_p = rows.map(|row| -self.sum(row, |i| f64::from(self.answer[i]) * losses[i]));
            let tokens = rows.map(|row| self.sum(row, |i| f64::from(self.answer[i])));
            let all = self.sum(rows[0], |i| losses[i]);
            let count = self.sum(rows[0], |i| f64::from(u8::from(self.labels[i] >= 0)));
            let (q, margin) = if dpo {
                let rewards = [0, 1].map(|i| beta * (log_p[i] - f64::from(self.reference[rows[i]])));
                (m[4], m[5]) = (m[4] + rewards[0], m[5] + rewards[1]);
                (log_p, rewards[0] - rewards[1])
            } else {
                let q = [0, 1].map(|i| log_p[i] / tokens[i]);
                (m[4], m[5]) = (m[4] + beta * q[0], m[5] + beta * q[1]);
                let odds = q.map(|q| q - (1.0 - q.exp()).ln());
                (q, odds[0] - odds[1])
            };
            let log_sigmoid = -(-margin).exp().ln_1p();
            let of_pair = if dpo { -log_sigmoid } else { -beta * log_sigmoid };
            loss += scale[0] * of_pair + if dpo { 0.0 } else { scale[1] * all };
            let right = self.sum(rows[0], |i| f64::from(self.answer[i] * self.correct[i]));
            let better = if dpo { margin > 0.0 } else { q[0] > q[1] };
            let rest = [q[0], q[1], all, count, margin, log_sigmoid];
            for (at, value) in [of_pair, right, tokens[0], 1.0].into_iter().enumerate() {
                m[at] += value;
            }
            m[6] += f64::from(u8::from(better));
            for (at, value) in rest.into_iter().enumerate() {
                m[7 + at] += value;
            }
        }
        (loss, m)
    }
}

#[test]
fn shares_are_the_slopes_of_the_loss() {
    let Some(gpu) = gpu() else { return };
    let beta = 0.1f32;
    for (pairs, seq, by) in [(1, 2, 1.0), (2, 7, 0.3), (3, 300, 2.0), (1, 64, 40.0)] {
        let batch = Batch::new(pairs, seq, by);
        let tokens = 2 * pairs * seq;
        let both: Vec<f32> =
            batch.losses.iter().zip(&batch.correct).flat_map(|(&loss, &right)| [loss, right]).collect();
        let scale = [1.0 / 5.0f32, 1.0 / 77.0];
        for dpo in [true, false] {
            let mut g = Graph::new(&gpu);
            let mut floats =
                |shape: &[usize], values: &[f32]| g.import(&gpu.tensor("test", shape, DType::F32, values).unwrap());
            let (losses, answer) = (floats(&[tokens, 2], &both), floats(&[tokens], &batch.answer));
            let (reference, scales) = (floats(&[1, 2 * pairs], &batch.reference), floats(&[2], &scale));
            let metrics = floats(&[METRICS], &[f32::NAN; METRICS]);
            let [first, more] = [0.0, 1.0].map(|v| floats(&[1], &[v]));
            let labels = g.import(&gpu.tensor("labels", [tokens], DType::I32, &batch.labels).unwrap());
            let of = Pairs { labels: &labels, answer: &answer, losses: &losses, seq };
            let comparison = match dpo {
                true => Comparison::Dpo { beta, reference: &reference },
                false => Comparison::Orpo { beta },
            };
            let shares = weigh(&mut g, comparison, &of, &scales, &first, &metrics).unwrap();
            weigh(&mut g, comparison, &of, &scales, &more, &metrics).unwrap();
            g.keep(&shares);
            let program = g.run().unwrap();
            let got = program.read::<f32>(&shares).unwrap();
            let wide: Vec<f64> = batch.losses.iter().map(|&loss| loss.into()).collect();
            let scale = scale.map(f64::from);
            // Padding has no loss, so that a share of it changes nothing.
            let of_labels: Vec<f32> =
                got.iter().zip(&batch.labels).map(|(&share, &label)| if label < 0 { 0.0 } else { share }).collect();
            let masked = |x: &[f64]| -> Vec<f64> {
                x.iter().zip(&batch.labels).map(|(&x, &label)| if label < 0 { 0.0 } else { x }).collect()
            };
            let loss = |x: &[f64]| batch.loss(dpo, beta.into(), scale, &masked(x)).0;
            let slopes = central_differences(&wide, loss);
            let largest = slopes.iter().fold(0.0f64, |most, slope| most.max(slope.abs()));
            // f32 against slopes of f64 sums over hundreds of log-probabilities.
            assert_close(&format!("dpo {dpo} {pairs} x {seq}"), &of_labels, &slopes, 1e-4 * largest, 0.0);
            let (_, want) = batch.loss(dpo, beta.into(), scale, &wide);
            let got = program.read::<f32>(&metrics).unwrap();
            let want: Vec<f64> = want[..13].iter().map(|v| 2.0 * v).collect();
            assert_close("metrics", &got[..13], &want, 1e-5, 1e-4);
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let mut zeros = |shape: &[usize], dtype| g.import(&gpu.zeros("operand", shape, dtype).unwrap());
    let (labels, answer) = (zeros(&[12], DType::I32), zeros(&[12], DType::F32));
    let (losses, scale, one) = (zeros(&[12, 2], DType::F32), zeros(&[2], DType::F32), zeros(&[1], DType::F32));
    let (metrics, short) = (zeros(&[METRICS], DType::F32), zeros(&[1, 3], DType::F32));
    let of = |seq| Pairs { labels: &labels, answer: &answer, losses: &losses, seq };
    let orpo = Comparison::Orpo { beta: 0.1 };
    assert!(weigh(&mut g, orpo, &of(6), &scale, &one, &metrics).is_ok());
    // Rows that are no pairs, rows that do not fill the batch, other operands.
    for seq in [0, 4, 5, 12] {
        assert!(weigh(&mut g, orpo, &of(seq), &scale, &one, &metrics).is_err(), "{seq}");
    }
    assert!(weigh(&mut g, orpo, &of(6), &one, &one, &metrics).is_err());
    assert!(weigh(&mut g, orpo, &of(6), &scale, &one, &scale).is_err());
    let dpo = Comparison::Dpo { beta: 0.1, reference: &short };
    assert!(weigh(&mut g, dpo, &of(6), &scale, &one, &metrics).is_err());
}
