//! `fourbit finetune`

use crate::adapter_args::AdapterArgs;
use crate::args::{DataArgs, Global, ModelArgs, QuantArgs, TrainArgs};
use crate::output::{Output, bytes, note};
use crate::progress::Progress;
use crate::qat::{self, QatArgs};
use crate::{cache, embedded, interrupt};
use fourbit::{
    Error, Result,
    data::DataLoader,
    export::ModelWriter,
    format::{Claim, atomic::AtomicFolder, choices::KERNELS, manifest::Set},
    generate::{Generator, Sampling},
    gpu::{Gpu, GpuOptions},
    model::{LoadOptions, Model, Source},
    tokenizer::{Message, Tokenizer},
    train::{Course, Objective, SaveOptions, StepMetrics, TrainConfig, Trainer, TrainerState, Watch, checkpoints},
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Train an adapter on a quantized model (QLoRA, QDoRA, AdaLoRA, IA3, prompt tuning) and save it as PEFT does, or train its weights (--full), also through
/// rounding (--qat)
///
/// Without --model and --data, a small model and data set that are part of fourbit are used, and answers are shown before and
/// after. --output gets adapter_config.json, adapter_model.safetensors and trainer_state.json (and kernels.json, with --tune quick or
/// --tune-from), each of them replaced only by a whole new one; with --qat or --full it gets the model in place of the adapter.
/// trainer_log.jsonl there grows with the run.
/// Ctrl-C, SIGTERM and SIGHUP end the run after the current step and save what was learned so far, with a checkpoint. A run that
/// was stopped, killed or lost its device goes on with the same command and --resume, and ends with the same adapter or model, byte
/// for byte, as if it had never stopped
#[derive(clap::Args)]
pub struct Finetune {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Folder for the adapter, or with --qat or --full for the model; what is there is replaced
    #[arg(long, value_name = "DIR", default_value = "output")]
    output: PathBuf,
    #[command(flatten)]
    quant: QuantArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    qat: QatArgs,
    #[command(flatten)]
    train: TrainArgs,
    /// Optimizer steps; instead of --num-train-epochs [default: 60 for the embedded model and data]
    #[arg(long, value_name = "N", conflicts_with = "num_train_epochs")]
    max_steps: Option<usize>,
    /// Passes through the data, fractions allowed [default: 1]
    #[arg(long, value_name = "N")]
    num_train_epochs: Option<f64>,
    /// Steps between records; a record is the mean since the one before
    #[arg(long, value_name = "N", default_value_t = 1)]
    logging_steps: usize,
    #[command(flatten)]
    save: SaveArgs,
}

/// Checkpoints.
#[derive(clap::Args)]
struct SaveArgs {
    /// Steps between checkpoints, folders checkpoint-N in --output with all that --resume needs; 0: none
    #[arg(long, value_name = "N", default_value_t = 500)]
    save_steps: usize,
    /// A checkpoint also where so many seconds have passed since the last one
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    save_seconds: Option<u64>,
    /// Checkpoints that are kept, the newest ones
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    save_total_limit: usize,
    /// Go on from a checkpoint of the same run, by default the last one in --output; from the start where there is none yet. For an
    /// adapter's values alone, with a new schedule and optimizer, see --adapter
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected at least 1".to_owned())
}

impl SaveArgs {
    fn options(&self, output: &Path, base_model: Option<String>) -> SaveOptions {
        SaveOptions {
            save_steps: self.save_steps,
            save_interval: self.save_seconds.map(Duration::from_secs),
            save_total_limit: Some(self.save_total_limit),
            base_model,
            ..SaveOptions::new(output)
        }
    }

    /// Bytes of all checkpoints of a run that trains so many, while one more is written: each holds values and two moments, and an
    /// adapter once more.
    fn bytes(&self, trained: u64, steps: usize) -> u64 {
        match self.save_steps {
            0 => 0,
            every => 4 * trained * (self.save_total_limit.min(steps / every) as u64 + 1),
        }
    }

    /// The checkpoint to go on from. Errors: Config for a run from the start where another one's checkpoints lie; Io.
    fn checkpoint(&self, output: &Path) -> Result<Option<PathBuf>> {
        let last = checkpoints(output)?.pop().map(|(_, folder)| folder);
        match (&self.resume, last) {
            (Some(Some(folder)), _) => Ok(Some(folder.clone())),
            (Some(None), None) => {
                note(format_args!("no checkpoint in {} yet: the run begins at its first step", output.display()));
                Ok(None)
            }
            (Some(None), last) => Ok(last),
            (None, None) => Ok(None),
            (None, Some(last)) => {
                let message = format!(
                    "{} is of an earlier run; go on from it with --resume, choose another --output, or remove its checkpoints",
                    last.display()
                );
                Err(Error::config("--output", message))
            }
        }
    }
}

impl Finetune {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        if self.logging_steps == 0 {
            return Err(Error::config("--logging-steps", "expected at least 1, got 0"));
        }
        if self.output.exists() && !self.output.is_dir() {
            return Err(Error::config("--output", format!("{} is a file, a folder is needed", self.output.display())));
        }
        let base = self.model.base()?;
        let data = self.data.path(&base).ok_or_else(|| {
            Error::config("--data", "is needed with --model: a file of rows as JSON lines or parquet")
        })?;
        let showcase = self.data.is_showcase(&base);
        self.check_objective()?;
        let claim = Claim::of(&self.output)?;
        let checkpoint = self.save.checkpoint(&self.output)?;
        // What is wrong with files and options is reported before the device is opened.
        let source = Source::open(&base.path)?;
        let load_options = self.qat.load_options(&self.quant, &source)?;
        let trains_adapter = self.qat.trains_adapter(&self.adapter, &self.model)?;
        let folder = self.qat.folder(&source, &base.path, &self.output)?;
        let loader = self.data.loader(global, &data, &base, &source, &self.train)?;
        let steps = self.steps(&loader, showcase)?;
        let length = loader.longest().max(2);
        let config = self.train.config(showcase, length, steps, self.qat.full)?;
        // As is what does not fit.
        let trained = self.count(global, &source, &load_options, &config)?;
        let model = folder.as_ref().map_or(Ok(trained), ModelWriter::bytes)?;
        claim.expect_room(model + self.save.bytes(trained, steps))?;

        let gpu = global.gpu()?;
        note(format_args!("device: {} ({})", gpu.caps().name, gpu.caps().backend));
        let questions = if showcase { embedded::questions() } else { Vec::new() };
        let mut model = Model::from_source(&gpu, &source, &load_options)?;
        if trains_adapter {
            self.adapter.attach(&mut model, self.model.adapter.as_deref(), &config, Some(&base.path))?;
        }
        let before = answers(&model, &base.path, &questions)?;
        self.qat.begin(&mut model, loader.dataset())?;
        self.announce(&model, &loader, steps);
        let trainer = Trainer::new(model, config)?;
        let (checkpointed, blocks) = (trainer.checkpointed_blocks(), trainer.model().arch().blocks.len());
        if let Some(limit) = gpu.memory_limit().filter(|_| checkpointed > 0) {
            note(format_args!(
                "memory: {checkpointed} of {blocks} blocks keep only their inputs, to stay below {}",
                bytes(limit)
            ));
        }
        let mut run = fourbit::train::Finetune::new(trainer, loader, self.logging_steps)?
            .saving(self.save.options(&self.output, base.name()))?;
        if let Some(checkpoint) = &checkpoint {
            run.resume(checkpoint)?;
            note(format_args!("resumed from {}", checkpoint.display()));
        }
        let (before_now, begun_at) = (run.trainer().tokens(), run.trainer().steps());
        let start = Instant::now();
        let progress = Progress::new(steps as u64, "steps").from(run.trainer().steps() as u64);
        run.run(&mut Watcher(progress))?;
        if run.trainer().steps() == begun_at && begun_at < steps {
            // What is there stays.
            interrupt::go_on()?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let (state, course) = (run.state().clone(), run.course().clone());
        let trained = run.trainer().model().store().parameters();
        let mut model = run.into_model();
        gpu.cancel().shield(|| -> Result<()> {
            match &folder {
                Some(folder) => qat::save(&mut model, folder, &state),
                None => {
                    let files = AtomicFolder::create(&self.output, Set::Adapter)?;
                    model.write_adapter(files.folder(), base.name().as_deref())?;
                    state.save(files.folder())?;
                    let kernels = cache::choices(&gpu);
                    if !kernels.choices.is_empty() {
                        kernels.write(files.folder().join(KERNELS))?;
                    }
                    files.commit()
                }
            }
        })?;
        if !interrupt::pending() {
            let after = answers(&model, &base.path, &questions)?;
            for ((question, before), after) in questions.iter().zip(before).zip(after) {
                out.line(format_args!("\n{question}\n  before: {before}\n  after:  {after}"));
            }
        }
        self.report(out, (&state, &course), trained, before_now, seconds);
        Ok(())
    }

    /// Errors: Config for what a comparison of answers does not go with.
    fn check_objective(&self) -> Result<()> {
        let objective = self.train.objective();
        if matches!(objective, Objective::Dpo { .. }) && self.model.adapter.is_some() {
            let message = "would begin beside the base that answers are compared with; merge it into a model first (fourbit merge)";
            return Err(Error::config("--adapter", message));
        }
        if objective.is_of_pairs() && self.data.data.is_none() {
            return Err(Error::config(
                "--data",
                "is needed for dpo and orpo: rows of two answers, chosen and rejected",
            ));
        }
        if objective.is_of_pairs() && !self.data.completion_only_loss {
            return Err(Error::config("--completion-only-loss", "false goes with --objective sft alone"));
        }
        Ok(())
    }

    /// Counts the memory of the run, and returns the bytes of what is trained. Errors: OutOfMemory where it is more than there is.
    fn count(&self, global: &Global, source: &Source, load: &LoadOptions, config: &TrainConfig) -> Result<u64> {
        let gpu = Gpu::open(&GpuOptions { dry: true, ..global.gpu_options()? })?;
        let mut model = Model::from_source(&gpu, source, load)?;
        self.qat.count(&mut model, &self.adapter, &self.model, config)?;
        let trained = 4 * model.store().parameters() as u64;
        Trainer::new(model, config.clone())?;
        gpu.expect_room("the run (`fourbit plan` tells for what)", gpu.peak_bytes())?;
        Ok(trained)
    }

    /// Optimizer steps: as asked, or those of the epochs as transformers counts them.
    fn steps(&self, loader: &DataLoader, showcase: bool) -> Result<usize> {
        let epochs = self.num_train_epochs.unwrap_or(1.0);
        if !(epochs.is_finite() && epochs > 0.0) {
            return Err(Error::config("--num-train-epochs", format!("expected more than 0, got {epochs}")));
        }
        let per_epoch = loader.steps_per_epoch(self.train.gradient_accumulation_steps);
        Ok(match (self.max_steps, self.num_train_epochs) {
            (Some(steps), _) => steps,
            (None, None) if showcase => embedded::STEPS,
            (None, _) => (epochs * per_epoch as f64).ceil() as usize,
        })
    }

    fn announce(&self, model: &Model, loader: &DataLoader, steps: usize) {
        let trained = model.store().parameters();
        let scheme = model.linears().next().map_or("none", |linear| linear.base.weight.scheme().name());
        note(format_args!(
            "model: {} layers in {scheme}, {}; {trained} trained values",
            model.arch().blocks.len(),
            bytes(model.weight_bytes()),
        ));
        let (rows, tokens) = (loader.rows_per_epoch(), loader.dataset().tokens());
        let per_epoch = loader.steps_per_epoch(self.train.gradient_accumulation_steps);
        let rows = format!("{rows} {}", if loader.dataset().is_paired() { "pairs" } else { "rows" });
        note(format_args!("data: {rows} of {tokens} tokens; {steps} steps, {per_epoch} in an epoch"));
    }

    fn report(
        &self,
        out: Output,
        (state, course): (&TrainerState, &Course),
        trained: usize,
        before_now: u64,
        seconds: f64,
    ) {
        let Some(last) = state.log_history.last() else { return };
        let speed = (last.num_tokens - before_now) as f64 / seconds;
        let (change, steps) = (course.change(), state.global_step);
        let loss = match &change {
            Some(change) => format!("{:.4} -> {:.4} (means over {})", change.first, change.last, change.over),
            None => format!("{:.4}", last.loss),
        };
        out.line(format_args!(
            "\nloss {loss} after {steps} steps, {:.2} epochs ({seconds:.0} s, {speed:.0} tokens/s, {} of device memory)",
            state.epoch,
            bytes(last.peak_bytes),
        ));
        if let Some(preference) = &last.preference {
            out.line(format_args!(
                "rewards: chosen {:.4}, rejected {:.4}; {:.0} % of the last record's pairs ranked right",
                preference.rewards_chosen,
                preference.rewards_rejected,
                100.0 * preference.rewards_accuracies
            ));
        }
        let what = if self.qat.is_given() { "model" } else { "adapter" };
        out.line(format_args!("{what}: {}", self.output.display()));
        out.result(&json!({
            "loss": last.loss,
            "mean_loss": change,
            "trainable_parameters": trained,
            "steps": steps,
            "epoch": state.epoch,
            "num_tokens": last.num_tokens,
            "tokens_per_second": speed,
            "peak_bytes": last.peak_bytes,
            "preference": last.preference,
            "output": self.output.display().to_string(),
        }));
    }
}

/// Shows the run, and ends it after the step in which the user asks to stop.
struct Watcher(Progress);

impl Watch for Watcher {
    fn step(&mut self, _: &StepMetrics) -> Result<bool> {
        self.0.advance(1);
        Ok(!interrupt::pending())
    }

    fn record(&mut self, metrics: &StepMetrics) {
        self.0.record(metrics);
    }

    fn saved(&mut self, checkpoint: &Path) {
        self.0.tell(format_args!("checkpoint: {}", checkpoint.display()));
    }
}

/// The model's likeliest answer to each question.
fn answers(model: &Model, path: &Path, questions: &[String]) -> Result<Vec<String>> {
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let Some(tokenizer) = Tokenizer::open(path)? else { return Ok(Vec::new()) };
    let mut generator = Generator::new(model, 256)?;
    let sampling = Sampling { max_new_tokens: 60, ..Sampling::default() };
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        let prompt = tokenizer.apply_chat_template(&[Message::new("user", question.as_str())], true)?;
        let prompt = tokenizer.encode(&prompt, false)?;
        generator.reset();
        let ids = generator.generate(&prompt, &sampling, tokenizer.eos_ids(), |_| Ok(!interrupt::pending()))?;
        answers.push(tokenizer.decode(&ids, true)?.trim().to_owned());
    }
    Ok(answers)
}
