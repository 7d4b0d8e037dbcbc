//! A LoRA adapter: its configuration and the tensors of its layers.

use super::{LoraConfig, Store};
use crate::{
    Result,
    gpu::Gpu,
    nn::Lora,
    random::{Random, finish, unit},
};

/// A LoRA adapter in device memory.
pub struct Adapter {
    /// Its configuration.
    pub(crate) config: LoraConfig,
    /// Its tensors, two for each layer in the model's order, named as PEFT does: `NAME.lora_A.weight` [r, in] and
    /// `NAME.lora_B.weight` [out, r].
    pub(crate) store: Store,
}

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

impl Adapter {
    /// A new adapter over `layers` (module name, (out, in)): A uniform in ±1/sqrt(in) as PEFT draws it, B zero, so that it
    /// changes nothing yet. With `trainable`, gradients and moments are allocated. Errors: Config, OutOfMemory.
    pub fn new(gpu: &Gpu, config: LoraConfig, layers: &[(String, [usize; 2])], trainable: bool) -> Result<Adapter> {
        config.validate()?;
        let pair = |(name, [outputs, inputs]): &(String, [usize; 2])| {
            let r = config.rank(name);
            [(format!("{name}{A}"), [r, *inputs].into()), (format!("{name}{B}"), [*outputs, r].into())]
        };
        let shapes: Vec<_> = layers.iter().flat_map(pair).collect();
        let store = Store::new(gpu, "adapter", &shapes, trainable, true)?;
        let adapter = Adapter { config, store };
        if !gpu.is_dry() {
            for (layer, (lora, (name, [_, inputs]))) in adapter.modules().map(|(_, lora)| lora).zip(layers).enumerate()
            {
                let (seed, r) = (adapter.config.seed, adapter.config.rank(name));
                lora.a.values.write(bytemuck::cast_slice(&kaiming_uniform(seed, layer as u64, r, *inputs)))?;
            }
        }
        Ok(adapter)
    }

    /// Names and pairs of its layers, in the model's order.
    pub fn modules(&self) -> impl Iterator<Item = (&str, Lora)> {
        pairs(&self.config, &self.store)
    }
}

/// The pairs among what a store holds.
pub(crate) fn pairs<'a>(config: &'a LoraConfig, store: &'a Store) -> impl Iterator<Item = (&'a str, Lora)> {
    let mut layer = 0;
    store.iter().filter_map(move |(name, a)| {
        let module = name.strip_suffix(A)?;
        let lora = Lora {
            a: a.clone(),
            b: store.get(&format!("{module}{B}"))?.clone(),
            scale: config.scale(module),
            dropout: config.lora_dropout as f32,
            layer,
        };
        layer += 1;
        Some((module, lora))
    })
}

/// PEFT draws A with `kaiming_uniform_(a=sqrt(5))`, which is uniform in ±1/sqrt(in). SplitMix64 keyed by (seed, layer):
/// the same values on every machine.
fn kaiming_uniform(seed: u64, layer: u64, r: usize, inputs: usize) -> Vec<f32> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let mut random = Random::new(finish(seed ^ finish(layer.wrapping_add(1))));
    (0..r * inputs).map(|_| ((2.0 * unit(random.bits()) - 1.0) * bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_are_uniform_in_the_bound_of_peft() {
        let values = kaiming_uniform(7, 3, 16, 400);
        let bound = 1.0 / 20.0;
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(values.iter().all(|v| v.abs() <= bound));
        // A uniform distribution in ±b has variance b²/3; 6400 draws are within a few percent.
        assert!(mean.abs() < 0.002 && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.05, "{mean} {variance}");
        assert_ne!(values, kaiming_uniform(7, 4, 16, 400));
        assert_ne!(values, kaiming_uniform(8, 3, 16, 400));
    }
}
