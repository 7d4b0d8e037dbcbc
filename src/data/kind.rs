//! What a row holds: its kind follows from its fields.

use serde_json::{Map, Value};

use crate::tokenizer::{ChatContext, Message};

/// The kinds of rows, in words for errors.
pub(super) const SUPPORTED: &str = "{messages: [{role, content}]}, {conversations: [{from, value}]}, {prompt, completion}, {prompt, chosen, rejected}, {text}, {instruction, output}, {input_ids, labels}";

/// A conversation and what its template sees beside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// The turns.
    pub messages: Vec<Message>,
    /// `tools`, `documents` and `chat_template_kwargs` of the row.
    pub context: ChatContext,
}

impl From<Vec<Message>> for Chat {
    fn from(messages: Vec<Message>) -> Chat {
        Chat { messages, context: ChatContext::default() }
    }
}

/// A row in one of the forms that can be encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation: `messages`, `conversations` (ShareGPT), `instruction` and `output` (Alpaca), or a `text` in the
    /// OpenAssistant-Guanaco or Llama-2 layout.
    Chat(Chat),
    /// `prompt` and `completion` as conversations: turns of the second are learned.
    ChatCompletion {
        /// The turns before.
        prompt: Vec<Message>,
        /// The turns to learn.
        completion: Vec<Message>,
        /// What the template sees beside them.
        context: ChatContext,
    },
    /// `prompt` and `completion` as texts, joined as they are.
    Completion {
        /// The text before.
        prompt: String,
        /// The text to learn.
        completion: String,
    },
    /// `prompt`, `chosen` and `rejected` as texts, each answer joined to the prompt as it is.
    Preference {
        /// The text before.
        prompt: String,
        /// The answer to prefer.
        chosen: String,
        /// The other one.
        rejected: String,
    },
    /// The same as conversations.
    ChatPreference {
        /// The turns before.
        prompt: Vec<Message>,
        /// The turns to prefer.
        chosen: Vec<Message>,
        /// The others.
        rejected: Vec<Message>,
        /// What the template sees beside them.
        context: ChatContext,
    },
    /// A plain text.
    Text(String),
    /// Token ids made elsewhere.
    Tokens {
        /// Token ids.
        input_ids: Vec<u32>,
        /// One label per token, not shifted; -100 is ignored.
        labels: Vec<i32>,
        /// 1 for tokens, 0 for padding.
        attention_mask: Option<Vec<u8>>,
    },
}

/// What was done with a row that whoever wrote it may not expect: reported once per file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Note {
    /// A key that nothing reads.
    Unread(String),
    /// A role that is read as another.
    Role(String, &'static str),
    /// An Alpaca row, which is read as a question and its answer.
    Alpaca,
    /// Two answers whose prompt, rendered alone, is not how both begin.
    #[cfg_attr(not(feature = "tokenizer"), expect(dead_code, reason = "rows of text need a tokenizer"))]
    Seam,
}

/// A row and what is to be reported of it.
pub(super) struct Read {
    pub(super) row: Row,
    pub(super) notes: Vec<Note>,
}

/// Keys of a conversation beside its turns.
const CONTEXT: [&str; 3] = ["tools", "documents", "chat_template_kwargs"];

impl Row {
    /// Finds the row's kind. Errors: a sentence about the fields that cannot be used.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Row, String> {
        read(fields).map(|read| read.row)
    }

    /// Whether it holds two answers, of which one is preferred.
    pub fn is_pair(&self) -> bool {
        matches!(self, Row::Preference { .. } | Row::ChatPreference { .. })
    }
}

