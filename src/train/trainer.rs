//! The training step: one program per length, the optimizer, and what comes back.

use super::{
    Objective, OneProcess, PreferenceMetrics, Reduce, StepMetrics, TrainConfig,
    allocation::Allocation,
    micro::{self, Micro, NORM, REFERENCE, Rows, Shared, TERM},
};
use crate::{
    DType, Error, Result,
    adapter::{Optimizer, PeftConfig},
    data::{Batch, IGNORE},
    graph::{Graph, KernelTime, Program, Programs},
    kernels::{optimizer::AdamW, preference},
    model::{BUCKET, Model},
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::{Borrow, Cow},
    collections::{BTreeMap, HashMap},
    time::Instant,
};

/// Trains what is attached to a model: an adapter, or its weights through rounding.
///
/// It owns, shares or borrows the model: `M` is [`Model`], `Arc<Model>` or `&Model`; a [`Generator`](crate::generate::Generator) that
/// shares it speaks as it is after the last step.
///
/// ```no_run
/// # use fourbit::{gpu::Gpu, model::{Model, LoadOptions}, adapter::LoraConfig, train::{Trainer, TrainConfig}};
/// # fn run(batches: Vec<fourbit::data::Batch>) -> fourbit::Result<()> {
/// let gpu = Gpu::new()?;
/// let mut model = Model::load(&gpu, "model", &LoadOptions::default())?;
/// model.add_adapter(LoraConfig::default(), true)?;
/// let mut trainer = Trainer::new(model, TrainConfig { max_steps: batches.len(), ..TrainConfig::default() })?;
/// for batch in batches {
///     println!("{}", trainer.step(&[batch])?.loss);
/// }
/// # Ok(()) }
/// ```
pub struct Trainer<M = Model> {
    model: M,
    config: TrainConfig,
    shared: Shared,
    /// By batch and sequence length.
    programs: Programs<Rows, Micro>,
    /// log p of both answers by the model without its adapter, by the pair's number, once they are known.
    references: HashMap<u32, [f32; 2]>,
    optimizer: Optimizer,
    /// An adapter's own term, clipping, AdamW, and what follows from new values.
    apply: Program,
    reduce: Box<dyn Reduce>,
    /// AdaLoRA's, where that is what is trained.
    allocation: Option<Allocation>,
    taken: Taken,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Optimizer steps, those that were left out with them.
    pub(super) steps: usize,
    /// Tokens read, padding left out.
    pub(super) tokens: u64,
    /// Steps that were left out.
    pub(super) skipped: usize,
    /// Those of them since the last one that was not.
    pub(super) skipped_in_a_row: usize,
}

