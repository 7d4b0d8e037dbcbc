//! An adapter: its configuration and the tensors of its layers.

use super::{PeftConfig, Store};
use crate::{
    DType, Result, Shape,
    gpu::Gpu,
    nn::{AdaLora, Ia3, Lora, Parameter},
    random::{Random, finish, unit},
};

/// An adapter in device memory.
pub struct Adapter {
    /// Its configuration.
    pub(crate) config: PeftConfig,
    /// Its tensors, those of each layer in the model's order, named as PEFT's files do behind `base_model.model.`: `NAME.lora_A.weight`
    /// [r, in], `NAME.lora_B.weight` [out, r], with DoRA `NAME.lora_magnitude_vector` [out]; of AdaLoRA `NAME.lora_A` [r, in],
    /// `NAME.lora_B` [out, r] and `NAME.lora_E` [r, 1]; `NAME.ia3_l` [out, 1], of a feed-forward layer
    /// [1, in]; or of prompt tuning `prompt_embeddings` [virtual tokens, hidden] alone.
    pub(crate) store: Store,
}

/// What an adapter holds for one layer.
#[derive(Clone)]
pub enum Module {
    /// A low-rank pair.
    Lora(Lora),
    /// DoRA's pair, and the magnitudes of the rows. [out]
    Dora(Lora, Parameter),
    /// A pair with singular values.
    AdaLora(AdaLora),
    /// A vector.
    Ia3(Ia3),
}

impl Module {
    /// The low-rank pair, where its product is the update.
    pub fn lora(self) -> Option<Lora> {
        match self {
            Module::Lora(lora) | Module::Dora(lora, _) => Some(lora),
            Module::AdaLora(_) | Module::Ia3(_) => None,
        }
    }
}

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const MAGNITUDE: &str = ".lora_magnitude_vector";
const ADA_A: &str = ".lora_A";
const ADA_B: &str = ".lora_B";
const ADA_E: &str = ".lora_E";
const MASK: &str = ".lora_E.mask";
const IA3: &str = ".ia3_l";
/// The embeddings of virtual tokens.
pub(crate) const PROMPT: &str = "prompt_embeddings";

/// PEFT draws AdaLoRA's A and B from a normal distribution of this deviation.
const ADA_DEVIATION: f64 = 0.02;

