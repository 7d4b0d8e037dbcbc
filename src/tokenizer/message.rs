//! A turn of a conversation and what a template sees beside the turns.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation: a JSON object whose keys a chat template reads.
///
/// `role` says who speaks (`system`, `user`, `assistant`, or what else the template knows), `content` what is said: a text,
/// or a list of parts. Further keys (`reasoning_content`, `tool_calls`, ...) keep their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A turn of text without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        let pairs = [("role", role.into()), ("content", content.into())];
        Message(pairs.into_iter().map(|(key, text)| (key.to_owned(), Value::String(text))).collect())
    }

    /// A turn by its keys. Those that are null are left out, as transformers leaves them out: many templates would print them.
    pub fn from_fields(mut fields: Map<String, Value>) -> Message {
        fields.retain(|_, value| !value.is_null());
        Message(fields)
    }

    /// Who speaks; empty where the turn does not say.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said, where that is one text.
    pub fn text(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// All keys.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// All keys, to be changed.
    pub fn fields_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// The keys as a template sees them: none is null, and reasoning stands under the names that templates read.
    ///
    /// The first of `reasoning_content`, `thinking` and `reasoning` that is there becomes `reasoning_content`, and `thinking`
    /// where that is missing, as in transformers.
    #[cfg(feature = "tokenizer")]
    pub(super) fn seen_by_templates(&self) -> Map<String, Value> {
        let mut fields = self.0.clone();
        fields.retain(|_, value| !value.is_null());
        let reasoning =
            ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(|key| fields.get(key).cloned());
        let Some(reasoning) = reasoning else { return fields };
        let mut seen = Map::new();
        seen.insert("thinking".to_owned(), reasoning.clone());
        seen.extend(fields);
        seen.insert("reasoning_content".to_owned(), reasoning);
        seen
    }
}

/// What a template sees beside the turns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatContext {
    /// `tools`: JSON schemas of the functions that the model may call.
    pub tools: Option<Value>,
    /// `documents`: what the model may quote.
    pub documents: Option<Value>,
    /// Further variables by name (`chat_template_kwargs`), such as `enable_thinking`. They win over the special tokens.
    pub variables: Map<String, Value>,
}

#[cfg(all(test, feature = "tokenizer"))]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(value: Value) -> Value {
        let message: Message = serde_json::from_value(value).unwrap();
        Value::Object(message.seen_by_templates())
    }

    #[test]
    fn the_names_of_reasoning_fill_each_other() {
        // transformers 5.23: chat_template_utils._alias_reasoning_fields.
        let cases = [
            (json!({"reasoning_content": "a"}), json!({"thinking": "a", "reasoning_content": "a"})),
            (json!({"thinking": "a"}), json!({"thinking": "a", "reasoning_content": "a"})),
            (json!({"reasoning": "a"}), json!({"thinking": "a", "reasoning": "a", "reasoning_content": "a"})),
            (json!({"thinking": "a", "reasoning_content": "b"}), json!({"thinking": "a", "reasoning_content": "b"})),
            (
                json!({"reasoning": "a", "thinking": null}),
                json!({"thinking": "a", "reasoning": "a", "reasoning_content": "a"}),
            ),
            (json!({"reasoning_content": null, "content": null}), json!({})),
        ];
        for (message, expected) in cases {
            assert_eq!(seen(message.clone()), expected, "{message}");
        }
    }
}
