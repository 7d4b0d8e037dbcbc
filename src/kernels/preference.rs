//! Learning from pairs of answers, of which one is preferred: what each token's loss counts for.

use super::expect;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        pairs: u32,
        seq: u32,
        beta: f32,
    }
}

/// Invocations of a workgroup.
const LANES: usize = 256;
/// Numbers in the metrics of [`weigh`].
pub const METRICS: usize = 16;

/// Snippets, one for each [`Comparison`].
const DPO: &str = "compare_dpo";
const ORPO: &str = "compare_orpo";

fn kernel(entry: &'static str, compare: &'static str) -> Kernel {
    Kernel::new("preference", entry).with("LANES", LANES as u32).with("SIDE", 16).import("compare", compare)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("weigh", DPO), kernel("weigh", ORPO), kernel("spread", ORPO)]
}

/// How pairs are compared.
#[derive(Clone, Copy, Debug)]
pub enum Comparison<'a> {
    /// −log σ(β · ((log p − ref)(chosen) − (log p − ref)(rejected))), with log p the sum over an answer's tokens (Rafailov et al. 2023).
    Dpo {
        /// β
        beta: f32,
        /// log p of each answer by the model that is not trained. [rows] f32
        reference: &'a Value,
    },
    /// −log p of all tokens of the chosen row, beside −β · log σ(odds(chosen) − odds(rejected)), with odds(q) = q − log(1 − e^q) and q
    /// the mean log p of an answer's tokens (Hong et al. 2024).
    Orpo {
        /// β, λ in the paper
        beta: f32,
    },
}

/// The tokens of pairs. Rows 2 p and 2 p + 1 are the chosen and the rejected answer of pair p, each behind its prompt.
pub struct Pairs<'a> {
    /// Shifted, not predicted below 0. [rows · seq] i32
    pub labels: &'a Value,
    /// 1 where the label is one of the answer, else 0. [rows · seq] f32
    pub answer: &'a Value,
    /// −log p of each label, and whether it was the likeliest: of [`super::loss::cross_entropy_losses`]. [rows · seq, 2] f32
    pub losses: &'a Value,
    /// Tokens of a row.
    pub seq: usize,
}

/// shares\[t\] = d(loss of the step) / d(−log p of token t), a number for each token, for [`super::loss::Share::Each`]
///
/// scale: [2] f32, 1 / pairs and 1 / predicted tokens of all chosen rows of the optimizer step; accumulate: [1] f32, 0 where `metrics`
/// is to be overwritten; metrics: [[`METRICS`]] f32, sums over the pairs: of the loss of the comparison, of the chosen answers' tokens
/// that were the likeliest and their number, of pairs, of the rewards β · (log p − ref) (ORPO: β · q) of chosen and rejected, of pairs
/// whose chosen reward is the larger, of log p (ORPO: q) of chosen and rejected, of −log p of all tokens of chosen rows and their
/// number, of the margins of rewards (ORPO: of log odds), of log σ of those. In a fixed order. Errors: Shape.
pub fn weigh(
    g: &mut Graph,
    comparison: Comparison<'_>,
    pairs: &Pairs<'_>,
    scale: &Value,
    accumulate: &Value,
    metrics: &Value,
) -> Result<Value> {
    let op = "weigh";
    let tokens = pairs.labels.shape().len();
    let rows = tokens / pairs.seq.max(1);
    if pairs.seq == 0 || rows * pairs.seq != tokens || rows % 2 != 0 || rows == 0 {
        return Err(Error::shape(op, format!("an even number of rows of {} tokens", pairs.seq), tokens));
    }
    pairs.losses.expect(op, &[tokens, 2])?;
    pairs.answer.expect(op, &[tokens])?;
    scale.expect(op, &[2])?;
    accumulate.expect(op, &[1])?;
    metrics.expect(op, &[METRICS])?;
    let rates = g.value([rows, 2], DType::F32)?;
    let shares = g.value([tokens], DType::F32)?;
    let Pairs { labels, answer, losses, seq } = *pairs;
    let (compare, beta, reference) = match comparison {
        Comparison::Dpo { beta, reference } => {
            expect(op, "reference", reference, [1, rows])?;
            (DPO, beta, Some(reference))
        }
        Comparison::Orpo { beta } => (ORPO, beta, None),
    };
    let params = Params { pairs: (rows / 2) as u32, seq: seq as u32, beta };
    let mut args = vec![labels, losses, answer];
    args.extend(reference);
    args.extend([scale, accumulate, &rates, metrics]);
    g.dispatch(kernel("weigh", compare), &params, &args, 1, 12.0 * tokens as f64)?;
    g.dispatch(
        kernel("spread", ORPO),
        &params,
        &[answer, &rates, &shares],
        tokens.div_ceil(LANES),
        2.0 * tokens as f64,
    )?;
    Ok(shares)
}