impl<M: Borrow<Model>> Trainer<M> {
    /// A trainer for what the model has to train, with memory for the longest rows reserved. Errors: Config, OutOfMemory, Shape.
    pub fn new(owner: M, config: TrainConfig) -> Result<Trainer<M>> {
        config.validate()?;
        let model: &Model = owner.borrow();
        let gpu = model.gpu().clone();
        if !model.store().is_trainable() {
            let message =
                "the model has no trainable adapter; attach one with add_adapter, or begin with add_qat or add_full";
            return Err(Error::config("adapter", message));
        }
        if model.qat().is_some_and(|qat| !qat.observed) && !gpu.is_dry() {
            return Err(Error::config("activations", "their scales are not known yet; call observe_inputs first"));
        }
        if matches!(config.objective, Objective::Dpo { .. }) && (model.full().is_some() || model.qat().is_some()) {
            let message = "dpo compares with the model without its adapter, and here weights themselves are trained; orpo compares with none";
            return Err(Error::config("objective", message));
        }
        let dropout = model.arch.attention_dropout();
        if dropout != 0.0 && !gpu.is_dry() {
            log::warn!(
                "attention_dropout is {dropout} in config.json: transformers drops that share of the attention weights in \
                 training, here none is dropped; lora_dropout drops inputs of the adapter"
            );
        }
        if let Some(PeftConfig::AdaLora(ada)) = model.adapter()
            && ada.total_step != config.max_steps
            && !gpu.is_dry()
        {
            let (total, steps) = (ada.total_step, config.max_steps);
            log::warn!(
                "AdaLoRA's ranks are allocated for a run of {total} steps (total_step), and this one has {steps}"
            );
        }
        let (prompt, longest) = (model.virtual_tokens().len(), model.arch.max_positions);
        if config.max_seq_length.saturating_add(prompt) > longest {
            let with = if prompt > 0 { format!(" with {prompt} virtual tokens") } else { String::new() };
            let message = format!("{}{with} is more than the model's {longest} positions", config.max_seq_length);
            return Err(Error::config("max_seq_length", message));
        }
        let f32s = |what: &str, len: usize| gpu.zeros(what, [len], DType::F32);
        let shared = Shared {
            ropes: model.rope_tables(config.max_seq_length + prompt)?,
            seed: gpu.zeros("seed and step", [2], DType::U32)?,
            accumulate: f32s("accumulation flag", 1)?,
            scale: f32s("loss scale", 2)?,
            results: f32s("results", TERM + 1)?,
            readback: gpu.readback(4 * (TERM + 1) as u64)?,
        };
        // Values may have been written since the adapter was attached.
        model.renew_norms()?;
        let optimizer = Optimizer::new(&gpu, model.store())?;
        let mut programs = Programs::default();
        let apply = micro::apply(model, &optimizer, &shared, programs.pool())?;
        let allocation = Allocation::new(model, &shared.results.slice(NORM, [3])?, programs.pool())?;
        let mut trainer = Trainer {
            model: owner,
            config,
            shared,
            programs,
            references: HashMap::new(),
            optimizer,
            apply,
            reduce: Box::new(OneProcess),
            allocation,
            taken: Taken::default(),
        };
        trainer.record_longest()?;
        Ok(trainer)
    }

    /// The largest program first: all shorter ones then fit into its memory.
    fn record_longest(&mut self) -> Result<()> {
        let tokens = self.config.max_seq_length + self.model().virtual_tokens().len();
        let longest = tokens.next_multiple_of(BUCKET);
        let batch = self.config.batch_size * self.config.objective.rows();
        self.program(Rows { batch, seq: longest, reference: false }).map(|_| ())
    }

    /// The same as one of several processes that train together.
    pub fn reducing(self, reduce: impl Reduce + 'static) -> Trainer<M> {
        Trainer { reduce: Box::new(reduce), ..self }
    }

    /// The model with its adapter.
    pub fn model(&self) -> &Model {
        self.model.borrow()
    }

    /// The options.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Gives the model back and frees what only training needs.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Optimizer steps taken, those that were left out with them.
    pub fn steps(&self) -> usize {
        self.taken.steps
    }

    /// Steps that were left out because their loss or gradient was not finite.
    pub fn skipped(&self) -> usize {
        self.taken.skipped
    }

    /// Tokens read, padding left out.
    pub fn tokens(&self) -> u64 {
        self.taken.tokens
    }

    /// How far it is.
    pub(super) fn taken(&self) -> Taken {
        self.taken
    }

    /// Goes on from there, with the values and moments that the store has now, and with these choices among kernels. Errors: Device;
    /// Config for a choice that this device does not have.
    pub(super) fn go_on(&mut self, taken: Taken, choices: &BTreeMap<String, String>) -> Result<()> {
        if self.model().gpu().choices().replace(choices) {
            self.programs.forget();
            let Trainer { model, optimizer, shared, programs, .. } = self;
            self.apply = micro::apply((*model).borrow(), optimizer, shared, programs.pool())?;
            self.record_longest()?;
        }
        let mut g = Graph::new(self.model().gpu());
        self.model().follow_values(&mut g)?;
        if !g.is_empty() {
            g.run()?;
        }
        self.taken = taken;
        Ok(())
    }

    /// Bytes of activations, shared by all programs.
    pub fn activation_bytes(&self) -> u64 {
        self.programs.bytes()
    }

