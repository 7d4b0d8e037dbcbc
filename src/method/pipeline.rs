//! Block by block through a model: collect, fold, quantize, and go on with what the quantized block gives.

use super::{
    BlockStats, Layer, LayerFigures, LayerMethod, Site, Tuned, check_finite, finetune::Tuner, float_tensor,
    hidden_states::HiddenStates, report::Reference, to_floats,
};
use crate::{
    DType, Error, Result,
    arch::LinearId,
    gpu::Gpu,
    kernels::elementwise,
    model::{Block, LoadOptions, Model, Quantization, Source},
    quant::Scheme,
};

/// How the pipeline goes through a model.
#[derive(Clone, Copy, Debug)]
pub struct PipelineOptions {
    /// Collect the inputs of o, of gate and up, and of down again once the layers before them in the block are quantized.
    /// Three more passes per block.
    pub true_sequential: bool,
    /// How the base is rounded before anything else: the scheme in which an adapter that is merged saw it in training.
    pub base: Quantization,
    /// Measure what quantization costs each layer: a pass more over the calibration text, and the block's floats held beside it.
    /// Layers are then reported when their block is done.
    pub report: bool,
    /// Device memory for the hidden states of the calibration samples, in bytes; those beyond it lie on the host.
    pub activation_bytes: u64,
}

impl Default for PipelineOptions {
    fn default() -> Self {
        PipelineOptions {
            true_sequential: false,
            base: Quantization::AsStored,
            report: false,
            activation_bytes: 1 << 30,
        }
    }
}

/// One linear layer that has been quantized.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Layers done, this one included.
    pub done: usize,
    /// Layers in all.
    pub total: usize,
    /// What fine-tuning did to the block after this layer, where it did something.
    pub tuned: Option<Tuned>,
    /// What it cost, where [`PipelineOptions::report`] asks for it.
    pub figures: Option<LayerFigures>,
}

/// Quantizes the linear layers of a model's blocks with `method`; embedding, head and norms stay as stored.
///
/// One block in f32 and the hidden states of the calibration samples are held at a time, beside what is done. Each block is
/// calibrated with what the quantized blocks before it give. `calibration`: token ids, one list per sample; unused where the
/// method needs none. `on_layer` is called for each layer that is done; its error ends the work.
/// Errors: Config for numbers that are not finite, with the tensor's name, and for a calibration text that cannot be used;
/// those of [`Model::load`] and of the method; OutOfMemory, Device.
pub fn quantize_model(
    gpu: &Gpu,
    source: &Source,
    method: &dyn LayerMethod,
    options: &PipelineOptions,
    calibration: &[Vec<u32>],
    mut on_layer: impl FnMut(&LayerReport) -> Result<()>,
) -> Result<Model> {
    if method.needs().held_back && calibration.len() < 2 {
        let message = "at least 2 samples are needed where some are held back";
        return Err(Error::config("calibration", message));
    }
    let mut model = Model::without_blocks(gpu, source)?;
    let mut activations = match method.needs().any() || options.report {
        true => Some(HiddenStates::new(&model, calibration, options.activation_bytes)?),
        false => None,
    };
    let (blocks, total) = (source.arch.blocks.len(), source.arch.linear_count());
    let mut done = 0;
    for number in 0..blocks {
        let block = float_block(gpu, source, number, options.base)?;
        let mut work = Work { gpu, model: &model, method, block };
        work.check()?;
        method.prepare(gpu, number, &work.block)?;
        let mut stats = work.collect(activations.as_mut(), &Site::ALL)?;
        method.fold(gpu, &mut work.block, &mut stats)?;
        work.observe(activations.as_mut(), &mut stats, &Site::ALL)?;
        let mut tuner = match (method.finetune().filter(|t| t.reaches(number)), activations.as_mut()) {
            (Some(options), Some(states)) => Some(Tuner::new(gpu, &model, &work.block, states, options)?),
            _ => None,
        };
        let reference = options.report.then(|| Reference::of(gpu, &work.block)).transpose()?;
        let mut waiting = Vec::new();
        for site in Site::ALL {
            if options.true_sequential && site != Site::Qkv && activations.is_some() {
                stats = work.collect(activations.as_mut(), &[site])?;
                work.observe(activations.as_mut(), &mut stats, &[site])?;
            }
            for &id in site.linears() {
                let name = work.quantize(id, &stats)?;
                let tuned = match (tuner.as_mut(), activations.as_mut()) {
                    (Some(tuner), Some(states)) => tuner.after(id, &mut work.block, states)?,
                    _ => None,
                };
                done += 1;
                let report = LayerReport { name, done, total, tuned, figures: None };
                match reference {
                    None => on_layer(&report)?,
                    Some(_) => waiting.push(report),
                }
            }
        }
        if let (Some(reference), Some(states)) = (reference, activations.as_mut()) {
            let figures = reference.measure(&model, &work.block, states)?;
            for (report, figures) in waiting.into_iter().zip(figures) {
                on_layer(&LayerReport { figures: Some(figures), ..report })?;
            }
        }
        if let Some(activations) = activations.as_mut().filter(|_| number + 1 < blocks) {
            work.advance(activations)?;
        }
        let block = work.block;
        model.blocks.push(block);
    }
    Ok(model)
}

