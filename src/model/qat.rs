//! Quantization-aware training of a whole model: from floats to rounded layers that learn, and to a quantized model.

use super::{Inputs, Model, Ropes, RopesOfSamples};
use crate::{
    DType, Error, Result,
    adapter::{InputScales, Qat, QatConfig, Store},
    arch::Site,
    gpu::Tensor,
    graph::{Graph, Pool, Program},
    kernels::{QuantizedTensor, observe, quantize},
    nn::{Adapted, Change, InputRounding, Keys, Latent, Pass},
    ops::tune::tuned,
};
use std::collections::{HashMap, hash_map::Entry};

/// Words from one range to the next: 256 bytes on, the strictest alignment of a binding.
const SLOT: usize = 64;

impl Model {
    /// Begins quantization-aware training: the linear layers of the blocks are rounded to `config`'s scheme from here on, and
    /// trained through rounding. Without an adapter their weights are trained as a whole, from f32 copies of what they hold;
    /// with one, W + scale · B · A is what is rounded, and A and B are trained (layers without an adapter are rounded once).
    /// `trainable` ones also get memory for gradients and moments: four f32 a trained value in all.
    ///
    /// With static activations [`Model::observe_inputs`] comes next. Errors: Config, Unsupported for schemes that are not
    /// rounded to on the device and for layers behind a transform; Shape for a weight that one binding cannot hold as f32;
    /// OutOfMemory, Device.
    pub fn add_qat(&mut self, config: QatConfig, trainable: bool) -> Result<()> {
        config.validate()?;
        if self.qat.is_some() || self.full.is_some() {
            return Err(Error::config("add_qat", "the model's weights are trained already"));
        }
        if !self.virtual_tokens().is_empty() {
            let what = "training through rounding beside an adapter";
            return Err(Error::unsupported(what, "PROMPT_TUNING", "plain LoRA, or none"));
        }
        let layers: Vec<_> = self.linears().collect();
        let (store, latents) = Qat::prepare(&self.gpu, config, &layers, trainable)?;
        let mut latents = latents.into_iter();
        self.for_each_linear(|linear| latents.next().map_or(Ok(()), |latent| begin(linear, latent, &config)))?;
        self.store.append(store);
        self.qat = Some(Qat { config, observed: config.activations != Some(InputScales::Static) });
        Ok(())
    }

    /// Sets the scales of static activations: of each layer's input the largest magnitude over `samples`, lists of token ids,
    /// becomes code 127. The layers' weights are rounded while it looks, their inputs are not. Errors: Config where there is
    /// nothing to look at or nothing to set, Shape, Device.
    pub fn observe_inputs(&mut self, samples: &[Vec<u32>]) -> Result<()> {
        let statics = self.qat.as_ref().is_some_and(|q| q.config.activations == Some(InputScales::Static));
        if !statics {
            return Err(Error::config("activations", "no layer has a static scale to be observed"));
        }
        self.check_samples(samples)?;
        let mut activations = Vec::new();
        self.for_each_linear(|linear| {
            activations.push(linear.base.rounding.take());
            Ok(())
        })?;
        let largest = self.largest_inputs(samples);
        let mut activations = activations.into_iter();
        self.for_each_linear(|linear| {
            linear.base.rounding = activations.next().flatten();
            Ok(())
        })?;
        let largest = largest?;
        for (linear, &most) in self.linears().zip(&largest) {
            if let Some(InputRounding::Static { scale }) = &linear.base.rounding {
                scale.write(bytemuck::cast_slice(&[(most / 127.0).max(f32::EPSILON)]))?;
            }
        }
        if let Some(qat) = &mut self.qat {
            qat.observed = true;
        }
        Ok(())
    }

    /// The largest magnitude in the input of each linear layer. Errors: Config where it holds numbers that are not finite.
    fn largest_inputs(&self, samples: &[Vec<u32>]) -> Result<Vec<f32>> {
        let mut largest = Vec::with_capacity(self.arch.linear_count());
        let ranges = self.input_ranges(samples)?;
        let sites = self.blocks.iter().flat_map(|block| Site::ALL.map(|site| (block, site)));
        for ((block, site), range) in sites.zip(ranges.chunks_exact(SLOT)) {
            let absmax = (-f32::from_bits(range[0])).max(f32::from_bits(range[1]));
            for linear in block.readers(site) {
                if range[4] > 0 {
                    return Err(Error::config(&linear.name, "its input holds numbers that are not finite"));
                }
                largest.push(absmax);
            }
        }
        Ok(largest)
    }

    /// The first linear layer of the blocks whose input for this row holds a number that is not finite, by its name. Errors: Device,
    /// OutOfMemory.
    pub(crate) fn first_bad_input(&self, ids: &[u32]) -> Result<Option<String>> {
        let ranges = self.input_ranges(&[ids.to_vec()])?;
        let sites = self.blocks.iter().flat_map(|block| Site::ALL.map(|site| (block, site)));
        let bad = sites.zip(ranges.chunks_exact(SLOT)).find(|(_, range)| range[4] > 0);
        Ok(bad.and_then(|((block, site), _)| block.readers(site).next()).map(|linear| linear.name.clone()))
    }

