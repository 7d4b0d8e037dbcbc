//! Model families as data: the numbers and switches that tell one Llama-like model from another.

use super::config_fields;
pub use crate::kernels::rope::RopeScaling;
use crate::{Error, Result, adapter::LoraConfig, format::fields::Fields};
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
    /// Of each block: keys further back than this are not seen; `None`: all are.
    pub windows: Vec<Option<usize>>,
    /// The configuration as read or as transformers would write it; kept so that a saved model loses nothing.
    pub json: Value,
}

/// The families that [`Config`] can describe, as `model_type` names them.
pub const FAMILIES: [&str; 3] = ["llama", "mistral", "qwen2"];

impl Config {
    /// Reads a `config.json` as the family's class in transformers 5.23 does, its defaults included.
    /// Errors: Format naming the field, Unsupported for another family or option.
    pub fn from_json(json: Value, path: &Path) -> Result<Config> {
        let config = config_fields::read(&Fields::new(&json, path)?)?;
        config.check(path)?;
        Ok(Config { json, ..config })
    }

    /// `attention_dropout`, the share of attention weights that transformers drops in training; nothing is dropped here.
    pub fn attention_dropout(&self) -> f64 {
        self.json.get("attention_dropout").and_then(Value::as_f64).unwrap_or(0.0)
    }

    /// Whether a model of this configuration has a tensor of this name.
    pub(super) fn has(&self, tensor: &str) -> bool {
        if ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].contains(&tensor) {
            return true;
        }
        let Some((layer, rest)) = tensor.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
            return false;
        };
        if !layer.parse::<usize>().is_ok_and(|n| n < self.layers && n.to_string() == layer) {
            return false;
        }
        match rest.rsplit_once('.') {
            Some(("input_layernorm" | "post_attention_layernorm", "weight")) => true,
            Some((module, "weight")) => self.linears().iter().any(|(linear, _)| *linear == module),
            Some(("self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj", "bias")) => self.qkv_bias,
            Some(("self_attn.o_proj", "bias")) => self.o_bias,
            Some(("mlp.gate_proj" | "mlp.up_proj" | "mlp.down_proj", "bias")) => self.mlp_bias,
            _ => false,
        }
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
    fn attention_dropout_is_known() {
        assert_eq!(read(|_| ()).unwrap().attention_dropout(), 0.0);
        assert_eq!(read(|j| j["attention_dropout"] = 0.25.into()).unwrap().attention_dropout(), 0.25);
        assert!(read(|j| j["attention_dropout"] = "0.1".into()).unwrap_err().to_string().contains("a number or null"));
    }

    #[test]
    fn qwen_has_biases_and_ignores_an_unused_window() {
        let c = read(|j| {
            j["model_type"] = "qwen2".into();
            j["sliding_window"] = 4096.into();
        })
        .unwrap();
        assert!(c.qkv_bias && !c.o_bias && c.windows == [None, None]);
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
        assert!(
            message(|j| j["hidden_size"] = (-3).into())
                .contains("hidden_size: expected a whole number from 1 to 16777216, got -3")
        );
        assert!(message(|j| j["num_key_value_heads"] = 3.into()).contains("no multiple"));
        assert!(message(|j| j["vocab_size"] = Value::Null).contains("vocab_size: expected a whole number"));
        assert!(message(|j| j["rope_scaling"] = json!({"rope_type": "yarn"})).contains("yarn"));
    }
}
