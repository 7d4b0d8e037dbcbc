//! LoRA adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensors of module M are `base_model.model.M.lora_A.weight` `[r, in]` and `base_model.model.M.lora_B.weight`
//! `[out, r]`, and `y = W x + scale * B (A x)`, scale alpha / r, or alpha / sqrt(r) for rsLoRA.

use super::safetensors::{TensorSpec, write_file};
use super::{Safetensors, TensorView, atomic, read_json};
use crate::{DType, Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file of the configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file of the tensors.
pub const TENSORS: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";

/// Which modules have an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer but the head (`"all-linear"`).
    AllLinear,
    /// Modules whose name is one of these or ends in one after a dot.
    Names(Vec<String>),
}

impl TargetModules {
    /// Whether the linear layer `module` (its full name) has an adapter; the caller leaves out the head.
    pub fn matches(&self, module: &str) -> bool {
        match self {
            TargetModules::AllLinear => true,
            TargetModules::Names(names) => names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

/// The fields of `adapter_config.json` that change what an adapter computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The rank.
    pub r: usize,
    /// The numerator of the scale.
    pub lora_alpha: f64,
    /// The chance that an input of A is dropped while training.
    pub lora_dropout: f64,
    /// Whether the scale is alpha / sqrt(r).
    pub use_rslora: bool,
    /// Which modules have an adapter.
    pub target_modules: TargetModules,
    /// The model that the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
}

impl AdapterConfig {
    /// Reads `adapter_config.json`; unknown fields are ignored. Errors: Io, Format, Unsupported for relatives of LoRA
    /// and options that would change the result.
    pub fn read(path: impl AsRef<Path>) -> Result<AdapterConfig> {
        let path = path.as_ref();
        let json: Value = read_json(path)?;
        check_supported(path, &json)?;
        let number = |name: &str, default: f64| match &json[name] {
            Value::Null => Ok(default),
            value => {
                value.as_f64().ok_or_else(|| Error::format(path, format!("{name}: expected a number, got {value}")))
            }
        };
        let r = json["r"].as_u64().filter(|r| (1..=65536).contains(r));
        let r =
            r.ok_or_else(|| Error::format(path, format!("r: expected a rank from 1 to 65536, got {}", json["r"])))?;
        Ok(AdapterConfig {
            r: r as usize,
            lora_alpha: number("lora_alpha", 8.0)?,
            lora_dropout: number("lora_dropout", 0.0)?,
            use_rslora: json["use_rslora"].as_bool().unwrap_or(false),
            target_modules: target_modules(path, &json["target_modules"])?,
            base_model_name_or_path: json["base_model_name_or_path"].as_str().map(String::from),
        })
    }

    /// The JSON that PEFT 0.21 reads and writes, its other fields at their defaults.
    pub fn to_json(&self) -> Value {
        let alpha = if self.lora_alpha.fract() == 0.0 && self.lora_alpha.abs() < 1e15 {
            json!(self.lora_alpha as i64)
        } else {
            json!(self.lora_alpha)
        };
        let targets = match &self.target_modules {
            TargetModules::AllLinear => json!("all-linear"),
            TargetModules::Names(names) => json!(names),
        };
        json!({
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
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": alpha,
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
            "target_modules": targets,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

fn check_supported(path: &Path, json: &Value) -> Result<()> {
    let unsupported = |what: &str, got: &Value, supported: &str| {
        Err(Error::unsupported(format!("{what} in {}", path.display()), got, supported))
    };
    if !json.is_object() {
        return Err(Error::format(path, "expected a JSON object"));
    }
    if json["peft_type"] != "LORA" {
        return unsupported("peft_type", &json["peft_type"], "LORA");
    }
    if !matches!(&json["bias"], Value::Null) && json["bias"] != "none" {
        return unsupported("bias", &json["bias"], "none");
    }
    // Each of these changes the forward pass or adds trained tensors when it is set.
    const UNSET: [&str; 20] = [
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "fan_in_fan_out",
        "lora_bias",
        "alora_invocation_tokens",
        "arrow_config",
        "alpha_pattern",
        "rank_pattern",
        "exclude_modules",
        "kasa_config",
        "layer_replication",
        "layers_to_transform",
        "layers_pattern",
        "megatron_config",
        "modules_to_save",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
        "velora_config",
    ];
    for name in UNSET {
        let set = match &json[name] {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty(),
            _ => true,
        };
        if set {
            return unsupported(name, &json[name], "plain LoRA without it");
        }
    }
    Ok(())
}

fn target_modules(path: &Path, value: &Value) -> Result<TargetModules> {
    let what = || format!("target_modules in {}", path.display());
    match value {
        Value::String(text) if text == "all-linear" => Ok(TargetModules::AllLinear),
        // A text is a regular expression to PEFT; without its special characters it is a name.
        Value::String(text) if !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
            Err(Error::unsupported(what(), text, "a list of names, or \"all-linear\""))
        }
        Value::String(text) => Ok(TargetModules::Names(vec![text.clone()])),
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_string) => {
            Ok(TargetModules::Names(items.iter().filter_map(Value::as_str).map(String::from).collect()))
        }
        other => Err(Error::unsupported(what(), other, "a list of names, or \"all-linear\"")),
    }
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
        let config = AdapterConfig::read(folder.join(CONFIG))?;
        let tensors = Safetensors::open(folder.join(TENSORS))?;
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
        let r = self.config.r;
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
        let shapes = [[config.r, lora.in_features], [lora.out_features, config.r]];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_at_dots_only() {
        let targets = TargetModules::Names(vec!["q_proj".into(), "mlp.down_proj".into()]);
        assert!(targets.matches("model.layers.0.self_attn.q_proj"));
        assert!(targets.matches("q_proj"));
        assert!(!targets.matches("model.layers.0.self_attn.xq_proj"));
        assert!(targets.matches("model.layers.1.mlp.down_proj"));
        assert!(!targets.matches("model.layers.1.down_proj"));
        assert!(TargetModules::AllLinear.matches("anything"));
    }
}
