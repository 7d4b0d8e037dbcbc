//! Block by block through a model: collect, fold, quantize, and go on with what the quantized block gives.

use super::{
    BlockStats, Compared, Layer, LayerFigures, LayerMethod, Site, Tuned, check_finite, finetune::Tuner, float_tensor,
    hidden_states::HiddenStates, report::Reference, to_floats,
};
use crate::{
    DType, Error, Result,
    arch::LinearId,
    gpu::Gpu,
    kernels::elementwise,
    model::{Block, LoadOptions, Model, Quantization, Source},
    nn::Adapted,
    quant::Scheme,
};
use serde::{Deserialize, Serialize};

/// How the pipeline goes through a model.
#[derive(Clone, Copy)]
pub struct PipelineOptions<'a> {
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
    /// Where each block is kept once it is done, and taken from where it is there.
    pub done: Option<&'a dyn DoneBlocks>,
}

impl Default for PipelineOptions<'_> {
    fn default() -> Self {
        PipelineOptions {
            true_sequential: false,
            base: Quantization::AsStored,
            report: false,
            activation_bytes: 1 << 30,
            done: None,
        }
    }
}

/// Where blocks are kept once they are done, exactly as they lie on the device.
pub trait DoneBlocks {
    /// Makes `block`, which is block `number` as it was, the one that is done; `None` where it is not. Errors: those of reading.
    fn read(&self, gpu: &Gpu, number: usize, block: &mut Block) -> Result<Option<BlockRecord>>;

    /// Keeps block `number`. Errors: those of writing.
    fn write(&self, number: usize, block: &Block, record: BlockRecord) -> Result<()>;
}

/// What was said of a block's layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Of each.
    pub reports: Vec<LayerReport>,
    /// Of those that were compared with rounding.
    pub compared: Vec<Compared>,
}

/// One linear layer that has been quantized.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
/// method needs none. `on_layer` is called for each layer that is done, in this run or in one that this one goes on with; its error ends
/// the work.
/// Errors: Config for numbers that are not finite, with the tensor's name, and for a calibration text that cannot be used;
/// those of [`Model::load`] and of the method; OutOfMemory, Device; Io, Format for blocks that are kept.
pub fn quantize_model(
    gpu: &Gpu,
    source: &Source,
    method: &dyn LayerMethod,
    options: &PipelineOptions<'_>,
    calibration: &[Vec<u32>],
    mut on_layer: impl FnMut(&LayerReport) -> Result<()>,
) -> Result<Model> {
    if method.needs().held_back && calibration.len() < 2 {
        let message = "at least 2 samples are needed where some are held back";
        return Err(Error::config("calibration", message));
    }
    let mut model = Model::without_blocks(gpu, source)?;
    let activations = match method.needs().any() || options.report {
        true => Some(HiddenStates::new(&model, calibration, options.activation_bytes)?),
        false => None,
    };
    let blocks = source.arch.blocks.len();
    let mut work = Work { gpu, source, method, options, model: &model, activations, done: 0 };
    let mut done = Vec::with_capacity(blocks);
    for number in 0..blocks {
        let block = work.block(number, &mut on_layer)?;
        if number + 1 < blocks {
            work.advance(&block)?;
        }
        done.push(block);
    }
    model.blocks = done;
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

/// A model on its way.
struct Work<'a> {
    gpu: &'a Gpu,
    source: &'a Source,
    method: &'a dyn LayerMethod,
    options: &'a PipelineOptions<'a>,
    /// Without blocks.
    model: &'a Model,
    /// Before the next block.
    activations: Option<HiddenStates>,
    /// Layers.
    done: usize,
}

