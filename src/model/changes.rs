//! The adapter that is attached to a model, and what follows from its values.

use super::Model;
use crate::{
    DType, Error, Result,
    adapter::{Adapter, Module, PROMPT, PeftConfig, modules},
    gpu::Tensor,
    graph::Graph,
    kernels::{dequantize, diagonal},
    nn::{AdaLora, Adapted, Change, Dora, Linear, Lora, weight_alone},
    ops::tune::tuned,
};
use std::collections::HashMap;

/// Bytes of a weight's floats, or of unit vectors, that are alive at once while its rows are measured.
const MEASURED_BYTES: usize = 32 << 20;

impl Model {
    /// Names and low-rank pairs of the layers that have one, in the model's order.
    pub fn adapted(&self) -> impl Iterator<Item = (&str, Lora)> {
        self.modules().filter_map(|(name, module)| Some((name, module.lora()?)))
    }

    /// Names of the layers that have an adapter, and what it holds for them, in the model's order.
    pub fn modules(&self) -> impl Iterator<Item = (&str, Module)> {
        self.adapter.iter().flat_map(|config| modules(config, &self.store))
    }

    /// Attaches `adapter` in place of the one there is, which stays where this fails. Errors: Shape where a module does not fit, Config in
    /// quantization-aware training.
    pub fn attach(&mut self, adapter: Adapter) -> Result<()> {
        if self.qat.is_some() {
            return Err(Error::config(
                "adapter",
                "the model is trained through rounding; an adapter comes before add_qat",
            ));
        }
        if self.full.is_some() {
            return Err(Error::config(
                "adapter",
                "the model's weights are trained themselves; load it anew for an adapter",
            ));
        }
        if let (PeftConfig::PromptTuning(_), Some(prompt)) = (&adapter.config, adapter.store.get(PROMPT)) {
            let (shape, hidden) = (prompt.values.shape(), self.arch.hidden_size);
            if shape[1] != hidden {
                return Err(Error::shape(PROMPT, format!("[virtual tokens, {hidden}], the model's width"), shape));
            }
        }
        let modules: HashMap<&str, Module> = adapter.modules().collect();
        let mut changes: HashMap<String, Change> = HashMap::new();
        for linear in self.linears() {
            let Some(module) = modules.get(linear.name.as_str()) else { continue };
            check(linear, module)?;
            changes.insert(linear.name.clone(), change(linear, module.clone())?);
        }
        self.for_each_linear(|linear| {
            linear.change = changes.remove(&linear.name).unwrap_or_default();
            Ok(())
        })?;
        self.adapter = Some(adapter.config);
        self.store = adapter.store;
        self.renew_norms()
    }

    /// Attaches a new adapter, which changes nothing yet, but for virtual tokens, which are there at once; `trainable` ones also get memory for gradients and moments.
    /// Errors: Config, OutOfMemory.
    pub fn add_adapter(&mut self, config: impl Into<PeftConfig>, trainable: bool) -> Result<()> {
        let config = config.into().named(&self.arch);
        let layers = config.layers(&self.arch)?;
        let adapter = Adapter::new(&self.gpu, config, &layers, trainable)?;
        self.attach(adapter)?;
        self.begin_prompt()?;
        for linear in self.linears() {
            let Some(dora) = linear.change.dora().filter(|_| !self.gpu.is_dry()) else { continue };
            // B is zero, so that these are the norms of the rows as they are trained from here on.
            let norms: Vec<f32> = dora.squares.read::<f32>()?.iter().map(|square| square.sqrt()).collect();
            dora.magnitude.values.write(bytemuck::cast_slice(&norms))?;
        }
        Ok(())
    }

    /// Takes the adapter off; the base is as it was. In quantization-aware training it stays, since rounded weights hold it.
    pub fn detach(&mut self) -> Option<Adapter> {
        if self.qat.is_some() || self.full.is_some() {
            return None;
        }
        let taken_off = self.for_each_linear(|linear| {
            linear.change = Change::None;
            Ok(())
        });
        taken_off.ok()?;
        let config = self.adapter.take()?;
        Some(Adapter { config, store: std::mem::take(&mut self.store) })
    }

    /// Records what follows from new values of what is trained, with which an optimizer step ends: weights that are trained through
    /// rounding are rounded, and the norms that DoRA divides by are taken. Errors: Shape.
    pub fn follow_values(&self, g: &mut Graph) -> Result<()> {
        self.round_latents(g)?;
        self.record_norms(g)
    }

