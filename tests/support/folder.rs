//! Model folders with random weights, for tests that need real sizes.

use super::Rng;
use fourbit::{
    DType,
    format::safetensors::{TensorSpec, Writer},
};
use serde_json::json;
use std::path::Path;

/// The extents of a random Llama.
#[derive(Clone, Copy)]
pub struct Size {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
}

impl Size {
    /// Names and extents of all tensors (embeddings tied).
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let kv = self.hidden / self.heads * self.kv_heads;
        let mut all = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![self.hidden]),
                ("post_attention_layernorm", vec![self.hidden]),
                ("self_attn.q_proj", vec![self.hidden, self.hidden]),
                ("self_attn.k_proj", vec![kv, self.hidden]),
                ("self_attn.v_proj", vec![kv, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, self.hidden]),
                ("mlp.gate_proj", vec![self.intermediate, self.hidden]),
                ("mlp.up_proj", vec![self.intermediate, self.hidden]),
                ("mlp.down_proj", vec![self.hidden, self.intermediate]),
            ] {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        all
    }

    /// Writes `config.json` and a bf16 `model.safetensors`.
    pub fn write(&self, folder: &Path) {
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let tensors = self.tensors();
        let specs = tensors.iter().map(|(name, shape)| TensorSpec::new(name, DType::BF16, shape.clone())).collect();
        let mut writer = Writer::create(folder.join("model.safetensors"), specs).unwrap();
        let mut rng = Rng(9);
        for (name, shape) in &tensors {
            let norm = name.contains("norm");
            let bytes: Vec<u8> = (0..shape.iter().product::<usize>())
                .flat_map(|_| {
                    let value = if norm { 1.0 } else { 0.1 * (rng.uniform() - 0.5) };
                    half::bf16::from_f32(value).to_le_bytes()
                })
                .collect();
            writer.write(name, &bytes).unwrap();
        }
        writer.finish().unwrap();
    }
}
