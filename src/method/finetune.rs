//! Fine-tuning of a block that has been quantized: codes stay, what is a real number learns to undo their error.

use super::{
    Site,
    hidden_states::HiddenStates,
    tunable::{self, Steps},
};
use crate::{
    DType, Error, Result,
    adapter::Store,
    arch::LinearId,
    gpu::{Gpu, Tensor},
    graph::{Graph, Program},
    kernels::squared_error,
    model::{Block, Model},
    nn::{Pass, StepValues},
    random::Random,
};
use serde::{Deserialize, Serialize};

/// How blocks are fine-tuned, by Adam on the squared error of the block's output.
///
/// Of AQLM's layers the code books and row scales are trained, of QuIP#'s the two sign vectors, which become real numbers,
/// and in both the norms' weights: Egiazarian et al. 2024, section 3.4; Tseng et al. 2024, section 5. The wanted output is
/// that of the block in floats for the same input, which is what the quantized blocks before it give (AQLM's algorithm;
/// QuIP# takes the float model's hidden states for both).
///
/// It holds the hidden states of the calibration samples a second time, and of all that learns the gradient, two moments and
/// the best values; a weight's own gradient, in f32, lies there for one layer at a time and must fit a binding. One sample
/// in eight is not learned from: by its error the best epoch is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FineTune {
    /// Times that the calibration text is gone through at most; fewer where the error no longer falls. 0: never.
    pub epochs: usize,
    /// Adam's step, in parts of the root mean square of each tensor: code books, scales and norms differ by orders. Weights
    /// in floats move by a fifth of it.
    pub learning_rate: f64,
    /// Samples of a step.
    pub batch: usize,
    /// How many blocks, from the first on.
    pub blocks: usize,
    /// Whether the layers of a block that are still floats learn too, each time that layers before them have been
    /// quantized (QuIP#).
    pub between: bool,
}

impl Default for FineTune {
    fn default() -> FineTune {
        FineTune { epochs: 0, learning_rate: 5e-3, batch: 4, blocks: usize::MAX, between: false }
    }
}

impl FineTune {
    /// Whether block number `layer` is fine-tuned.
    pub fn reaches(&self, layer: usize) -> bool {
        self.epochs > 0 && layer < self.blocks
    }

    /// Errors: Config for a learning rate that is none, and steps of no sample.
    pub fn validate(&self) -> Result<()> {
        if !(self.learning_rate > 0.0 && self.learning_rate < 1.0) {
            let message = format!("{}: expected a number above 0 and below 1", self.learning_rate);
            return Err(Error::config("the learning rate of fine-tuning", message));
        }
        match self.batch {
            0 => Err(Error::config("the batch of fine-tuning", "a step needs at least one sample")),
            _ => Ok(()),
        }
    }
}

/// What fine-tuning did to a block: mean squared differences of its output from that of the block in floats, over the
/// samples that it did not learn from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// As quantized.
    pub before: f64,
    /// Of what was kept: the best of all epochs, or the block as it was.
    pub after: f64,
    /// Times that the calibration text was gone through.
    pub epochs: usize,
}

/// Every how many samples one is held out; all are learned from where there are fewer.
const HELD_OUT: usize = 8;
/// Epochs without a smaller error after which no more follow.
const PATIENCE: usize = 2;

/// What is wanted of one block.
pub(super) struct Tuner<'a> {
    gpu: &'a Gpu,
    model: &'a Model,
    options: FineTune,
    wanted: HiddenStates,
}

impl<'a> Tuner<'a> {
    /// Runs the block in floats over all samples. Errors: those of [`FineTune::validate`], OutOfMemory, Device.
    pub(super) fn new(
        gpu: &'a Gpu,
        model: &'a Model,
        block: &Block,
        states: &mut HiddenStates,
        options: FineTune,
    ) -> Result<Tuner<'a>> {
        options.validate()?;
        let wanted = states.map(model, |g, sample, x| Ok(sample.through(g, block, x)?.0))?;
        Ok(Tuner { gpu, model, options, wanted })
    }

    /// Trains the block after its layer `id` was quantized, where it is time to. Errors: those of [`Tuner::tune`].
    pub(super) fn after(
        &mut self,
        id: LinearId,
        block: &mut Block,
        states: &mut HiddenStates,
    ) -> Result<Option<Tuned>> {
        let site = id.reads();
        let last = site.linears().iter().rfind(|&&id| block.linear(id).is_some()) == Some(&id);
        if !last || !(site == Site::Down || self.options.between) {
            return Ok(None);
        }
        let tuned = self.tune(block, states, site != Site::Down)?;
        let Tuned { before, after, epochs } = tuned;
        let name = block.linear(id).map_or("", |linear| &linear.name);
        log::info!("fine-tuned after {name}: block error {before:.4e} -> {after:.4e} in {epochs} epochs");
        Ok(Some(tuned))
    }

    /// Trains what there is to train of the block; layers in floats too where `floats`. `states`: the samples' inputs of
    /// the block. Errors: Device, OutOfMemory, Shape for layers that do not fit a binding.
    fn tune(&mut self, block: &mut Block, states: &mut HiddenStates, floats: bool) -> Result<Tuned> {
        let store = tunable::train_block(self.gpu, block, floats)?;
        let tuned = self.learn(block, states, &store);
        tunable::freeze_block(block)?;
        tuned
    }

    /// Trains what `store` holds of the block. Errors: Device, OutOfMemory.
    fn learn(&mut self, block: &Block, states: &mut HiddenStates, store: &Store) -> Result<Tuned> {
        let mut errors = Errors::new(self.gpu, self.model, block, states, &self.wanted)?;
        let count = states.len();
        let (held_out, learned): (Vec<usize>, Vec<usize>) =
            (0..count).partition(|i| count < HELD_OUT || i % HELD_OUT == HELD_OUT - 1);
        let learned = if learned.is_empty() { held_out.clone() } else { learned };
        let scale = errors.mean(&learned, states, &mut self.wanted)?;
        let before = errors.mean(&held_out, states, &mut self.wanted)?;
        let mut tuned = Tuned { before, after: before, epochs: 0 };
        if !(scale > 0.0 && before > 0.0) {
            return Ok(tuned);
        }
        let mut training = Training::new(self, block, states, 1.0 / scale)?;
        let mut steps = Steps::new(self.gpu, store, self.options.learning_rate)?;
        let mut order = learned;
        let mut random = Random::new(count as u64);
        let mut since = 0;
        while tuned.epochs < self.options.epochs && since < PATIENCE {
            for i in (1..order.len()).rev() {
                order.swap(i, (random.bits() % (i as u64 + 1)) as usize);
            }
            for batch in order.chunks(self.options.batch) {
                training.batch(batch, states, &mut self.wanted)?;
                steps.step()?;
            }
            tuned.epochs += 1;
            let error = errors.mean(&held_out, states, &mut self.wanted)?;
            log::debug!("fine-tuning, epoch {}: error {error:.4e}, before {before:.4e}", tuned.epochs);
            // What is no number is never less.
            if error < tuned.after {
                tuned.after = error;
                since = 0;
                steps.keep()?;
            } else {
                since += 1;
            }
        }
        if since > 0 {
            steps.restore()?;
        }
        Ok(tuned)
    }
}

