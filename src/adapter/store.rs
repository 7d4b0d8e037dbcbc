//! An adapter: its layers' pairs and the memory they lie in.

use super::{Chunk, Lora, LoraConfig, memory};
use crate::{Result, gpu::Gpu};

/// One adapted layer.
pub struct Module {
    /// PEFT's module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Its pair.
    pub lora: Lora,
}

/// A LoRA adapter in device memory.
pub struct Adapter {
    /// Its configuration.
    pub config: LoraConfig,
    /// Its layers, in the model's order.
    pub modules: Vec<Module>,
    /// Its memory.
    pub chunks: Vec<Chunk>,
}

impl Adapter {
    /// A new adapter over `layers` (module name, in, out): A uniform in ±1/sqrt(in) as PEFT draws it, B zero, so that it
    /// changes nothing yet. With `trainable`, gradients and moments are allocated. Errors: Config, OutOfMemory.
    pub fn new(gpu: &Gpu, config: LoraConfig, layers: &[(String, usize, usize)], trainable: bool) -> Result<Adapter> {
        config.validate()?;
        let pair = |(name, inputs, outputs): &(String, usize, usize)| {
            let r = config.rank(name);
            [[r, *inputs], [*outputs, r]].map(|shape| (format!("LoRA of {name}"), shape.into()))
        };
        let shapes: Vec<_> = layers.iter().flat_map(pair).collect();
        let (chunks, pairs) = memory::allocate(gpu, "adapter", &shapes, trainable, true)?;
        let mut modules = Vec::with_capacity(layers.len());
        for (layer, ((name, inputs, _), pair)) in layers.iter().zip(pairs.chunks_exact(2)).enumerate() {
            let [a, b] = [&pair[0], &pair[1]];
            let lora = Lora {
                a: a.values.clone(),
                b: b.values.clone(),
                grads: a.grads.clone().zip(b.grads.clone()),
                scale: config.scale(name),
                dropout: config.lora_dropout as f32,
                layer: layer as u32,
            };
            if !gpu.is_dry() {
                lora.a.write(bytemuck::cast_slice(&kaiming_uniform(
                    config.seed,
                    layer as u64,
                    config.rank(name),
                    *inputs,
                )))?;
            }
            modules.push(Module { name: name.clone(), lora });
        }
        Ok(Adapter { config, modules, chunks })
    }

    /// Trainable values, the padding between them left out.
    pub fn parameters(&self) -> usize {
        self.modules.iter().map(|m| m.lora.a.shape().len() + m.lora.b.shape().len()).sum()
    }

    /// The pair of a module.
    pub fn get(&self, name: &str) -> Option<&Lora> {
        self.modules.iter().find(|m| m.name == name).map(|m| &m.lora)
    }
}

/// PEFT draws A with `kaiming_uniform_(a=sqrt(5))`, which is uniform in ±1/sqrt(in). SplitMix64 keyed by (seed, layer):
/// the same values on every machine.
fn kaiming_uniform(seed: u64, layer: u64, r: usize, inputs: usize) -> Vec<f32> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let mut state = splitmix(seed ^ splitmix(layer.wrapping_add(1)));
    (0..r * inputs)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let unit = (splitmix(state) >> 11) as f64 / (1u64 << 53) as f64;
            ((2.0 * unit - 1.0) * bound) as f32
        })
        .collect()
}

fn splitmix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
