//! What `--data` of `evaluate`, `merge` and `compare` holds, and which of its tokens are predicted.

use crate::args::{Global, MAX_SEQ_LENGTH, max_seq_length};
use crate::output::note;
use clap::Args;
use fourbit::{
    Error, Result,
    data::{DataOptions, Dataset, Example, holds_rows},
    evaluate, format,
    model::Source,
    tokenizer::Tokenizer,
};
use std::path::Path;

/// How a text or rows are measured.
#[derive(Args)]
pub struct MeasureArgs {
    /// Tokens that are read, from the beginning; of rows, whole rows up to them [default: all]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens of a window of a text; rows are cut after them [default: 1024, or the model's positions where they are fewer]
    #[arg(long, value_name = "N")]
    max_seq_length: Option<usize>,
    /// Of rows, predict the completions alone; `false` predicts prompts too
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    completion_only_loss: bool,
}

/// Which tokens of a text are predicted, and from what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Convention {
    /// Windows of 1024 tokens, each by itself and without a token in front; all tokens but a window's first are predicted
    #[default]
    Windows,
    /// As llama.cpp's llama-perplexity: windows of 512 tokens (its -c), whose first one is BOS where the vocabulary asks for it;
    /// of each, the tokens after the middle are predicted, so that all have context; what fills no window is left out
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// What is measured.
pub struct Measured {
    /// Windows or rows, whose labels are predicted.
    pub sequences: Vec<Example>,
    /// In words.
    pub what: String,
    /// `prose`, `rows` or `ids`, for programs.
    pub kind: &'static str,
}

impl Measured {
    /// Tokens that are read.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.input_ids.len()).sum()
    }
}

impl MeasureArgs {
    /// Reads `--data`: rows as `finetune` reads them, or prose. Errors: Io, Format, Data; Config where the model has no tokenizer,
    /// there is nothing to predict, or rows are to be measured by a convention for texts.
    pub fn read(
        &self,
        global: &Global,
        model: &Path,
        source: &Source,
        data: &Path,
        convention: Convention,
    ) -> Result<Measured> {
        let tokenizer = Tokenizer::open(model)?;
        tokenizer.iter().for_each(|tokenizer| note_beyond(tokenizer, source.arch().vocab_size));
        if holds_rows(data)? {
            if convention != Convention::Windows {
                let message =
                    format!("is for texts, and {} holds rows, each of which is measured as it is", data.display());
                return Err(Error::config("--convention", message));
            }
            return self.rows(global, tokenizer.as_ref(), source, data);
        }
        let no_tokenizer =
            || Error::config("--data", format!("texts need a tokenizer: {}", Tokenizer::why_none(model)));
        let tokenizer = tokenizer.ok_or_else(no_tokenizer)?;
        let text = format::read_text(data)?;
        let mut ids = match convention {
            Convention::Windows => tokenizer.encode(&text, false)?,
            Convention::LlamaCpp => llama_cpp_ids(&tokenizer, &text)?,
        };
        ids.truncate(self.max_tokens.unwrap_or(usize::MAX));
        tokenizer.expect_rows("--data", &ids, source.arch().vocab_size)?;
        if ids.len() < 2 {
            return Err(Error::config("--data", "the text has fewer than two tokens; nothing can be predicted"));
        }
        let sequences = self.windows(&[ids], source, Some(&tokenizer), convention)?;
        let what = format!("the prose of {}", data.display());
        Ok(Measured { sequences, what, kind: "prose" })
    }

    fn rows(&self, global: &Global, tokenizer: Option<&Tokenizer>, source: &Source, data: &Path) -> Result<Measured> {
        let length = max_seq_length(self.max_seq_length, MAX_SEQ_LENGTH, source.arch())?;
        let options = DataOptions { completion_only: self.completion_only_loss, ..global.data_options(length, source) };
        let rows = Dataset::load(data, tokenizer, &options)?;
        note_rows(&rows, tokenizer, options.max_seq_length);
        let mut left = self.max_tokens.unwrap_or(usize::MAX);
        let mut sequences = Vec::new();
        for row in rows.iter() {
            let row = row?;
            match left.checked_sub(row.input_ids.len()) {
                None => break,
                Some(less) => left = less,
            }
            sequences.push(row);
        }
        if sequences.is_empty() {
            let first = rows.example(0)?.input_ids.len();
            return Err(Error::config(
                "--max-tokens",
                format!("the first row has {first} tokens; give at least these"),
            ));
        }
        let learned = if self.completion_only_loss { "what is learned" } else { "every token" };
        let what = format!("{learned} of {} rows of {}", sequences.len(), data.display());
        Ok(Measured { sequences, what, kind: "rows" })
    }

