//! What a row holds, told by its fields.

use serde_json::{Map, Value};

use crate::tokenizer::Message;

/// The kinds of rows, in words for errors.
pub(super) const SUPPORTED: &str = "{messages: [{role, content}]}, {prompt, completion}, {text}, {input_ids, labels}";

/// A row in one of the forms that can be encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation: `messages`, or a `text` in the OpenAssistant-Guanaco or Llama-2 layout.
    Chat(Vec<Message>),
    /// `prompt` and `completion` as conversations: turns of the second are learned.
    ChatCompletion {
        /// The turns before.
        prompt: Vec<Message>,
        /// The turns to learn.
        completion: Vec<Message>,
    },
    /// `prompt` and `completion` as texts, joined as they are.
    Completion {
        /// The text before.
        prompt: String,
        /// The text to learn.
        completion: String,
    },
    /// A plain text.
    Text(String),
    /// Token ids made elsewhere.
    Tokens {
        /// Token ids.
        input_ids: Vec<u32>,
        /// One label a token, not shifted; -100 is ignored.
        labels: Vec<i32>,
        /// 1 for tokens, 0 for padding.
        attention_mask: Option<Vec<u8>>,
    },
}

impl Row {
    /// Tells the row's kind. Errors: a sentence about the fields that cannot be used.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Row, String> {
        let has = |name: &str| fields.get(name).is_some_and(|v| !v.is_null());
        if has("input_ids") && has("labels") {
            return tokens(fields);
        }
        if has("messages") {
            return conversation("messages", &fields["messages"]).map(Row::Chat);
        }
        if has("prompt") && has("completion") {
            return completion(&fields["prompt"], &fields["completion"]);
        }
        if has("text") {
            let text = fields["text"].as_str().ok_or("text: expected a string")?;
            return Ok(from_text(text));
        }
        let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        Err(format!("expected a row of one of the kinds {SUPPORTED}; got the keys [{}]", keys.join(", ")))
    }
}

fn completion(prompt: &Value, completion: &Value) -> Result<Row, String> {
    match (prompt, completion) {
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Row::Completion { prompt: prompt.clone(), completion: completion.clone() })
        }
        (Value::Array(_), Value::Array(_)) => Ok(Row::ChatCompletion {
            prompt: conversation("prompt", prompt)?,
            completion: conversation("completion", completion)?,
        }),
        _ => Err("prompt and completion: expected two strings or two lists of messages".into()),
    }
}

fn conversation(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    let list = value.as_array().ok_or_else(|| format!("{name}: expected a list of messages"))?;
    if list.is_empty() {
        return Err(format!("{name}: expected at least one message, got none"));
    }
    list.iter().enumerate().map(|(n, v)| message(v).map_err(|e| format!("{name}[{n}]: {e}"))).collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let fields = value.as_object().ok_or("expected an object with role and content")?;
    let role = fields.get("role").and_then(Value::as_str).ok_or("expected a role (a string)")?;
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        // Parts, as vision and tool formats have them: the texts joined.
        Some(Value::Array(parts)) => {
            let part = |p: &Value| p.get("text").and_then(Value::as_str).map(str::to_string);
            parts.iter().map(part).collect::<Option<Vec<_>>>().ok_or("content: expected parts of type text")?.concat()
        }
        None | Some(Value::Null) if fields.contains_key("tool_calls") => String::new(),
        _ => return Err("expected content (a string)".into()),
    };
    let mut extra = fields.clone();
    extra.retain(|k, v| k != "role" && k != "content" && !v.is_null());
    Ok(Message { role: role.to_string(), content, extra })
}

fn tokens(fields: &Map<String, Value>) -> Result<Row, String> {
    fn numbers<T: TryFrom<i64>>(fields: &Map<String, Value>, name: &str) -> Result<Vec<T>, String> {
        let list = fields[name].as_array().ok_or_else(|| format!("{name}: expected a list of integers"))?;
        let number = |v: &Value| v.as_i64().and_then(|v| T::try_from(v).ok());
        let bad = |v: &Value| format!("{name}: expected integers in range, got {v}");
        list.iter().map(|v| number(v).ok_or_else(|| bad(v))).collect()
    }
    let input_ids: Vec<u32> = numbers(fields, "input_ids")?;
    let labels: Vec<i32> = numbers(fields, "labels")?;
    let masked = fields.get("attention_mask").is_some_and(|v| !v.is_null());
    let attention_mask = if masked { Some(numbers::<u8>(fields, "attention_mask")?) } else { None };
    Ok(Row::Tokens { input_ids, labels, attention_mask })
}

/// A text in one of the two chat layouts as a conversation, else as it is.
fn from_text(text: &str) -> Row {
    guanaco(text).or_else(|| llama2(text)).map_or_else(|| Row::Text(text.to_string()), Row::Chat)
}

