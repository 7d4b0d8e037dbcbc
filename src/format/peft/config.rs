//! `adapter_config.json`, as PEFT 0.21 reads and writes it.

use super::{
    MAGNITUDE, PromptTuning, TargetModules, Targets,
    targets::{self, MAX_RANK},
};
use crate::{
    Error, Result,
    format::{fields::Fields, read_json},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// The fields of `adapter_config.json` that change what an adapter computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// What is done to a module (`peft_type`).
    pub kind: Kind,
    /// Which modules have an adapter, and those that have a size of their own.
    pub targets: Targets,
    /// The model that the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
}

/// What an adapter does to a module.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A low-rank update, also DoRA's.
    Lora(Lora),
    /// A low-rank update with singular values (AdaLoRA).
    AdaLora(AdaLora),
    /// A vector that scales its output or its input.
    Ia3(Ia3),
    /// Virtual tokens in front of each text, and nothing done to a module.
    PromptTuning(PromptTuning),
}

/// The fields of a low-rank update.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// The rank, where no pattern gives another.
    pub r: usize,
    /// The numerator of the scale, where no pattern gives another.
    pub lora_alpha: f64,
    /// The chance that an input of A is dropped while training.
    pub lora_dropout: f64,
    /// Whether the scale is alpha / sqrt(r).
    pub use_rslora: bool,
    /// Whether each row has a magnitude beside the update (DoRA).
    pub use_dora: bool,
    /// What PEFT takes out of the base when it loads the adapter.
    pub initial: Initial,
}

/// The fields of AdaLoRA.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaLora {
    /// The rank of each module at first, which the scale is a part of: alpha / (init_r + 1e-5).
    pub init_r: usize,
    /// The rank of each module at the end, on average.
    pub target_r: usize,
    /// Steps before ranks are taken away.
    pub tinit: usize,
    /// Steps behind that.
    pub tfinal: usize,
    /// Steps from one allocation to the next (`deltaT`).
    pub delta_t: usize,
    /// Decay rates of sensitivity and uncertainty.
    pub betas: (f64, f64),
    /// Weight of the orthogonality term.
    pub orth_reg_weight: f64,
    /// Steps of the run.
    pub total_step: usize,
    /// The numerator of the scale; init_r where it is not above 0.
    pub lora_alpha: f64,
    /// The chance that an input of A is dropped while training.
    pub lora_dropout: f64,
    /// Which of the ranks the tensors hold, by module; all where there is none.
    pub rank_pattern: Option<BTreeMap<String, Vec<bool>>>,
}

impl AdaLora {
    /// Which of its `init_r` ranks a module has.
    pub fn kept(&self, module: &str) -> Vec<bool> {
        let pattern = self.rank_pattern.as_ref().and_then(|pattern| pattern.get(module));
        pattern.cloned().unwrap_or_else(|| vec![true; self.init_r])
    }
}

/// The field of IA3.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3 {
    /// The modules among the targets whose vector scales the input.
    pub feedforward_modules: TargetModules,
}

impl Ia3 {
    /// Whether the vector of a module scales its input. Unlike with targets a name may end anywhere in the module's, as PEFT has it.
    /// Errors: Format for a pattern that takes too long.
    pub fn is_feedforward(&self, module: &str) -> Result<bool> {
        match &self.feedforward_modules {
            TargetModules::Names(names) => Ok(names.iter().any(|name| module.ends_with(name.as_str()))),
            other => other.matches(module),
        }
    }
}

