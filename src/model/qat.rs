//! Quantization-aware training of a whole model: from floats to rounded layers that learn, and to a quantized model.

use super::{Inputs, Model};
use crate::{
    DType, Error, Result,
    adapter::{AdaptedLinear, Float, InputScales, Latent, Qat, QatConfig, QatLayer},
    graph::Graph,
    kernels::{QuantizedTensor, dequantize, elementwise, quantize, reduce},
    nn::Activations,
};

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
        if self.qat.is_some() {
            return Err(Error::config("add_qat", "the model is trained through rounding already"));
        }
        let mut layers = Vec::with_capacity(7 * self.blocks.len());
        for linear in self.blocks.iter().flat_map(|block| block.linears()) {
            if linear.base.input.is_some() {
                let (got, supported) = ("columns in another order or Hadamard", "layers without a transform");
                return Err(Error::unsupported(
                    format!("training through rounding of {}", linear.name),
                    got,
                    supported,
                ));
            }
            let (name, weight, lora) = (linear.name.clone(), linear.base.weight.clone(), linear.lora.clone());
            layers.push(QatLayer { name, weight, lora });
        }
        let (mut qat, latents) = Qat::new(&self.gpu, config, &layers, trainable)?;
        qat.observed = config.activations != Some(InputScales::Static);
        drop(layers);
        for (linear, latent) in self.blocks.iter_mut().flat_map(|block| block.linears_mut()).zip(latents) {
            begin(linear, latent, &config)?;
        }
        self.qat = Some(qat);
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
        let longest = samples.iter().map(Vec::len).max().unwrap_or(0);
        if samples.iter().any(Vec::is_empty) || longest == 0 {
            return Err(Error::config("calibration", "static scales need samples of at least one token"));
        }
        let mut activations = Vec::new();
        for linear in self.blocks.iter_mut().flat_map(|block| block.linears_mut()) {
            activations.push(linear.base.activation.take());
        }
        let largest = self.largest_inputs(samples, longest);
        let linears = self.blocks.iter_mut().flat_map(|block| block.linears_mut());
        for (linear, activation) in linears.zip(activations) {
            linear.base.activation = activation;
        }
        let largest = largest?;
        for (linear, &most) in self.blocks.iter().flat_map(|block| block.linears()).zip(&largest) {
            if !most.is_finite() {
                let message = "its input holds numbers that are not finite";
                return Err(Error::config(&linear.name, message));
            }
            if let Some(Activations::Static { scale }) = &linear.base.activation {
                scale.write(bytemuck::cast_slice(&[(most / 127.0).max(f32::EPSILON)]))?;
            }
        }
        if let Some(qat) = &mut self.qat {
            qat.observed = true;
        }
        Ok(())
    }

    /// The largest magnitude in the input of each linear layer.
    fn largest_inputs(&self, samples: &[Vec<u32>], longest: usize) -> Result<Vec<f32>> {
        let rope = self.rope_table(longest)?;
        let mut largest = vec![0.0f32; 7 * self.blocks.len()];
        for ids in samples {
            let inputs = Inputs::new(&self.gpu, 1, ids.len())?;
            let positions: Vec<u32> = (0..ids.len() as u32).collect();
            inputs.write(ids, &positions, &vec![1; ids.len()], &vec![0; ids.len()])?;
            let mut g = Graph::new(&self.gpu);
            let cx = self.context(&mut g, &inputs, &rope, None);
            let token_ids = g.import(&inputs.ids);
            let mut x = self.embed(&mut g, &token_ids)?;
            let mut found = Vec::with_capacity(largest.len());
            for block in &self.blocks {
                let (y, saved) = block.forward(&mut g, &x, &cx)?;
                for input in saved.linear_inputs() {
                    let (absmax, bad) = reduce::absmax(&mut g, input, input.shape().len())?;
                    g.keep(&absmax);
                    g.keep(&bad);
                    found.push((absmax, bad));
                }
                x = y;
            }
            let program = g.run()?;
            for (most, (absmax, bad)) in largest.iter_mut().zip(&found) {
                let bad = program.read::<u32>(bad)?[0];
                *most = if bad > 0 { f32::INFINITY } else { most.max(program.read::<f32>(absmax)?[0]) };
            }
        }
        Ok(largest)
    }

    /// Records the rounding of all weights that are trained through rounding: an optimizer step ends with it.
    /// Errors: Shape.
    pub fn round_latents(&self, g: &mut Graph) -> Result<()> {
        for linear in self.blocks.iter().flat_map(|block| block.linears()) {
            if let Some(latent) = &linear.latent {
                latent.round(g, &linear.name, &linear.base.weight, false)?;
            }
        }
        Ok(())
    }

    /// Ends quantization-aware training: what is left is a quantized model, whose weights are those that training saw in its
    /// forward passes, bit for bit. The floats behind them are gone, and so is an adapter, which the weights hold.
    /// Errors: Config where there is no such training, or a weight is not finite; Device.
    pub fn convert_qat(&mut self) -> Result<()> {
        let missing = || Error::config("convert_qat", "the model is not trained through rounding");
        if !self.qat.as_ref().ok_or_else(missing)?.observed {
            return Err(Error::config("activations", "their static scales were never observed; call observe_inputs"));
        }
        // Values may have been written since the last step.
        let mut g = Graph::new(&self.gpu);
        self.round_latents(&mut g)?;
        if !g.is_empty() && !self.gpu.is_dry() {
            g.run()?;
        }
        for linear in self.blocks.iter().flat_map(|block| block.linears()) {
            if let Some(latent) = &linear.latent {
                latent.check(&format!("{}.weight", linear.name), linear.base.weight.scheme())?;
            }
        }
        for linear in self.blocks.iter_mut().flat_map(|block| block.linears_mut()) {
            (linear.latent, linear.lora) = (None, None);
            if let Some(Activations::Static { scale }) = &mut linear.base.activation {
                // Out of the memory that the optimizer needs.
                let value = scale.read::<f32>()?;
                *scale = self.gpu.tensor(&linear.name, [1], DType::F32, &value)?;
            }
        }
        self.qat = None;
        self.adapter = None;
        Ok(())
    }
}

