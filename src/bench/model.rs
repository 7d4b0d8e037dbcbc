//! A whole model: start-up, a training step with the time of its kernels, and generation.

use super::{
    Device, Meter,
    clock::{Clock, median, of_thread},
};
use crate::{
    Error, Result,
    adapter::PeftConfig,
    data::Batch,
    generate::{Generator, Sampling},
    gpu::{Gpu, GpuOptions},
    graph::KernelTime,
    model::Model,
    train::{TrainConfig, Trainer},
};
use serde::{Deserialize, Serialize};

/// Tokens of the prompt that is read, and tokens that are generated: llama-bench's pp512 and tg128.
const PROMPT: usize = 512;
const GENERATED: usize = 128;

/// What is run.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// What the scheme of its linear layers is called.
    pub scheme: String,
    /// The trained adapter; none where it comes with the model.
    pub adapter: Option<PeftConfig>,
    /// Rows of a step.
    pub batch_size: usize,
    /// Tokens of a row.
    pub max_seq_length: usize,
    /// Whether activations are computed again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Rounds of which the median is told.
    pub rounds: usize,
    /// Whether a training step is measured.
    pub step: bool,
    /// Whether generation is measured.
    pub generation: bool,
}

/// What was measured of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelResult {
    /// What it is called.
    pub model: String,
    /// Scheme of its linear layers.
    pub scheme: String,
    /// Rows and tokens of a row of the step.
    pub batch: [usize; 2],
    /// Seconds by the wall from opening the device to the model's being there, and on to the end of the first step, in which the driver
    /// compiles.
    pub load_seconds: f64,
    /// See `load_seconds`.
    pub first_step_seconds: f64,
    /// Bytes of device memory that were planned before anything ran, and the most that was held.
    pub planned_bytes: u64,
    /// See `planned_bytes`.
    pub peak_bytes: u64,
    /// The training step.
    pub step: Option<Rounds>,
    /// Seconds of processor time that the host's own thread took of a step.
    pub host_seconds: f64,
    /// Dispatches of a step.
    pub dispatches: usize,
    /// The step's kernels by the device's clock, longest first.
    pub kernels: Vec<KernelShare>,
    /// A prompt of 512 tokens read at once.
    pub pp512: Option<Rounds>,
    /// 128 tokens generated one after the other.
    pub tg128: Option<Rounds>,
    /// What failed, after what is told here.
    pub error: Option<String>,
}

/// Rounds of the same work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Tokens of a round.
    pub tokens: usize,
    /// Seconds by the wall, round by round.
    pub wall: Vec<f64>,
    /// Seconds of processor time, where the system tells.
    pub processor: Vec<f64>,
    /// GFLOP/s that the device did in the same rounds.
    pub gflops: Vec<f64>,
    /// Median of the seconds that count, as of a case.
    pub seconds: f64,
}

/// What one kernel took of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelShare {
    /// Shader and entry point.
    pub kernel: String,
    /// Dispatches.
    pub calls: usize,
    /// Seconds by the device's clock; none where it has none.
    pub seconds: Option<f64>,
    /// Operations, as the kernels' host code counts them.
    pub work: f64,
}

impl From<KernelTime> for KernelShare {
    fn from(time: KernelTime) -> KernelShare {
        let KernelTime { kernel, calls, seconds, work } = time;
        KernelShare { kernel, calls, seconds, work }
    }
}

impl Rounds {
    /// Times `run`, which computes `tokens` tokens and waits, beside the device's peak.
    fn of(meter: &mut Meter, tokens: usize, rounds: usize, mut run: impl FnMut() -> Result<()>) -> Result<Rounds> {
        let mut all = Rounds { tokens, ..Rounds::default() };
        for _ in 0..rounds {
            all.gflops.push(meter.peaks()?[0]);
            let clock = Clock::start();
            run()?;
            let seconds = clock.seconds();
            all.wall.push(seconds.wall);
            all.processor.extend(seconds.processor);
        }
        all.seconds = median(all.counted(meter.device()));
        Ok(all)
    }

