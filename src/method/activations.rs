//! The hidden states of the calibration samples between two blocks.

use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Pool, Program, Value},
    kernels::elementwise,
    model::{Context, Inputs, Model},
};

/// The hidden states of all samples: on the device up to a budget, the others on the host.
///
/// A recording works on one sample at a time, whose states are brought into a tensor that all samples of that length share,
/// so that a block is recorded once for each length.
pub(super) struct Activations {
    gpu: Gpu,
    rope: Tensor,
    lengths: Vec<Length>,
    samples: Vec<Sample>,
    pool: Pool,
}

/// What the samples of one length share.
struct Length {
    inputs: Inputs,
    /// [tokens, hidden]
    x: Tensor,
}

struct Sample {
    /// Number into the lengths.
    length: usize,
    memory: Memory,
}

enum Memory {
    /// Copies on the device, to the shared tensor and back.
    Device {
        load: Program,
        save: Program,
    },
    Host(Vec<f32>),
}

impl Activations {
    /// The embeddings of `samples`. Errors: Config for samples that cannot be used, OutOfMemory, Device.
    pub fn new(model: &Model, samples: &[Vec<u32>], budget: u64) -> Result<Activations> {
        let gpu = model.gpu();
        let longest = check(model, samples)?;
        let mut this = Activations {
            gpu: gpu.clone(),
            rope: model.rope_table(longest)?,
            lengths: Vec::new(),
            samples: Vec::new(),
            pool: Pool::default(),
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
            let memory = if held <= budget {
                let own = gpu.zeros("hidden states of a calibration sample", shared.x.shape().clone(), DType::F32)?;
                let mut save = copy(gpu, &own, &shared.x)?;
                save.run()?;
                Memory::Device { load: copy(gpu, &shared.x, &own)?, save }
            } else {
                Memory::Host(shared.x.read()?)
            };
            this.samples.push(Sample { length, memory });
        }
        Ok(this)
    }

    /// Tokens of all samples.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|s| self.lengths[s.length].x.shape()[0]).sum()
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
        let x = self.gpu.zeros("hidden states", [len, model.config.hidden_size], DType::F32)?;
        self.lengths.push(Length { inputs, x });
        Ok(self.lengths.len() - 1)
    }

    /// Runs over every sample what `record` records once for each length: it is given the hidden states [tokens, hidden].
    /// With `save` what it leaves there takes the place of the sample's own. Errors: those of `record`, Device.
    pub fn run(
        &mut self,
        model: &Model,
        save: bool,
        mut record: impl FnMut(&mut Graph, &Context, &Value) -> Result<()>,
    ) -> Result<()> {
        for (index, shared) in self.lengths.iter().enumerate() {
            let mut g = Graph::new(&self.gpu);
            let cx = model.context(&mut g, &shared.inputs, &self.rope, None);
            let x = g.import(&shared.x);
            record(&mut g, &cx, &x)?;
            let mut program = g.plan().build(&mut self.pool)?;
            for sample in self.samples.iter_mut().filter(|s| s.length == index) {
                match &mut sample.memory {
                    Memory::Device { load, .. } => load.run()?,
                    Memory::Host(values) => shared.x.write(bytemuck::cast_slice(values))?,
                }
                program.run()?;
                match &mut sample.memory {
                    Memory::Device { save: program, .. } if save => program.run()?,
                    Memory::Host(values) if save => *values = shared.x.read()?,
                    _ => {}
                }
            }
        }
        self.gpu.wait()
    }
}

/// A program that copies `from` to `to`.
fn copy(gpu: &Gpu, to: &Tensor, from: &Tensor) -> Result<Program> {
    let mut g = Graph::new(gpu);
    let (to, from) = (g.import(to), g.import(from));
    elementwise::assign(&mut g, &to, &from, 1.0)?;
    g.plan().build(&mut Pool::default())
}

/// The longest sample. Errors: Config where there is none, or one has no token or one that the model does not know.
fn check(model: &Model, samples: &[Vec<u32>]) -> Result<usize> {
    let refused = |message: String| Err(Error::config("calibration", message));
    let vocab = model.config.vocab_size;
    for (i, ids) in samples.iter().enumerate() {
        if ids.is_empty() {
            return refused(format!("sample {i} has no token"));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return refused(format!("sample {i} has token {id}; the model's vocabulary has {vocab}"));
        }
    }
    match samples.iter().map(Vec::len).max() {
        Some(longest) => Ok(longest),
        None => refused("this method needs a calibration text, and there is no sample".to_owned()),
    }
}
