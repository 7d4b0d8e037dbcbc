//! The memory of an adapter: all values in few flat buffers, so that the optimizer needs few dispatches.

use super::{Lora, LoraConfig};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
};

/// A flat range of parameters with everything the optimizer keeps for it. All f32, all of one length.
pub struct Chunk {
    /// Values.
    pub params: Tensor,
    /// Gradients and AdamW's two moments; none in inference.
    pub training: Option<Training>,
}

/// What training keeps for a [`Chunk`].
pub struct Training {
    /// Gradients.
    pub grads: Tensor,
    /// First moments.
    pub m: Tensor,
    /// Second moments.
    pub v: Tensor,
}

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

/// Where a tensor lies: chunk, first element, extents.
struct Place {
    chunk: usize,
    start: usize,
    shape: [usize; 2],
}

impl Adapter {
    /// A new adapter over `layers` (module name, in, out): A uniform in ±1/sqrt(in) as PEFT draws it, B zero, so that it
    /// changes nothing yet. With `trainable`, gradients and moments are allocated. Errors: Config, OutOfMemory.
    pub fn new(gpu: &Gpu, config: LoraConfig, layers: &[(String, usize, usize)], trainable: bool) -> Result<Adapter> {
        config.validate()?;
        let (places, lengths) = lay_out(gpu, config.r, layers)?;
        let chunks = lengths.iter().map(|&len| Chunk::new(gpu, len, trainable)).collect::<Result<Vec<_>>>()?;
        let mut modules = Vec::with_capacity(layers.len());
        for (layer, ((name, inputs, _), pair)) in layers.iter().zip(places.chunks_exact(2)).enumerate() {
            let view = |of: &Tensor, place: &Place| of.slice(place.start, place.shape);
            let [a, b] = [&pair[0], &pair[1]];
            let grads = match (&chunks[a.chunk].training, &chunks[b.chunk].training) {
                (Some(for_a), Some(for_b)) => Some((view(&for_a.grads, a)?, view(&for_b.grads, b)?)),
                _ => None,
            };
            let lora = Lora {
                a: view(&chunks[a.chunk].params, a)?,
                b: view(&chunks[b.chunk].params, b)?,
                grads,
                scale: config.scale(),
                dropout: config.lora_dropout as f32,
                layer: layer as u32,
            };
            if !gpu.is_dry() {
                lora.a.write(bytemuck::cast_slice(&kaiming_uniform(config.seed, layer as u64, config.r, *inputs)))?;
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

impl Chunk {
    fn new(gpu: &Gpu, len: usize, trainable: bool) -> Result<Chunk> {
        let zeros = |what| gpu.zeros(what, [len], DType::F32);
        let training = match trainable {
            false => None,
            true => Some(Training {
                grads: zeros("adapter gradients")?,
                m: zeros("first moments")?,
                v: zeros("second moments")?,
            }),
        };
        Ok(Chunk { params: zeros("adapter")?, training })
    }
}

/// Places every A and B, each aligned for binding, in chunks that one binding can hold.
fn lay_out(gpu: &Gpu, r: usize, layers: &[(String, usize, usize)]) -> Result<(Vec<Place>, Vec<usize>)> {
    let align = gpu.caps().offset_alignment as usize / 4;
    let most = (gpu.caps().max_binding.min(gpu.caps().max_buffer) / 4) as usize / align * align;
    let mut places = Vec::with_capacity(2 * layers.len());
    let mut lengths = vec![0usize];
    for (name, inputs, outputs) in layers {
        for shape in [[r, *inputs], [*outputs, r]] {
            let len = (shape[0] * shape[1]).next_multiple_of(align);
            if len > most {
                let expected = format!("an adapter matrix of at most {} bytes on this device", 4 * most);
                return Err(Error::shape(format!("LoRA of {name}"), expected, format!("{shape:?} f32")));
            }
            if lengths.last().is_some_and(|&used| used + len > most) {
                lengths.push(0);
            }
            let chunk = lengths.len() - 1;
            places.push(Place { chunk, start: lengths[chunk], shape });
            lengths[chunk] += len;
        }
    }
    Ok((places, lengths))
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