    /// Token ids, each list a text. Errors: Config where nothing can be predicted.
    pub fn ids(
        &self,
        mut texts: Vec<Vec<u32>>,
        model: &Path,
        source: &Source,
        convention: Convention,
    ) -> Result<Measured> {
        let mut left = self.max_tokens.unwrap_or(usize::MAX);
        for text in &mut texts {
            text.truncate(left);
            left -= text.len();
        }
        texts.retain(|ids| ids.len() >= 2);
        if texts.is_empty() {
            return Err(Error::config("--input-ids", "no text has two tokens; nothing can be predicted"));
        }
        let tokenizer = Tokenizer::open(model)?;
        let sequences = self.windows(&texts, source, tokenizer.as_ref(), convention)?;
        Ok(Measured { sequences, what: "token ids".to_owned(), kind: "ids" })
    }

    fn windows(
        &self,
        texts: &[Vec<u32>],
        source: &Source,
        tokenizer: Option<&Tokenizer>,
        convention: Convention,
    ) -> Result<Vec<Example>> {
        let mut sequences = Vec::new();
        for ids in texts {
            sequences.extend(match convention {
                Convention::Windows => {
                    evaluate::windows(ids, max_seq_length(self.max_seq_length, MAX_SEQ_LENGTH, source.arch())?)?
                }
                Convention::LlamaCpp => {
                    let window = max_seq_length(self.max_seq_length, LLAMA_CPP_CONTEXT, source.arch())?;
                    let bos = tokenizer.map(bos_in_front).transpose()?.flatten();
                    evaluate::llama_cpp_windows(ids, window, bos)?
                }
            });
        }
        Ok(sequences)
    }
}

/// Tokens of a window of llama-perplexity where nothing else is said.
const LLAMA_CPP_CONTEXT: usize = 512;

/// A text as llama-perplexity reads it out of a file: BOS in front where the vocabulary asks for it, and one newline at the end
/// left out. Errors: Config for a vocabulary that ends texts with EOS, at which that program gives up; Format.
fn llama_cpp_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text.strip_suffix('\n').unwrap_or(text), true)?;
    if tokenizer.encode("", true)?.iter().any(|&id| Some(id) == tokenizer.eos_id() && Some(id) != tokenizer.bos_id()) {
        let message = "llama-perplexity refuses vocabularies that end each text with EOS, as this one does";
        return Err(Error::config("--convention", message));
    }
    let text = &ids[usize::from(bos_in_front(tokenizer)?.is_some()).min(ids.len())..];
    if let Some(name) = text.iter().find(|&&id| tokenizer.is_special(id)).and_then(|&id| tokenizer.token(id)) {
        note(format_args!("note: the text holds {name}, which is a token here and plain text for llama-perplexity"));
    }
    Ok(ids)
}

/// BOS, where the vocabulary wants it in front of each text. Errors: Format.
fn bos_in_front(tokenizer: &Tokenizer) -> Result<Option<u32>> {
    let first = tokenizer.encode("", true)?.first().copied();
    Ok(tokenizer.bos_id().filter(|&bos| Some(bos) == first))
}

/// Says which entries of the tokenizer an embedding of `rows` has none for; texts that use them are refused.
pub fn note_beyond(tokenizer: &Tokenizer, rows: usize) {
    let ids = tokenizer.beyond(rows);
    if let Some(&first) = ids.first() {
        let token = tokenizer.token(first).unwrap_or_default();
        let more = if ids.len() > 1 { format!(" and {} more", ids.len() - 1) } else { String::new() };
        note(format_args!(
            "note: the tokenizer has {token:?} ({first}){more}, the model's vocabulary {rows} tokens: texts that hold it are refused"
        ));
    }
}

/// Says once what happened to rows that is not plain from the file.
pub fn note_rows(rows: &Dataset, tokenizer: Option<&Tokenizer>, max_seq_length: usize) {
    let count = rows.len();
    if rows.truncated() > 0 {
        let cut = rows.truncated();
        note(format_args!(
            "note: {cut} of {count} rows are longer than --max-seq-length {max_seq_length} and were cut"
        ));
    }
    if rows.joined() > 0 && tokenizer.is_some_and(Tokenizer::has_chat_template) {
        let joined = rows.joined();
        note(format_args!(
            "note: {joined} rows hold prompt and completion as strings, which are joined without the chat template, as in TRL; \
             lists of messages go through it"
        ));
    }
}