/// Programs that add up a block's squared error over samples.
struct Errors {
    programs: Vec<Program>,
    /// Of each length: [tokens] f32
    sums: Vec<Tensor>,
    /// Numbers of a token.
    width: usize,
}

impl Errors {
    fn new(
        gpu: &Gpu,
        model: &Model,
        block: &Block,
        states: &mut HiddenStates,
        wanted: &HiddenStates,
    ) -> Result<Errors> {
        let tokens = |length: &super::hidden_states::Length| length.x.shape()[0];
        let sums = states.lengths().iter().map(|l| gpu.zeros("squared errors", [tokens(l)], DType::F32));
        let sums = sums.collect::<Result<Vec<_>>>()?;
        let programs = states.programs(model, &|_| Pass::inference(), |g, sample, x, length| {
            let (y, _) = sample.through(g, block, x)?;
            let (want, sums) = (g.import(&wanted.lengths()[length].x), g.import(&sums[length]));
            squared_error::squared_error(g, &y, &want, 0.0, &sums).map(|_| ())
        })?;
        Ok(Errors { programs, sums, width: model.arch.hidden_size })
    }

    /// The mean squared error of these samples' outputs. Waits.
    fn mean(&mut self, samples: &[usize], states: &mut HiddenStates, wanted: &mut HiddenStates) -> Result<f64> {
        for sums in &self.sums {
            sums.write(bytemuck::cast_slice(&vec![0.0f32; sums.shape().len()]))?;
        }
        let mut numbers = 0;
        for &sample in samples {
            let length = states.load(sample)?;
            wanted.load(sample)?;
            self.programs[length].run()?;
            numbers += self.sums[length].shape().len() * self.width;
        }
        let mut total = 0.0;
        for sums in &self.sums {
            total += sums.read::<f32>()?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(total / numbers.max(1) as f64)
    }
}

/// Programs that add a sample's gradients to those of the step.
struct Training {
    programs: Vec<Program>,
    /// 0 for the first sample of a step, 1 for the others. [1] f32
    accumulate: Tensor,
}

impl Training {
    /// Gradients are those of `factor` times the mean squared error of a step, so that they are of one size in all blocks.
    fn new(tuner: &Tuner<'_>, block: &Block, states: &mut HiddenStates, factor: f64) -> Result<Training> {
        let accumulate = tuner.gpu.zeros("accumulation flag", [1], DType::F32)?;
        let width = tuner.model.arch.hidden_size;
        let step = |g: &mut Graph| StepValues { seed: None, accumulate: g.import(&accumulate) };
        let programs = states.programs(tuner.model, &|g| Pass::training(step(g)), |g, sample, x, length| {
            let tokens = x.rows_cols().0;
            let unused = g.import(&tuner.gpu.zeros("squared errors", [tokens], DType::F32)?);
            let (y, saved) = sample.through(g, block, x)?;
            let want = g.import(&tuner.wanted.lengths()[length].x);
            let scale = 2.0 * factor / (tokens * width * tuner.options.batch) as f64;
            let dy = squared_error::squared_error(g, &y, &want, scale as f32, &unused)?;
            block.gradients(g, &saved, &dy, &sample.cx)
        })?;
        Ok(Training { programs, accumulate })
    }

    fn batch(&mut self, batch: &[usize], states: &mut HiddenStates, wanted: &mut HiddenStates) -> Result<()> {
        for (i, &sample) in batch.iter().enumerate() {
            let length = states.load(sample)?;
            wanted.load(sample)?;
            self.accumulate.write(bytemuck::cast_slice(&[if i == 0 { 0.0f32 } else { 1.0 }]))?;
            self.programs[length].run()?;
        }
        Ok(())
    }
}