/// Finds the row's kind, and what of it is read in a way that must be reported. Errors: a sentence.
pub(super) fn read(fields: &Map<String, Value>) -> Result<Read, String> {
    let has = |name: &str| fields.get(name).is_some_and(|v| !v.is_null());
    let all = |names: &[&str]| names.iter().all(|name| has(name));
    if let Some(what) = other_task(fields) {
        return Err(what);
    }
    let mut notes = Vec::new();
    let (row, known): (Row, &[&str]) = if all(&["input_ids", "labels"]) {
        (tokens(fields)?, &["input_ids", "labels", "attention_mask"])
    } else if all(&["chosen", "rejected"]) {
        (preference(fields, &mut notes)?, &["prompt", "chosen", "rejected"])
    } else if has("messages") {
        let messages = conversation("messages", &fields["messages"], &mut notes)?;
        (Row::Chat(Chat { messages, context: context(fields)? }), &["messages"])
    } else if has("conversations") {
        let messages = with_system(fields, conversation("conversations", &fields["conversations"], &mut notes)?)?;
        (Row::Chat(Chat { messages, context: context(fields)? }), &["conversations", "system"])
    } else if all(&["prompt", "completion"]) {
        (completion(fields, &mut notes)?, &["prompt", "completion"])
    } else if has("text") {
        let text = fields["text"].as_str().ok_or("text: expected a string")?;
        (from_text(text), &["text"])
    } else if all(&["instruction", "output"]) {
        notes.push(Note::Alpaca);
        (alpaca(fields)?, &["instruction", "input", "output", "system", "history"])
    } else {
        let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        return Err(format!("expected a row of one of the kinds {SUPPORTED}; got the keys [{}]", keys.join(", ")));
    };
    let has_turns = matches!(row, Row::Chat(_) | Row::ChatCompletion { .. } | Row::ChatPreference { .. });
    let is_chat = has_turns && !known.contains(&"text");
    let read = |key: &str| known.contains(&key) || (is_chat && CONTEXT.contains(&key));
    notes.extend(fields.keys().filter(|key| has(key) && !read(key)).map(|key| Note::Unread(key.clone())));
    notes.sort();
    Ok(Read { row, notes })
}

/// What a row is that other ways of training learn from: a sentence with the remedy.
fn other_task(fields: &Map<String, Value>) -> Option<String> {
    let has = |name: &str| fields.get(name).is_some_and(|v| !v.is_null());
    let remedy = "finetune learns from answers alone: write the better one as {prompt, completion} or {messages}";
    if has("prompt") && has("completion") && fields.get("label").is_some_and(Value::is_boolean) {
        return Some(format!(
            "this is a preference row (prompt, completion, label), as KTO learns from; {remedy}, without the label"
        ));
    }
    if has("prompt") && has("completions") {
        return Some("this is a row of stepwise supervision (completions, labels), as process reward models learn from; write {prompt, completion}".into());
    }
    None
}

/// `tools`, `documents` and `chat_template_kwargs`, each as JSON or as its text.
fn context(fields: &Map<String, Value>) -> Result<ChatContext, String> {
    let parsed = |name: &str| match fields.get(name).filter(|v| !v.is_null()) {
        Some(Value::String(text)) => serde_json::from_str(text)
            .map(Some)
            .map_err(|e| format!("{name}: expected JSON, got a text that is none: {e}")),
        other => Ok(other.cloned()),
    };
    let objects = |name: &str| match parsed(name)? {
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(Some(Value::Array(list))),
        None | Some(Value::Null) => Ok(None),
        Some(other) => Err(format!("{name}: expected a list of objects, or its JSON text, got {}", brief(&other))),
    };
    let variables = match parsed("chat_template_kwargs")? {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(other) => return Err(format!("chat_template_kwargs: expected an object, got {}", brief(&other))),
    };
    let taken = [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
    ];
    if let Some(name) = variables.keys().find(|name| taken.contains(&name.as_str())) {
        return Err(format!(
            "chat_template_kwargs: {name} cannot be set here; give variables of the template, such as enable_thinking"
        ));
    }
    Ok(ChatContext { tools: objects("tools")?, documents: objects("documents")?, variables })
}

/// A value for a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

fn completion(fields: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Row, String> {
    match (&fields["prompt"], &fields["completion"]) {
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Row::Completion { prompt: prompt.clone(), completion: completion.clone() })
        }
        (prompt @ Value::Array(_), completion @ Value::Array(_)) => Ok(Row::ChatCompletion {
            prompt: conversation("prompt", prompt, notes)?,
            completion: conversation("completion", completion, notes)?,
            context: context(fields)?,
        }),
        _ => Err("prompt and completion: expected two strings or two lists of messages".into()),
    }
}

