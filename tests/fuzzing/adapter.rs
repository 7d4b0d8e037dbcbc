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
fn lora() -> (Value, Vec<Tensor>) {
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

/// The same with magnitudes; as AdaLoRA's, of which one of the two ranks of down_proj was taken away; vectors; and virtual
/// tokens.
fn others() -> [(Value, Vec<Tensor>); 4] {
    let (plain, pairs) = lora();
    let of = |changes: Value| {
        let mut config = plain.clone();
        changes.as_object().unwrap().iter().for_each(|(name, value)| config[name] = value.clone());
        config
    };
    let tensor = |module: &str, part: &str, shape: &[usize]| {
        let len = shape.iter().product::<usize>();
        Tensor::new(&peft::tensor_name(module, part), "F32", shape, vec![1; 4 * len])
    };
    let modules: Vec<(String, [usize; 2])> = (0..2)
        .flat_map(|block| {
            [("self_attn.q_proj", [16, 16]), ("mlp.down_proj", [16, 24])]
                .map(|(name, shape)| (format!("model.layers.{block}.{name}"), shape))
        })
        .collect();
    let magnitudes = modules.iter().map(|(module, [rows, _])| tensor(module, peft::MAGNITUDE, &[*rows]));
    let dora = (of(json!({"use_dora": true})), pairs.into_iter().chain(magnitudes).collect());
    let down = |module: &str| module.ends_with("down_proj");
    let pattern: serde_json::Map<String, Value> =
        modules.iter().map(|(module, _)| (format!("{module}.lora_E"), json!([true, !down(module)]))).collect();
    let triplet = |(module, [rows, cols]): &(String, [usize; 2])| {
        let r = if down(module) { 1 } else { 2 };
        [("lora_A", [r, *cols]), ("lora_B", [*rows, r]), ("lora_E", [r, 1])]
            .map(|(part, shape)| tensor(module, part, &shape))
    };
    let schedule = json!({"peft_type": "ADALORA", "init_r": 2, "target_r": 1, "total_step": 10, "tinit": 1, "tfinal": 1,
        "deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5, "rank_pattern": pattern});
    let adalora = (of(schedule), modules.iter().flat_map(triplet).collect());
    let vector = |(module, [rows, cols]): &(String, [usize; 2])| {
        tensor(module, "ia3_l", &if down(module) { [1, *cols] } else { [*rows, 1] })
    };
    let ia3 = json!({"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"],
        "feedforward_modules": ["down_proj"], "exclude_modules": null, "init_ia3_weights": true});
    let prompt = json!({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "token_dim": 16,
        "num_transformer_submodules": 1, "num_layers": 2, "num_attention_heads": 2, "prompt_tuning_init": "RANDOM"});
    let tokens = Tensor::new(peft::PROMPT, "F32", &[3, 16], vec![1; 4 * 3 * 16]);
    [dora, adalora, (ia3, modules.iter().map(vector).collect()), (prompt, vec![tokens])]
}

/// Adapters of each kind: `adapter_config.json` as it is beside good tensors, or both changed.
pub fn adapter(data: &[u8]) {
    for (config, tensors) in std::iter::once(lora()).chain(others()) {
        of_kind(data, config, tensors);
    }
}

fn of_kind(data: &[u8], mut config: Value, mut tensors: Vec<Tensor>) {
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

#[cfg(test)]
#[test]
fn each_kind_is_read_as_it_is() {
    for (config, tensors) in std::iter::once(lora()).chain(others()) {
        let text = config.to_string().into_bytes();
        let folder = folder(&[(peft::CONFIG, &text), (peft::TENSORS, &tensors::serialized(&tensors))]);
        let loaded = model::load_adapter(&dry(), &arch(), folder.path(), false, &|_| Ok(None));
        assert!(loaded.is_ok(), "{config}: {:?}", loaded.err());
    }
}
