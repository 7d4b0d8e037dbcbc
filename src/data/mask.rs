//! Which tokens of a conversation are learned.

use std::ops::Range;

use crate::error::Result;
use crate::tokenizer::{ChatTemplate, Encoded, Message, Tokenizer};

/// A rendered conversation: its tokens, and which of them belong to answers.
pub(super) struct Rendered {
    pub(super) ids: Vec<u32>,
    pub(super) learned: Vec<bool>,
}

/// Renders a conversation and marks the tokens that the model must produce: each assistant turn at or after message
/// `from`, with its end token.
///
/// A turn begins where the prompt for it ends (the earlier messages with the generation prompt), which is where
/// generation starts too, and ends where the conversation up to and with it ends. Blanks that a template writes after
/// the turn's end token are no part of it. Templates that write a turn differently once others follow (dropping its
/// reasoning, say) are looked through by the turn's text, up to the first special token after it.
///
/// A token with text of both sides of a boundary counts as the answer's. Errors: a sentence, when the template's
/// output does not hold the turn's text.
pub(super) fn render(tokenizer: &Tokenizer, messages: &[Message], from: usize) -> Result<Result<Rendered, String>> {
    let template = tokenizer.chat_template();
    let text = template.render(messages, false)?;
    let encoded = tokenizer.encode_with_offsets(&text, false)?;
    let mut learned = vec![false; encoded.ids.len()];
    for at in (from..messages.len()).filter(|&i| messages[i].role == "assistant") {
        let Some(turn) = turn(template, messages, at, &text) else {
            return Ok(Err(format!(
                "messages[{at}]: its text is not in the conversation that the chat template writes, so the tokens to \
                 learn are unknown; use rows of the form {{prompt, completion}} or {{input_ids, labels}}"
            )));
        };
        mark(tokenizer, &text, &encoded, turn, &mut learned);
    }
    Ok(Ok(Rendered { ids: encoded.ids, learned }))
}

/// The bytes of a turn in the rendered conversation.
struct Turn {
    span: Range<usize>,
    /// Whether the span ends with the turn's own text, so that its end token is yet to come.
    open: bool,
}

fn turn(template: &ChatTemplate, messages: &[Message], at: usize, text: &str) -> Option<Turn> {
    let prefix = |count: usize, prompt: bool| {
        let part = template.render(&messages[..count], prompt).ok()?;
        text.starts_with(&part).then_some(part.len())
    };
    let content = || content(template, messages, at, text);
    let start = prefix(at, true).filter(|_| at > 0).or_else(|| Some(content()?.start))?;
    let whole = prefix(at + 1, false).filter(|&end| end >= start);
    let end = whole.or_else(|| Some(content()?.end))?;
    (start <= end).then_some(Turn { span: start..end, open: whole.is_none() })
}

/// The bytes of a turn's own text, found by rendering the conversation with a mark in its place.
fn content(template: &ChatTemplate, messages: &[Message], at: usize, text: &str) -> Option<Range<usize>> {
    const MARK: &str = "fourbit-turn-7c1e";
    let mut marked = messages.to_vec();
    marked[at].content = MARK.to_string();
    let rendered = template.render(&marked, false).ok()?;
    let start = rendered.find(MARK)?;
    let (before, after) = (text.get(..start)?, text.get(start..)?);
    if before != &rendered[..start] {
        return None;
    }
    let content = messages[at].content.as_str();
    // A template that takes reasoning out of an answer leaves what follows it.
    let answer = content.rsplit("</think>").next().unwrap_or(content);
    let found = [content, content.trim(), answer, answer.trim()].into_iter().find(|c| after.starts_with(c))?;
    Some(start..start + found.len())
}

fn mark(tokenizer: &Tokenizer, text: &str, encoded: &Encoded, turn: Turn, learned: &mut [bool]) {
    let ids = &encoded.ids;
    let inside = |&(start, end): &(usize, usize)| end > turn.span.start && start < turn.span.end;
    let Some(first) = encoded.offsets.iter().position(inside) else { return };
    let last = encoded.offsets.iter().rposition(inside).expect("position found one");
    let ends = |i: &usize| tokenizer.eos_ids().contains(&ids[*i]);
    let special = |i: &usize| ends(i) || tokenizer.is_special(ids[*i]);
    let blank = |i: &usize| {
        let (start, end) = encoded.offsets[*i];
        text.get(start..end).is_some_and(|t| t.trim().is_empty())
    };
    let last = if turn.open {
        // On over blanks and special tokens to the one that ends generation; else to a special token right behind.
        let behind = (last + 1..ids.len()).take_while(|i| special(i) || blank(i)).find(ends);
        let next = Some(last + 1).filter(|i| *i < ids.len() && special(i) && Some(ids[*i]) != tokenizer.bos_id());
        behind.or(next).unwrap_or(last)
    } else {
        // Among the blanks and special tokens at the end, the first that ends generation; else the last special one.
        let tail = (first..=last).rev().take_while(|i| special(i) || blank(i)).last().unwrap_or(last);
        (tail..=last).find(ends).or_else(|| (tail..=last).rev().find(special)).unwrap_or(last)
    };
    learned[first..=last].fill(true);
}
