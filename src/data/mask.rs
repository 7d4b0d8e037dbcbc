//! Which tokens of a conversation are learned.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value;

use super::kind::is_learned;
use crate::error::Result;
use crate::tokenizer::{ChatContext, ChatTemplate, Encoded, Message, Tokenizer};

/// A rendered conversation: its tokens, and which of them belong to answers.
pub(super) struct Rendered {
    pub(super) ids: Vec<u32>,
    pub(super) learned: Vec<bool>,
}

/// Renders a conversation and marks the tokens that the model must produce: each assistant turn at or after message `from` that is
/// not switched off ([`is_learned`]), with its end token.
///
/// A template that marks what the assistant says (`{% generation %}`) decides itself. For others a turn begins where the prompt for
/// it ends (the earlier messages with the generation prompt), which is where generation starts too. Its own text ends behind
/// the last place where the conversation changes when the turn's texts are changed; the turn ends with the first token behind
/// that ends generation, before the next turn's text. So neither a header that a template always writes nor what a template
/// drops or adds once other turns follow is taken for the turn.
///
/// A token with text of both sides of a boundary counts as the answer's. Errors: a sentence, when a turn is not found in the
/// template's output, or its end is not.
pub(super) fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    context: &ChatContext,
    from: usize,
) -> Result<Result<Rendered, String>> {
    let messages = &*as_the_template_takes(tokenizer, messages, context);
    let mut learned_turns = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        match is_learned(message) {
            Ok(learned) => learned_turns.push(learned && at >= from),
            Err(e) => return Ok(Err(format!("messages[{at}]: {e}"))),
        }
    }
    let chat = Rendering { tokenizer, template: tokenizer.chat_template(), messages, context };
    chat.learned(&learned_turns)
}

/// The text of a conversation, up to where the assistant's next turn begins where that is asked for. Errors: of the template.
pub(super) fn text(tokenizer: &Tokenizer, messages: &[Message], context: &ChatContext, ask: bool) -> Result<String> {
    tokenizer.chat_template().render(&as_the_template_takes(tokenizer, messages, context), context, ask)
}

/// The turns, those of several parts as one text where the template knows none.
fn as_the_template_takes<'a>(
    tokenizer: &Tokenizer,
    messages: &'a [Message],
    context: &ChatContext,
) -> Cow<'a, [Message]> {
    match tokenizer.chat_template().render(messages, context, false) {
        Err(_) if messages.iter().any(|m| m.text().is_none()) => {
            Cow::Owned(messages.iter().map(with_joined_parts).collect())
        }
        _ => Cow::Borrowed(messages),
    }
}

/// A turn whose text parts are one text, for templates that know none.
fn with_joined_parts(message: &Message) -> Message {
    let mut message = message.clone();
    let text = |parts: &Vec<Value>| parts.iter().filter_map(|p| p["text"].as_str()).collect::<String>();
    let joined = match message.fields().get("content") {
        Some(Value::Array(parts)) => text(parts),
        None => String::new(),
        Some(_) => return message,
    };
    message.fields_mut().insert("content".to_owned(), Value::String(joined));
    message
}

struct Rendering<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    messages: &'a [Message],
    context: &'a ChatContext,
}

/// Texts that no conversation holds, with different ends, so that one of them differs from whatever they replace.
const PROBES: [&str; 2] = ["\u{e010}fourbit\u{e011}", "\u{e012}fourbit\u{e013}"];