/// `### Human: … ### Assistant: …`, in turns. `None` for texts that do not begin so or hold no answer.
fn guanaco(text: &str) -> Option<Vec<Message>> {
    const MARKS: [(&str, &str); 2] = [("### Human:", "user"), ("### Assistant:", "assistant")];
    let next = |text: &str| {
        let found = |(mark, role): &(&'static str, &'static str)| text.find(mark).map(|at| (at, mark.len(), *role));
        MARKS.iter().filter_map(found).min()
    };
    let (0, length, role) = next(text.trim_start())? else { return None };
    let (mut role, mut rest) = (role, &text.trim_start()[length..]);
    let mut messages = Vec::new();
    loop {
        let found = next(rest);
        let end = found.map_or(rest.len(), |(at, ..)| at);
        messages.push(Message::new(role, rest[..end].trim()));
        let Some((at, length, next_role)) = found else { break };
        (role, rest) = (next_role, &rest[at + length..]);
    }
    answered(messages)
}

/// `<s>[INST] <<SYS>>…<</SYS>> … [/INST] … </s>`, in turns. `None` for texts of another form.
fn llama2(text: &str) -> Option<Vec<Message>> {
    let strip = |t: &str, mark: &str| t.strip_prefix(mark).map(str::to_string);
    let body = text.trim();
    let body = strip(body, "<s>").unwrap_or_else(|| body.to_string());
    let body = body.trim_start().strip_prefix("[INST]")?;
    let mut messages = Vec::new();
    for turn in body.split("[INST]") {
        let (question, answer) = turn.split_once("[/INST]")?;
        let mut question = question.trim();
        if let Some((system, after)) = question.strip_prefix("<<SYS>>").and_then(|q| q.split_once("<</SYS>>")) {
            messages.push(Message::new("system", system.trim()));
            question = after.trim();
        }
        messages.push(Message::new("user", question));
        let answer = answer.trim().trim_end_matches("<s>").trim_end().trim_end_matches("</s>").trim();
        messages.push(Message::new("assistant", answer));
    }
    answered(messages)
}

/// Drops turns after the last answer, which nothing is learned from. `None` without an answer.
fn answered(mut messages: Vec<Message>) -> Option<Vec<Message>> {
    let last = messages.iter().rposition(|m| m.role == "assistant" && !m.content.is_empty())?;
    messages.truncate(last + 1);
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(row: Row) -> Vec<(String, String)> {
        let Row::Chat(messages) = row else { panic!("expected a conversation, got {row:?}") };
        messages.into_iter().map(|m| (m.role, m.content)).collect()
    }

    fn pairs(turns: &[(&str, &str)]) -> Vec<(String, String)> {
        turns.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn guanaco_text_becomes_turns() {
        let row = from_text(
            "### Human: Hi\nthere### Assistant: Hello! ### x\n### Human: Bye### Assistant: So long.### Human: ?",
        );
        let expected =
            [("user", "Hi\nthere"), ("assistant", "Hello! ### x"), ("user", "Bye"), ("assistant", "So long.")];
        assert_eq!(turns(row), pairs(&expected));
        for text in ["He wrote ### Human: a### Assistant: b", "### Human: only a question", "### Assistant:"] {
            assert_eq!(from_text(text), Row::Text(text.into()));
        }
    }

    #[test]
    fn llama2_text_becomes_turns() {
        let row = from_text(
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST] So long </s>",
        );
        let expected =
            [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "So long")];
        assert_eq!(turns(row), pairs(&expected));
        for text in ["The [INST] tag [/INST] is", "[INST] no end", "<s>plain</s>"] {
            assert_eq!(from_text(text), Row::Text(text.into()));
        }
    }

    #[test]
    fn rows_that_cannot_be_used_say_why() {
        let error = |json: &str| Row::from_fields(&serde_json::from_str(json).unwrap()).unwrap_err();
        assert!(error(r#"{"question":"a","answer":"b"}"#).contains("got the keys [question, answer]"));
        assert!(error(r#"{"messages":[]}"#).contains("at least one"));
        assert!(error(r#"{"messages":[{"role":"user","content":"a"},{"role":"user"}]}"#).contains("messages[1]"));
        assert!(error(r#"{"prompt":"a","completion":[]}"#).contains("two strings"));
        assert!(error(r#"{"input_ids":[1,-2],"labels":[1,2]}"#).contains("input_ids"));
        assert!(error(r#"{"input_ids":[1,4294967296],"labels":[1,2]}"#).contains("input_ids"));
        assert!(error(r#"{"input_ids":[1],"labels":["a"]}"#).contains("labels"));
        assert!(error(r#"{"text":3}"#).contains("text"));
    }
}