/// Rounds a layer for the first time.
fn begin(linear: &mut AdaptedLinear, latent: Latent, config: &QatConfig) -> Result<()> {
    let gpu = linear.base.weight.gpu().clone();
    let name = format!("{}.weight", linear.name);
    let target = QuantizedTensor::zeros(&gpu, &name, config.scheme, linear.base.weight.shape())?;
    let mut g = Graph::new(&gpu);
    match &latent.float {
        Float::Whole(weight) => {
            let (w, copy) = (dequantize::dequantize(&mut g, &linear.base.weight)?, g.import(&weight.values));
            elementwise::assign(&mut g, &copy, &w, 1.0)?;
        }
        Float::Fixed => {
            let w = dequantize::dequantize(&mut g, &linear.base.weight)?;
            quantize::record(&mut g, &name, &w, &target, false, latent.status())?;
        }
        Float::Merged(..) => {}
    }
    latent.round(&mut g, &name, &target, true)?;
    if !gpu.is_dry() {
        g.run()?;
        latent.check(&name, target.scheme())?;
    }
    linear.base.activation = match (config.activations, &latent.input_step) {
        (None, _) => None,
        (Some(InputScales::Dynamic), _) => Some(Activations::Dynamic),
        (Some(InputScales::Static), Some(step)) => Some(Activations::Static { scale: step.values.clone() }),
        (Some(InputScales::Static), None) => {
            Some(Activations::Static { scale: gpu.zeros(&linear.name, [1], DType::F32)? })
        }
    };
    linear.base.weight = target;
    linear.latent = Some(latent);
    Ok(())
}
