//! Adapters to and from PEFT's folders.

use super::{Model, initial};
use crate::{
    Error, Result,
    adapter::{AdaLoraConfig, Adapter, Ia3Config, LoraConfig, Module, PROMPT, PeftConfig, PromptTuningConfig},
    arch::Architecture,
    format::atomic::AtomicFolder,
    format::manifest::Set,
    format::peft::{self, AdapterConfig, Initial, Kind, TargetModules, Targets},
    gpu::Gpu,
};
use std::{collections::BTreeMap, path::Path};

impl Model {
    /// Writes the attached adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`. Both appear as one
    /// ([`AtomicFolder`]); other files in the folder stay. Errors: Config where there is none, Io, Device.
    pub fn save_adapter(&self, folder: impl AsRef<Path>, base_model: Option<&str>) -> Result<()> {
        let files = AtomicFolder::create(folder.as_ref(), Set::Adapter)?;
        self.write_adapter(files.folder(), base_model)?;
        files.commit()
    }

    /// Writes the two files into a folder in the making, to which more may belong. Errors: as [`Model::save_adapter`].
    pub fn write_adapter(&self, folder: impl AsRef<Path>, base_model: Option<&str>) -> Result<()> {
        let config = self.adapter.as_ref().ok_or_else(|| Error::config("adapter", "the model has none to save"))?;
        let names: Vec<&str> = self.modules().map(|(name, _)| name).collect();
        let targets = self.target_names(&names);
        let config = match config {
            PeftConfig::Lora(c) => AdapterConfig {
                kind: Kind::Lora(peft::Lora {
                    r: c.r,
                    lora_alpha: c.lora_alpha,
                    lora_dropout: c.lora_dropout,
                    use_rslora: c.use_rslora,
                    use_dora: c.use_dora,
                    initial: Initial::Plain,
                }),
                targets: Targets::of(TargetModules::Names(targets), &c.ranks, &c.alphas),
                base_model_name_or_path: base_model.map(str::to_owned),
            },
            PeftConfig::AdaLora(c) => return self.write_adalora(folder.as_ref(), c, targets, base_model),
            PeftConfig::PromptTuning(c) => AdapterConfig {
                kind: Kind::PromptTuning(peft::PromptTuning {
                    num_virtual_tokens: c.num_virtual_tokens,
                    token_dim: c.token_dim,
                }),
                targets: Targets::of(TargetModules::Names(Vec::new()), [], []),
                base_model_name_or_path: base_model.map(str::to_owned),
            },
            PeftConfig::Ia3(c) => {
                let scaled: Vec<&str> = names.iter().copied().filter(|name| c.is_feedforward(name)).collect();
                let feedforward = self.target_names(&scaled);
                // PEFT asks that these are among those, as they are written.
                let (targets, feedforward) = match feedforward.iter().all(|name| targets.contains(name)) {
                    true => (targets, feedforward),
                    false => {
                        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
                        (owned(&names), owned(&scaled))
                    }
                };
                AdapterConfig {
                    kind: Kind::Ia3(peft::Ia3 { feedforward_modules: TargetModules::Names(feedforward) }),
                    targets: Targets::of(TargetModules::Names(targets), [], []),
                    base_model_name_or_path: base_model.map(str::to_owned),
                }
            }
        };
        let tensors = self.store.iter().map(|(name, parameter)| {
            let values = parameter.values.read()?;
            Ok(peft::Numbers { name: name.to_owned(), shape: parameter.values.shape().clone(), values })
        });
        peft::save(folder, &config, &tensors.collect::<Result<Vec<_>>>()?)
    }

