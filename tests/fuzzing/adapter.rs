//! PEFT's adapter folders, for the golden models' shape.

use super::{
    dry, folder,
    input::Input,
    tensors::{self, Tensor},
    used,
};
use fourbit::{arch::Architecture, format::peft, model};
use serde_json::{Value, json};
use std::path::Path;

fn arch() -> Architecture {
    let json = json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32});
    Architecture::from_json(json, Path::new("config.json")).expect("a good configuration")
}

/// An adapter of rank 2 on two modules of each block.
fn good() -> (Value, Vec<Tensor>) {
    let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0,
        "bias": "none", "use_rslora": false, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": true,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": null, "layers_pattern": null,
        "exclude_modules": null, "base_model_name_or_path": null, "inference_mode": true});
    let modules = (0..2).flat_map(|block| {
        [("self_attn.q_proj", [16, 16]), ("mlp.down_proj", [16, 24])]
            .map(|(name, shape)| (format!("model.layers.{block}.{name}"), shape))
    });
    let pair = |(module, [rows, cols]): (String, [usize; 2])| {
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|part| peft::tensor_name(&module, part));
        [(a, [2, cols]), (b, [rows, 2])]
            .map(|(name, shape)| Tensor::new(&name, "F32", &shape, vec![1; 8 * shape[0] * shape[1] / 2]))
    };
    (config, modules.flat_map(pair).collect())
}

/// `adapter_config.json` as it is beside good tensors, or both changed.
pub fn adapter(data: &[u8]) {
    let (mut config, mut tensors) = good();
    let mut text = None;
    if data.first() == Some(&b'{') {
        text = Some(data.to_vec());
    } else {
        Input::new(data).changes(|input| match input.byte() {
            0..160 => input.edit(&mut config),
            _ => tensors::change(&mut tensors, input),
        });
    }
    let text = text.unwrap_or_else(|| config.to_string().into_bytes());
    let folder = folder(&[(peft::CONFIG, &text), (peft::TENSORS, &tensors::serialized(&tensors))]);
    let Ok(files) = peft::Adapter::open(folder.path()) else { return };
    used(files.config.to_json());
    for trainable in [false, true] {
        let base = |_: &str| Ok(Some((0..16 * 24).map(|i| (i % 13) as f32).collect()));
        let loaded = model::load_adapter(&dry(), &arch(), folder.path(), trainable, &base);
        used(loaded.is_ok());
    }
}
