//! Block by block through a model: collect, fold, quantize, and go on with what the quantized block gives.

use super::{
    BlockStats, Layer, LayerFigures, LayerMethod, Site, Tuned, activations::Activations, check_finite, finetune::Tuner,
    float_tensor, report::Reference, to_floats,
};
use crate::{
    DType, Error, Result,
    gpu::Gpu,
    kernels::elementwise,
    model::{Block, LoadOptions, Model, Quantization, Source},
    quant::Scheme,
};

/// How the model is walked through.
#[derive(Clone, Copy, Debug)]
pub struct PipelineOptions {
    /// Collect the inputs of o, of gate and up, and of down again once the layers before them in the block are quantized.
    /// Three more passes a block.
    pub true_sequential: bool,
    /// How the base is rounded before anything else: the scheme in which an adapter that is merged saw it in training.
    pub base: Quantization,
    /// Measure what quantization costs each layer: a pass more over the calibration text, and the block's floats held beside it.
    /// Layers are then told of when their block is done.
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
/// calibrated with what the quantized blocks before it give. `calibration`: token ids, one list a sample; unused where the
/// method needs none. `on_layer` is told each layer that is done; its error ends the work.
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
        true => Some(Activations::new(&model, calibration, options.activation_bytes)?),
        false => None,
    };
    let layers = source.config.layers;
    let total = 7 * layers;
    for layer in 0..layers {
        let mut work = Work { gpu, model: &model, method, block: float_block(gpu, source, layer, options.base)? };
        work.check()?;
        method.prepare(gpu, &work.block)?;
        let mut stats = work.collect(activations.as_mut(), &Site::ALL)?;
        method.fold(gpu, &mut work.block, &mut stats)?;
        work.observe(activations.as_mut(), &mut stats, &Site::ALL)?;
        let mut tuner = match (method.finetune().filter(|t| t.reaches(layer)), activations.as_mut()) {
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
            for index in site.linears() {
                let name = work.quantize(index, &stats, site)?;
                let tuned = match (tuner.as_mut(), activations.as_mut()) {
                    (Some(tuner), Some(states)) => tuner.after(index, &mut work.block, states)?,
                    _ => None,
                };
                let report = LayerReport { name, done: layer * 7 + index + 1, total, tuned, figures: None };
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
        if let Some(activations) = activations.as_mut().filter(|_| layer + 1 < layers) {
            work.advance(activations)?;
        }
        let block = work.block;
        model.blocks.push(block);
    }
    Ok(model)
}

/// A block in f32, of what `base` makes of the numbers that are stored.
fn float_block(gpu: &Gpu, source: &Source, layer: usize, base: Quantization) -> Result<Block> {
    let load = |quantization| Model::load_block(gpu, source, layer, &LoadOptions { quantization });
    if base == Quantization::AsStored {
        return load(Quantization::To(Scheme::F32));
    }
    let mut block = load(base)?;
    for linear in block.linears_mut() {
        linear.base.weight = to_floats(gpu, &linear.name, &linear.base.weight)?;
    }
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
        self.block.linears().into_iter().try_for_each(|linear| {
            let name = format!("{}.weight", linear.name);
            check_finite(&name, &float_tensor(&name, &linear.base.weight)?)
        })
    }

    /// Runs the block over all samples and keeps what the method needs to know of these sites.
    fn collect(&self, activations: Option<&mut Activations>, sites: &[Site]) -> Result<BlockStats> {
        let needs = self.method.needs();
        let Some(activations) = activations.filter(|_| needs.before_folding()) else {
            return BlockStats::new(self.gpu, &self.model.config, Default::default(), &[]);
        };
        let mut stats = BlockStats::new(self.gpu, &self.model.config, needs, sites)?;
        let samples = activations.len();
        let shown = |number: usize| !needs.holds_back(number, samples);
        let total = activations.tokens_of(shown);
        let one = self.gpu.tensor("one", [1], DType::F32, &[1.0f32])?;
        activations.run_where(self.model, shown, false, |g, cx, x| {
            let (_, saved) = self.block.forward(g, x, cx)?;
            let one = g.import(&one);
            stats.record(g, saved.linear_inputs(), total, &one)
        })?;
        activations.run_where(
            self.model,
            |number| !shown(number),
            false,
            |g, cx, x| {
                let (_, saved) = self.block.forward(g, x, cx)?;
                let one = g.import(&one);
                stats.record_held_back(g, saved.linear_inputs(), &one)
            },
        )?;
        for site in sites {
            stats.site_mut(*site).tokens = total;
        }
        Ok(stats)
    }

    /// Runs the block over all samples for the method's observer, where it has one: ranges first, then histograms within them.
    fn observe(&self, activations: Option<&mut Activations>, stats: &mut BlockStats, sites: &[Site]) -> Result<()> {
        let (Some(activations), Some(observer)) = (activations, self.method.needs().observer) else { return Ok(()) };
        stats.observe(self.gpu, &self.model.config, observer, sites, activations.tokens())?;
        for histogram in [false, true] {
            if histogram && !observer.needs_histogram() {
                continue;
            }
            activations.run(self.model, false, |g, cx, x| {
                let (_, saved) = self.block.forward(g, x, cx)?;
                stats.record_observed(g, saved.linear_inputs(), histogram)
            })?;
        }
        Ok(())
    }

    /// Quantizes a linear layer in place; returns its name.
    fn quantize(&mut self, index: usize, stats: &BlockStats, site: Site) -> Result<String> {
        let linear = self.block.linears_mut().into_iter().nth(index).expect("a block has seven layers");
        let name = format!("{}.weight", linear.name);
        let layer = Layer {
            name: &linear.name,
            weight: float_tensor(&name, &linear.base.weight)?,
            bias: linear.base.bias.clone(),
            stats: stats.site(site),
        };
        linear.base = self.method.quantize(self.gpu, &layer)?;
        Ok(linear.name.clone())
    }

    /// Makes the block's output the next one's input.
    fn advance(&self, activations: &mut Activations) -> Result<()> {
        activations.run(self.model, true, |g, cx, x| {
            let (y, _) = self.block.forward(g, x, cx)?;
            elementwise::assign(g, x, &y, 1.0)
        })
    }
}
