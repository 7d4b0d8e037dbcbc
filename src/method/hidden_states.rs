//! The hidden states of the calibration samples between two blocks.

use crate::{
    DType, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Pool, Program, Value},
    kernels::elementwise,
    model::{Block, Inputs, Model, RopesOfSamples, Saved},
    nn::{Context, Keys, Pass},
};
use std::sync::Arc;

/// The hidden states of all samples: on the device up to a budget, the others on the host.
///
/// A recording works on one sample at a time, whose states are brought into a tensor that all samples of that length share,
/// so that a block is recorded once for each length.
pub(super) struct HiddenStates {
    gpu: Gpu,
    ropes: Arc<RopesOfSamples>,
    lengths: Vec<Length>,
    samples: Vec<States>,
    pool: Pool,
    budget: u64,
}

/// What the samples of one length share.
pub(super) struct Length {
    inputs: Inputs,
    /// [tokens, hidden]
    pub x: Tensor,
}

struct States {
    /// Number into the lengths.
    length: usize,
    memory: Memory,
}

/// What a recording over the hidden states of one sample is given.
pub(super) struct Sample {
    /// What its layers share.
    pub cx: Context,
    segments: Value,
}

impl Sample {
    /// The block's output for `x`. Errors: Shape.
    pub(super) fn through(&self, g: &mut Graph, block: &Block, x: &Value) -> Result<(Value, Saved)> {
        block.forward(g, x, &self.cx, Keys::Own(&self.segments))
    }
}

enum Memory {
    /// Copies on the device, to the shared tensor and back.
    Device {
        load: Box<Program>,
        save: Box<Program>,
    },
    Host(Vec<f32>),
}

impl Memory {
    /// Keeps what `shared` holds: on the device where that stays within the budget. `held`: bytes of all samples so far,
    /// this one included.
    fn keep(gpu: &Gpu, shared: &Tensor, held: u64, budget: u64) -> Result<Memory> {
        if held > budget {
            return Ok(Memory::Host(shared.read()?));
        }
        let own = gpu.zeros("hidden states of a calibration sample", shared.shape().clone(), DType::F32)?;
        let mut save = copy(gpu, &own, shared)?;
        save.run()?;
        Ok(Memory::Device { load: Box::new(copy(gpu, shared, &own)?), save: Box::new(save) })
    }
}

impl HiddenStates {
    /// The embeddings of `samples`. Errors: Config for samples that cannot be used, OutOfMemory, Device.
    pub(super) fn new(model: &Model, samples: &[Vec<u32>], budget: u64) -> Result<HiddenStates> {
        let gpu = model.gpu();
        model.check_samples(samples)?;
        let mut this = HiddenStates {
            gpu: gpu.clone(),
            ropes: Arc::new(RopesOfSamples::new(model, samples)?),
            lengths: Vec::new(),
            samples: Vec::new(),
            pool: Pool::default(),
            budget,
        };
        let mut held = 0;
        for ids in samples {
            let length = this.length(model, ids.len())?;
            let shared = &this.lengths[length];
            shared.inputs.ids.write(bytemuck::cast_slice(ids))?;
            let mut g = Graph::new(gpu);
            let token_ids = g.import(&shared.inputs.ids);
            let embedded = model.embed(&mut g, &token_ids)?;
            let x = g.import(&shared.x);
            elementwise::assign(&mut g, &x, &embedded, 1.0)?;
            g.plan().build(&mut this.pool)?.run()?;
            held += shared.x.bytes();
            let memory = Memory::keep(gpu, &shared.x, held, budget)?;
            this.samples.push(States { length, memory });
        }
        Ok(this)
    }

    /// What `record` makes of each sample's states, beside them. Errors: those of `record`, OutOfMemory, Device.
    pub(super) fn map(
        &mut self,
        model: &Model,
        mut record: impl FnMut(&mut Graph, &Sample, &Value) -> Result<Value>,
    ) -> Result<HiddenStates> {
        let (gpu, budget) = (self.gpu.clone(), self.budget);
        let lengths = self.lengths.iter().map(|l| {
            let x = gpu.zeros("hidden states", l.x.shape().clone(), DType::F32)?;
            Ok(Length { inputs: l.inputs.clone(), x })
        });
        let lengths = lengths.collect::<Result<Vec<_>>>()?;
        let mut programs = self.programs(model, &|_| Pass::inference(), |g, sample, x, length| {
            let (y, to) = (record(g, sample, x)?, g.import(&lengths[length].x));
            elementwise::assign(g, &to, &y, 1.0)
        })?;
        let mut samples = Vec::with_capacity(self.len());
        let mut held = 0;
        for sample in 0..self.len() {
            let length = self.load(sample)?;
            programs[length].run()?;
            held += lengths[length].x.bytes();
            samples.push(States { length, memory: Memory::keep(&gpu, &lengths[length].x, held, budget)? });
        }
        Ok(HiddenStates { gpu, ropes: self.ropes.clone(), lengths, samples, pool: Pool::default(), budget })
    }