impl Rendering<'_> {
    fn learned(&self, turns: &[bool]) -> Result<Result<Rendered, String>> {
        let (text, marked) = match self.template.marks_answers(self.context) {
            true => {
                self.template.render_marked(self.messages, self.context).map(|(text, spans)| (text, Some(spans)))?
            }
            false => (self.template.render(self.messages, self.context, false)?, None),
        };
        let encoded = self.tokenizer.encode_with_offsets(&text, false)?;
        let mut learned = vec![false; encoded.ids.len()];
        let spans = match marked {
            // A template with marks that writes none for the answers that are there cannot say what they are.
            Some(spans) if !spans.is_empty() => self.marked_turns(turns, &text, spans),
            _ => self.turns(turns, &text, &encoded),
        };
        let spans = match spans {
            Ok(spans) => spans,
            Err(message) => return Ok(Err(message)),
        };
        for span in spans {
            let inside = |&(start, end): &(usize, usize)| end > span.start && start < span.end;
            for (learned, range) in learned.iter_mut().zip(&encoded.offsets) {
                *learned |= inside(range);
            }
        }
        Ok(Ok(Rendered { ids: encoded.ids, learned }))
    }

    /// The marked parts that belong to the turns to learn. Errors: a sentence, where they cannot be told from the others.
    fn marked_turns(
        &self,
        turns: &[bool],
        text: &str,
        mut spans: Vec<Range<usize>>,
    ) -> Result<Vec<Range<usize>>, String> {
        let assistants = |wanted: bool| {
            (0..turns.len()).filter(move |&i| self.messages[i].role() == "assistant" && turns[i] == wanted)
        };
        if assistants(false).next().is_none() {
            return Ok(spans);
        }
        let place = |at: usize| {
            let own = self.own_text(at, text).ok_or_else(|| not_found(at))?;
            let holds = |s: &Range<usize>| s.start <= own.start && own.end <= s.end;
            spans.iter().position(holds).ok_or_else(|| not_found(at))
        };
        let kept = assistants(true).map(&place).collect::<Result<Vec<_>, _>>()?;
        let dropped = assistants(false).map(place).collect::<Result<Vec<_>, _>>()?;
        if let Some(both) = kept.iter().find(|n| dropped.contains(n)) {
            let part = &text[spans[*both].clone()];
            return Err(format!("the chat template writes turns to learn and turns not to learn as one: {part:?}"));
        }
        let mut n = 0;
        spans.retain(|_| {
            n += 1;
            !dropped.contains(&(n - 1))
        });
        Ok(spans)
    }

    /// The turns to learn, found in the text. Errors: a sentence about one that is not.
    fn turns(&self, turns: &[bool], text: &str, encoded: &Encoded) -> Result<Vec<Range<usize>>, String> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for at in (0..turns.len()).filter(|&at| turns[at]) {
            let own = self.own_text(at, text).ok_or_else(|| not_found(at))?;
            let start = self.start(at, text, &own, spans.last().map_or(0, |s| s.end)).ok_or_else(|| not_found(at))?;
            let end = self.end(at, text, encoded, own.end).ok_or_else(|| {
                format!(
                    "messages[{at}]: the chat template writes no token behind it that ends an answer, so its end is unknown; use rows \
                     of the form {{prompt, completion}} or {{input_ids, labels}}"
                )
            })?;
            spans.push(start..end);
        }
        Ok(spans)
    }

    fn rendered(&self, messages: &[Message], prompt: bool) -> Option<String> {
        self.template.render(messages, self.context, prompt).ok()
    }

    /// The bytes between the first and the last place where `text` changes when a turn's texts are changed.
    fn own_text(&self, at: usize, text: &str) -> Option<Range<usize>> {
        let changed = PROBES.iter().filter_map(|probe| {
            let mut messages = self.messages.to_vec();
            let of = |whole: bool| probed(&self.messages[at], probe, whole);
            messages[at] = of(true);
            // Some templates check what names and ids look like; then the content alone is changed.
            let other = self.rendered(&messages, false).or_else(|| {
                messages[at] = of(false);
                self.rendered(&messages, false)
            })?;
            difference(text, &other)
        });
        changed.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
    }

    /// Where a turn begins: where the prompt for it ends, or behind the same header where that prompt is not what the text begins with.
    fn start(&self, at: usize, text: &str, own: &Range<usize>, after: usize) -> Option<usize> {
        let before = &self.messages[..at];
        let asked = self.rendered(before, true).filter(|_| at > 0);
        if let Some(asked) = asked.as_ref().filter(|asked| text.starts_with(asked.as_str()) && asked.len() <= own.start)
        {
            return Some(asked.len());
        }
        let header = match (asked, self.rendered(before, false)) {
            (Some(asked), Some(bare)) => asked.strip_prefix(&bare).map(str::to_owned).unwrap_or_default(),
            _ => String::new(),
        };
        let window = text.get(after..own.start)?;
        for header in [header.as_str(), header.trim_end()] {
            if let Some(n) = window.rfind(header).filter(|_| !header.is_empty()) {
                return Some(after + n + header.len());
            }
        }
        // Without a header the turn begins with its text; how a call begins cannot be told then.
        (!self.messages[at].fields().contains_key("tool_calls")).then_some(own.start)
    }

    /// Where a turn ends whose own text ends at `own_end`: behind the first token that ends generation, else the first special one,
    /// before the next turn's text. Where the template writes neither, where the conversation up to the turn ends.
    fn end(&self, at: usize, text: &str, encoded: &Encoded, own_end: usize) -> Option<usize> {
        let limit = (at + 1..self.messages.len()).find_map(|next| self.own_text(next, text)).map(|own| own.start);
        let limit = limit.filter(|&limit| limit >= own_end).unwrap_or(text.len());
        let behind = |&i: &usize| encoded.offsets[i].0 >= own_end && encoded.offsets[i].1 <= limit;
        let between: Vec<usize> = (0..encoded.ids.len()).filter(behind).collect();
        if let Some(&i) = between.iter().find(|&&i| self.tokenizer.eos_ids().contains(&encoded.ids[i])) {
            return Some(encoded.offsets[i].1);
        }
        // Another special token closes the turn, unless it opens the next one: it is then the only one before that turn's text, or
        // the one that the whole conversation opens with.
        let special = |id: u32| self.tokenizer.is_special(id) && Some(id) != self.tokenizer.bos_id();
        let opening = encoded.ids.iter().copied().find(|&id| special(id));
        let mut specials = between.into_iter().filter(|&i| special(encoded.ids[i]));
        if let Some(i) = specials.next()
            && Some(encoded.ids[i]) != opening
            && (limit == text.len() || specials.next().is_some())
        {
            return Some(encoded.offsets[i].1);
        }
        let whole = self.rendered(&self.messages[..=at], false)?;
        (text.starts_with(&whole) && whole.len() >= own_end && whole.len() <= limit).then_some(whole.len())
    }
}

