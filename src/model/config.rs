//! Model families as data: the numbers and switches that tell one Llama-like model from another.

pub use crate::kernels::rope::RopeScaling;
use crate::{Error, Result, adapter::LoraConfig};
use serde_json::Value;
use std::path::Path;

/// The shape of a Llama-family model (Llama 1-3, TinyLlama, SmolLM2, Mistral, Qwen2 and 2.5).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type` as transformers writes it.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretch of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Whether the query, key and value layers have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output layer has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward layers have a bias.
    pub mlp_bias: bool,
    /// Keys further back than this are not seen.
    pub sliding_window: Option<usize>,
    /// The configuration as read or as transformers would write it; kept so that a saved model loses nothing.
    pub json: Value,
}

/// The families that [`Config`] can describe, as `model_type` names them.
pub const FAMILIES: [&str; 3] = ["llama", "mistral", "qwen2"];

/// Larger extents are no model that exists; they are refused before anything is computed from them.
const MAX_EXTENT: u64 = 1 << 24;

impl Config {
    /// Reads a `config.json`. Errors: Format naming the field, Unsupported for another family or option.
    pub fn from_json(json: Value, path: &Path) -> Result<Config> {
        let read = Reader { json: &json, path };
        let model_type = json["model_type"].as_str().unwrap_or("").to_owned();
        if !FAMILIES.contains(&model_type.as_str()) {
            let got = if model_type.is_empty() { "no model_type".to_owned() } else { model_type };
            return Err(Error::unsupported(format!("architecture in {}", path.display()), got, FAMILIES.join(", ")));
        }
        let activation = json["hidden_act"].as_str().unwrap_or("silu");
        if activation != "silu" {
            return Err(Error::unsupported("hidden_act", activation, "silu"));
        }
        let hidden_size = read.extent("hidden_size")?;
        let heads = read.extent("num_attention_heads")?;
        let qwen = model_type == "qwen2";
        let window = match (json["sliding_window"].as_u64(), qwen) {
            (window, false) => window,
            (window, true) => window.filter(|_| json["use_sliding_window"].as_bool().unwrap_or(false)),
        };
        let flag = |name: &str| json[name].as_bool().unwrap_or(false);
        let (rope_theta, rope_scaling) = read.rope()?;
        let config = Config {
            hidden_size,
            intermediate_size: read.extent("intermediate_size")?,
            layers: read.extent("num_hidden_layers")?,
            heads,
            kv_heads: read.extent_or("num_key_value_heads", heads)?,
            head_dim: read.extent_or("head_dim", hidden_size / heads)?,
            vocab_size: read.extent("vocab_size")?,
            max_positions: read.extent_or("max_position_embeddings", 2048)?,
            rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6) as f32,
            rope_theta,
            rope_scaling,
            tie_embeddings: flag("tie_word_embeddings"),
            qkv_bias: qwen || flag("attention_bias"),
            o_bias: !qwen && flag("attention_bias"),
            mlp_bias: flag("mlp_bias"),
            sliding_window: window.map(|w| w as usize),
            model_type,
            json,
        };
        config.check(path)?;
        Ok(config)
    }

    /// PEFT's paths within a block, and (out, in), of its linear layers, in the order of [`crate::adapter::LINEAR_MODULES`].
    pub fn linears(&self) -> [(&'static str, [usize; 2]); 7] {
        let (width, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, feed) = (self.hidden_size, self.intermediate_size);
        [
            ("self_attn.q_proj", [width, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, width]),
            ("mlp.gate_proj", [feed, hidden]),
            ("mlp.up_proj", [feed, hidden]),
            ("mlp.down_proj", [hidden, feed]),
        ]
    }

    /// Names and widths (in, out) of the blocks' linear layers, in the model's order.
    pub fn linear_layers(&self) -> impl Iterator<Item = (String, usize, usize)> + use<> {
        let linears = self.linears();
        (0..self.layers).flat_map(move |layer| {
            linears.map(|(path, [outputs, inputs])| (format!("model.layers.{layer}.{path}"), inputs, outputs))
        })
    }

    /// Those that an adapter targets. Errors: Config, also for a target that is none of them.
    pub fn targets(&self, adapter: &LoraConfig) -> Result<Vec<(String, usize, usize)>> {
        adapter.validate()?;
        for target in &adapter.target_modules {
            let alone = LoraConfig { target_modules: vec![target.clone()], ..LoraConfig::default() };
            if !self.linear_layers().any(|(name, _, _)| alone.targets(&name)) {
                return Err(Error::config("target_modules", format!("{target} is no layer of this model")));
            }
        }
        Ok(self.linear_layers().filter(|(name, _, _)| adapter.targets(name)).collect())
    }

    fn check(&self, path: &Path) -> Result<()> {
        let fail = |message: String| Err(Error::format(path, message));
        if self.heads % self.kv_heads != 0 {
            return fail(format!(
                "num_attention_heads ({}) is no multiple of num_key_value_heads ({})",
                self.heads, self.kv_heads
            ));
        }
        if self.head_dim % 4 != 0 || self.head_dim > 256 {
            return fail(format!("head_dim is {}; expected a multiple of 4 up to 256", self.head_dim));
        }
        Ok(())
    }
}

