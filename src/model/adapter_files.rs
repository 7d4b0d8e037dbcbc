//! Adapters to and from PEFT's folders.

use super::{Config, Model};
use crate::{
    Error, Result,
    adapter::{Adapter, LINEAR_MODULES, LoraConfig},
    format::peft::{self, AdapterConfig, LoraTensors, TargetModules},
    gpu::Gpu,
};
use std::path::Path;

impl Model {
    /// Writes the attached adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`. Each file appears
    /// whole. Errors: Config where there is none, Io, Device.
    pub fn save_adapter(&self, folder: impl AsRef<Path>, base_model: Option<&str>) -> Result<()> {
        let adapter = self.adapter.as_ref().ok_or_else(|| Error::config("adapter", "the model has none to save"))?;
        let c = &adapter.config;
        let config = AdapterConfig {
            r: c.r,
            lora_alpha: c.lora_alpha,
            lora_dropout: c.lora_dropout,
            use_rslora: c.use_rslora,
            target_modules: TargetModules::Names(c.targets()?.into_iter().map(str::to_owned).collect()),
            base_model_name_or_path: base_model.map(str::to_owned),
        };
        let mut modules = Vec::with_capacity(adapter.modules.len());
        for module in &adapter.modules {
            modules.push(LoraTensors {
                module: module.name.clone(),
                in_features: module.lora.a.shape()[1],
                out_features: module.lora.b.shape()[0],
                a: module.lora.a.read()?,
                b: module.lora.b.read()?,
            });
        }
        peft::save(folder, &config, &modules)
    }

    /// Attaches the adapter in a PEFT folder, with its own configuration; `trainable` to go on training it.
    /// Errors: those of [`load_adapter`].
    pub fn load_adapter(&mut self, folder: impl AsRef<Path>, trainable: bool) -> Result<()> {
        let adapter = load_adapter(&self.gpu, &self.config, folder, trainable)?;
        self.attach(adapter)
    }
}

/// The adapter in a PEFT folder, for a model of this shape; `trainable` ones also get memory for gradients and moments.
/// Errors: Io, Format, MissingTensor, Shape, Unsupported, OutOfMemory.
pub fn load_adapter(gpu: &Gpu, model: &Config, folder: impl AsRef<Path>, trainable: bool) -> Result<Adapter> {
    let folder = folder.as_ref();
    let files = peft::Adapter::open(folder)?;
    let c = &files.config;
    // What the folder holds tensors for is what it adapts, however its configuration spells the targets.
    let has = |module: &str| files.modules().iter().any(|m| m.rsplit('.').next() == Some(module));
    let target_modules = LINEAR_MODULES.into_iter().filter(|m| has(m)).map(str::to_owned).collect();
    let config = LoraConfig {
        r: c.r,
        lora_alpha: c.lora_alpha,
        lora_dropout: c.lora_dropout,
        use_rslora: c.use_rslora,
        target_modules,
        ..LoraConfig::default()
    };
    let layers = model.targets(&config)?;
    let known = |module: &String| layers.iter().any(|(name, _, _)| name == module);
    if let Some(unknown) = files.modules().iter().find(|m| !known(m)) {
        let message = format!("the adapter is for {unknown}, which this model has not as a linear layer of its blocks");
        return Err(Error::format(folder, message));
    }
    // All shapes are checked before anything is allocated.
    for (name, inputs, outputs) in &layers {
        let (a, b) = files.pair(name)?;
        a.expect_shape(&[c.r, *inputs])?;
        b.expect_shape(&[*outputs, c.r])?;
    }
    let adapter = Adapter::new(gpu, config, &layers, trainable)?;
    for (name, _, _) in &layers {
        let pair = adapter.get(name).expect("it was just made");
        let (a, b) = files.pair(name)?;
        pair.a.write(bytemuck::cast_slice(&a.to_f32()?))?;
        pair.b.write(bytemuck::cast_slice(&b.to_f32()?))?;
    }
    Ok(adapter)
}