    /// Takes the norms that DoRA divides by, once for all passes. Attaching and training do; where an adapter's values were written by
    /// other means, this comes before the next forward pass. Errors: Shape, Device, OutOfMemory.
    pub fn renew_norms(&self) -> Result<()> {
        let g = tuned(&self.gpu, || {
            let mut g = Graph::new(&self.gpu);
            self.record_norms(&mut g)?;
            Ok(g)
        })?;
        match g.is_empty() {
            true => Ok(()),
            false => run(g),
        }
    }

    fn record_norms(&self, g: &mut Graph) -> Result<()> {
        for linear in self.linears() {
            if let Some(dora) = linear.change.dora() {
                dora.renew(g, &linear.base)?;
            }
        }
        Ok(())
    }
}

/// Errors: Shape where a module is one of another layer.
fn check(linear: &Adapted, module: &Module) -> Result<()> {
    let [inputs, outputs] = [linear.base.inputs(), linear.base.outputs()];
    let fail = |got: String| Err(Error::shape(&linear.name, format!("in {inputs}, out {outputs}"), got));
    match module {
        Module::Lora(lora) | Module::Dora(lora, _) | Module::AdaLora(AdaLora { lora, .. }) => {
            let (a, b) = (lora.a.values.shape(), lora.b.values.shape());
            if a[1] != inputs || b[0] != outputs {
                return fail(format!("lora_A {a}, lora_B {b}"));
            }
        }
        Module::Ia3(ia3) => {
            let (len, expected) = (ia3.scaling.values.shape().len(), if ia3.feedforward { inputs } else { outputs });
            if len != expected {
                return fail(format!("ia3_l {}", ia3.scaling.values.shape()));
            }
        }
    }
    match module {
        Module::Dora(_, magnitude) if magnitude.values.shape().dims() != [outputs] => {
            fail(format!("lora_magnitude_vector {}", magnitude.values.shape()))
        }
        _ => Ok(()),
    }
}

/// What an adapter's module changes of a layer. Errors: OutOfMemory, Device.
fn change(linear: &Adapted, module: Module) -> Result<Change> {
    Ok(match module {
        Module::Lora(lora) => Change::Lora(lora),
        Module::AdaLora(ada) => Change::AdaLora(ada),
        Module::Ia3(ia3) => Change::Ia3(ia3),
        Module::Dora(lora, magnitude) => {
            Change::Dora(Dora::new(lora, magnitude, row_squares(&linear.name, &linear.base)?)?)
        }
    })
}

/// The squared norm of each row of a layer's weight, a part of its floats at a time; a weight between transforms is seen through its
/// products with the unit vectors. [out] f32. Errors: OutOfMemory, Device.
fn row_squares(name: &str, base: &Linear) -> Result<Tensor> {
    let (weight, [rows, cols]) = (&base.weight, [base.outputs(), base.inputs()]);
    let gpu = weight.gpu();
    let squares = gpu.zeros(name, [rows], DType::F32)?;
    // Of 64 rows each part begins where memory can be bound.
    let most = (MEASURED_BYTES / 4 / cols.max(rows) / 64 * 64).max(64);
    if base.transform.is_none() {
        let replace = gpu.tensor(name, [1], DType::F32, &[0.0f32])?;
        for first in (0..rows).step_by(most) {
            let mut g = Graph::new(gpu);
            let end = rows.min(first + most);
            let (out, replace) = (g.import(&squares.slice(first, [end - first])?), g.import(&replace));
            let part = dequantize::dequantize_rows(&mut g, weight, first..end)?;
            diagonal::rows(&mut g, &part, &part, 1.0, &out, &replace)?;
            run(g)?;
        }
        return Ok(squares);
    }
    let alone = weight_alone(base);
    for first in (0..cols).step_by(most) {
        let count = most.min(cols - first);
        let mut units = vec![0.0f32; count * cols];
        for i in 0..count {
            units[i * cols + first + i] = 1.0;
        }
        let units = gpu.tensor(name, [count, cols], DType::F32, &units)?;
        let accumulate = gpu.tensor(name, [1], DType::F32, &[if first == 0 { 0.0f32 } else { 1.0 }])?;
        let mut g = Graph::new(gpu);
        let [units, accumulate, out] = [&units, &accumulate, &squares].map(|t| g.import(t));
        let seen = alone.forward(&mut g, &units, None, None)?;
        diagonal::columns(&mut g, &seen, &seen, 1.0, &out, &accumulate)?;
        run(g)?;
    }
    Ok(squares)
}

fn run(g: Graph) -> Result<()> {
    match g.gpu().is_dry() {
        true => Ok(()),
        false => g.run().map(|_| ()),
    }
}
