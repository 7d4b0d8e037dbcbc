//! What a model is, as data: its sizes, its layers, what their tensors are called. Nothing here holds a weight or records a kernel.
//!
//! A family is one file in `families/` and one line in its table; no other file knows a family's name *(tested)*. It reads
//! config.json, and the keys of a GGUF file in the same words, into an [`Architecture`], which is all that the rest of the crate sees.

mod about_one;
mod config_json;
mod families;
mod family;
mod gguf;
mod linear;
mod names;
mod rope;
mod shapes;

pub use crate::kernels::{glu::Activation, logits::LogitShape, rope::RopeScaling};
pub use families::FAMILIES;
pub use family::{Family, GgufFamily, GgufHead};
pub use linear::{LinearId, LinearSpec, Maker, NormId, NormSpec, Rows, Site};
pub use names::{EMBEDDING, HEAD, Role};
pub use rope::RopeSpec;

use crate::{
    Error, Result,
    format::{Gguf, fields::Fields, gguf::MetaValue},
};
use serde_json::Value;
use std::path::Path;

/// A decoder-only transformer: embedding, blocks of attention and feed-forward, final norm, head.
///
/// Each block is x + s · attention(norm(x)), then x + s · feed_forward(norm(x)), with norms behind the two parts in some families.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// The family that it was read as.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence: `max_position_embeddings`, or what its rotary embeddings are stretched to where that is more.
    pub max_positions: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Added to the weights of all norms: 1 where files have differences from 1.
    pub norm_offset: f32,
    /// The norms of a block.
    pub norms: Vec<NormSpec>,
    /// What all blocks' attentions have in common.
    pub attention: AttentionSpec,
    /// Width between the layers of the feed-forward part, which is down(activation(gate(x)) * up(x)).
    pub intermediate_size: usize,
    /// What opens the gate of the feed-forward part.
    pub activation: Activation,
    /// Factor of the embedding.
    pub embedding_factor: f32,
    /// Factor of what stands in the place of embeddings, such as virtual tokens: that of the embedding where the model has it and not its
    /// table, else 1.
    pub prompt_factor: f32,
    /// s: factor of what is added to the residual stream.
    pub residual_factor: f32,
    /// What is made of the products with the head.
    pub logits: LogitShape,
    /// The rotary embeddings; blocks name one by its place here.
    pub ropes: Vec<RopeSpec>,
    /// One entry per block: what differs among them.
    pub blocks: Vec<BlockSpec>,
    /// The linear layers of a block, in the order of [`LinearId::ALL`], of which a family has some.
    pub linears: Vec<LinearSpec>,
    /// config.json as read, or as transformers would write it; kept so that a saved model loses nothing.
    pub json: Value,
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor of the scores, 1 / sqrt(head_dim) as a rule.
    pub scale: f32,
    /// No score lies beyond it; `None`: there is no cap.
    pub soft_cap: Option<f32>,
}

/// What is one block's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockSpec {
    /// Keys further back than this are not seen; `None`: all are.
    pub window: Option<usize>,
    /// Its rotary embedding, by its place in [`Architecture::ropes`]; `None`: it sees no positions.
    pub rope: Option<usize>,
}

impl Architecture {
    /// Reads a `config.json` as the family's class in transformers 5.23 does, its defaults included.
    /// Errors: Format naming the field, Unsupported for another family or option.
    pub fn from_json(json: Value, path: &Path) -> Result<Architecture> {
        let fields = Fields::new(&json, path)?;
        let architecture = (config_json::family(&fields)?.read)(&fields)?;
        architecture.check(path)?;
        Ok(Architecture { json, ..architecture })
    }

    /// Reads the keys of a GGUF file, into what transformers would write for it too. Errors: Format naming the key, Unsupported.
    pub fn from_gguf(gguf: &Gguf) -> Result<Architecture> {
        gguf::read(gguf)
    }

    /// What llama.cpp wants to know of a model beside its tensors, the architecture's name first. Errors: Config for a size beyond u32.
    pub(crate) fn gguf_metadata(&self) -> Result<Vec<(String, MetaValue)>> {
        gguf::metadata(self)
    }