    /// Samples.
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    /// What the samples of each length share.
    pub(super) fn lengths(&self) -> &[Length] {
        &self.lengths
    }

    /// Tokens of all samples.
    pub(super) fn tokens(&self) -> usize {
        self.tokens_of(|_| true)
    }

    /// Tokens of the samples whose number `which` takes.
    pub(super) fn tokens_of(&self, which: impl Fn(usize) -> bool) -> usize {
        let taken = self.samples.iter().enumerate().filter(|(number, _)| which(*number));
        taken.map(|(_, s)| self.lengths[s.length].x.shape()[0]).sum()
    }

    /// The number of what samples of `len` tokens share.
    fn length(&mut self, model: &Model, len: usize) -> Result<usize> {
        if let Some(index) = self.lengths.iter().position(|l| l.x.shape()[0] == len) {
            return Ok(index);
        }
        let inputs = Inputs::new(&self.gpu, 1, len)?;
        let positions: Vec<u32> = (0..len as u32).collect();
        // The loss is never recorded, so that any labels do.
        inputs.write(&vec![0; len], &positions, &vec![1; len], &vec![0; len])?;
        let x = self.gpu.zeros("hidden states", [len, model.arch.hidden_size], DType::F32)?;
        self.lengths.push(Length { inputs, x });
        Ok(self.lengths.len() - 1)
    }

    /// Runs over every sample what `record` records once for each length: it is given the hidden states [tokens, hidden].
    /// With `save` what it leaves there takes the place of the sample's own. Errors: those of `record`, Device.
    pub(super) fn run(
        &mut self,
        model: &Model,
        save: bool,
        record: impl FnMut(&mut Graph, &Sample, &Value) -> Result<()>,
    ) -> Result<()> {
        self.run_where(model, |_| true, save, record)
    }

    /// [`HiddenStates::run`] over the samples whose number `which` takes.
    pub(super) fn run_where(
        &mut self,
        model: &Model,
        which: impl Fn(usize) -> bool,
        save: bool,
        mut record: impl FnMut(&mut Graph, &Sample, &Value) -> Result<()>,
    ) -> Result<()> {
        for length in 0..self.lengths.len() {
            let samples: Vec<_> = (0..self.len()).filter(|&s| self.samples[s].length == length && which(s)).collect();
            if samples.is_empty() {
                continue;
            }
            let mut program =
                self.program(model, length, &|_| Pass::inference(), |g, sample, x, _| record(g, sample, x))?;
            for sample in samples {
                self.load(sample)?;
                program.run()?;
                if save {
                    self.save(sample)?;
                }
            }
        }
        self.gpu.wait()
    }

    /// What `record` records for each length: it is given the hidden states [tokens, hidden] and the length's number; `pass`: how.
    /// Errors: those of `record`, OutOfMemory.
    pub(super) fn programs(
        &mut self,
        model: &Model,
        pass: &dyn Fn(&mut Graph) -> Pass,
        mut record: impl FnMut(&mut Graph, &Sample, &Value, usize) -> Result<()>,
    ) -> Result<Vec<Program>> {
        (0..self.lengths.len()).map(|length| self.program(model, length, pass, &mut record)).collect()
    }

    fn program(
        &mut self,
        model: &Model,
        length: usize,
        pass: &dyn Fn(&mut Graph) -> Pass,
        mut record: impl FnMut(&mut Graph, &Sample, &Value, usize) -> Result<()>,
    ) -> Result<Program> {
        let shared = &self.lengths[length];
        let mut g = Graph::new(&self.gpu);
        let pass = pass(&mut g);
        let cx = model.context(&mut g, &shared.inputs, self.ropes.of(shared.x.shape()[0]), pass);
        let sample = Sample { cx, segments: g.import(&shared.inputs.segments) };
        let x = g.import(&shared.x);
        record(&mut g, &sample, &x, length)?;
        g.plan().build(&mut self.pool)
    }

    /// Brings a sample's states into what its length shares; returns the length's number. Errors: Device.
    pub(super) fn load(&mut self, sample: usize) -> Result<usize> {
        let States { length, memory } = &mut self.samples[sample];
        match memory {
            Memory::Device { load, .. } => load.run()?,
            Memory::Host(values) => self.lengths[*length].x.write(bytemuck::cast_slice(values))?,
        }
        Ok(*length)
    }

    /// The reverse.
    fn save(&mut self, sample: usize) -> Result<()> {
        let States { length, memory } = &mut self.samples[sample];
        match memory {
            Memory::Device { save, .. } => save.run(),
            Memory::Host(values) => {
                *values = self.lengths[*length].x.read()?;
                Ok(())
            }
        }
    }
}

/// A program that copies `from` to `to`.
fn copy(gpu: &Gpu, to: &Tensor, from: &Tensor) -> Result<Program> {
    let mut g = Graph::new(gpu);
    let (to, from) = (g.import(to), g.import(from));
    elementwise::assign(&mut g, &to, &from, 1.0)?;
    g.plan().build(&mut Pool::default())
}