    /// How many blocks keep only their inputs in the longest rows, and are computed again in the backward pass: all with
    /// `gradient_checkpointing`; else, where the device's memory has a limit, the fewest with which a sixteenth of it stays free, all
    /// where none suffice; else none. It changes no number.
    pub fn checkpointed_blocks(&self) -> usize {
        self.programs.iter().map(|micro| micro.checkpointed).max().unwrap_or(0)
    }

    /// Most dispatches of a micro-batch so far, and those of the optimizer.
    pub fn dispatches(&self) -> (usize, usize) {
        let most = self.programs.iter().map(|m| m.program.len().0).max().unwrap_or(0);
        (most, self.apply.len().0)
    }

    /// One optimizer step over micro-batches: forward, backward, clipping, AdamW.
    ///
    /// A step whose loss or gradient is not finite changes nothing: the device finds it before AdamW writes. It is left out of
    /// AdamW's count of steps, but not of the schedule, and told; more than [`TrainConfig::max_bad_steps`] in a row are an error,
    /// after which all values are those before the first of them. A step that is interrupted changes nothing and does not count.
    /// Errors: Config for an empty step, for one past `max_steps` and for batches that contradict themselves, Shape for rows that are
    /// too long, Diverged, Interrupted, Device, DeviceLost.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepMetrics> {
        self.take(batches, |program| program.run())
    }

    /// One step as [`Trainer::step`] takes it, with the time of each kernel. Errors: those of [`Trainer::step`].
    pub fn profile(&mut self, batches: &[Batch]) -> Result<(StepMetrics, Vec<KernelTime>)> {
        let mut times = Vec::new();
        let metrics = self.take(batches, |program| {
            times.extend(program.profile()?);
            Ok(())
        })?;
        Ok((metrics, KernelTime::sum(times)))
    }

    /// A step whose programs `run` runs: gradients of all micro-batches summed in the store's arrays, those of all processes, and
    /// what follows from them.
    fn take(&mut self, batches: &[Batch], mut run: impl FnMut(&mut Program) -> Result<()>) -> Result<StepMetrics> {
        let start = Instant::now();
        let (read, learning_rate) = self.begin(batches)?;
        for (index, (batch, read)) in batches.iter().zip(&read).enumerate() {
            let reference = self.reference(batch)?;
            let micro = self.micro(index, read)?;
            if let Some(values) = micro.pairs.as_ref().and_then(|pairs| pairs.reference.as_ref()) {
                values.write(bytemuck::cast_slice(&reference))?;
            }
            run(&mut micro.program)?;
        }
        self.reduce()?;
        // Values are stepped all or none.
        let cancel = self.model().gpu().cancel().clone();
        cancel.shield(|| {
            run(&mut self.apply)?;
            self.finish(batches, learning_rate, start, &mut run)
        })
    }

    /// The gradients of all processes, in the place of this one's.
    fn reduce(&mut self) -> Result<()> {
        let Trainer { model, reduce, .. } = self;
        let model: &Model = (*model).borrow();
        let training = model.store().chunks().iter().filter_map(|chunk| chunk.training.as_ref());
        reduce.gradients(&training.map(|training| &training.grads).collect::<Vec<_>>())
    }

    /// The batches as the model reads them, behind its virtual tokens where it has some; and the learning rate.
    fn begin<'b>(&mut self, batches: &'b [Batch]) -> Result<(Vec<Cow<'b, Batch>>, f64)> {
        let (step, steps) = (self.taken.steps + 1, self.config.max_steps);
        if step > steps {
            let message = format!("step {step} is past the {steps} of the run, where the learning rate has ended");
            return Err(Error::config("max_steps", message));
        }
        let (vocab, positions) = (self.model().arch.vocab_size, self.config.max_seq_length);
        for batch in batches {
            if batch.seq_len > positions {
                let expected = format!("rows of at most {positions} tokens (`max_seq_length`)");
                return Err(Error::shape("training step", expected, batch.seq_len));
            }
            batch.check(vocab, positions)?;
        }
        let prompt = self.model().virtual_tokens();
        let read: Vec<Cow<'b, Batch>> =
            batches.iter().map(|batch| batch.behind(prompt.clone())).collect::<Result<_>>()?;
        let predicted: usize = read.iter().map(|batch| batch.predicted()).sum();
        let predicted = self.reduce.count(predicted)?;
        if predicted == 0 {
            return Err(Error::config("step", "the batches predict no token: every label is -100"));
        }
        let objective = self.config.objective;
        let scale = match objective.is_of_pairs() {
            false => [1.0 / predicted as f32, 0.0],
            true => {
                let pairs: usize = batches.iter().map(micro::pairs_of).sum::<Result<usize>>()?;
                // ORPO alone learns them.
                let tokens: usize = match objective {
                    Objective::NextToken | Objective::Dpo { .. } => 0,
                    Objective::Orpo { .. } => read.iter().map(|batch| micro::preferred_tokens(batch, vocab)).sum(),
                };
                let [pairs, tokens] = [self.reduce.count(pairs)?, self.reduce.count(tokens)?];
                [1.0 / pairs as f32, 1.0 / tokens.max(1) as f32]
            }
        };
        let c = &self.config;
        let learning_rate = c.learning_rate * c.lr_scheduler_type.factor(self.taken.steps, c.warmup_steps, c.max_steps);
        let adamw = AdamW { betas: c.betas, eps: c.eps, weight_decay: c.weight_decay, max_grad_norm: c.max_grad_norm };
        self.optimizer.set(&adamw, learning_rate, (self.taken.steps - self.taken.skipped) as u64 + 1)?;
        self.shared.scale.write(bytemuck::cast_slice(&scale))?;
        Ok((read, learning_rate))
    }

    /// Uploads one micro-batch and returns its program.
    fn micro(&mut self, index: usize, batch: &Batch) -> Result<&mut Micro> {
        // Each micro-batch draws its own masks.
        let draw = (self.taken.steps * self.config.gradient_accumulation_steps + index) as u32;
        self.shared.seed.write(bytemuck::cast_slice(&[self.config.seed as u32, draw]))?;
        self.shared.accumulate.write(bytemuck::cast_slice(&[if index == 0 { 0.0f32 } else { 1.0 }]))?;
        // As long as its longest row, or the longest text in one of several.
        self.shared.ropes.fit(batch.position_ids.iter().max().map_or(0, |&last| last as usize + 1))?;
        let seq = batch.seq_len.next_multiple_of(BUCKET);
        let batch = batch.padded_to(seq, 0)?;
        let (objective, vocab) = (self.config.objective, self.model().arch.vocab_size);
        let micro = self.program(Rows { batch: batch.batch, seq, reference: false })?;
        let labels = batch.shifted_labels();
        let Some(pairs) = &micro.pairs else {
            micro.write(&batch, &labels)?;
            return Ok(micro);
        };
        let of_answer = |&label: &i32| if label == IGNORE { 0.0f32 } else { 1.0 };
        pairs.answer.write(bytemuck::cast_slice(&labels.iter().map(of_answer).collect::<Vec<f32>>()))?;
        match objective {
            Objective::NextToken | Objective::Dpo { .. } => micro.write(&batch, &labels)?,
            Objective::Orpo { .. } => micro.write(&batch, &micro::all_labels(&batch, vocab))?,
        }
        Ok(micro)
    }

    fn finish(
        &mut self,
        batches: &[Batch],
        learning_rate: f64,
        start: Instant,
        run: &mut impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<StepMetrics> {
        let mut results: Vec<f32> = self.shared.readback.fetch(&self.shared.results)?;
        let objective = self.config.objective;
        self.reduce.metrics(&mut results[..if objective.is_of_pairs() { preference::METRICS } else { 3 }])?;
        let tokens: usize = batches.iter().map(Batch::tokens).sum();
        self.taken.steps += 1;
        self.taken.tokens += tokens as u64;
        let (loss, accuracy, preference) = match objective {
            Objective::NextToken => {
                let count = f64::from(results[2]).max(1.0);
                (f64::from(results[0]) / count, f64::from(results[1]) / count, None)
            }
            Objective::Dpo { .. } | Objective::Orpo { .. } => {
                let (loss, accuracy, metrics) = PreferenceMetrics::of(objective, &results);
                (loss, accuracy, Some(metrics))
            }
        };
        let metrics = StepMetrics {
            step: self.taken.steps,
            loss: loss + f64::from(results[TERM]),
            grad_norm: f64::from(results[NORM]),
            learning_rate,
            epoch: batches.last().map_or(0.0, |batch| batch.epoch),
            num_tokens: self.taken.tokens,
            mean_token_accuracy: accuracy,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
            peak_bytes: self.model().gpu().peak_bytes(),
            preference,
        };
        // As the device saw it, if it sees anything.
        if results[NORM + 2] != 0.0 || self.model().gpu().is_noop() {
            self.taken.skipped_in_a_row = 0;
            if let Some(allocation) = &mut self.allocation {
                allocation.after(self.taken.steps - 1, run)?;
            }
            return Ok(metrics);
        }
        self.taken.skipped += 1;
        self.taken.skipped_in_a_row += 1;
        let StepMetrics { step, loss, grad_norm, .. } = metrics;
        if self.taken.skipped_in_a_row > self.config.max_bad_steps {
            // Without knowing where, the error is worth as much.
            let place = self.first_bad(batches).unwrap_or_default();
            return Err(Error::Diverged { step, loss, grad_norm, place });
        }
        log::warn!(
            "step {step} is left out: loss {loss}, gradient norm {grad_norm} ({} in a row)",
            self.taken.skipped_in_a_row
        );
        Ok(metrics)
    }

    /// Where a number of a step that just ran is not finite: in the input of the first layer, else in the gradient that the backward
    /// pass met first. Errors: Device, OutOfMemory.
    fn first_bad(&self, batches: &[Batch]) -> Result<Option<String>> {
        let rows = batches.iter().flat_map(|batch| batch.input_ids.chunks(batch.seq_len.max(1)));
        for ids in rows {
            let read: Vec<u32> = self.model().virtual_tokens().chain(ids.iter().copied()).collect();
            if let Some(layer) = self.model().first_bad_input(&read)? {
                return Ok(Some(format!("the input of {layer}")));
            }
        }
        let store = self.model().store();
        let mut bad = None;
        for (name, parameter) in store.iter() {
            let Some(grads) = &parameter.grads else { continue };
            if grads.read::<f32>()?.iter().any(|value| !value.is_finite()) {
                bad = Some(format!("the gradient of {name}"));
            }
        }
        Ok(bad)
    }

    /// log p of each row's answer by the model without its adapter. It is computed once for each pair, row by row, so that it does not
    /// depend on what else is in a batch; nothing for objectives that need none.
    fn reference(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        if !matches!(self.config.objective, Objective::Dpo { .. }) {
            return Ok(Vec::new());
        }
        let mut all = Vec::with_capacity(batch.batch);
        for pair in 0..batch.batch / 2 {
            let number = batch.pairs.get(pair).copied();
            if let Some(known) = number.and_then(|number| self.references.get(&number)) {
                all.extend(known);
                continue;
            }
            let both = [self.reference_of(batch, 2 * pair)?, self.reference_of(batch, 2 * pair + 1)?];
            if let Some(number) = number {
                self.references.insert(number, both);
            }
            all.extend(both);
        }
        Ok(all)
    }

    fn reference_of(&mut self, batch: &Batch, row: usize) -> Result<f32> {
        let row = batch.row(row);
        self.shared.accumulate.write(bytemuck::cast_slice(&[0.0f32]))?;
        self.shared.ropes.fit(row.seq_len)?;
        let seq = row.seq_len.next_multiple_of(BUCKET);
        let row = row.padded_to(seq, 0)?;
        let micro = self.program(Rows { batch: 1, seq, reference: true })?;
        micro.write(&row, &row.shifted_labels())?;
        micro.program.run()?;
        let sums: Vec<f32> = self.shared.readback.fetch(&self.shared.results)?;
        Ok(-sums[REFERENCE])
    }

    fn program(&mut self, rows: Rows) -> Result<&mut Micro> {
        let Trainer { model, config, shared, programs, .. } = self;
        let model: &Model = (*model).borrow();
        programs.get(rows, |pool| Micro::new(model, config, shared, rows, pool))
    }
}