    /// The divisors of the rotary frequencies that llama.cpp reads as tensors, by name: `[rotary_dim / 2]` each; none where there is no
    /// scaling, or one that metadata describe.
    pub(crate) fn rope_divisors(&self) -> Vec<(&'static str, Vec<f32>)> {
        gguf::rope_divisors(self)
    }

    /// `attention_dropout`, the share of attention weights that transformers drops in training; nothing is dropped here.
    pub fn attention_dropout(&self) -> f64 {
        self.json.get("attention_dropout").and_then(Value::as_f64).unwrap_or(0.0)
    }

    /// The linear layer of a block in this place, where the family has one.
    pub fn linear(&self, id: LinearId) -> Option<&LinearSpec> {
        self.linears.iter().find(|linear| linear.id == id)
    }

    /// The norm of a block in this place, where the family has one.
    pub fn norm(&self, id: NormId) -> Option<&NormSpec> {
        self.norms.iter().find(|norm| norm.id == id)
    }

    /// Width of the input of the layers that read this.
    pub fn width(&self, site: Site) -> usize {
        let mut readers = site.linears().iter().filter_map(|&id| self.linear(id));
        readers.next().expect("every input is read").shape[1]
    }

    /// Linear layers of all blocks.
    pub fn linear_count(&self) -> usize {
        self.blocks.len() * self.linears.len()
    }

    /// Names and shapes [out, in] of the blocks' linear layers, in the model's order.
    pub fn linear_layers(&self) -> impl Iterator<Item = (String, [usize; 2])> + '_ {
        (0..self.blocks.len())
            .flat_map(|block| self.linears.iter().map(move |l| (names::in_block(block, l.name), l.shape)))
    }

    fn check(&self, path: &Path) -> Result<()> {
        let fail = |message: String| Err(Error::format(path, message));
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.attention;
        if heads % kv_heads != 0 {
            return fail(format!("num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})"));
        }
        if head_dim % 4 != 0 || !(4..=256).contains(&head_dim) {
            return fail(format!("head_dim is {head_dim}; expected a multiple of 4 up to 256"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn tiny() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256})
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Architecture> {
        let mut json = tiny();
        change(&mut json);
        Architecture::from_json(json, Path::new("config.json"))
    }

    fn biased(arch: &Architecture) -> Vec<LinearId> {
        arch.linears.iter().filter(|linear| linear.bias).map(|linear| linear.id).collect()
    }

    #[test]
    fn defaults_follow_transformers() {
        let c = read(|_| ()).unwrap();
        assert_eq!(c.attention.head_dim, 16);
        assert_eq!(c.ropes, [RopeSpec { theta: 10000.0, rotary_dim: 16, scaling: RopeScaling::None }]);
        assert!(biased(&c).is_empty() && !c.tie_embeddings);
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
        assert_eq!(biased(&c), [LinearId::Q, LinearId::K, LinearId::V]);
        assert!(c.blocks.iter().all(|block| block.window.is_none()));
    }

    #[test]
    fn linear_layers_are_in_their_places() {
        let c = read(|_| ()).unwrap();
        let apart = LinearId::ALL.iter().filter(|id| !matches!(id, LinearId::Qkv | LinearId::GateUp));
        assert!(c.linears.iter().map(|linear| &linear.id).eq(apart));
        assert_eq!((c.width(Site::Qkv), c.width(Site::O), c.width(Site::Down)), (64, 64, 176));
        assert_eq!((c.linear_count(), c.linear_layers().count()), (14, 14));
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
        assert_eq!(old.ropes, new.ropes);
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
        // 2 / 4 heads.
        assert!(message(|j| j["hidden_size"] = 2.into()).contains("head_dim is 0"));
        assert!(message(|j| j["vocab_size"] = Value::Null).contains("vocab_size: expected a whole number"));
        assert!(message(|j| j["rope_scaling"] = json!({"rope_type": "su"})).contains("su"));
    }
}