struct Reader<'a> {
    json: &'a Value,
    path: &'a Path,
}

impl Reader<'_> {
    fn extent(&self, name: &str) -> Result<usize> {
        match &self.json[name] {
            Value::Null => Err(Error::format(self.path, format!("{name} is missing"))),
            value => self.checked(name, value),
        }
    }

    fn extent_or(&self, name: &str, default: usize) -> Result<usize> {
        match &self.json[name] {
            Value::Null => Ok(default),
            value => self.checked(name, value),
        }
    }

    fn checked(&self, name: &str, value: &Value) -> Result<usize> {
        match value.as_u64() {
            Some(n) if (1..=MAX_EXTENT).contains(&n) => Ok(n as usize),
            _ => Err(Error::format(self.path, format!("{name}: expected 1 to {MAX_EXTENT}, got {value}"))),
        }
    }

    /// transformers 5 keeps theta and scaling in `rope_parameters`; before, in `rope_theta` and `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let (parameters, old) = (&self.json["rope_parameters"], &self.json["rope_scaling"]);
        let from = if parameters.is_object() { parameters } else { old };
        let theta = parameters["rope_theta"].as_f64().or(self.json["rope_theta"].as_f64()).unwrap_or(10000.0);
        let number = |name: &str| {
            from[name].as_f64().filter(|v| *v > 0.0).ok_or_else(|| {
                Error::format(self.path, format!("rope scaling: {name} is {}; expected a positive number", from[name]))
            })
        };
        let scaling = match from["rope_type"].as_str().or(from["type"].as_str()).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
            },
            other => return Err(Error::unsupported("rope scaling", other, "default, linear, llama3")),
        };
        Ok((theta, scaling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tiny() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256})
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Config> {
        let mut json = tiny();
        change(&mut json);
        Config::from_json(json, Path::new("config.json"))
    }

    #[test]
    fn defaults_follow_transformers() {
        let c = read(|_| ()).unwrap();
        assert_eq!((c.head_dim, c.rope_theta, c.rope_scaling), (16, 10000.0, RopeScaling::None));
        assert!(!c.qkv_bias && !c.tie_embeddings);
    }

    #[test]
    fn qwen_has_biases_and_ignores_an_unused_window() {
        let c = read(|j| {
            j["model_type"] = "qwen2".into();
            j["sliding_window"] = 4096.into();
        })
        .unwrap();
        assert!(c.qkv_bias && !c.o_bias && c.sliding_window.is_none());
    }

    #[test]
    fn both_ways_of_writing_llama3_scaling_are_read() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192});
        let old = read(|j| {
            j["rope_theta"] = 500000.0.into();
            j["rope_scaling"] = scaling.clone();
        })
        .unwrap();
        let new = read(|j| {
            j["rope_parameters"] = scaling.clone();
            j["rope_parameters"]["rope_theta"] = 500000.0.into();
        })
        .unwrap();
        assert_eq!((old.rope_theta, old.rope_scaling), (new.rope_theta, new.rope_scaling));
    }

    #[test]
    fn bad_files_are_named() {
        let message = |change: fn(&mut Value)| read(change).unwrap_err().to_string();
        assert!(message(|j| j["model_type"] = "gpt2".into()).contains("gpt2"));
        assert!(message(|j| j["hidden_size"] = (-3).into()).contains("hidden_size: expected 1 to 16777216, got -3"));
        assert!(message(|j| j["num_key_value_heads"] = 3.into()).contains("no multiple"));
        assert!(message(|j| j["vocab_size"] = Value::Null).contains("vocab_size is missing"));
        assert!(message(|j| j["rope_scaling"] = json!({"rope_type": "yarn"})).contains("yarn"));
    }
}