    /// AdaLoRA's adapter without the ranks that were taken away, as PEFT does. Errors: Io, Device.
    fn write_adalora(
        &self,
        folder: &Path,
        c: &AdaLoraConfig,
        targets: Vec<String>,
        base_model: Option<&str>,
    ) -> Result<()> {
        let mut tensors = Vec::new();
        let mut pattern = BTreeMap::new();
        for (name, module) in self.modules() {
            let Module::AdaLora(ada) = module else { continue };
            let [a, b, e, mask] = [&ada.lora.a.values, &ada.lora.b.values, &ada.singular.values, &ada.mask];
            let (cols, rows) = (a.shape()[1], b.shape()[0]);
            let [a, b, e, mask] = [a.read::<f32>()?, b.read()?, e.read()?, mask.read()?];
            // Between two allocations, ranks that were taken away learn again.
            let kept: Vec<bool> = mask.iter().zip(&e).map(|(mask, e)| *mask != 0.0 || *e != 0.0).collect();
            let chosen = |values: &[f32]| {
                values.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(v, _)| *v).collect::<Vec<_>>()
            };
            let e = chosen(&e);
            let a: Vec<f32> =
                a.chunks(cols).zip(&kept).filter(|(_, kept)| **kept).flat_map(|(row, _)| row).copied().collect();
            let b: Vec<f32> = b.chunks(c.init_r).flat_map(chosen).collect();
            let r = e.len();
            for (part, shape, values) in [("lora_A", [r, cols], a), ("lora_B", [rows, r], b), ("lora_E", [r, 1], e)] {
                tensors.push(peft::Numbers { name: format!("{name}.{part}"), shape: shape.into(), values });
            }
            pattern.insert(name.to_owned(), kept);
        }
        let config = AdapterConfig {
            kind: Kind::AdaLora(peft::AdaLora {
                init_r: c.init_r,
                target_r: c.target_r,
                tinit: c.tinit,
                tfinal: c.tfinal,
                delta_t: c.delta_t,
                betas: (c.beta1, c.beta2),
                orth_reg_weight: c.orth_reg_weight,
                total_step: c.total_step,
                lora_alpha: c.lora_alpha,
                lora_dropout: c.lora_dropout,
                rank_pattern: pattern.values().flatten().any(|kept| !kept).then_some(pattern),
            }),
            targets: Targets::of(TargetModules::Names(targets), [], []),
            base_model_name_or_path: base_model.map(str::to_owned),
        };
        peft::save(folder, &config, &tensors)
    }

    /// The adapted modules as PEFT's `target_modules`: the last part of their names where every layer of that name is meant,
    /// else full names.
    fn target_names(&self, modules: &[&str]) -> Vec<String> {
        let last = |name: &str, module: &str| name.rsplit('.').next() == Some(module);
        let all = |module: &str| self.arch.linear_layers().filter(|(name, _)| last(name, module)).count();
        let whole = |module: &&str| modules.iter().filter(|name| last(name, module)).count() == all(module);
        let last_part = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
        let short: Vec<_> = self.arch.linears.iter().map(|linear| last_part(linear.name)).filter(whole).collect();
        let rest = modules.iter().filter(|name| !short.iter().any(|module| last(name, module)));
        short.iter().chain(rest).map(|&name| name.to_owned()).collect()
    }

    /// Attaches the adapter in a PEFT folder, with its own configuration; `trainable` to go on training it.
    /// Errors: those of [`load_adapter`].
    pub fn load_adapter(&mut self, folder: impl AsRef<Path>, trainable: bool) -> Result<()> {
        let base = |name: &str| {
            let weight = self.linear(name).map(|linear| &linear.base).filter(|base| base.weight.scheme().is_float());
            weight.map(|base| base.weight.download().map(|packed| packed.dequantize())).transpose()
        };
        let adapter = load_adapter(&self.gpu, &self.arch, folder, trainable, &base)?;
        self.attach(adapter)
    }
}

/// Gives the float weight of a layer by the layer's name, row by row; none where the base is quantized.
pub type BaseWeights<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<f32>>>;

/// The adapter in a PEFT folder, for a model of this shape; `trainable` ones also get memory for gradients and moments.
///
/// PEFT takes the initial product of a PiSSA or OLoRA adapter out of the base when it loads it. Here the base stays and the
/// adapter has the product beside its own, so that it is a plain one of a larger rank with the same result. `base` is asked for
/// those alone. Errors: Io, Format, MissingTensor, Shape, Unsupported, OutOfMemory.
pub fn load_adapter(
    gpu: &Gpu,
    model: &Architecture,
    folder: impl AsRef<Path>,
    trainable: bool,
    base: BaseWeights<'_>,
) -> Result<Adapter> {
    let files = peft::Adapter::open(folder.as_ref())?;
    let layers = adapted_layers(&files, model)?;
    match &files.config.kind {
        Kind::Lora(lora) => load_lora(gpu, &files, lora, &layers, trainable, base),
        Kind::AdaLora(ada) => load_adalora(gpu, &files, ada, &layers, trainable),
        Kind::Ia3(ia3) => load_ia3(gpu, &files, ia3, &layers, trainable),
        Kind::PromptTuning(prompt) => load_prompt(gpu, &files, prompt, model, trainable),
    }
}

/// Virtual tokens. Errors: as [`load_adapter`], Shape for those of a model of another width.
fn load_prompt(
    gpu: &Gpu,
    files: &peft::Adapter,
    prompt: &peft::PromptTuning,
    model: &Architecture,
    trainable: bool,
) -> Result<Adapter> {
    let (count, width) = (prompt.num_virtual_tokens, model.hidden_size);
    let values = files.prompt()?.expect_shape(&[count, width])?;
    let config =
        PromptTuningConfig { num_virtual_tokens: count, token_dim: Some(width), ..PromptTuningConfig::default() };
    let adapter = Adapter::new(gpu, config, &[], trainable)?;
    if let Some(prompt) = adapter.store.get(PROMPT) {
        prompt.values.write(bytemuck::cast_slice(&values.to_f32()?))?;
    }
    Ok(adapter)
}

