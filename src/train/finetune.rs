//! A fine-tuning run: all steps of a trainer over the batches of a loader, with its records.

use super::{Course, StepMetrics, Trainer, TrainerState};
use crate::{
    Error, Result,
    data::{Batch, DataLoader},
    model::Model,
};
use std::{
    borrow::Borrow,
    path::{Path, PathBuf},
};

/// A run and what it has recorded so far. `M`: as of [`Trainer`].
pub struct Finetune<M = Model> {
    trainer: Trainer<M>,
    loader: DataLoader,
    state: TrainerState,
    course: Course,
    /// Where `trainer_state.json` goes, where it is wanted.
    output: Option<PathBuf>,
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
        Ok(Finetune { trainer, loader, state, course: Course::default(), output: None })
    }

    /// The same with `trainer_state.json` in this folder, written anew with each record.
    pub fn recording_in(self, folder: impl AsRef<Path>) -> Finetune<M> {
        Finetune { output: Some(folder.as_ref().to_owned()), ..self }
    }

    /// Takes the steps that are left, or fewer where `watch` wants no more. Errors: those of [`Trainer::step`] and of `watch`, Io.
    pub fn run(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let (steps, accumulation) = {
            let config = self.trainer.config();
            (config.max_steps, config.gradient_accumulation_steps)
        };
        let mut group: Vec<StepMetrics> = Vec::new();
        while self.trainer.steps() < steps {
            let batches = self.loader.next_step(accumulation);
            let metrics = self.trainer.step(&batches)?;
            self.course.push(&metrics, batches.iter().map(Batch::predicted).sum());
            let goes_on = watch.step(&metrics)?;
            group.push(metrics);
            let stop = self.trainer.steps() == steps || !goes_on;
            if group.len() == self.state.logging_steps || stop {
                self.record(&group, watch)?;
                group.clear();
            }
            if stop {
                break;
            }
        }
        Ok(())
    }

    fn record(&mut self, group: &[StepMetrics], watch: &mut dyn Watch) -> Result<()> {
        self.state.record(group);
        if let Some(last) = self.state.log_history.last() {
            watch.record(last);
        }
        match &self.output {
            None => Ok(()),
            Some(folder) => {
                std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
                self.state.save(folder)
            }
        }
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