impl AdapterConfig {
    /// Reads `adapter_config.json` as PEFT 0.21 does. Errors: Io, Format, Unsupported for other kinds of adapters, for options that
    /// would change the result, and for fields that are not known.
    pub fn read(path: impl AsRef<Path>) -> Result<AdapterConfig> {
        let path = path.as_ref();
        let json: Value = read_json(path)?;
        let fields = Fields::new(&json, path)?;
        let (kind, targets) = match peft_type(&fields)? {
            "IA3" => (Kind::Ia3(ia3(&fields)?), Targets::read_modules(&fields)?),
            "PROMPT_TUNING" => (
                Kind::PromptTuning(PromptTuning::read(&fields)?),
                Targets::of(TargetModules::Names(Vec::new()), [], []),
            ),
            "ADALORA" => (Kind::AdaLora(adalora(&fields)?), Targets::read_layers(&fields)?),
            _ => (Kind::Lora(lora(&fields)?), Targets::read(&fields)?),
        };
        if let (Kind::Ia3(ia3), TargetModules::Names(targets)) = (&kind, &targets.modules)
            && let TargetModules::Names(names) = &ia3.feedforward_modules
            && let Some(name) = names.iter().find(|name| !targets.contains(name))
        {
            let expected = format!("names of target_modules ({}), as PEFT does, and not {name}", targets.join(", "));
            return Err(fields.fail("feedforward_modules", expected));
        }
        let base_model_name_or_path = fields.nullable_text("base_model_name_or_path")?.map(String::from);
        fields.refuse_unknown()?;
        Ok(AdapterConfig { kind, targets, base_model_name_or_path })
    }

    /// What follows a module's name in those of its tensors.
    pub(super) fn parts(&self) -> &'static [&'static str] {
        match &self.kind {
            Kind::Lora(Lora { use_dora: false, .. }) => &["lora_A.weight", "lora_B.weight"],
            Kind::Lora(Lora { use_dora: true, .. }) => &["lora_A.weight", "lora_B.weight", MAGNITUDE],
            Kind::AdaLora(_) => &["lora_A", "lora_B", "lora_E"],
            Kind::Ia3(_) => &["ia3_l"],
            Kind::PromptTuning(_) => &[],
        }
    }

    /// The fields of a low-rank update, where it is one.
    pub fn lora(&self) -> Option<&Lora> {
        match &self.kind {
            Kind::Lora(lora) => Some(lora),
            Kind::AdaLora(_) | Kind::Ia3(_) | Kind::PromptTuning(_) => None,
        }
    }

    /// The rank of a module; 0 without a low-rank update. Errors: Unsupported for a pattern that takes too long.
    pub fn rank(&self, module: &str) -> Result<usize> {
        self.targets.rank(module, self.lora().map_or(0, |lora| lora.r))
    }

    /// The alpha of a module; 0 without a low-rank update. Errors: as [`AdapterConfig::rank`].
    pub fn alpha(&self, module: &str) -> Result<f64> {
        self.targets.alpha(module, self.lora().map_or(0.0, |lora| lora.lora_alpha))
    }

    /// The JSON that PEFT 0.21 reads and writes, its other fields at their defaults.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "modules_to_save": null,
            "revision": null,
            "task_type": "CAUSAL_LM",
        });
        let own = match &self.kind {
            Kind::Lora(lora) => lora.to_json(),
            Kind::AdaLora(ada) => ada.to_json(),
            Kind::PromptTuning(prompt) => prompt.to_json(),
            Kind::Ia3(ia3) => json!({
                "fan_in_fan_out": false,
                "feedforward_modules": ia3.feedforward_modules.to_json(),
                "init_ia3_weights": true,
                "peft_type": "IA3",
            }),
        };
        if let (Value::Object(json), Value::Object(own)) = (&mut json, own) {
            json.extend(own);
        }
        match &self.kind {
            Kind::Lora(_) => self.targets.write(&mut json),
            Kind::AdaLora(_) => self.targets.write_layers(&mut json),
            Kind::Ia3(_) => self.targets.write_modules(&mut json),
            Kind::PromptTuning(_) => {}
        }
        json
    }
}

