//! Training data: files of conversations or texts to batches of token ids with labels.
//!
//! A row's kind follows from its fields:
//!
//! | fields | learned |
//! |---|---|
//! | `messages: [{role, content}]`, perhaps `tools`, `documents`, `chat_template_kwargs` | every assistant turn with its end token, but those whose `weight` is 0 or `train` false |
//! | `conversations: [{from, value}]` (ShareGPT), perhaps `system` | the same; `human` and `gpt` are user and assistant |
//! | `prompt`, `completion` (two strings, or two lists of messages) | the completion with its end token |
//! | `instruction`, perhaps `input`, and `output` (Alpaca) | as `messages` of one question and its answer |
//! | `text` | all tokens, with EOS at the end |
//! | `text` in the OpenAssistant-Guanaco (`### Human: … ### Assistant: …`) or Llama-2 (`[INST] … [/INST] …`) layout | as `messages`, in the model's own template |
//! | `input_ids`, `labels`, perhaps `attention_mask` | as the labels say |
//!
//! Keys that nothing reads are reported once per file, by name and number of rows. Labels are not shifted: `labels[i]` belongs to the
//! token at `i`, -100 is ignored, and the model shifts.
//!
//! Rows of text need the feature `tokenizer`, Parquet files the feature `parquet`; without it each is refused by its name.

mod content;
mod encode;
mod kind;
mod loader;
#[cfg(feature = "tokenizer")]
mod mask;
mod pack;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;
mod samples;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
pub use content::holds_rows;
pub use encode::{Example, IGNORE};
pub use kind::{Chat, Row};
pub use loader::{Batch, DataLoader, LoaderOptions, MASKED};
pub use samples::{SampleOptions, samples};

/// How rows become examples.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Rows are cut after this many tokens.
    pub max_seq_length: usize,
    /// Learn completions only (of plain texts everything). Otherwise every token of every row but those with labels.
    pub completion_only: bool,
    /// Ids and labels must be below: the rows of the model's embedding.
    pub vocab_size: usize,
}

/// Encoded rows, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    examples: Vec<Example>,
    truncated: usize,
    skipped: usize,
    joined: usize,
}

impl Dataset {
    /// Reads and encodes a file of JSON lines, a JSON array or parquet; on every core.
    ///
    /// A model without tokenizer can only take rows with `input_ids`. Rows in which nothing is left to learn (after the
    /// cut at `max_seq_length`) are left out and counted, with a warning. Errors: [`Error::Io`]; [`Error::Format`];
    /// [`Error::Unsupported`] for Parquet without the feature `parquet`; [`Error::Data`] naming the row; [`Error::Config`] for a
    /// `max_seq_length` below 2.
    pub fn load(path: impl AsRef<Path>, tokenizer: Option<&Tokenizer>, options: &DataOptions) -> Result<Dataset> {
        let path = path.as_ref();
        let rows = rows::read(path)?;
        let joined = AtomicUsize::new(0);
        let encode_one = |(number, fields): &rows::NumberedRow| {
            let bad = |message| Error::Data { path: path.into(), row: *number, message };
            let read = kind::read(fields).map_err(bad)?;
            joined.fetch_add(usize::from(matches!(read.row, Row::Completion { .. })), Ordering::Relaxed);
            Ok((encode::encode(&read.row, tokenizer, options, path, *number)?, read.notes))
        };
        let (examples, notes): (Vec<_>, Vec<_>) = in_parallel(&rows, encode_one)?.into_iter().unzip();
        tell(path, &notes);
        Ok(Dataset { joined: joined.into_inner(), ..Dataset::cut(examples, options, path)? })
    }

    /// Encodes rows made in memory. Errors: as [`Dataset::load`], with `rows` for the file's name.
    pub fn from_rows(rows: &[Row], tokenizer: Option<&Tokenizer>, options: &DataOptions) -> Result<Dataset> {
        let path = PathBuf::from("rows");
        let numbered: Vec<(usize, &Row)> = rows.iter().enumerate().map(|(n, row)| (n + 1, row)).collect();
        let examples = in_parallel(&numbered, |&(number, row)| encode::encode(row, tokenizer, options, &path, number))?;
        let joined = rows.iter().filter(|row| matches!(row, Row::Completion { .. })).count();
        Ok(Dataset { joined, ..Dataset::cut(examples, options, &path)? })
    }

    fn cut(mut examples: Vec<Example>, options: &DataOptions, path: &Path) -> Result<Dataset> {
        if options.max_seq_length < 2 {
            return Err(Error::config("max_seq_length", "expected at least 2 tokens: one is predicted from the other"));
        }
        let answers = examples.iter().filter(|e| e.predicted() > 0).count();
        let truncated = examples.iter_mut().map(|e| e.truncate(options.max_seq_length) as usize).sum();
        let rows = examples.len();
        examples.retain(|e| e.predicted() > 0);
        let skipped = rows - examples.len();
        if examples.is_empty() {
            let message = match answers {
                0 => format!("none of the {rows} rows has a token to learn: no turn of the role assistant, no label"),
                _ => format!(
                    "none of the {rows} rows has a token to learn within {} tokens; raise `max_seq_length`",
                    options.max_seq_length
                ),
            };
            return Err(Error::Data { path: path.into(), row: 1, message });
        }
        if skipped > 0 {
            log::warn!("{}: {skipped} of {rows} rows have nothing to learn and are left out", path.display());
        }
        Ok(Dataset { examples, truncated, skipped, joined: 0 })
    }

    /// The rows.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Never true: a set without rows is not made.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How many rows were longer than `max_seq_length`.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// How many rows were left out because nothing in them is learned.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// How many rows hold prompt and completion as two strings, which are joined without the chat template.
    pub fn joined(&self) -> usize {
        self.joined
    }

    /// The longest row's length.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(|e| e.input_ids.len()).max().unwrap_or(0)
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|e| e.input_ids.len()).sum()
    }
}

/// Reports what was done with rows that whoever wrote them may not expect: each kind once, with how often.
fn tell(path: &Path, notes: &[Vec<kind::Note>]) {
    let mut counts = std::collections::BTreeMap::<&kind::Note, (usize, usize)>::new();
    for row in notes {
        let mut last = None;
        for note in row {
            let (times, rows) = counts.entry(note).or_default();
            *times += 1;
            *rows += usize::from(last != Some(note));
            last = Some(note);
        }
    }
    for (note, (times, rows)) in counts {
        let path = path.display();
        match note {
            kind::Note::Unread(key) => {
                log::warn!("{path}: the key {key} is not read ({rows} of {} rows have it)", notes.len())
            }
            kind::Note::Role(theirs, ours) => log::warn!("{path}: the role {theirs} is read as {ours} ({times} turns)"),
            kind::Note::Alpaca => log::warn!(
                "{path}: Alpaca rows are asked and answered in the model's chat template: instruction, a blank line and input, then \
                 output ({rows} rows)"
            ),
        }
    }
}

/// `f` of every item, in order; of several errors the first item's.
fn in_parallel<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let part = items.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let f = &f;
        let workers: Vec<_> = items
            .chunks(part)
            .map(|chunk| scope.spawn(move || chunk.iter().map(f).collect::<Result<Vec<R>>>()))
            .collect();
        let mut out = Vec::with_capacity(items.len());
        for worker in workers {
            out.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(out)
    })
}
