//! Cross-entropy over chunks of rows, so that nobody holds the logits of all tokens.

use super::logits::LogitShape;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        cols: u32,
        row0: u32,
        rows: u32,
        factor: f32,
        soft_cap: f32,
    }
}

fn kernel(entry: &'static str, shape: LogitShape, share: &'static str) -> Kernel {
    let kernel = Kernel::new("loss", entry).with("LANES", 256).with("SIDE", 16);
    kernel.import("logits", shape.snippet()).import("share", share)
}

/// What the loss of each row counts for in that of the optimizer step.
#[derive(Clone, Copy, Debug)]
pub enum Share<'a> {
    /// The first of these numbers: 1 / predicted tokens of the step. [1 or more] f32
    All(&'a Value),
    /// A number for each row of labels. [rows] f32
    Each(&'a Value),
}

const ALL: &str = "share_all";
const EACH: &str = "share_each";

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let of = |shape| [kernel("gradient", shape, ALL), kernel("gradient", shape, EACH), kernel("evaluate", shape, ALL)];
    let mut all: Vec<Kernel> = LogitShape::KINDS.into_iter().flat_map(of).collect();
    all.push(kernel("sum_losses", LogitShape::PLAIN, ALL));
    all
}

fn check(op: &str, labels: &Value, losses: &Value) -> Result<usize> {
    let rows = labels.shape().len();
    if labels.dtype() != DType::I32 {
        return Err(Error::shape(op, "labels of I32", labels.dtype()));
    }
    losses.expect(op, &[rows, 2])?;
    Ok(rows)
}

fn chunk(
    op: &str,
    logits: &Value,
    shape: LogitShape,
    labels: &Value,
    row0: usize,
    losses: &Value,
) -> Result<(Params, usize)> {
    let rows = check(op, labels, losses)?;
    let (chunk, cols) = logits.rows_cols();
    if cols == 0 || row0.checked_add(chunk).is_none_or(|end| end > rows) {
        let got = format!("{} from row {row0}", logits.shape());
        return Err(Error::shape(op, format!("logits of rows within {rows}"), got));
    }
    let LogitShape { factor, soft_cap } = shape;
    let soft_cap = soft_cap.unwrap_or(0.0);
    Ok((Params { cols: cols as u32, row0: row0 as u32, rows: rows as u32, factor, soft_cap }, chunk))
}

/// losses\[row0 + r\] = (log Σ e^z\[r\] − z\[r, label\], 1 if the label's z is the first largest);
/// logits\[r\] ← (softmax(z\[r\]) − onehot(label)) · share · dz/dlogits, with z what `shape` makes of logits
///
/// logits: [chunk, vocabulary] f32, overwritten by dlogits; labels: [rows] i32, already shifted, ignored below 0 (−100 by
/// custom) or past the vocabulary: then loss, correct and dlogits are 0; row0: the row of labels that the chunk begins with;
/// losses: [rows, 2] f32, of which the chunk's rows are written. Errors: Shape.
pub fn cross_entropy(
    g: &mut Graph,
    logits: &Value,
    shape: LogitShape,
    labels: &Value,
    row0: usize,
    share: Share<'_>,
    losses: &Value,
) -> Result<()> {
    let op = "cross_entropy";
    let (params, chunk) = chunk(op, logits, shape, labels, row0, losses)?;
    let (snippet, share, least) = match share {
        Share::All(share) => (ALL, share, 1),
        Share::Each(share) => (EACH, share, labels.shape().len()),
    };
    if share.shape().len() < least {
        return Err(Error::shape(op, format!("{least} shares"), share.shape()));
    }
    let work = 40.0 * logits.shape().len() as f64;
    g.dispatch(kernel("gradient", shape, snippet), &params, &[labels, share, logits, losses], chunk, work)
}

/// [`cross_entropy`] without gradient: logits stay as they are. Errors: Shape.
pub fn cross_entropy_losses(
    g: &mut Graph,
    logits: &Value,
    shape: LogitShape,
    labels: &Value,
    row0: usize,
    losses: &Value,
) -> Result<()> {
    let (params, chunk) = chunk("cross_entropy_losses", logits, shape, labels, row0, losses)?;
    let work = 24.0 * logits.shape().len() as f64;
    g.dispatch(kernel("evaluate", shape, ALL), &params, &[labels, logits, losses], chunk, work)
}

/// metrics ← accumulate · metrics + (Σ losses, Σ correct, labels that are not ignored, 0)
///
/// losses: [rows, 2] f32 of [`cross_entropy`]; labels: [rows] i32; accumulate: [1] f32, 0 for the first micro-batch of an
/// optimizer step (what metrics held is not read then) and 1 for the others; metrics: [4] f32. In a fixed order.
/// Errors: Shape.
pub fn sum_losses(g: &mut Graph, losses: &Value, labels: &Value, accumulate: &Value, metrics: &Value) -> Result<()> {
    let rows = check("sum_losses", labels, losses)?;
    accumulate.expect("sum_losses", &[1])?;
    metrics.expect("sum_losses", &[4])?;
    let params = Params { cols: 0, row0: 0, rows: rows as u32, factor: 1.0, soft_cap: 0.0 };
    let work = 1000.0 + 12.0 * rows as f64;
    g.dispatch(kernel("sum_losses", LogitShape::PLAIN, ALL), &params, &[labels, losses, accumulate, metrics], 1, work)
}