impl Work<'_> {
    /// Block `number`, quantized: by an earlier run, where it was kept, or now.
    fn block(&mut self, number: usize, on_layer: &mut dyn FnMut(&LayerReport) -> Result<()>) -> Result<Block> {
        let mut block = float_block(self.gpu, self.source, number, self.options.base)?;
        let Some(kept) = self.options.done else {
            self.quantize_block(number, &mut block, on_layer)?;
            return Ok(block);
        };
        if let Some(record) = kept.read(self.gpu, number, &mut block)? {
            self.method.go_on(record.compared);
            self.done += record.reports.len();
            record.reports.iter().try_for_each(on_layer)?;
            return Ok(block);
        }
        let mut reports = Vec::new();
        let before = self.method.compared().len();
        self.quantize_block(number, &mut block, &mut |report| {
            reports.push(report.clone());
            on_layer(report)
        })?;
        kept.write(number, &block, BlockRecord { reports, compared: self.method.compared().split_off(before) })?;
        Ok(block)
    }

    fn quantize_block(
        &mut self,
        number: usize,
        block: &mut Block,
        on_layer: &mut dyn FnMut(&LayerReport) -> Result<()>,
    ) -> Result<()> {
        let Work { gpu, method, options, model, .. } = *self;
        check(block)?;
        method.prepare(gpu, number, block)?;
        let mut stats = self.collect(block, &Site::ALL)?;
        method.fold(gpu, block, &mut stats)?;
        self.observe(block, &mut stats, &Site::ALL)?;
        let mut tuner = match (method.finetune().filter(|t| t.reaches(number)), self.activations.as_mut()) {
            (Some(options), Some(states)) => Some(Tuner::new(gpu, model, block, states, options)?),
            _ => None,
        };
        let reference = options.report.then(|| Reference::of(gpu, block)).transpose()?;
        let mut waiting = Vec::new();
        for site in Site::ALL {
            if options.true_sequential && site != Site::Qkv && self.activations.is_some() {
                stats = self.collect(block, &[site])?;
                self.observe(block, &mut stats, &[site])?;
            }
            for &id in site.linears() {
                let Some(linear) = block.linear_mut(id) else { continue };
                let name = self.quantize(linear, id, &stats)?;
                let tuned = match (tuner.as_mut(), self.activations.as_mut()) {
                    (Some(tuner), Some(states)) => tuner.after(id, block, states)?,
                    _ => None,
                };
                self.done += 1;
                let (done, total) = (self.done, self.source.arch.linear_count());
                let report = LayerReport { name, done, total, tuned, figures: None };
                match reference {
                    None => on_layer(&report)?,
                    Some(_) => waiting.push(report),
                }
            }
        }
        if let (Some(reference), Some(states)) = (reference, self.activations.as_mut()) {
            let figures = reference.measure(model, block, states)?;
            for (report, figures) in waiting.into_iter().zip(figures) {
                on_layer(&LayerReport { figures: Some(figures), ..report })?;
            }
        }
        Ok(())
    }

    /// Runs the block over all samples and keeps what the method needs to know of these sites.
    fn collect(&mut self, block: &Block, sites: &[Site]) -> Result<BlockStats> {
        let needs = self.method.needs();
        let Some(activations) = self.activations.as_mut().filter(|_| needs.before_folding()) else {
            return BlockStats::new(self.gpu, &self.model.arch, Default::default(), &[]);
        };
        let mut stats = BlockStats::new(self.gpu, &self.model.arch, needs, sites)?;
        let samples = activations.len();
        let shown = |number: usize| !needs.holds_back(number, samples);
        let total = activations.tokens_of(shown);
        let one = self.gpu.tensor("one", [1], DType::F32, &[1.0f32])?;
        activations.run_where(self.model, shown, false, |g, sample, x| {
            let (_, saved) = sample.through(g, block, x)?;
            let one = g.import(&one);
            stats.record(g, &saved, total, &one)
        })?;
        activations.run_where(
            self.model,
            |number| !shown(number),
            false,
            |g, sample, x| {
                let (_, saved) = sample.through(g, block, x)?;
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
    fn observe(&mut self, block: &Block, stats: &mut BlockStats, sites: &[Site]) -> Result<()> {
        let observer = self.method.needs().observer;
        let (Some(activations), Some(observer)) = (self.activations.as_mut(), observer) else { return Ok(()) };
        stats.observe(self.gpu, &self.model.arch, observer, sites, activations.tokens())?;
        for histogram in [false, true] {
            if histogram && !observer.needs_histogram() {
                continue;
            }
            activations.run(self.model, false, |g, sample, x| {
                let (_, saved) = sample.through(g, block, x)?;
                stats.record_observed(g, &saved, histogram)
            })?;
        }
        Ok(())
    }

    /// Quantizes a linear layer in place; returns its name.
    fn quantize(&self, linear: &mut Adapted, id: LinearId, stats: &BlockStats) -> Result<String> {
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
    fn advance(&mut self, block: &Block) -> Result<()> {
        let Some(activations) = self.activations.as_mut() else { return Ok(()) };
        activations.run(self.model, true, |g, sample, x| {
            let (y, _) = sample.through(g, block, x)?;
            elementwise::assign(g, x, &y, 1.0)
        })
    }
}

fn check(block: &Block) -> Result<()> {
    block.linears().try_for_each(|(_, linear)| {
        let name = linear.weight_name();
        check_finite(&name, &float_tensor(&name, &linear.base.weight)?)
    })
}
