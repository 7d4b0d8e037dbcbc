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
//! Files are read once, as a stream: what is kept of a row is its place and length, and its ids in memory while all of them are few, else in
//! a temporary file. So memory does not grow with them but for 16 bytes per row, and a file that changes later changes nothing.
//!
//! Rows of text need the feature `tokenizer`, Parquet files the feature `parquet`; without it each is refused by its name.

mod content;
mod dataset;
mod encode;
mod kind;
mod loader;
#[cfg(feature = "tokenizer")]
mod mask;
mod pack;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod parquet;
mod prompt;
mod rows;
mod samples;
mod spool;

pub use content::holds_rows;
pub use dataset::Dataset;
pub use encode::{Example, IGNORE};
pub use kind::{Chat, Row};
pub use loader::{Batch, DataLoader, LoaderOptions, MASKED};
pub use samples::samples;

use crate::cancel::Cancel;

/// How rows become examples. [`DataOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Rows are cut after this many tokens.
    pub max_seq_length: usize,
    /// Learn completions only (of plain texts everything). Otherwise every token of every row but those with labels.
    pub completion_only: bool,
    /// Ids and labels must be below: the rows of the model's embedding.
    pub vocab_size: usize,
    /// Bytes of a row, at most: of a JSON line, of an element of a JSON array, of what a row of Parquet holds. A page of Parquet may
    /// have 16 times as many. What is larger is an error, and is not read.
    pub max_row_bytes: usize,
    /// Whether rows are pairs of answers, of which one is preferred.
    pub pairs: bool,
    /// Asks the reading of rows to stop.
    pub cancel: Cancel,
}

impl DataOptions {
    /// 16 MiB: four million tokens of text, more than models take, and few enough for one row per core to be parsed at once, for
    /// which up to some 16 times its bytes are taken.
    pub const MAX_ROW_BYTES: usize = 16 << 20;

    /// Completions are learned, of rows of up to [`DataOptions::MAX_ROW_BYTES`].
    pub fn new(max_seq_length: usize, vocab_size: usize) -> DataOptions {
        DataOptions {
            max_seq_length,
            completion_only: true,
            vocab_size,
            max_row_bytes: DataOptions::MAX_ROW_BYTES,
            pairs: false,
            cancel: Cancel::default(),
        }
    }
}