/// Vectors as they are. Errors: as [`load_adapter`].
fn load_ia3(
    gpu: &Gpu,
    files: &peft::Adapter,
    ia3: &peft::Ia3,
    layers: &[(String, [usize; 2])],
    trainable: bool,
) -> Result<Adapter> {
    let mut config =
        Ia3Config { target_modules: layers.iter().map(|(name, _)| name.clone()).collect(), ..Ia3Config::default() };
    let mut vectors = Vec::with_capacity(layers.len());
    for (name, [outputs, inputs]) in layers {
        let feedforward = ia3.is_feedforward(name)?;
        let shape = if feedforward { [1, *inputs] } else { [*outputs, 1] };
        vectors.push(files.tensor(name, "ia3_l")?.expect_shape(&shape)?);
        config.feedforward_modules.extend(feedforward.then(|| name.clone()));
    }
    let adapter = Adapter::new(gpu, config, layers, trainable)?;
    for ((_, module), vector) in adapter.modules().zip(vectors) {
        if let Module::Ia3(ia3) = module {
            ia3.scaling.values.write(bytemuck::cast_slice(&vector.to_f32()?))?;
        }
    }
    Ok(adapter)
}

/// Triplets, with zeros where ranks were taken away. Errors: as [`load_adapter`].
fn load_adalora(
    gpu: &Gpu,
    files: &peft::Adapter,
    c: &peft::AdaLora,
    layers: &[(String, [usize; 2])],
    trainable: bool,
) -> Result<Adapter> {
    if trainable && c.rank_pattern.is_some() {
        return Err(Error::unsupported(
            format!("training of the adapter in {}", files.folder().display()),
            "an AdaLoRA adapter whose ranks were allocated (rank_pattern)",
            "one from before the allocation; a run that was stopped goes on from its checkpoint",
        ));
    }
    let config = AdaLoraConfig {
        init_r: c.init_r,
        target_r: c.target_r,
        tinit: c.tinit,
        tfinal: c.tfinal,
        delta_t: c.delta_t,
        beta1: c.betas.0,
        beta2: c.betas.1,
        orth_reg_weight: c.orth_reg_weight,
        lora_alpha: c.lora_alpha,
        lora_dropout: c.lora_dropout,
        target_modules: layers.iter().map(|(name, _)| name.clone()).collect(),
        ..AdaLoraConfig::new(c.total_step)
    };
    if trainable {
        config.validate_training()?;
    }
    let mut triplets = Vec::with_capacity(layers.len());
    for (name, [outputs, inputs]) in layers {
        let kept = c.kept(name);
        let r = kept.iter().filter(|kept| **kept).count();
        let part = |part: &str, shape: [usize; 2]| files.tensor(name, part)?.expect_shape(&shape);
        triplets.push((kept, part("lora_A", [r, *inputs])?, part("lora_B", [*outputs, r])?, part("lora_E", [r, 1])?));
    }
    let adapter = Adapter::new(gpu, config, layers, trainable)?;
    for (((_, module), (kept, a, b, e)), (_, [outputs, inputs])) in adapter.modules().zip(triplets).zip(layers) {
        let Module::AdaLora(ada) = module else { continue };
        let places: Vec<usize> = (0..c.init_r).filter(|&rank| kept[rank]).collect();
        let mut all = [vec![0.0f32; c.init_r * inputs], vec![0.0; outputs * c.init_r], vec![0.0; c.init_r]];
        let (a, b, e) = (a.to_f32()?, b.to_f32()?, e.to_f32()?);
        for (from, &to) in places.iter().enumerate() {
            all[0][to * inputs..][..*inputs].copy_from_slice(&a[from * inputs..][..*inputs]);
            (0..*outputs).for_each(|row| all[1][row * c.init_r + to] = b[row * places.len() + from]);
            all[2][to] = e[from];
        }
        for (tensor, values) in [&ada.lora.a.values, &ada.lora.b.values, &ada.singular.values].into_iter().zip(&all) {
            tensor.write(bytemuck::cast_slice(values))?;
        }
        let mask: Vec<f32> = kept.iter().map(|&kept| f32::from(u8::from(kept))).collect();
        ada.mask.write(bytemuck::cast_slice(&mask))?;
    }
    Ok(adapter)
}

