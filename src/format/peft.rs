//! LoRA adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensors of module M are `base_model.model.M.lora_A.weight` `[r, in]` and `base_model.model.M.lora_B.weight`
//! `[out, r]`, and `y = W x + scale * B (A x)`, scale alpha / r, or alpha / sqrt(r) for rsLoRA.

mod targets;

pub use targets::{Pattern, TargetModules, Targets};

use super::fields::Fields;
use super::safetensors::{TensorSpec, write_file};
use super::{Safetensors, TensorView, atomic, manifest, read_json};
use crate::{DType, Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file of the configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file of the tensors.
pub const TENSORS: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";

/// Files that stand in the tensors' place in folders of another kind: what they are, and what to do.
const OTHER_FILES: [(&str, &str, &str); 2] = [
    (
        "adapter_model.bin",
        "a pickle, which can run any program when it is read",
        "adapter_model.safetensors: load the adapter with PEFT and save it again (save_pretrained)",
    ),
    (
        "adapters.safetensors",
        "an adapter of MLX",
        "PEFT's adapters; fuse it with its model (mlx_lm.fuse) and load the fused folder",
    ),
];

/// The fields of `adapter_config.json` that change what an adapter computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The rank, where no pattern gives another.
    pub r: usize,
    /// The numerator of the scale, where no pattern gives another.
    pub lora_alpha: f64,
    /// The chance that an input of A is dropped while training.
    pub lora_dropout: f64,
    /// Whether the scale is alpha / sqrt(r).
    pub use_rslora: bool,
    /// Which modules have an adapter, and those that have a size of their own.
    pub targets: Targets,
    /// What PEFT takes out of the base when it loads the adapter.
    pub initial: Initial,
    /// The model that the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
}

impl AdapterConfig {
    /// Reads `adapter_config.json` as PEFT 0.21 does. Errors: Io, Format, Unsupported for relatives of LoRA, for options that
    /// would change the result, and for fields that are not known.
    pub fn read(path: impl AsRef<Path>) -> Result<AdapterConfig> {
        let path = path.as_ref();
        let json: Value = read_json(path)?;
        let fields = Fields::new(&json, path)?;
        check_supported(&fields)?;
        let config = AdapterConfig {
            r: match fields.integer("r", 1..=targets::MAX_RANK as i64)? {
                Some(r) => r as usize,
                None => 8,
            },
            lora_alpha: fields.number_or("lora_alpha", 8.0)?,
            lora_dropout: fields.number_or("lora_dropout", 0.0)?,
            use_rslora: fields.flag("use_rslora", false)?,
            targets: Targets::read(&fields)?,
            initial: initial(&fields)?,
            base_model_name_or_path: fields.nullable_text("base_model_name_or_path")?.map(String::from),
        };
        fields.refuse_unknown()?;
        Ok(config)
    }

    /// The rank of a module. Errors: Unsupported for a pattern that takes too long.
    pub fn rank(&self, module: &str) -> Result<usize> {
        self.targets.rank(module, self.r)
    }

    /// The alpha of a module. Errors: as [`AdapterConfig::rank`].
    pub fn alpha(&self, module: &str) -> Result<f64> {
        self.targets.alpha(module, self.lora_alpha)
    }

    /// The JSON that PEFT 0.21 reads and writes, its other fields at their defaults.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": match self.initial {
                Initial::Plain => json!(true),
                Initial::Pissa => json!("pissa"),
                Initial::Olora => json!("olora"),
            },
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": targets::whole(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": null,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
        });
        self.targets.write(&mut json);
        json
    }
}

/// What an adapter's first values were made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Nothing that is taken out of the base.
    Plain,
    /// The base's largest singular values (Meng et al. 2024).
    Pissa,
    /// The first columns of the base's QR decomposition (Büyükakyüz 2024).
    Olora,
}

