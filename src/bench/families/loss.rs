//! The ends of the model: embedding and head.

use super::distinct;
use crate::{
    DType, QuantizedTensor,
    arch::Architecture,
    bench::case::{Case, check_equal, check_some, kept, read},
    kernels::{
        embedding::{embed, embed_backward, embed_beyond},
        logits::{self, LogitShape},
        loss, preference, sample,
    },
    quant::Scheme,
};

/// Rows of logits that are worked on at once, as far as 32 MiB hold them.
fn chunk(vocab: usize) -> usize {
    ((32 << 20) / (4 * vocab)).clamp(1, 256)
}

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let mut all = vec![comparison()];
    for (vocab, width) in distinct(shapes, |shape| (shape.vocab_size, shape.hidden_size)) {
        all.extend([rows_of(vocab, width), rows_beyond(vocab, width), rows_added(vocab, width)]);
    }
    for vocab in distinct(shapes, |shape| shape.vocab_size) {
        all.extend([entropy(vocab), likeliest(vocab), capped(vocab)]);
    }
    all
}

fn rows_of(vocab: usize, width: usize) -> Case {
    let bytes = (1024 * width * 6) as f64;
    let mut case = Case::program(format!("embed/bf16/1024x{width}"), 0.0, move |inputs| {
        let table = QuantizedTensor::random(&inputs.gpu(), "bench", Scheme::BF16, [vocab, width], 1.0, 3)?;
        let id = move |i: usize| i * 7919 % vocab;
        let ids = inputs.words([1024], |i| id(i) as u32)?;
        let y = embed(&mut inputs.graph, &ids, &table, 1.0)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let values = table.download()?.dequantize();
            check_some(program, &y, 0.0, |row, col| f64::from(values[id(row) * width + col]))
        }))
    });
    case.bytes = Some(bytes);
    case
}

/// Virtual tokens in front of each of two rows, whose ids lie behind those of the vocabulary.
fn rows_beyond(vocab: usize, width: usize) -> Case {
    let (seq, count) = (512, 20);
    let mut case = Case::program(format!("embed-beyond/{count}x{width}"), 0.0, move |inputs| {
        let id = move |i: usize| if i % seq < count { vocab + i % seq } else { i % vocab };
        let ids = inputs.words([2 * seq], |i| id(i) as u32)?;
        let ((prompt, _), (x, xv)) = (inputs.floats([count, width])?, inputs.floats([2 * seq, width])?);
        let table = QuantizedTensor::of_floats("bench", &prompt)?;
        embed_beyond(&mut inputs.graph, &ids, vocab, &table, 2.0, &xv)?;
        let [before] = read([&x])?;
        Ok(Box::new(move |program: &_| {
            let [prompt] = read([&prompt])?;
            check_some(program, &xv, 0.0, |row, col| match id(row).checked_sub(vocab) {
                Some(own) => 2.0 * f64::from(prompt[own * width + col]),
                None => f64::from(before[row * width + col]),
            })
        }))
    });
    case.bytes = Some((2 * seq * 4 + 16 * count * width) as f64);
    case
}

/// The gradient of a table's first rows, some of which several tokens read.
fn rows_added(vocab: usize, width: usize) -> Case {
    let rows = vocab.min(4096);
    Case::program(format!("embed-backward/1024x{width}"), 0.0, move |inputs| {
        let id = move |i: usize| i * i % rows;
        let ids = inputs.words([1024], |i| id(i) as u32)?;
        let ((dx, dxv), (_, dtable)) = (inputs.floats([1024, width])?, inputs.floats([rows, width])?);
        let replace = inputs.given([1], &[0.0])?;
        embed_backward(&mut inputs.graph, &ids, 0, &dxv, 2.0, &dtable, Some(&replace))?;
        Ok(Box::new(move |program: &_| {
            let [dx] = read([&dx])?;
            check_some(program, &dtable, 1e-5, |row, col| {
                let tokens = (0..1024).filter(|&token| id(token) == row);
                2.0 * tokens.map(|token| f64::from(dx[token * width + col])).sum::<f64>()
            })
        }))
    })
}

