//! The fields of prompt tuning, as PEFT 0.21 reads and writes them.

use super::{CONFIG, PROMPT, config::unsupported};
use crate::{
    Error, Result,
    format::{Safetensors, fields::Fields},
};
use serde_json::{Value, json};

/// The fields of prompt tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTuning {
    /// Virtual tokens in front of each text.
    pub num_virtual_tokens: usize,
    /// The model's width, where the file has it.
    pub token_dim: Option<usize>,
}

impl PromptTuning {
    /// Errors: Format, Unsupported for what changes the result.
    pub(super) fn read(fields: &Fields) -> Result<PromptTuning> {
        let task = fields.get("task_type").unwrap_or(&Value::Null);
        if task.is_null() {
            return unsupported(
                fields,
                "task_type",
                task,
                "CAUSAL_LM, without which PEFT leaves the virtual tokens out",
            );
        }
        let num_virtual_tokens = fields.extent("num_virtual_tokens")?;
        if let Some(value) = fields.get("modules_to_save").filter(|value| super::config::is_set(value)) {
            return unsupported(fields, "modules_to_save", value, "prompt tuning without it");
        }
        match fields.get("num_transformer_submodules") {
            None | Some(Value::Null) => {}
            Some(value) if value == 1 => {}
            Some(value) => {
                return unsupported(fields, "num_transformer_submodules", value, "1: a model of one stack of blocks");
            }
        }
        // The first values, which the file overwrites, and sizes of the model that nothing is made of.
        fields.ignore(&[
            "num_attention_heads",
            "num_layers",
            "prompt_tuning_init",
            "prompt_tuning_init_text",
            "tokenizer_kwargs",
            "tokenizer_name_or_path",
        ]);
        Ok(PromptTuning { num_virtual_tokens, token_dim: fields.nullable_extent("token_dim", None)? })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "num_attention_heads": null,
            "num_layers": null,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": self.num_virtual_tokens,
            "peft_type": "PROMPT_TUNING",
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": null,
            "token_dim": self.token_dim,
            "tokenizer_kwargs": null,
            "tokenizer_name_or_path": null,
        })
    }

    /// Errors: MissingTensor, Shape, Unsupported for another tensor.
    pub(super) fn check(&self, tensors: &Safetensors) -> Result<()> {
        if let Some(other) = tensors.names().find(|name| *name != PROMPT) {
            let what = format!("tensor in {}", tensors.path().display());
            return Err(Error::unsupported(what, other, format!("{PROMPT} alone, as {CONFIG} has it")));
        }
        let prompt = tensors.get(PROMPT)?;
        let width = match (self.token_dim, prompt.shape) {
            (Some(width), _) => width,
            (None, [_, width]) => *width,
            (None, _) => 0,
        };
        prompt.expect_shape(&[self.num_virtual_tokens, width]).map(|_| ())
    }
}
