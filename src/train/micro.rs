//! The programs of a step: what is recorded for a micro-batch of one size, and for what follows from its gradients.

use super::{Objective, TrainConfig, allocation};
use crate::{
    DType, Error, Result,
    adapter::Optimizer,
    data::{Batch, IGNORE},
    gpu::{Gpu, Readback, Tensor},
    graph::{Graph, Pool, Program},
    kernels::{
        optimizer,
        preference::{self, Comparison},
    },
    model::{Inputs, LossValues, Model, PairValues, Ropes},
    nn::{Pass, StepValues},
    ops::tune::tuned,
};

/// What a program is recorded for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Rows {
    pub(super) batch: usize,
    pub(super) seq: usize,
    /// The loss of the model without its adapter alone.
    pub(super) reference: bool,
}

/// Device memory that every program reads or writes.
pub(super) struct Shared {
    /// For the longest rows.
    pub(super) ropes: Ropes,
    /// Seed and the micro-batch's number. [2] u32
    pub(super) seed: Tensor,
    /// [1] f32
    pub(super) accumulate: Tensor,
    /// [2] f32
    pub(super) scale: Tensor,
    /// Metrics at 0, what [`optimizer::grad_norm`] gives at [`NORM`], the metrics of the model without its adapter at [`REFERENCE`], AdaLoRA's
    /// term of the loss at [`TERM`]; one range so that one copy reads all. f32
    pub(super) results: Tensor,
    pub(super) readback: Readback,
}

/// Where the gradient norm lies in the results: 256 bytes on, the strictest alignment of a binding.
pub(super) const NORM: usize = 64;
/// Where those of the model without its adapter lie.
pub(super) const REFERENCE: usize = 128;
/// And a term that an adapter adds to the loss.
pub(super) const TERM: usize = 192;

/// Forward and backward over one micro-batch of one length.
pub(super) struct Micro {
    pub(super) inputs: Inputs,
    /// Where rows are pairs of answers.
    pub(super) pairs: Option<PairInputs>,
    pub(super) program: Program,
    /// Blocks that keep only their inputs.
    pub(super) checkpointed: usize,
}

/// The part of a memory limit that training leaves for what comes later: the pieces that long dispatches are cut into, and a model that
/// speaks before the trainer is gone.
const LEFT_OF_LIMIT: u64 = 16;

impl Micro {
    /// Records what `rows` ask for. Errors: Shape, OutOfMemory; Config for a reference of a model whose own weights are trained.
    pub(super) fn new(
        model: &Model,
        config: &TrainConfig,
        shared: &Shared,
        rows: Rows,
        pool: &mut Pool,
    ) -> Result<Micro> {
        let inputs = Inputs::new(model.gpu(), rows.batch, rows.seq)?;
        if rows.reference {
            let program = tuned(model.gpu(), || record_reference(model, shared, &inputs))?.plan().build(pool)?;
            return Ok(Micro { inputs, pairs: None, program, checkpointed: 0 });
        }
        let pairs = PairInputs::new(model.gpu(), config.objective, rows)?;
        let least = if config.gradient_checkpointing { model.blocks.len() } else { 0 };
        let record = |checkpointed| record(model, shared, &inputs, config.objective, pairs.as_ref(), checkpointed);
        let checkpointed = fewest_checkpointed(model, record, least, pool)?;
        let program = tuned(model.gpu(), || record(checkpointed))?.plan().build(pool)?;
        Ok(Micro { inputs, pairs, program, checkpointed })
    }

    /// Uploads a batch of its size with these shifted labels. Errors: Shape.
    pub(super) fn write(&self, batch: &Batch, labels: &[i32]) -> Result<()> {
        self.inputs.write(&batch.input_ids, &batch.position_ids, &batch.segment_ids, labels)
    }
}

/// What a loss over pairs of answers reads.
pub(super) struct PairInputs {
    /// 1 where a label is one of the answer. [tokens] f32
    pub(super) answer: Tensor,
    /// log p of each answer by the model without its adapter, where the objective compares with it. [1, rows] f32
    pub(super) reference: Option<Tensor>,
}

impl PairInputs {
    /// None for an objective of single rows. Errors: OutOfMemory.
    fn new(gpu: &Gpu, objective: Objective, rows: Rows) -> Result<Option<PairInputs>> {
        let reference = match objective {
            Objective::NextToken => return Ok(None),
            Objective::Dpo { .. } => Some(gpu.zeros("log p of the reference", [1, rows.batch], DType::F32)?),
            Objective::Orpo { .. } => None,
        };
        let answer = gpu.zeros("tokens of answers", [rows.batch * rows.seq], DType::F32)?;
        Ok(Some(PairInputs { answer, reference }))
    }
}

/// Pairs of a batch. Errors: Config where its rows are none.
pub(super) fn pairs_of(batch: &Batch) -> Result<usize> {
    match batch.batch % 2 {
        0 => Ok(batch.batch / 2),
        _ => Err(Error::config("batch", format!("expected pairs of rows, got {} rows", batch.batch))),
    }
}

