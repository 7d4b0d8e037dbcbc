//! Rows to examples: token ids with labels.

use std::path::Path;

use super::DataOptions;
use super::kind::{Note, Row};
#[cfg(feature = "tokenizer")]
use super::{kind::Chat, mask};
use crate::error::{Error, Result};
#[cfg(feature = "tokenizer")]
use crate::tokenizer::Message;
use crate::tokenizer::Tokenizer;

/// The label that the loss passes over.
pub const IGNORE: i32 = -100;

/// One row as the model sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Token ids. `[t]`
    pub input_ids: Vec<u32>,
    /// `labels[i]` is the token at `i` or [`IGNORE`]; the model predicts it from the tokens before `i`. `[t]`
    pub labels: Vec<i32>,
    /// 1 for tokens, 0 for padding, where the row brings it. `[t]`
    pub attention_mask: Option<Vec<u8>>,
}

impl Example {
    /// How many tokens the loss counts: labels other than [`IGNORE`], but the first, which nothing precedes.
    pub fn predicted(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&l| l != IGNORE).count()
    }

    /// Cuts the row's end off. Whether there was something to cut.
    pub(super) fn truncate(&mut self, length: usize) -> bool {
        let longer = self.input_ids.len() > length;
        self.input_ids.truncate(length);
        self.labels.truncate(length);
        if let Some(mask) = &mut self.attention_mask {
            mask.truncate(length);
        }
        longer
    }

    /// Ids and labels of one length and inside the vocabulary. Errors: a sentence.
    fn check(&self, vocab_size: usize, tokenizer: Option<&Tokenizer>) -> Result<(), String> {
        let n = self.input_ids.len();
        if n == 0 {
            return Err("expected at least one token, got none".into());
        }
        let lengths =
            [("labels", Some(self.labels.len())), ("attention_mask", self.attention_mask.as_ref().map(Vec::len))];
        for (name, length) in lengths {
            if let Some(got) = length.filter(|&l| l != n) {
                return Err(format!("{name}: expected {n} entries, one for each of input_ids, got {got}"));
            }
        }
        if let Some(id) = self.input_ids.iter().find(|&&id| id as usize >= vocab_size) {
            let token = tokenizer.and_then(|tokenizer| tokenizer.token(*id));
            let token = token.map(|token| format!(" ({token:?})")).unwrap_or_default();
            return Err(format!("input_ids: {id}{token} is outside the vocabulary of {vocab_size} tokens"));
        }
        let outside = |l: i32| l != IGNORE && usize::try_from(l).map_or(true, |l| l >= vocab_size);
        if let Some(label) = self.labels.iter().find(|&&l| outside(l)) {
            return Err(format!("labels: {label} is outside the vocabulary of {vocab_size} tokens (-100 is ignored)"));
        }
        if let Some(m) = self.attention_mask.iter().flatten().find(|&&m| m > 1) {
            return Err(format!("attention_mask: expected 0 or 1, got {m}"));
        }
        Ok(())
    }
}

/// Encodes one row, untruncated: an example, or those of the preferred answer and of the other one. `path` and `number` are for errors.
pub(super) fn encode_all(
    row: &Row,
    tokenizer: Option<&Tokenizer>,
    options: &DataOptions,
    path: &Path,
    number: usize,
) -> Result<(Vec<Example>, Vec<Note>)> {
    let bad = |message: &str| Error::Data { path: path.into(), row: number, message: message.to_owned() };
    match (options.pairs, row.is_pair()) {
        (false, false) => Ok((vec![encode(row, tokenizer, options, path, number)?], Vec::new())),
        (true, false) => {
            Err(bad("expected two answers, {prompt, chosen, rejected}, as `objective` dpo and orpo learn from"))
        }
        (false, true) => Err(bad(
            "this is a preference row (chosen, rejected): learn from it with `objective` dpo or orpo, or write the better answer as \
             {prompt, completion} or {messages}",
        )),
        #[cfg(not(feature = "tokenizer"))]
        (true, true) => Err(bad("this row holds text, which needs the feature `tokenizer` of the crate fourbit")),
        #[cfg(feature = "tokenizer")]
        (true, true) => {
            let Some(tokenizer) = tokenizer else {
                return Err(bad("this row holds text, and the model folder has no tokenizer.json"));
            };
            let (pair, seam) = pair(row, tokenizer).map_err(|e| bad(&e.to_string()))?;
            for example in &pair {
                example.check(options.vocab_size, Some(tokenizer)).map_err(|e| bad(&e))?;
            }
            Ok((pair.into(), seam.then_some(Note::Seam).into_iter().collect()))
        }
    }
}