/// A block in f32, of what `base` makes of the numbers that are stored.
fn float_block(gpu: &Gpu, source: &Source, number: usize, base: Quantization) -> Result<Block> {
    let load = |quantization| Model::load_block(gpu, source, number, &LoadOptions { quantization });
    if base == Quantization::AsStored {
        return load(Quantization::To(Scheme::F32));
    }
    let mut block = load(base)?;
    block.for_each_linear(|_, linear| {
        linear.base.weight = to_floats(gpu, &linear.name, &linear.base.weight)?;
        Ok(())
    })?;
    Ok(block)
}

/// One block on its way.
struct Work<'a> {
    gpu: &'a Gpu,
    /// Without the blocks to come.
    model: &'a Model,
    method: &'a dyn LayerMethod,
    block: Block,
}

impl Work<'_> {
    fn check(&self) -> Result<()> {
        self.block.linears().try_for_each(|(_, linear)| {
            let name = linear.weight_name();
            check_finite(&name, &float_tensor(&name, &linear.base.weight)?)
        })
    }

    /// Runs the block over all samples and keeps what the method needs to know of these sites.
    fn collect(&self, activations: Option<&mut HiddenStates>, sites: &[Site]) -> Result<BlockStats> {
        let needs = self.method.needs();
        let Some(activations) = activations.filter(|_| needs.before_folding()) else {
            return BlockStats::new(self.gpu, &self.model.arch, Default::default(), &[]);
        };
        let mut stats = BlockStats::new(self.gpu, &self.model.arch, needs, sites)?;
        let samples = activations.len();
        let shown = |number: usize| !needs.holds_back(number, samples);
        let total = activations.tokens_of(shown);
        let one = self.gpu.tensor("one", [1], DType::F32, &[1.0f32])?;
        activations.run_where(self.model, shown, false, |g, sample, x| {
            let (_, saved) = sample.through(g, &self.block, x)?;
            let one = g.import(&one);
            stats.record(g, &saved, total, &one)
        })?;
        activations.run_where(
            self.model,
            |number| !shown(number),
            false,
            |g, sample, x| {
                let (_, saved) = sample.through(g, &self.block, x)?;
                let one = g.import(&one);
                stats.record_held_back(g, &saved, &one)
            },
        )?;
        for site in sites {
            stats.site_mut(*site).tokens = total;
        }
        Ok(stats)
    }

    /// Runs the block over all samples for the method's observer, where it has one: ranges first, then histograms within them.
    fn observe(&self, activations: Option<&mut HiddenStates>, stats: &mut BlockStats, sites: &[Site]) -> Result<()> {
        let (Some(activations), Some(observer)) = (activations, self.method.needs().observer) else { return Ok(()) };
        stats.observe(self.gpu, &self.model.arch, observer, sites, activations.tokens())?;
        for histogram in [false, true] {
            if histogram && !observer.needs_histogram() {
                continue;
            }
            activations.run(self.model, false, |g, sample, x| {
                let (_, saved) = sample.through(g, &self.block, x)?;
                stats.record_observed(g, &saved, histogram)
            })?;
        }
        Ok(())
    }

    /// Quantizes a linear layer in place; returns its name.
    fn quantize(&mut self, id: LinearId, stats: &BlockStats) -> Result<String> {
        let linear = self.block.linear_mut(id);
        let name = linear.weight_name();
        let layer = Layer {
            id,
            name: &linear.name,
            weight: float_tensor(&name, &linear.base.weight)?,
            bias: linear.base.bias.clone(),
            stats: stats.site(id.reads()),
        };
        linear.base = self.method.quantize(self.gpu, &layer)?;
        Ok(linear.name.clone())
    }

    /// Makes the block's output the next one's input.
    fn advance(&self, activations: &mut HiddenStates) -> Result<()> {
        activations.run(self.model, true, |g, sample, x| {
            let (y, _) = sample.through(g, &self.block, x)?;
            elementwise::assign(g, x, &y, 1.0)
        })
    }
}