impl AdaLora {
    fn to_json(&self) -> Value {
        let plain = Lora {
            r: 8,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            use_rslora: false,
            use_dora: false,
            initial: Initial::Plain,
        };
        let pattern = |pattern: &BTreeMap<String, Vec<bool>>| {
            Value::Object(pattern.iter().map(|(module, kept)| (format!("{module}.lora_E"), json!(kept))).collect())
        };
        let mut json = plain.to_json();
        let own = json!({
            "beta1": self.betas.0,
            "beta2": self.betas.1,
            "deltaT": self.delta_t,
            "init_r": self.init_r,
            "orth_reg_weight": self.orth_reg_weight,
            "peft_type": "ADALORA",
            "rank_pattern": self.rank_pattern.as_ref().map_or(Value::Null, pattern),
            "target_r": self.target_r,
            "tfinal": self.tfinal,
            "tinit": self.tinit,
            "total_step": self.total_step,
        });
        if let (Value::Object(json), Value::Object(own)) = (&mut json, own) {
            json.extend(own);
        }
        json
    }
}

impl Lora {
    fn to_json(&self) -> Value {
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
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
            "peft_type": "LORA",
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": {},
            "target_modules": null,
            "target_parameters": null,
            "trainable_token_indices": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
        })
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

/// Errors: Unsupported for a kind that is none of these, and for adapters of other tools; what else has another meaning than here.
fn peft_type(fields: &Fields) -> Result<&'static str> {
    let path = fields.path();
    let null = Value::Null;
    let kind = fields.get("peft_type").unwrap_or(&null);
    if kind.is_null() && ["fine_tune_type", "lora_parameters", "lora_layers"].iter().any(|name| fields.has(name)) {
        return Err(Error::unsupported(
            format!("the adapter of {}", path.display()),
            "an adapter of MLX",
            "PEFT's adapters; fuse it with its model (mlx_lm.fuse) and load the fused folder",
        ));
    }
    let task = fields.get("task_type").unwrap_or(&null);
    if !task.is_null() && task != "CAUSAL_LM" {
        return unsupported(fields, "task_type", task, "CAUSAL_LM");
    }
    fields.ignore(&["auto_mapping", "inference_mode", "peft_version", "revision"]);
    match kind.as_str() {
        Some("LORA") => Ok("LORA"),
        Some("IA3") => Ok("IA3"),
        Some("ADALORA") => Ok("ADALORA"),
        Some("PROMPT_TUNING") => Ok("PROMPT_TUNING"),
        _ => unsupported(fields, "peft_type", kind, "LORA, ADALORA, IA3, PROMPT_TUNING"),
    }
}

pub(super) fn unsupported<T>(fields: &Fields, what: &str, got: &Value, supported: &str) -> Result<T> {
    Err(Error::unsupported(format!("{what} in {}", fields.path().display()), got, supported))
}

/// Whether a field is set; an empty list or object sets none.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

/// The weights of other layers than linear ones lie the other way round. Errors: Unsupported.
fn refuse_fan_in_fan_out(fields: &Fields) -> Result<()> {
    match fields.get("fan_in_fan_out") {
        Some(value) if is_set(value) => unsupported(fields, "fan_in_fan_out", value, "false: linear layers, [out, in]"),
        _ => Ok(()),
    }
}

/// Errors: Format, Unsupported.
fn ia3(fields: &Fields) -> Result<Ia3> {
    refuse_fan_in_fan_out(fields)?;
    if let Some(value) = fields.get("modules_to_save").filter(|value| is_set(value)) {
        return unsupported(fields, "modules_to_save", value, "IA3 without it");
    }
    // The first values, which the file overwrites.
    fields.ignore(&["init_ia3_weights"]);
    let feedforward_modules = targets::modules(fields, "feedforward_modules")?.ok_or_else(|| {
        fields.fail("feedforward_modules", "a list of names, which may be empty, or a regular expression")
    })?;
    Ok(Ia3 { feedforward_modules })
}