/// The loss of each row, which depends on all its logits; they are overwritten by their gradients.
fn entropy(vocab: usize) -> Case {
    let rows = chunk(vocab);
    Case::program(format!("cross-entropy/{rows}x{vocab}"), 0.0, move |inputs| {
        let (z, zv) = inputs.spread([rows, vocab], 3.0)?;
        let z = z.read::<f32>()?;
        let label = move |row: usize| row * 31 % vocab;
        let labels = inputs.integers([rows], DType::I32, |row| label(row) as u32)?;
        let scale = inputs.given([1], &[1.0])?;
        let (_, losses) = inputs.floats([rows, 2])?;
        loss::cross_entropy(&mut inputs.graph, &zv, LogitShape::PLAIN, &labels, 0, loss::Share::All(&scale), &losses)?;
        Ok(Box::new(move |program: &_| {
            check_some(program, &losses, 1e-5, |row, col| {
                let z = &z[row * vocab..][..vocab];
                let (mut first, mut sum) = (0, 0.0);
                for (i, &v) in z.iter().enumerate() {
                    sum += f64::from(v).exp();
                    first = if v > z[first] { i } else { first };
                }
                if col == 0 { sum.ln() - f64::from(z[label(row)]) } else { f64::from(first == label(row)) }
            })
        }))
    })
}

/// What each token of pairs counts for, out of the losses of all.
fn comparison() -> Case {
    let (rows, seq, beta) = (4, 1024, 0.1f32);
    let tokens = rows * seq;
    let case = Case::program(format!("dpo/{rows}x{seq}"), 0.0, move |inputs| {
        let (losses, of_tokens) = inputs.floats([tokens, 2])?;
        let losses = losses.read::<f32>()?;
        let labels = inputs.integers([tokens], DType::I32, |_| 1)?;
        let answer = inputs.given([tokens], &vec![1.0; tokens])?;
        let reference = inputs.given([1, rows], &vec![0.0; rows])?;
        let (scale, gate) = (inputs.given([2], &[1.0, 1.0])?, inputs.given([1], &[0.0])?);
        let metrics = inputs.given([preference::METRICS], &[0.0; preference::METRICS])?;
        let pairs = preference::Pairs { labels: &labels, answer: &answer, losses: &of_tokens, seq };
        let dpo = preference::Comparison::Dpo { beta, reference: &reference };
        let shares = preference::weigh(&mut inputs.graph, dpo, &pairs, &scale, &gate, &metrics)?;
        let shares = kept(inputs, &shares);
        Ok(Box::new(move |program: &_| {
            check_some(program, &shares, 1e-4, |row, col| {
                let at = row.max(col) / seq;
                let sum = |row: usize| -> f64 { (row * seq..(row + 1) * seq).map(|t| f64::from(losses[2 * t])).sum() };
                let beta = f64::from(beta);
                let margin = beta * (sum(at / 2 * 2 + 1) - sum(at / 2 * 2));
                let rate = beta / (1.0 + margin.exp());
                if at.is_multiple_of(2) { rate } else { -rate }
            })
        }))
    });
    Case { bytes: Some((20 * tokens) as f64), ..case }
}

fn likeliest(vocab: usize) -> Case {
    Case::program(format!("argmax/1x{vocab}"), 0.0, move |inputs| {
        let (z, zv) = inputs.floats([1, vocab])?;
        let id = sample::argmax(&mut inputs.graph, &zv)?;
        let id = kept(inputs, &id);
        Ok(Box::new(move |program: &_| {
            let [z] = read([&z])?;
            let first = (0..vocab).fold(0, |first, i| if z[i] > z[first] { i } else { first });
            check_equal("argmax", program.read::<u32>(&id)?[0] as usize, first)
        }))
    })
}

/// A soft cap of all logits, in place.
fn capped(vocab: usize) -> Case {
    let rows = chunk(vocab);
    Case::program(format!("soft-cap/{rows}x{vocab}"), 0.0, move |inputs| {
        let (z, zv) = inputs.spread([rows, vocab], 40.0)?;
        let before = z.read::<f32>()?;
        logits::shape(&mut inputs.graph, &zv, LogitShape { factor: 1.0, soft_cap: Some(30.0) })?;
        Ok(Box::new(move |program: &_| {
            check_some(program, &zv, 1e-5, |row, col| 30.0 * (f64::from(before[row * vocab + col]) / 30.0).tanh())
        }))
    })
}