/// A row of two answers. Without a prompt, that is what both begin with, as TRL takes it: turns, or text up to the last blank.
fn preference(fields: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Row, String> {
    let prompt = fields.get("prompt").filter(|prompt| !prompt.is_null());
    match (prompt, &fields["chosen"], &fields["rejected"]) {
        (Some(Value::String(prompt)), Value::String(chosen), Value::String(rejected)) => {
            Ok(Row::Preference { prompt: prompt.clone(), chosen: chosen.clone(), rejected: rejected.clone() })
        }
        (None, Value::String(chosen), Value::String(rejected)) => {
            let [chosen, rejected] = [chosen, rejected].map(|text| text.chars().collect::<Vec<char>>());
            let mut cut = parting(&chosen, &rejected);
            // As TRL has it, not where one answer only goes on behind the other's end.
            if cut > 0 && chosen[cut] != rejected[cut] && chosen[cut - 1] == ' ' {
                cut -= 1;
            }
            let text = |chars: &[char]| chars.iter().collect::<String>();
            let (prompt, chosen, rejected) = (text(&chosen[..cut]), text(&chosen[cut..]), text(&rejected[cut..]));
            Ok(Row::Preference { prompt, chosen, rejected })
        }
        (Some(prompt @ Value::Array(_)), chosen @ Value::Array(_), rejected @ Value::Array(_)) => {
            Ok(Row::ChatPreference {
                prompt: conversation("prompt", prompt, notes)?,
                chosen: conversation("chosen", chosen, notes)?,
                rejected: conversation("rejected", rejected, notes)?,
                context: context(fields)?,
            })
        }
        (None | Some(Value::String(_)), chosen @ Value::Array(_), rejected @ Value::Array(_)) => {
            let mut chosen = conversation("chosen", chosen, notes)?;
            let mut rejected = conversation("rejected", rejected, notes)?;
            let cut = parting(&chosen, &rejected);
            let (prompt_turns, chosen_turns) = (chosen[..cut].to_vec(), chosen.split_off(cut));
            let last = prompt_turns.last().and_then(Message::text);
            if let Some(Value::String(prompt)) = prompt
                && last != Some(prompt)
            {
                let last = last.unwrap_or("nothing");
                return Err(format!(
                    "prompt: {} is not the last turn that chosen and rejected share, which is {}; leave it out, or give it as turns",
                    brief(&Value::from(prompt.as_str())),
                    brief(&Value::from(last))
                ));
            }
            let rejected = rejected.split_off(cut);
            Ok(Row::ChatPreference { prompt: prompt_turns, chosen: chosen_turns, rejected, context: context(fields)? })
        }
        _ => Err("prompt, chosen and rejected: expected three strings or three lists of messages".into()),
    }
}

/// Where two lists part; before the end of the shorter one.
fn parting<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let shorter = a.len().min(b.len());
    (0..shorter).find(|&i| a[i] != b[i]).unwrap_or(shorter.saturating_sub(1))
}

/// An Alpaca row: the instruction, a blank line and the input are asked, the output is answered.
fn alpaca(fields: &Map<String, Value>) -> Result<Row, String> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(value) => value.as_str().ok_or_else(|| format!("{name}: expected a string, got {}", brief(value))),
    };
    let mut messages = Vec::new();
    for (n, pair) in fields.get("history").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let said = |n: usize| pair.get(n).and_then(Value::as_str);
        let (Some(question), Some(answer)) = (said(0), said(1)) else {
            return Err(format!("history[{n}]: expected a question and its answer, got {}", brief(pair)));
        };
        messages.extend([Message::new("user", question), Message::new("assistant", answer)]);
    }
    let question = match text("input")? {
        "" => text("instruction")?.to_owned(),
        input => format!("{}\n\n{input}", text("instruction")?),
    };
    messages.extend([Message::new("user", question), Message::new("assistant", text("output")?)]);
    Ok(Row::Chat(Chat::from(with_system(fields, messages)?)))
}

/// The turns behind the row's `system`, where it has one.
fn with_system(fields: &Map<String, Value>, messages: Vec<Message>) -> Result<Vec<Message>, String> {
    let system = match fields.get("system") {
        None | Some(Value::Null) => "",
        Some(value) => value.as_str().ok_or_else(|| format!("system: expected a string, got {}", brief(value)))?,
    };
    if system.is_empty() {
        return Ok(messages);
    }
    if messages.first().is_some_and(|m| m.role() == "system") {
        return Err("system: the first turn is a system turn already; keep one of them".into());
    }
    Ok([vec![Message::new("system", system)], messages].concat())
}