fn not_found(at: usize) -> String {
    format!(
        "messages[{at}]: its text is not in the conversation that the chat template writes, so the tokens to learn are unknown; use \
         rows of the form {{prompt, completion}} or {{input_ids, labels}}"
    )
}

/// The bytes of `a` between the common beginning and the common end of both; `None` where they are equal.
fn difference(a: &str, b: &str) -> Option<Range<usize>> {
    if a == b {
        return None;
    }
    let start = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let most = a.len().min(b.len()) - start;
    let tail = a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count().min(most);
    let (mut start, mut end) = (start, a.len() - tail);
    while !a.is_char_boundary(start) {
        start -= 1;
    }
    while !a.is_char_boundary(end) {
        end += 1;
    }
    Some(start..end)
}

/// The turn with other texts: what it says and thinks, and, with `whole`, names and arguments of its calls. Ids stay.
fn probed(message: &Message, probe: &str, whole: bool) -> Message {
    let mut message = message.clone();
    let fields = message.fields_mut();
    for key in ["reasoning_content", "thinking", "reasoning"] {
        if let Some(text) = fields.get_mut(key).filter(|v| v.is_string()) {
            *text = Value::from(probe);
        }
    }
    let calls = fields.contains_key("tool_calls");
    match fields.get_mut("content") {
        Some(Value::Array(parts)) => parts.iter_mut().for_each(|part| part["text"] = Value::from(probe)),
        // A call's turn without text stays one: templates write the two in different ways.
        Some(Value::String(text)) if text.is_empty() && whole && calls => {}
        None => {}
        Some(_) => {
            fields.insert("content".to_owned(), Value::from(probe));
        }
    }
    if whole {
        let calls = fields.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let call = if call.get("function").is_some() { &mut call["function"] } else { call };
            replace(call, probe);
        }
    }
    message
}

/// Other texts and numbers in every leaf but those of ids and types.
fn replace(value: &mut Value, probe: &str) {
    match value {
        Value::Object(map) if map.is_empty() => {
            map.insert(probe.to_owned(), Value::from(probe));
        }
        Value::Object(map) => {
            map.iter_mut()
                .filter(|(key, _)| !["id", "type"].contains(&key.as_str()))
                .for_each(|(_, v)| replace(v, probe));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| replace(v, probe)),
        other => *other = Value::from(probe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_lie_between_common_ends() {
        assert_eq!(difference("abc", "abc"), None);
        assert_eq!(difference("abXcd", "abYYcd"), Some(2..3));
        assert_eq!(difference("abcd", "abZcd"), Some(2..2));
        assert_eq!(difference("aaa", "aaaa"), Some(3..3));
        assert_eq!(difference("é", "è"), Some(0..2));
    }
}