    /// Tokens a second.
    pub fn speed(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    fn counted(&self, device: &Device) -> Vec<f64> {
        device.counted_rounds(&self.wall, &self.processor)
    }

    fn times(&self, device: &Device, relative: bool) -> Vec<f64> {
        let seconds = self.counted(device);
        let beside = seconds.iter().zip(&self.gflops).map(|(seconds, gflops)| seconds * gflops);
        if relative { beside.collect() } else { seconds }
    }
}

impl ModelResult {
    /// The numbers that are compared: name, and times round by round, in units of the device's peak where `relative`.
    pub(super) fn times(&self, device: &Device, relative: bool) -> Vec<(String, Vec<f64>)> {
        let [rows, tokens] = self.batch;
        let step = format!("step {rows}x{tokens}");
        [(step.as_str(), &self.step), ("pp512", &self.pp512), ("tg128", &self.tg128)]
            .into_iter()
            .filter_map(|(what, rounds)| {
                let times = rounds.as_ref()?.times(device, relative);
                Some((format!("{} {} {what}", self.model, self.scheme), times))
            })
            .collect()
    }
}

/// Measures the model that `build` makes on a device, which is opened anew, so that its peak of memory is that of this model.
/// An error after the device is open is part of the result, with what was measured before. Errors: those of opening the device.
pub fn measure(
    gpu: &GpuOptions,
    name: &str,
    build: &dyn Fn(&Gpu) -> Result<Model>,
    options: &ModelOptions,
) -> Result<ModelResult> {
    let clock = Clock::start();
    let device = Gpu::open(gpu)?;
    let (model, scheme) = (name.to_owned(), options.scheme.clone());
    let mut result = ModelResult { model, scheme, ..ModelResult::default() };
    let measured = of_device(&device, &clock, gpu, build, options, &mut result);
    match measured {
        Err(error @ Error::Interrupted(_)) => return Err(error),
        Err(error) => result.error = Some(error.to_string()),
        Ok(()) => {}
    }
    Ok(result)
}

fn of_device(
    gpu: &Gpu,
    clock: &Clock,
    gpu_options: &GpuOptions,
    build: &dyn Fn(&Gpu) -> Result<Model>,
    options: &ModelOptions,
    result: &mut ModelResult,
) -> Result<()> {
    let attached = |gpu: &Gpu| -> Result<Model> {
        let mut model = build(gpu)?;
        if let (true, Some(adapter)) = (options.step, &options.adapter) {
            model.add_adapter(adapter.clone(), true)?;
        }
        Ok(model)
    };
    let mut meter = Meter::new(gpu);
    let mut model = attached(gpu)?;
    result.load_seconds = clock.seconds().wall;
    if options.step {
        let config = TrainConfig {
            batch_size: options.batch_size,
            max_seq_length: options.max_seq_length.min(model.arch().max_positions),
            gradient_checkpointing: options.gradient_checkpointing,
            max_steps: usize::MAX,
            ..TrainConfig::default()
        };
        result.batch = [config.batch_size, config.max_seq_length];
        let dry = Gpu::open(&GpuOptions { dry: true, ..gpu_options.clone() })?;
        drop(Trainer::new(attached(&dry)?, config.clone())?);
        result.planned_bytes = dry.peak_bytes();
        model = step(&mut meter, clock, model, config, options.rounds, result)?;
    }
    if options.generation {
        generation(&mut meter, &model, options.rounds, result)?;
    }
    Ok(())
}

fn step(
    meter: &mut Meter,
    clock: &Clock,
    model: Model,
    config: TrainConfig,
    rounds: usize,
    result: &mut ModelResult,
) -> Result<Model> {
    let batches = [batch(config.batch_size, config.max_seq_length, model.arch().vocab_size)];
    let mut trainer = Trainer::new(model, config)?;
    trainer.step(&batches)?;
    result.first_step_seconds = clock.seconds().wall;
    // From the third on a step is what a run takes: programs time their kernels in the first two.
    let (_, times) = trainer.profile(&batches)?;
    result.peak_bytes = meter.gpu().peak_bytes();
    let (micro, optimizer) = trainer.dispatches();
    result.dispatches = micro + optimizer;
    let mut host = 0.0;
    let measured = Rounds::of(meter, batches[0].tokens(), rounds, || {
        let before = of_thread();
        trainer.step(&batches)?;
        host += of_thread() - before;
        Ok(())
    });
    result.step = Some(measured?);
    result.host_seconds = host / rounds as f64;
    result.kernels = times.into_iter().map(KernelShare::from).collect();
    Ok(trainer.into_model())
}

fn generation(meter: &mut Meter, model: &Model, rounds: usize, result: &mut ModelResult) -> Result<()> {
    let vocab = model.arch().vocab_size;
    let prompt: Vec<u32> = tokens(PROMPT.min(model.arch().max_positions), vocab);
    let mut generator = Generator::new(model, PROMPT.max(GENERATED + 1))?;
    let gpu = meter.gpu().clone();
    let mut run = |prompt: &[u32], count: usize, rounds: usize| {
        let sampling = Sampling { max_new_tokens: count, ..Sampling::default() };
        let mut once = || -> Result<()> {
            generator.reset();
            generator.generate(prompt, &sampling, &[], |_| Ok(true))?;
            gpu.wait()
        };
        // The driver compiles, and each program's first two runs are timed.
        once()?;
        once()?;
        Rounds::of(meter, prompt.len().max(count), rounds, once)
    };
    result.pp512 = Some(run(&prompt, 1, rounds)?);
    result.tg128 = Some(run(&prompt[..1], GENERATED, rounds)?);
    Ok(())
}

fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 7919 % vocab) as u32).collect()
}

/// Rows of tokens that are all predicted.
fn batch(rows: usize, seq_len: usize, vocab: usize) -> Batch {
    let count = rows * seq_len;
    let ids = tokens(count, vocab);
    Batch {
        batch: rows,
        seq_len,
        labels: ids.iter().map(|&id| id as i32).collect(),
        input_ids: ids,
        attention_mask: vec![1; count],
        segment_ids: vec![1; count],
        position_ids: (0..count).map(|i| (i % seq_len) as u32).collect(),
        pairs: Vec::new(),
        epoch: 0.0,
    }
}
