//! A fine-tuning run: all steps of a trainer over the batches of a loader, with its records and checkpoints.

use super::{
    Course, StepMetrics, Trainer, TrainerState,
    checkpoint::{self, Progress},
    log::Log,
};
use crate::{
    Error, Result,
    data::{Batch, DataLoader},
    format::{atomic::AtomicFolder, manifest::Set},
    model::Model,
    run::check_same,
};
use serde_json::Value;
use std::{
    borrow::Borrow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A run and what it has recorded so far. `M`: as of [`Trainer`].
pub struct Finetune<M = Model> {
    trainer: Trainer<M>,
    loader: DataLoader,
    state: TrainerState,
    course: Course,
    /// Steps since the last record.
    unrecorded: Vec<StepMetrics>,
    saving: Option<Saving>,
}

/// Where a run leaves its records and checkpoints, in transformers' words.
#[derive(Clone, Debug, PartialEq)]
pub struct SaveOptions {
    /// The folder of `trainer_log.jsonl` and of the folders `checkpoint-N`.
    pub output_dir: PathBuf,
    /// Steps between checkpoints; 0: no checkpoints, also none where the run is stopped.
    pub save_steps: usize,
    /// A checkpoint also where so much time has passed since the last one.
    pub save_interval: Option<Duration>,
    /// Checkpoints that are kept, the newest ones; at least 1.
    pub save_total_limit: Option<usize>,
    /// What `adapter_config.json` names as the base model.
    pub base_model: Option<String>,
}

impl SaveOptions {
    /// A checkpoint every 500 steps, of which two are kept.
    pub fn new(output_dir: impl Into<PathBuf>) -> SaveOptions {
        SaveOptions {
            output_dir: output_dir.into(),
            save_steps: 500,
            save_interval: None,
            save_total_limit: Some(2),
            base_model: None,
        }
    }
}

struct Saving {
    options: SaveOptions,
    log: Log,
    /// What run it is, once a checkpoint has asked for it.
    run: Option<Value>,
    last: Instant,
    /// After which step the last checkpoint was written, or the run began here.
    saved_at: usize,
}

/// Who watches a run.
pub trait Watch {
    /// A step is done; returns whether the run goes on. Errors: end the run.
    fn step(&mut self, metrics: &StepMetrics) -> Result<bool> {
        let _ = metrics;
        Ok(true)
    }

    /// A record was made: the mean of the steps since the one before.
    fn record(&mut self, metrics: &StepMetrics) {
        let _ = metrics;
    }

    /// A checkpoint was written.
    fn saved(&mut self, checkpoint: &Path) {
        let _ = checkpoint;
    }
}

/// Nobody does.
impl Watch for () {}

impl<M: Borrow<Model>> Finetune<M> {
    /// A run of the `max_steps` of the trainer's options, with a record every `logging_steps`. Errors: Config for records that never
    /// come.
    pub fn new(trainer: Trainer<M>, loader: DataLoader, logging_steps: usize) -> Result<Finetune<M>> {
        if logging_steps == 0 {
            return Err(Error::config("logging_steps", "expected at least 1, got 0"));
        }
        let config = trainer.config();
        let state = TrainerState {
            max_steps: config.max_steps,
            train_batch_size: config.batch_size,
            logging_steps,
            ..TrainerState::default()
        };
        Ok(Finetune { trainer, loader, state, course: Course::default(), unrecorded: Vec::new(), saving: None })
    }

    /// The same with records and checkpoints in a folder, which is made if need be. Errors: Config for a limit of 0 checkpoints, Io.
    pub fn saving(mut self, options: SaveOptions) -> Result<Finetune<M>> {
        if options.save_total_limit == Some(0) {
            return Err(Error::config("save_total_limit", "expected at least 1, got 0; `save_steps` 0 writes none"));
        }
        let log = Log::create(&options.output_dir)?;
        self.state.save_steps = options.save_steps;
        self.saving = Some(Saving { options, log, run: None, last: Instant::now(), saved_at: self.trainer.steps() });
        Ok(self)
    }

    /// Goes on where a checkpoint of the same run was written: on the same device and driver with the same bits, by the same kernels where
    /// they were chosen by measuring; none are measured after it. The run may be longer or shorter than it was planned then. Errors: Config for a checkpoint of another run, naming the difference; Io, Format,
    /// MissingTensor, Shape; Device.
    pub fn resume(&mut self, checkpoint: &Path) -> Result<()> {
        let progress = Progress::read(checkpoint)?;
        let mut state = TrainerState::read(checkpoint)?;
        let config = self.trainer.config();
        if progress.taken.steps > config.max_steps {
            let message = format!("{} is past the {} steps of this run", checkpoint.display(), config.max_steps);
            return Err(Error::config("resume", message));
        }
        let run = checkpoint::identity(self.trainer.model(), config, &self.loader)?;
        check_same(checkpoint, &progress.run, &run, &checkpoint::FREE)?;
        if state.max_steps != config.max_steps {
            log::warn!(
                "{}: the run was planned with {} steps and goes on with {}; its learning rate follows the new course from here on",
                checkpoint.display(),
                state.max_steps,
                config.max_steps
            );
        }
        checkpoint::read_tensors(self.trainer.model().store(), checkpoint)?;
        self.trainer.go_on(progress.taken, &progress.choices)?;
        self.loader.seek(progress.position);
        state.max_steps = self.state.max_steps;
        (state.logging_steps, state.save_steps) = (self.state.logging_steps, self.state.save_steps);
        (self.state, self.course, self.unrecorded) = (state, progress.course, progress.unrecorded);
        match &mut self.saving {
            Some(saving) => {
                (saving.saved_at, saving.run) = (self.trainer.steps(), Some(run));
                saving.log.restart(&self.state.log_history)
            }
            None => Ok(()),
        }
    }

    /// Takes the steps that are left, or fewer where `watch` wants no more or the device is asked to stop: then the last whole step
    /// leaves a checkpoint, and so does a run that diverges. Errors: those of
    /// [`Trainer::step`] and of `watch`, Io, also of rows that cannot be read back.
    pub fn run(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let (steps, accumulation) = {
            let config = self.trainer.config();
            (config.max_steps, config.gradient_accumulation_steps)
        };
        while self.trainer.steps() < steps {
            let position = self.loader.position();
            let batches = self.loader.next_step(accumulation)?;
            let metrics = match self.trainer.step(&batches) {
                Err(Error::Interrupted(_)) => {
                    // As if it had not begun.
                    self.loader.seek(position);
                    let steps = self.trainer.steps();
                    if self.saves() && self.saving.as_ref().is_some_and(|saving| saving.saved_at < steps) {
                        watch.saved(&self.checkpoint()?);
                    }
                    break;
                }
                Err(error @ Error::Diverged { .. }) if self.saves() => {
                    // The values are those before the first step that was left out.
                    watch.saved(&self.checkpoint()?);
                    return Err(error);
                }
                metrics => metrics?,
            };
            let goes_on = watch.step(&metrics)?;
            if !metrics.is_left_out() {
                self.course.push(&metrics, batches.iter().map(Batch::predicted).sum());
                self.unrecorded.push(metrics);
            }
            let last = self.trainer.steps() == steps;
            if self.trainer.steps().is_multiple_of(self.state.logging_steps) || last {
                self.record(watch)?;
            }
            if self.saving.as_ref().is_some_and(|saving| saving.is_due(self.trainer.steps(), !goes_on)) {
                watch.saved(&self.checkpoint()?);
            }
            if !goes_on {
                break;
            }
        }
        // Of a run that was stopped: what it did is told, and its checkpoint has the steps as they were.
        self.record(watch)
    }

    /// Whether there are to be checkpoints.
    fn saves(&self) -> bool {
        self.saving.as_ref().is_some_and(|saving| saving.options.save_steps > 0)
    }

    /// Records the steps since the last record, where there are some that were not left out.
    fn record(&mut self, watch: &mut dyn Watch) -> Result<()> {
        if self.unrecorded.is_empty() {
            return Ok(());
        }
        self.state.record(&self.unrecorded);
        self.unrecorded.clear();
        let Some(last) = self.state.log_history.last() else { return Ok(()) };
        watch.record(last);
        match &mut self.saving {
            Some(saving) => saving.log.append(last),
            None => Ok(()),
        }
    }

    /// Writes a checkpoint of the run as it is, and removes those that are too many. Errors: Config without [`Finetune::saving`]; Io,
    /// Device.
    pub fn checkpoint(&mut self) -> Result<PathBuf> {
        let missing = || Error::config("checkpoint", "the run has no folder for it; give it `SaveOptions`");
        let saving = self.saving.as_mut().ok_or_else(missing)?;
        let SaveOptions { output_dir, base_model, save_total_limit, .. } = &saving.options;
        let (model, steps) = (self.trainer.model(), self.trainer.steps());
        let path = checkpoint::folder(output_dir, steps);
        let run = match saving.run.take() {
            Some(run) => run,
            None => checkpoint::identity(model, self.trainer.config(), &self.loader)?,
        };
        let folder = AtomicFolder::create(&path, Set::Checkpoint)?;
        if model.adapter().is_some() && model.qat().is_none() {
            model.write_adapter(folder.folder(), base_model.as_deref())?;
        }
        checkpoint::write_tensors(model.store(), folder.folder())?;
        TrainerState { global_step: steps, epoch: self.loader.epoch(), ..self.state.clone() }.save(folder.folder())?;
        let progress = Progress {
            fourbit: env!("CARGO_PKG_VERSION").to_owned(),
            taken: self.trainer.taken(),
            position: self.loader.position(),
            unrecorded: self.unrecorded.clone(),
            course: self.course.clone(),
            choices: model.gpu().choices().all(),
            run,
        };
        progress.write(folder.folder())?;
        saving.run = Some(progress.run);
        folder.commit()?;
        if let Some(keep) = save_total_limit {
            checkpoint::rotate(output_dir, *keep)?;
        }
        (saving.last, saving.saved_at) = (Instant::now(), steps);
        Ok(path)
    }

    /// The trainer.
    pub fn trainer(&self) -> &Trainer<M> {
        &self.trainer
    }

    /// What has been recorded.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// The course of the loss over the run.
    pub fn course(&self) -> &Course {
        &self.course
    }

    /// Gives the model back and frees what only training needs.
    pub fn into_model(self) -> M {
        self.trainer.into_model()
    }
}

impl Saving {
    /// Whether a checkpoint is to be written after `step`, where the run may be stopped.
    fn is_due(&self, step: usize, stopped: bool) -> bool {
        let SaveOptions { save_steps, save_interval, .. } = self.options;
        save_steps > 0
            && (stopped
                || step.is_multiple_of(save_steps)
                || save_interval.is_some_and(|most| self.last.elapsed() >= most))
    }
}