impl Adapter {
    /// A new adapter over `layers` (module name, (out, in)), which changes nothing yet: A uniform in ±1/sqrt(in) as PEFT draws it, B zero;
    /// AdaLoRA's A and B normal with deviation 0.02, E zero; vectors of IA3 one; DoRA's magnitudes are zero until a model has given them the
    /// norms of its rows. Virtual tokens are normal with deviation 1, and are there at once. With `trainable`, gradients and moments are
    /// allocated. Errors: Config, OutOfMemory.
    pub fn new(
        gpu: &Gpu,
        config: impl Into<PeftConfig>,
        layers: &[(String, [usize; 2])],
        trainable: bool,
    ) -> Result<Adapter> {
        let config = config.into();
        config.validate()?;
        let shapes: Vec<_> = match &config {
            PeftConfig::PromptTuning(config) => vec![(PROMPT.to_owned(), config.shape()?.into())],
            config => layers.iter().flat_map(|(name, shape)| tensors(config, name, *shape)).collect(),
        };
        let mut store = Store::new(gpu, "adapter", &shapes, trainable, true)?;
        if let PeftConfig::AdaLora(config) = &config {
            for (name, _) in layers {
                let ones = vec![1.0f32; config.init_r];
                store.remember(format!("{name}{MASK}"), gpu.tensor("kept ranks", [config.init_r], DType::F32, &ones)?);
            }
            if trainable {
                store.keep_importance()?;
            }
        }
        let adapter = Adapter { config, store };
        if let (PeftConfig::PromptTuning(config), Some(prompt)) = (&adapter.config, adapter.store.get(PROMPT))
            && !gpu.is_dry()
        {
            let mut random = Random::new(finish(config.seed));
            let values: Vec<f32> = (0..prompt.values.shape().len()).map(|_| random.normal() as f32).collect();
            prompt.values.write(bytemuck::cast_slice(&values))?;
        }
        if !gpu.is_dry() {
            for (layer, ((_, module), (name, [_, inputs]))) in adapter.modules().zip(layers).enumerate() {
                match (module, &adapter.config) {
                    (Module::Lora(lora) | Module::Dora(lora, _), PeftConfig::Lora(config)) => {
                        let values = kaiming_uniform(config.seed, layer as u64, config.rank(name), *inputs);
                        lora.a.values.write(bytemuck::cast_slice(&values))?;
                    }
                    (Module::AdaLora(ada), PeftConfig::AdaLora(config)) => {
                        let mut random = Random::new(finish(config.seed ^ finish((layer as u64).wrapping_add(1))));
                        for matrix in [&ada.lora.a.values, &ada.lora.b.values] {
                            let draw = |_| (ADA_DEVIATION * random.normal()) as f32;
                            let values: Vec<f32> = (0..matrix.shape().len()).map(draw).collect();
                            matrix.write(bytemuck::cast_slice(&values))?;
                        }
                    }
                    (Module::Ia3(ia3), _) => {
                        let ones = vec![1.0f32; ia3.scaling.values.shape().len()];
                        ia3.scaling.values.write(bytemuck::cast_slice(&ones))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(adapter)
    }

    /// Names of its layers and what it holds for them, in the model's order.
    pub fn modules(&self) -> impl Iterator<Item = (&str, Module)> {
        modules(&self.config, &self.store)
    }
}

/// Names and shapes of the tensors of a layer, (out, in).
fn tensors(config: &PeftConfig, name: &str, [outputs, inputs]: [usize; 2]) -> Vec<(String, Shape)> {
    match config {
        PeftConfig::Lora(config) => {
            let r = config.rank(name);
            let pair = [(format!("{name}{A}"), [r, inputs].into()), (format!("{name}{B}"), [outputs, r].into())];
            let magnitude = config.use_dora.then(|| (format!("{name}{MAGNITUDE}"), [outputs].into()));
            pair.into_iter().chain(magnitude).collect()
        }
        PeftConfig::AdaLora(config) => {
            let r = config.init_r;
            let shapes = [(ADA_A, [r, inputs]), (ADA_B, [outputs, r]), (ADA_E, [r, 1])];
            shapes.map(|(part, shape)| (format!("{name}{part}"), shape.into())).to_vec()
        }
        PeftConfig::Ia3(config) => {
            let shape = if config.is_feedforward(name) { [1, inputs] } else { [outputs, 1] };
            vec![(format!("{name}{IA3}"), shape.into())]
        }
        PeftConfig::PromptTuning(_) => Vec::new(),
    }
}

/// The layers among what a store holds.
pub(crate) fn modules<'a>(config: &'a PeftConfig, store: &'a Store) -> impl Iterator<Item = (&'a str, Module)> {
    let mut layer = 0;
    store.iter().filter_map(move |(name, first)| match config {
        PeftConfig::Lora(config) => {
            let module = name.strip_suffix(A)?;
            let lora = Lora {
                a: first.clone(),
                b: store.get(&format!("{module}{B}"))?.clone(),
                scale: config.scale(module),
                dropout: config.lora_dropout as f32,
                layer,
            };
            layer += 1;
            match config.use_dora {
                true => Some((module, Module::Dora(lora, store.get(&format!("{module}{MAGNITUDE}"))?.clone()))),
                false => Some((module, Module::Lora(lora))),
            }
        }
        PeftConfig::AdaLora(config) => {
            let module = name.strip_suffix(ADA_A)?;
            let lora = Lora {
                a: first.clone(),
                b: store.get(&format!("{module}{ADA_B}"))?.clone(),
                scale: config.scale(),
                dropout: config.lora_dropout as f32,
                layer,
            };
            layer += 1;
            let singular = store.get(&format!("{module}{ADA_E}"))?.clone();
            let mask = store.remembered(&format!("{module}{MASK}"))?.clone();
            Some((module, Module::AdaLora(AdaLora { lora, singular, mask })))
        }
        PeftConfig::Ia3(config) => {
            let module = name.strip_suffix(IA3)?;
            let ia3 = Ia3 { scaling: first.clone(), feedforward: config.is_feedforward(module) };
            Some((module, Module::Ia3(ia3)))
        }
        PeftConfig::PromptTuning(_) => None,
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