/// Tokens that the preferred rows of pairs predict, those of their prompts with them.
pub(super) fn preferred_tokens(batch: &Batch, vocab: usize) -> usize {
    let rows = all_labels(batch, vocab);
    let preferred = rows.chunks(2 * batch.seq_len.max(1)).map(|pair| &pair[..batch.seq_len]);
    preferred.flatten().filter(|&&label| label != IGNORE).count()
}

/// What each token predicts, also within a prompt, but no virtual token, whose ids lie behind those of the vocabulary. [b, t]
pub(super) fn all_labels(batch: &Batch, vocab: usize) -> Vec<i32> {
    let token = |(&id, &shown): (&u32, &u8)| if shown != 0 && (id as usize) < vocab { id as i32 } else { IGNORE };
    let labels: Vec<i32> = batch.input_ids.iter().zip(&batch.attention_mask).map(token).collect();
    batch.shifted(&labels)
}

/// The fewest blocks, `least` or more, that must keep only their inputs for a program to leave a part of the device's limit free; all
/// where none suffice.
fn fewest_checkpointed(
    model: &Model,
    record: impl Fn(usize) -> Result<Graph>,
    least: usize,
    pool: &Pool,
) -> Result<usize> {
    let Some(limit) = model.gpu().memory_limit() else { return Ok(least) };
    let room = (limit - limit / LEFT_OF_LIMIT).saturating_sub(model.gpu().allocated_bytes());
    let (mut low, mut high) = (least, model.blocks.len());
    while low < high {
        let middle = (low + high) / 2;
        match record(middle)?.plan().growth(pool) <= room {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    Ok(high)
}

/// The loss of the model without its adapter, over rows of the size of `inputs`.
fn record_reference(model: &Model, shared: &Shared, inputs: &Inputs) -> Result<Graph> {
    let mut g = Graph::new(model.gpu());
    let cx = model.context(&mut g, inputs, &shared.ropes, Pass { step: None, base_only: true });
    let metrics = g.import(&shared.results.slice(REFERENCE, [4])?);
    let (scale, accumulate) = (g.import(&shared.scale), g.import(&shared.accumulate));
    let out = LossValues { scale: &scale, metrics: &metrics, accumulate: &accumulate, pairs: None };
    model.evaluate(&mut g, inputs, &cx, &out)?;
    Ok(g)
}

/// Forward, loss and backward over rows of the size of `inputs`.
fn record(
    model: &Model,
    shared: &Shared,
    inputs: &Inputs,
    objective: Objective,
    pairs: Option<&PairInputs>,
    checkpointed: usize,
) -> Result<Graph> {
    let mut g = Graph::new(model.gpu());
    let accumulate = g.import(&shared.accumulate);
    let step = StepValues { seed: Some(g.import(&shared.seed)), accumulate: accumulate.clone() };
    let cx = model.context(&mut g, inputs, &shared.ropes, Pass::training(step));
    let scale = g.import(&shared.scale);
    let sums = if pairs.is_some() { preference::METRICS } else { 4 };
    let metrics = g.import(&shared.results.slice(0, [sums])?);
    let answer = pairs.map(|pairs| g.import(&pairs.answer));
    let reference = pairs.and_then(|pairs| pairs.reference.as_ref()).map(|reference| g.import(reference));
    let comparison = match (objective, &reference) {
        (Objective::Dpo { beta }, Some(reference)) => Some(Comparison::Dpo { beta: beta as f32, reference }),
        (Objective::Orpo { beta }, _) => Some(Comparison::Orpo { beta: beta as f32 }),
        (Objective::NextToken | Objective::Dpo { .. }, _) => None,
    };
    let pairs = comparison.zip(answer.as_ref()).map(|(comparison, answer)| PairValues { comparison, answer });
    let out = LossValues { scale: &scale, metrics: &metrics, accumulate: &accumulate, pairs };
    model.train(&mut g, inputs, &cx, &out, checkpointed)?;
    if let Some(training) = model.store().chunks().iter().find_map(|chunk| chunk.training.as_ref()) {
        let grads = g.import(&training.grads);
        optimizer::spoil(&mut g, &metrics, &grads)?;
    }
    Ok(g)
}

/// An adapter's own term, clipping, AdamW, and what follows from new values. Errors: Shape, OutOfMemory.
pub(super) fn apply(model: &Model, optimizer: &Optimizer, shared: &Shared, pool: &mut Pool) -> Result<Program> {
    tuned(model.gpu(), || record_apply(model, optimizer, shared))?.plan().build(pool)
}

fn record_apply(model: &Model, optimizer: &Optimizer, shared: &Shared) -> Result<Graph> {
    let mut g = Graph::new(model.gpu());
    allocation::record_orthogonality(&mut g, model, &shared.results.slice(TERM, [1])?)?;
    let norm = g.import(&shared.results.slice(NORM, [3])?);
    optimizer.record_norm(&mut g, model.store(), &norm)?;
    optimizer.record(&mut g, model.store(), &norm)?;
    model.follow_values(&mut g)?;
    Ok(g)
}