/// Roles of other programs, and what they are called here.
const ROLES: [(&str, &str); 8] = [
    ("human", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("ai", "assistant"),
];

fn conversation(name: &str, value: &Value, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let list = value.as_array().ok_or_else(|| format!("{name}: expected a list of messages"))?;
    if list.is_empty() {
        return Err(format!("{name}: expected at least one message, got none"));
    }
    let mut messages = Vec::with_capacity(list.len());
    for (n, value) in list.iter().enumerate() {
        messages.push(message(value, notes).map_err(|e| format!("{name}[{n}]: {e}"))?);
    }
    Ok(messages)
}

fn message(value: &Value, notes: &mut Vec<Note>) -> Result<Message, String> {
    let mut fields = value.as_object().ok_or("expected an object with role and content")?.clone();
    let sharegpt = !fields.contains_key("role") && fields.contains_key("from");
    if sharegpt {
        let renamed = |key: String| match key.as_str() {
            "from" => "role".to_owned(),
            "value" => "content".to_owned(),
            _ => key,
        };
        fields = fields.into_iter().map(|(key, value)| (renamed(key), value)).collect();
    }
    let role = fields.get("role").and_then(Value::as_str).ok_or("expected a role (a string)")?.to_owned();
    if sharegpt && ["function_call", "observation"].contains(&role.as_str()) {
        return Err(format!(
            "from {role}: how a call is written depends on the model; write it as {{role: assistant, tool_calls}} and {{role: tool, content}}"
        ));
    }
    if let Some((theirs, ours)) = ROLES.iter().find(|(theirs, _)| *theirs == role) {
        fields.insert("role".to_owned(), Value::from(*ours));
        notes.push(Note::Role((*theirs).to_owned(), ours));
    }
    match fields.get("content") {
        Some(Value::String(_)) => {}
        // Parts, as vision and tool formats have them; templates that know none get the texts joined.
        Some(Value::Array(parts)) if parts.iter().all(|p| p.get("text").is_some_and(Value::is_string)) => {}
        Some(Value::Array(_)) => return Err("content: expected parts of type text".into()),
        None | Some(Value::Null) if fields.get("tool_calls").is_some_and(|v| !v.is_null()) => {}
        _ => return Err("expected content (a string)".into()),
    }
    let message = Message::from_fields(fields);
    is_learned(&message)?;
    Ok(message)
}

/// Whether a turn is to be learned by its role, its `weight` (0 or 1) and its `train`. Errors: a sentence.
pub(super) fn is_learned(message: &Message) -> Result<bool, String> {
    let flag = |name: &str| match message.fields().get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => match other.as_f64() {
            Some(0.0) => Ok(Some(false)),
            Some(1.0) => Ok(Some(true)),
            _ => Err(format!("{name}: expected 0 or 1, true or false, got {other}")),
        },
    };
    let (weight, train) = (flag("weight")?, flag("train")?);
    if message.role() == "assistant" {
        return Ok(weight != Some(false) && train != Some(false));
    }
    match (weight, train) {
        (Some(true), _) | (_, Some(true)) => Err(format!(
            "weight and train: a turn of {} is asked to be learned; only those of the assistant are",
            message.role()
        )),
        _ => Ok(false),
    }
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
    guanaco(text).or_else(|| llama2(text)).map_or_else(|| Row::Text(text.to_string()), |turns| Row::Chat(turns.into()))
}

/// `### Human: … ### Assistant: …`, in turns. `None` for texts that do not begin so or hold no answer.
fn guanaco(text: &str) -> Option<Vec<Message>> {
    const MARKS: [(&str, &str); 2] = [("### Human:", "user"), ("### Assistant:", "assistant")];
    // One search for both: a mark that never comes would be looked for to the text's end at each of the other.
    let next = |text: &str| {
        let mark_at = |at: usize| MARKS.into_iter().find(|(mark, _)| text[at..].starts_with(mark));
        let found = |(at, _)| mark_at(at).map(|(mark, role)| (at, mark.len(), role));
        text.match_indices("### ").find_map(found)
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
    let last = messages.iter().rposition(|m| m.role() == "assistant" && m.text() != Some(""))?;
    messages.truncate(last + 1);
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(row: Row) -> Vec<(String, String)> {
        let Row::Chat(chat) = row else { panic!("expected a conversation, got {row:?}") };
        chat.messages.iter().map(|m| (m.role().to_owned(), m.text().unwrap().to_owned())).collect()
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
    fn a_mark_that_never_comes_is_not_looked_for_again_and_again() {
        // 100,000 questions without an answer: each looked for one to the end of 1.2 MB, some 40 s in all.
        let text = "### Human: a".repeat(100_000);
        assert_eq!(from_text(&text), Row::Text(text.clone()));
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