/// What `init_lora_weights` does to the base when PEFT loads the adapter. Errors: Format, Unsupported where PEFT's own
/// result is another in each run, or where PEFT refuses.
fn initial(fields: &Fields) -> Result<Initial> {
    let name = "init_lora_weights";
    let text = match fields.get(name) {
        None | Some(Value::Null | Value::Bool(_)) => return Ok(Initial::Plain),
        Some(Value::String(text)) => text.as_str(),
        Some(_) => return Err(fields.fail(name, "true, false, or a text")),
    };
    let refused =
        |supported: &str| Err(Error::unsupported(format!("{name} in {}", fields.path().display()), text, supported));
    match text.to_lowercase().as_str() {
        "gaussian" => Ok(Initial::Plain),
        // What these draw is overwritten by the file, and the base stays as it is.
        _ if ["eva", "orthogonal", "lora_ga"].contains(&text) => Ok(Initial::Plain),
        "olora" => Ok(Initial::Olora),
        _ if text == "pissa" => Ok(Initial::Pissa),
        _ if text.starts_with("pissa") => refused(
            "pissa: PEFT takes a random product out of the base here, another in each run; let PEFT convert the adapter \
             (save_pretrained with path_initial_model_for_weight_conversion)",
        ),
        _ if text == "corda" || text == "loftq" => refused(
            "an adapter on the base as it is stored; save the base that it was trained on with PEFT (unload, save_pretrained), \
             and set init_lora_weights to true",
        ),
        _ => refused("true, false, gaussian, pissa, olora, eva, orthogonal, lora_ga"),
    }
}

fn check_supported(fields: &Fields) -> Result<()> {
    let path = fields.path();
    let unsupported = |what: &str, got: &Value, supported: &str| {
        Err(Error::unsupported(format!("{what} in {}", path.display()), got, supported))
    };
    let null = Value::Null;
    let kind = fields.get("peft_type").unwrap_or(&null);
    if kind.is_null() && ["fine_tune_type", "lora_parameters", "lora_layers"].iter().any(|name| fields.has(name)) {
        return Err(Error::unsupported(
            format!("the adapter of {}", path.display()),
            "an adapter of MLX",
            "PEFT's adapters; fuse it with its model (mlx_lm.fuse) and load the fused folder",
        ));
    }
    if kind != "LORA" {
        return unsupported("peft_type", kind, "LORA");
    }
    let bias = fields.get("bias").unwrap_or(&null);
    if !bias.is_null() && bias != "none" {
        return unsupported("bias", bias, "none");
    }
    let task = fields.get("task_type").unwrap_or(&null);
    if !task.is_null() && task != "CAUSAL_LM" {
        return unsupported("task_type", task, "CAUSAL_LM");
    }
    // Each of these changes the forward pass or adds trained tensors when it is set; an empty list or object sets none.
    const UNSET: [&str; 9] = [
        "use_dora",
        "use_qalora",
        "lora_bias",
        "alora_invocation_tokens",
        "layer_replication",
        "megatron_config",
        "modules_to_save",
        "target_parameters",
        "trainable_token_indices",
    ];
    // So does each of these, and an empty object is one with its defaults.
    const NULL: [&str; 5] = ["arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config"];
    for name in UNSET.into_iter().chain(NULL) {
        let value = fields.get(name).unwrap_or(&null);
        let set = match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty() || NULL.contains(&name),
            _ => true,
        };
        if set {
            return unsupported(name, value, "plain LoRA without it");
        }
    }
    // Settings of initial values that the file overwrites, of layers that are no linear ones, and of options that are refused
    // above; fan_in_fan_out is one of GPT-2's layers, and PEFT turns it off for linear ones.
    fields.ignore(&[
        "auto_mapping",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    ]);
    Ok(())
}

/// The names of a module's two tensors: A and B.
pub fn tensor_names(module: &str) -> [String; 2] {
    ["A", "B"].map(|part| format!("{PREFIX}{module}.lora_{part}.weight"))
}

/// An adapter folder whose files have been opened and checked against each other.
#[derive(Debug)]
pub struct Adapter {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    folder: PathBuf,
    tensors: Safetensors,
    modules: Vec<String>,
}