/// Errors: Format, Unsupported for options that change the result.
fn adalora(fields: &Fields) -> Result<AdaLora> {
    check_supported(fields)?;
    for name in ["use_dora", "loftq_config"] {
        if let Some(value) = fields.get(name).filter(|value| is_set(value)) {
            return unsupported(fields, name, value, "AdaLoRA without it, as in PEFT");
        }
    }
    // PEFT reads none of these: a module's scale is made of init_r, and the file overwrites first values.
    fields.ignore(&["r", "use_rslora", "alpha_pattern", "init_lora_weights"]);
    let count = |name: &str, default: usize| -> Result<usize> {
        Ok(fields.integer(name, 0..=i64::from(u32::MAX))?.map_or(default, |n| n as usize))
    };
    let init_r = fields.integer("init_r", 1..=MAX_RANK as i64)?.map_or(12, |r| r as usize);
    let total_step = count("total_step", 0)?;
    if total_step == 0 {
        return Err(fields.fail("total_step", "the steps of the run, above 0, as PEFT does"));
    }
    Ok(AdaLora {
        init_r,
        target_r: count("target_r", 8)?,
        tinit: count("tinit", 0)?,
        tfinal: count("tfinal", 0)?,
        delta_t: count("deltaT", 1)?,
        betas: (fields.number_or("beta1", 0.85)?, fields.number_or("beta2", 0.85)?),
        orth_reg_weight: fields.number_or("orth_reg_weight", 0.5)?,
        total_step,
        lora_alpha: fields.number_or("lora_alpha", 8.0)?,
        lora_dropout: fields.number_or("lora_dropout", 0.0)?,
        rank_pattern: kept_ranks(fields, init_r)?,
    })
}

/// `rank_pattern` of AdaLoRA: of each module a list of true and false. Errors: Format.
fn kept_ranks(fields: &Fields, init_r: usize) -> Result<Option<BTreeMap<String, Vec<bool>>>> {
    let name = "rank_pattern";
    let expected = || format!("null, or for each NAME.lora_E a list of {init_r} (init_r) times true or false");
    let map = match fields.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.fail(name, expected())),
    };
    let mut all = BTreeMap::new();
    for (key, list) in map {
        let kept = list.as_array().and_then(|list| list.iter().map(Value::as_bool).collect::<Option<Vec<bool>>>());
        match (key.strip_suffix(".lora_E"), kept) {
            (Some(module), Some(kept)) if kept.len() == init_r => all.insert(module.to_owned(), kept),
            _ => return Err(fields.fail(name, expected())),
        };
    }
    Ok(Some(all))
}

/// Errors: Format, Unsupported for options that change the result.
fn lora(fields: &Fields) -> Result<Lora> {
    check_supported(fields)?;
    let use_dora = fields.has("use_dora") && fields.flag("use_dora", false)?;
    if use_dora {
        refuse_fan_in_fan_out(fields)?;
    }
    Ok(Lora {
        r: match fields.integer("r", 1..=MAX_RANK as i64)? {
            Some(r) => r as usize,
            None => 8,
        },
        lora_alpha: fields.number_or("lora_alpha", 8.0)?,
        lora_dropout: fields.number_or("lora_dropout", 0.0)?,
        use_rslora: fields.flag("use_rslora", false)?,
        use_dora,
        initial: initial(fields)?,
    })
}

fn check_supported(fields: &Fields) -> Result<()> {
    let null = Value::Null;
    let bias = fields.get("bias").unwrap_or(&null);
    if !bias.is_null() && bias != "none" {
        return unsupported(fields, "bias", bias, "none");
    }
    // Each of these changes the forward pass or adds trained tensors when it is set.
    const UNSET: [&str; 8] = [
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
        if is_set(value) || value.is_object() && NULL.contains(&name) {
            return unsupported(fields, name, value, "plain LoRA without it");
        }
    }
    // Settings of initial values that the file overwrites, of layers that are no linear ones, and of options that are refused
    // above; fan_in_fan_out is one of GPT-2's layers, and PEFT turns it off for linear ones.
    fields.ignore(&[
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    ]);
    Ok(())
}