    /// What [`observe::join_range`] finds in each site's input, [`SLOT`] words apart.
    fn input_ranges(&self, samples: &[Vec<u32>]) -> Result<Vec<u32>> {
        // A range for each site of each block, at offsets that can be bound.
        let ranges = self.gpu.zeros("ranges", [self.blocks.len() * Site::ALL.len() * SLOT], DType::U32)?;
        let ropes = RopesOfSamples::new(self, samples)?;
        let mut pool = Pool::default();
        let mut programs: HashMap<usize, (Inputs, Program)> = HashMap::new();
        for ids in samples {
            let (inputs, program) = match programs.entry(ids.len()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    entry.insert(self.record_ranges(ids.len(), ropes.of(ids.len()), &ranges, &mut pool)?)
                }
            };
            inputs.ids.write(bytemuck::cast_slice(ids))?;
            program.run()?;
        }
        ranges.read::<u32>()
    }

    /// A program that adds a sample of `len` tokens to the ranges of all sites.
    fn record_ranges(&self, len: usize, ropes: &Ropes, ranges: &Tensor, pool: &mut Pool) -> Result<(Inputs, Program)> {
        let inputs = Inputs::new(&self.gpu, 1, len)?;
        let positions: Vec<u32> = (0..len as u32).collect();
        inputs.write(&vec![0; len], &positions, &vec![1; len], &vec![0; len])?;
        let g = tuned(&self.gpu, || self.record_ranges_of(&inputs, ropes, ranges))?;
        Ok((inputs, g.plan().build(pool)?))
    }

    fn record_ranges_of(&self, inputs: &Inputs, ropes: &Ropes, ranges: &Tensor) -> Result<Graph> {
        let mut g = Graph::new(&self.gpu);
        let cx = self.context(&mut g, inputs, ropes, Pass::inference());
        let (ids, segments) = (g.import(&inputs.ids), g.import(&inputs.segments));
        let mut x = self.embed(&mut g, &ids)?;
        let mut slots = (0..).step_by(SLOT);
        for block in &self.blocks {
            let (y, saved) = block.forward(&mut g, &x, &cx, Keys::Own(&segments))?;
            for (site, slot) in Site::ALL.into_iter().zip(&mut slots) {
                let range = g.import(&ranges.slice(slot, [observe::RANGE])?);
                observe::join_range(&mut g, saved.input(site), &range, 1.0)?;
            }
            x = y;
        }
        Ok(g)
    }

    /// Records the rounding of all weights that are trained through rounding: an optimizer step ends with it.
    /// Errors: Shape.
    pub fn round_latents(&self, g: &mut Graph) -> Result<()> {
        for linear in self.linears() {
            if let Some(latent) = linear.change.rounded() {
                latent.round(g, &linear.weight_name(), &linear.base.weight)?;
            }
        }
        Ok(())
    }

    /// Ends quantization-aware training: what is left is a quantized model, whose weights are those that training saw in its
    /// forward passes, bit for bit. The floats behind them are gone, and so is an adapter, which the weights hold.
    /// Errors: Config where there is no such training, or a weight is not finite; Device.
    pub fn convert_qat(&mut self) -> Result<()> {
        let missing = || Error::config("convert_qat", "the model is not trained through rounding");
        if !self.qat.as_ref().ok_or_else(missing)?.observed && !self.gpu.is_dry() {
            return Err(Error::config("activations", "their static scales were never observed; call observe_inputs"));
        }
        // Values may have been written since the last step.
        let mut g = Graph::new(&self.gpu);
        self.round_latents(&mut g)?;
        if !g.is_empty() && !self.gpu.is_dry() {
            g.run()?;
        }
        for linear in self.linears() {
            if let Some(latent) = linear.change.rounded() {
                check(latent, &linear.weight_name(), &linear.base.weight)?;
            }
        }
        let gpu = self.gpu.clone();
        self.for_each_linear(|linear| {
            linear.change = Change::None;
            if let Some(InputRounding::Static { scale }) = &mut linear.base.rounding {
                // Out of the memory that the optimizer needs.
                let value = scale.read::<f32>()?;
                *scale = gpu.tensor(&linear.name, [1], DType::F32, &value)?;
            }
            Ok(())
        })?;
        (self.qat, self.adapter, self.store) = (None, None, Store::default());
        Ok(())
    }
}

/// Errors: Config with the tensor's name where a number could not be stored; Device.
fn check(latent: &Latent, name: &str, target: &QuantizedTensor) -> Result<()> {
    let gpu = target.gpu();
    if gpu.is_dry() {
        return Ok(());
    }
    let mut g = Graph::new(gpu);
    latent.look(&mut g, name, target)?;
    if !g.is_empty() {
        g.run()?;
    }
    quantize::report(name, target.scheme(), &latent.status().read()?)
}

/// Rounds a layer for the first time.
fn begin(linear: &mut Adapted, latent: Latent, config: &QatConfig) -> Result<()> {
    let (gpu, name) = (linear.base.weight.gpu().clone(), linear.weight_name());
    let target = latent.target(&gpu, &name, config.scheme, linear.base.weight.shape())?;
    let mut g = Graph::new(&gpu);
    latent.begin(&mut g, &name, &linear.base.weight, &target)?;
    if !gpu.is_dry() {
        g.run()?;
    }
    check(&latent, &name, &target)?;
    linear.base.rounding = match (config.activations, &latent.input_step) {
        (None, _) => None,
        (Some(InputScales::Dynamic), _) => Some(InputRounding::Dynamic),
        (Some(InputScales::Static), Some(step)) => Some(InputRounding::Static { scale: step.values.clone() }),
        (Some(InputScales::Static), None) => {
            Some(InputRounding::Static { scale: gpu.zeros(&linear.name, [1], DType::F32)? })
        }
    };
    linear.base.weight = target;
    linear.change = Change::Rounded(latent);
    Ok(())
}