impl Adapter {
    /// Opens an adapter folder. Errors: Io, Format, MissingTensor for a half of a pair, Shape, Unsupported.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Adapter> {
        let folder = folder.into();
        manifest::check(&folder)?;
        let config = AdapterConfig::read(folder.join(CONFIG))?;
        let file = folder.join(TENSORS);
        for (other, what, remedy) in OTHER_FILES {
            if !file.exists() && folder.join(other).exists() {
                return Err(Error::unsupported(folder.join(other).display().to_string(), what, remedy));
            }
        }
        let tensors = Safetensors::open(file)?;
        let mut halves: BTreeMap<&str, usize> = BTreeMap::new();
        for name in tensors.names() {
            let module = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight")));
            let Some(module) = module else {
                let what = format!("tensor in {}", tensors.path().display());
                return Err(Error::unsupported(
                    what,
                    name,
                    "base_model.model.<module>.lora_A.weight and lora_B.weight",
                ));
            };
            *halves.entry(module).or_default() += 1;
        }
        let modules: Vec<String> = halves.into_keys().map(String::from).collect();
        if modules.is_empty() {
            return Err(Error::format(tensors.path(), "the adapter has no tensors"));
        }
        let adapter = Adapter { config, folder, tensors, modules };
        for module in &adapter.modules {
            // PEFT would drop these numbers without a word.
            if !adapter.config.targets.contain(module)? {
                let message = format!(
                    "holds an adapter of {module}, which {CONFIG} does not target (target_modules, exclude_modules, \
                     layers_to_transform); correct the configuration, or remove the tensors"
                );
                return Err(Error::format(adapter.tensors.path(), message));
            }
            adapter.pair(module)?;
        }
        Ok(adapter)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of the adapted modules (`model.layers.0.self_attn.q_proj`, ...), sorted.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// A `[r, in]` and B `[out, r]` of a module. Errors: MissingTensor, Shape where the rank is not the configured one.
    pub fn pair(&self, module: &str) -> Result<(TensorView<'_>, TensorView<'_>)> {
        let [a, b] = tensor_names(module);
        let (a, b) = (self.tensors.get(&a)?, self.tensors.get(&b)?);
        let r = self.config.rank(module)?;
        let [_, cols] = matrix(&a, "[r, in]")?;
        let [rows, _] = matrix(&b, "[out, r]")?;
        Ok((a.expect_shape(&[r, cols])?, b.expect_shape(&[rows, r])?))
    }
}

fn matrix(view: &TensorView, expected: &str) -> Result<[usize; 2]> {
    let shape: Result<[usize; 2], _> = view.shape.try_into();
    shape.map_err(|_| {
        Error::shape(format!("{}: {}", view.path.display(), view.name), expected, format!("{:?}", view.shape))
    })
}

/// The trained numbers of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTensors {
    /// The module's full name in the model.
    pub module: String,
    /// in
    pub in_features: usize,
    /// out
    pub out_features: usize,
    /// `[r, in]`
    pub a: Vec<f32>,
    /// `[out, r]`
    pub b: Vec<f32>,
}

/// Writes both files into `folder`, which is made if need be; each appears whole. Errors: Io, Shape.
pub fn save(folder: impl AsRef<Path>, config: &AdapterConfig, modules: &[LoraTensors]) -> Result<()> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut tensors: Vec<(TensorSpec, &[u8])> = Vec::with_capacity(2 * modules.len());
    for lora in modules {
        let r = config.rank(&lora.module)?;
        let shapes = [[r, lora.in_features], [lora.out_features, r]];
        for ((name, shape), numbers) in tensor_names(&lora.module).into_iter().zip(shapes).zip([&lora.a, &lora.b]) {
            if numbers.len() != shape[0] * shape[1] {
                return Err(Error::shape(name, format!("{shape:?}"), format!("{} numbers", numbers.len())));
            }
            tensors.push((TensorSpec::new(name, DType::F32, shape), bytemuck::cast_slice(numbers)));
        }
    }
    write_file(folder.join(TENSORS), &tensors)?;
    atomic::write_json(folder.join(CONFIG), &config.to_json())
}