/// Two answers behind one prompt. Answers begin where the prompt's tokens end, or where one of them parts from these, as TRL has it;
/// then the second is true.
#[cfg(feature = "tokenizer")]
fn pair(row: &Row, tokenizer: &Tokenizer) -> Result<([Example; 2], bool)> {
    let (alone, answers) = match row {
        Row::ChatPreference { prompt, chosen, rejected, context } => {
            let render = |messages: &[Message], ask: bool| {
                let text = mask::text(tokenizer, messages, context, ask)?;
                tokenizer.encode(&text, false)
            };
            let answered = |answer: &[Message]| render(&[prompt, answer].concat(), false);
            (render(prompt, true)?, [answered(chosen)?, answered(rejected)?])
        }
        Row::Preference { prompt, chosen, rejected } => {
            let end = tokenizer.eos_id().and_then(|id| tokenizer.token(id)).unwrap_or_default();
            let answered = |answer: &str| {
                let end = if answer.ends_with(&end) { "" } else { &end };
                tokenizer.encode(&format!("{prompt}{answer}{end}"), true)
            };
            (tokenizer.encode(prompt, true)?, [answered(chosen)?, answered(rejected)?])
        }
        _ => unreachable!("the caller has a pair"),
    };
    let shared = |ids: &Vec<u32>| ids.iter().zip(&alone).take_while(|(a, b)| a == b).count();
    let begin = answers.iter().map(shared).min().unwrap_or(0);
    let example = |ids: Vec<u32>| {
        let label = |(at, &id): (usize, &u32)| if at < begin { IGNORE } else { id as i32 };
        let labels = ids.iter().enumerate().map(label).collect();
        Example { input_ids: ids, labels, attention_mask: None }
    };
    Ok((answers.map(example), begin < alone.len()))
}

/// Encodes one row, untruncated. `path` and `number` are for errors.
pub(super) fn encode(
    row: &Row,
    tokenizer: Option<&Tokenizer>,
    options: &DataOptions,
    path: &Path,
    number: usize,
) -> Result<Example> {
    let bad = |message: String| Error::Data { path: path.into(), row: number, message };
    let example = match (row, tokenizer) {
        (Row::Tokens { input_ids, labels, attention_mask }, _) => {
            Example { input_ids: input_ids.clone(), labels: labels.clone(), attention_mask: attention_mask.clone() }
        }
        (_, None) => {
            let why = match cfg!(feature = "tokenizer") {
                true => "and the model folder has no tokenizer.json",
                false => "which needs the feature `tokenizer` of the crate fourbit",
            };
            return Err(bad(format!("this row holds text, {why}; use {{input_ids, labels}}")));
        }
        #[cfg(not(feature = "tokenizer"))]
        (_, Some(tokenizer)) => match *tokenizer {},
        #[cfg(feature = "tokenizer")]
        (row, Some(tokenizer)) => {
            let whole = !options.completion_only;
            // A template's refusal is about this row.
            text_row(row, tokenizer, whole).map_err(|e| bad(e.to_string()))?.map_err(bad)?
        }
    };
    example.check(options.vocab_size, tokenizer).map_err(bad)?;
    Ok(example)
}

#[cfg(feature = "tokenizer")]
fn text_row(row: &Row, tokenizer: &Tokenizer, whole: bool) -> Result<Result<Example, String>> {
    let (ids, learned) = match row {
        Row::Chat(Chat { messages, context }) => match mask::render(tokenizer, messages, context, 0)? {
            Ok(rendered) => (rendered.ids, rendered.learned),
            Err(message) => return Ok(Err(message)),
        },
        Row::ChatCompletion { prompt, completion, context } => {
            let messages = [prompt.as_slice(), completion].concat();
            match mask::render(tokenizer, &messages, context, prompt.len())? {
                Ok(rendered) => (rendered.ids, rendered.learned),
                Err(message) => return Ok(Err(message)),
            }
        }
        Row::Completion { prompt, completion } => {
            let encoded = tokenizer.encode_with_offsets(&format!("{prompt}{completion}"), true)?;
            let learned = encoded.offsets.iter().map(|&(_, end)| end > prompt.len()).collect();
            ended(tokenizer, encoded.ids, learned)
        }
        Row::Text(text) => {
            let ids = tokenizer.encode(text, true)?;
            let learned = vec![true; ids.len()];
            ended(tokenizer, ids, learned)
        }
        Row::Tokens { .. } => unreachable!("rows of tokens need no tokenizer"),
        Row::Preference { .. } | Row::ChatPreference { .. } => {
            return Ok(Err("this is a preference row (chosen, rejected); expected one answer".into()));
        }
    };
    let label = |(&id, learned): (&u32, bool)| if whole || learned { id as i32 } else { IGNORE };
    let labels = ids.iter().zip(learned).map(label).collect();
    Ok(Ok(Example { input_ids: ids, labels, attention_mask: None }))
}

/// A text ends with EOS, which is learned, unless it already does.
#[cfg(feature = "tokenizer")]
fn ended(tokenizer: &Tokenizer, mut ids: Vec<u32>, mut learned: Vec<bool>) -> (Vec<u32>, Vec<bool>) {
    if let Some(eos) = tokenizer.eos_id() {
        if ids.last() != Some(&eos) {
            ids.push(eos);
            learned.push(true);
        } else if let Some(last) = learned.last_mut() {
            *last = true;
        }
    }
    (ids, learned)
}

#[cfg(all(test, not(feature = "tokenizer")))]
mod tests {
    use super::*;

    #[test]
    fn rows_of_text_are_refused_with_the_name_of_the_feature_and_rows_of_tokens_are_taken() {
        let options = DataOptions::new(8, 8);
        let encode = |row: Row| super::encode(&row, None, &options, Path::new("rows"), 1);
        let error = encode(Row::Text("text".into())).unwrap_err().to_string();
        assert!(error.contains("needs the feature `tokenizer`"), "{error}");
        let row = Row::Tokens { input_ids: vec![1, 2], labels: vec![IGNORE, 2], attention_mask: None };
        assert_eq!(encode(row).unwrap().labels, [IGNORE, 2]);
    }
}