/// Pairs, grown where PEFT takes their first values out of the base, and DoRA's magnitudes. Errors: as [`load_adapter`].
fn load_lora(
    gpu: &Gpu,
    files: &peft::Adapter,
    c: &peft::Lora,
    layers: &[(String, [usize; 2])],
    trainable: bool,
    base: BaseWeights<'_>,
) -> Result<Adapter> {
    let folder = files.folder();
    if c.initial != Initial::Plain && trainable {
        return Err(Error::unsupported(
            format!("training of the adapter in {}", folder.display()),
            "init_lora_weights pissa or olora, whose base is not the one that is stored",
            "plain LoRA; merge it into its base in floats first (`method::Merge`) and train on the result",
        ));
    }
    let mut config = LoraConfig {
        r: c.r,
        lora_alpha: c.lora_alpha,
        lora_dropout: c.lora_dropout,
        use_rslora: c.use_rslora,
        use_dora: c.use_dora,
        target_modules: layers.iter().map(|(name, _)| name.clone()).collect(),
        ..LoraConfig::default()
    };
    let mut pairs = Vec::with_capacity(layers.len());
    // All shapes are checked before anything is allocated on the device.
    for (name, [outputs, inputs]) in layers {
        let (a, b) = files.pair(name)?;
        let (r, alpha) = (files.config.rank(name)?, files.config.alpha(name)?);
        let magnitude =
            c.use_dora.then(|| files.tensor(name, peft::MAGNITUDE)?.expect_shape(&[*outputs])).transpose()?;
        pairs.push((r, alpha, a.expect_shape(&[r, *inputs])?, b.expect_shape(&[*outputs, r])?, magnitude));
    }
    // What PEFT takes out of the base has the rank of the adapter, and its scale.
    let grown = if c.initial == Initial::Plain { 1 } else { 2 };
    let growth = if c.use_rslora { (grown as f64).sqrt() } else { grown as f64 };
    (config.r, config.lora_alpha) = (grown * c.r, growth * c.lora_alpha);
    for ((name, _), (r, alpha, ..)) in layers.iter().zip(&pairs) {
        if *r != c.r {
            config.ranks.insert(name.clone(), grown * r);
        }
        if *alpha != c.lora_alpha {
            config.alphas.insert(name.clone(), growth * alpha);
        }
    }
    let adapter = Adapter::new(gpu, config, layers, trainable)?;
    for (((name, module), (_, [outputs, inputs])), (r, _, a, b, magnitude)) in adapter.modules().zip(layers).zip(&pairs)
    {
        if let (Module::Dora(_, to), Some(from)) = (&module, magnitude) {
            to.values.write(bytemuck::cast_slice(&from.to_f32()?))?;
        }
        let Some(pair) = module.lora() else { continue };
        let (mut a, mut b) = (a.to_f32()?, b.to_f32()?);
        if c.initial != Initial::Plain {
            let Some(weight) = base(name)? else { return Err(quantized_base(folder)) };
            let shape = [*outputs, *inputs];
            let [left, right] = initial::product(c.initial, &weight, shape, *r).map_err(|why| {
                Error::unsupported(format!("the adapter of {name} in {}", folder.display()), why, REMEDY)
            })?;
            // PiSSA divides its values by the scale, OLoRA does not.
            let sign = if c.initial == Initial::Pissa { -1.0 / pair.scale } else { -1.0 };
            a.extend(right);
            b = b
                .chunks(*r)
                .zip(left.chunks(*r))
                .flat_map(|(b, l)| b.iter().copied().chain(l.iter().map(|v| sign * v)))
                .collect();
        }
        pair.a.values.write(bytemuck::cast_slice(&a))?;
        pair.b.values.write(bytemuck::cast_slice(&b))?;
    }
    Ok(adapter)
}

const REMEDY: &str = "a base whose initial product is one alone; let PEFT convert the adapter (save_pretrained with \
    path_initial_model_for_weight_conversion)";

fn quantized_base(folder: &Path) -> Error {
    Error::unsupported(
        format!("the adapter in {}", folder.display()),
        "init_lora_weights pissa or olora on a quantized base",
        "a base in floats (`Quantization::AsStored`); or merge it there first (`method::Merge`) and quantize the result",
    )
}

/// The layers that have an adapter, in the model's order. Errors: Format where configuration, tensors and model do not agree.
fn adapted_layers(files: &peft::Adapter, model: &Architecture) -> Result<Vec<(String, [usize; 2])>> {
    let all: Vec<_> = model.linear_layers().collect();
    if let Some(unknown) = files.modules().iter().find(|m| !all.iter().any(|(name, _)| name == *m)) {
        let message = format!("the adapter is for {unknown}, which this model has not as a linear layer of its blocks");
        return Err(Error::format(files.folder(), message));
    }
    let mut layers = Vec::with_capacity(files.modules().len());
    for layer in all {
        let held = files.modules().binary_search(&layer.0).is_ok();
        if !held && files.config.targets.contain(&layer.0)? {
            let message = format!(
                "{} targets {}, and {} has no tensors for it; name what it holds in target_modules, or save the adapter again",
                peft::CONFIG,
                layer.0,
                peft::TENSORS
            );
            return Err(Error::format(files.folder(), message));
        }
        if held {
            layers.push(layer);
        }
    }
    Ok(layers)
}
