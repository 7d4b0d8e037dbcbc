//! Text to token ids and back, from `tokenizer.json` or a GGUF file's metadata, and the model's chat template.

mod arithmetic;
mod bodies;
mod budget;
mod builtins;
mod chains;
mod clock;
mod comparison;
mod door;
mod ends;
mod filters;
mod folder;
mod gguf;
mod gguf_metadata;
mod jinja;
mod literal;
mod message;
mod nesting;
mod operators;
mod python;
mod stream;
mod template;
mod views;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::format::atomic;
use crate::format::gguf::{Gguf, is_gguf};
use door::Door;
pub use gguf::GgufVocab;
pub use message::{ChatContext, Message};
pub use stream::StreamDecoder;
pub use template::ChatTemplate;

/// A model's tokenizer with its special tokens and chat template.
pub struct Tokenizer {
    inner: Door,
    /// `tokenizer.json` as it was read or made: what [`Tokenizer::save`] writes.
    json: Vec<u8>,
    /// `tokenizer_config.json` as it was read or made.
    config: Map<String, Value>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    /// Whether tokens such as `<0x0A>` stand for bytes.
    has_bytes: bool,
    /// Whether a second BOS was left out of a text, which is reported once.
    told_of_bos: AtomicBool,
    template: ChatTemplate,
    has_template: bool,
    path: PathBuf,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {})", self.vocab_size(), self.path.display())
    }
}

/// A piece of text's tokens with the byte range of each in the text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// (start, end) in bytes. Tokens that are parts of one character have that character's range.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// The tokenizer of a model folder: `tokenizer.json`, and where present `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja` (or `.json`), `generation_config.json` and `config.json`.
    ///
    /// Errors: [`Error::Io`] without a `tokenizer.json`; [`Error::Format`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Tokenizer> {
        folder::load(dir.as_ref())
    }

    /// [`Tokenizer::from_dir`], or `None` where the folder has no `tokenizer.json`.
    pub fn find(dir: impl AsRef<Path>) -> Result<Option<Tokenizer>> {
        let dir = dir.as_ref();
        if dir.join("tokenizer.json").is_file() { folder::load(dir).map(Some) } else { Ok(None) }
    }

    /// What a model has in place of a tokenizer that can be read, and the remedy: for messages where one is needed.
    pub fn why_none(model: impl AsRef<Path>) -> String {
        let model = model.as_ref();
        if model.join("tokenizer.model").is_file() {
            return format!(
                "{} has SentencePiece's tokenizer.model alone, which is not read; write tokenizer.json with transformers: \
                 `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`",
                model.display()
            );
        }
        format!("{} has no tokenizer.json", model.display())
    }

    /// The tokenizer of a model folder or GGUF file, `None` where there is none in it.
    pub fn open(model: impl AsRef<Path>) -> Result<Option<Tokenizer>> {
        let model = model.as_ref();
        if model.is_dir() {
            return Tokenizer::find(model);
        }
        if !is_gguf(model)? {
            return Ok(None);
        }
        let file = Gguf::open(model)?;
        if file.text("tokenizer.ggml.model")?.is_none_or(|kind| kind == "no_vocab" || kind == "none") {
            return Ok(None);
        }
        gguf::build(&GgufVocab::read(&file)?, model).map(Some)
    }

    /// [`Tokenizer::open`] of a base model, for an adapter: what training saved beside it serves instead of the base's, a whole
    /// tokenizer (with the base's ends of generation) or chat templates alone.
    pub fn with_adapter(model: impl AsRef<Path>, adapter: impl AsRef<Path>) -> Result<Option<Tokenizer>> {
        let adapter = adapter.as_ref();
        let base = Tokenizer::open(model)?;
        match (Tokenizer::find(adapter)?, base) {
            (Some(mut own), Some(base)) => {
                let more = [own.eos_ids.clone(), base.eos_ids].concat();
                if !own.has_template && base.has_template {
                    own.set_templates(base.template.named().to_vec())?;
                }
                own.set_ends(more);
                Ok(Some(own))
            }
            (None, Some(mut base)) => {
                let templates = folder::adapter_templates(adapter)?;
                if !templates.is_empty() {
                    base.set_templates(templates)?;
                }
                Ok(Some(base))
            }
            (own, None) => Ok(own),
        }
    }

    /// The tokenizer described by a GGUF file's metadata; `path` names the file in errors.
    ///
    /// `gpt2` models (byte-level BPE) split text as llama.cpp does for their pre-tokenizer; `llama` models
    /// (SentencePiece BPE) get their merges from the scores, and a space before each piece of text between special
    /// tokens, as llama.cpp and the original tokenizers do. Errors: [`Error::Format`], [`Error::Unsupported`].
    pub fn from_gguf(vocab: &GgufVocab, path: impl AsRef<Path>) -> Result<Tokenizer> {
        gguf::build(vocab, path.as_ref())
    }

    /// The ids of `text`. With `add_special`, what the model expects around a text (a leading BOS for most).
    ///
    /// Special tokens written out in the text become those tokens; a BOS that the text begins with is not doubled.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, add_special)?.ids)
    }

    /// [`Tokenizer::encode`] with each token's byte range; added tokens have an empty range.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let mut out = self.inner.encode(text, add_special)?;
        if let (true, Some(bos), [first, second, ..]) = (add_special, self.bos, &out.ids[..])
            && (*first, *second) == (bos, bos)
        {
            if !self.told_of_bos.swap(true, Ordering::Relaxed) {
                let token = self.token(bos).unwrap_or_default();
                log::warn!("{}: texts that begin with {token} get no second one in front", self.path.display());
            }
            out.ids.remove(0);
            out.offsets.remove(0);
        }
        Ok(out)
    }

    /// The text of `ids`, with or without the special tokens among them. Unknown ids give nothing, incomplete UTF-8
    /// gives U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special)
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Errors: [`Error::Config`] for `what` where an embedding of `rows` has none for one of `ids`; a tokenizer's file may hold ids
    /// that its model does not have.
    pub fn expect_rows(&self, what: &str, ids: &[u32], rows: usize) -> Result<()> {
        let Some(at) = ids.iter().position(|&id| id as usize >= rows) else { return Ok(()) };
        let token = self.token(ids[at]).unwrap_or_default();
        let message = format!("token {at} is {} ({token:?}); the model's vocabulary has {rows}", ids[at]);
        Err(Error::config(what, message))
    }

    /// The ids for which an embedding of `rows` has none, in order.
    pub fn beyond(&self, rows: usize) -> Vec<u32> {
        if self.vocab_size <= rows { Vec::new() } else { self.inner.beyond(rows) }
    }

    /// The text of one token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.token(id)
    }

    /// The id of a token by the vocabulary's spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    /// Whether the id is a special (control) token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.added(id) == Some(true)
    }

    /// Whether the id is of the added vocabulary: special, or only matched whole.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.added(id).is_some()
    }

    /// Whether the id stands for a byte, which makes text with its neighbours.
    fn is_byte(&self, id: u32) -> bool {
        self.has_bytes && self.token(id).is_some_and(|t| t.len() == 6 && t.starts_with("<0x") && t.ends_with('>'))
    }

    /// Whether decoding passes over the id.
    fn is_silent(&self, id: u32, skip_special: bool) -> bool {
        (skip_special && self.is_special(id)) || self.token(id).is_none()
    }

    /// The token that begins a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, where the model has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Every token that ends generation: the tokenizer's, the one after which the chat template closes an answer, and those of
    /// the generation configuration or, in a GGUF file, of the metadata and llama.cpp's list of names; in that order.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The token to fill short rows with: the tokenizer's padding token, else its end token, else 0. Padding is masked,
    /// so the choice is without effect.
    pub fn pad_id(&self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }

    /// Takes other chat templates by name, such as those beside an adapter. Errors: Format.
    pub fn set_templates(&mut self, templates: Vec<(String, String)>) -> Result<()> {
        self.template = ChatTemplate::of_named(templates, self.template.special().to_vec(), &self.path)?;
        self.has_template = true;
        self.config.remove("chat_template");
        self.set_ends(self.eos_ids.clone());
        Ok(())
    }

    /// EOS, the token after which the template closes an answer, and `more`.
    fn set_ends(&mut self, more: Vec<u32>) {
        let turn_end = self.has_template.then(|| ends::turn_end(self)).flatten();
        self.eos_ids.clear();
        for id in self.eos.into_iter().chain(turn_end).chain(more) {
            if !self.eos_ids.contains(&id) {
                self.eos_ids.push(id);
            }
        }
    }

    /// The chat template: the model's own, or [`ChatTemplate::plain`].
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Whether the model brings a chat template of its own.
    pub fn has_chat_template(&self) -> bool {
        self.has_template
    }

    /// The conversation as the model's prompt; with `add_generation_prompt`, up to where the answer begins.
    /// Encode it without adding special tokens: templates write them themselves.
    pub fn apply_chat_template(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, &ChatContext::default(), add_generation_prompt)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template, if the model has one) into an
    /// existing folder, for fourbit and transformers to load.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let mut config = self.config.clone();
        if self.has_template && !config.contains_key("chat_template") {
            config.insert("chat_template".into(), named_json(self.template.named()));
        }
        atomic::write(dir.join("tokenizer.json"), &self.json)?;
        atomic::write_json(dir.join("tokenizer_config.json"), &config)
    }
}

/// What a tokenizer is made of; [`Parts::build`] checks and compiles it.
struct Parts<'a> {
    json: Vec<u8>,
    config: Map<String, Value>,
    /// More ids that end generation.
    eos_ids: Vec<u32>,
    /// Names and texts of chat templates.
    templates: Vec<(String, String)>,
    path: &'a Path,
}

impl Parts<'_> {
    fn build(self) -> Result<Tokenizer> {
        let inner = Door::parse(&self.json, self.path)?;
        let named = |name: &str| self.config.get(name).and_then(token_text);
        let id = |name: &str| named(name).and_then(|text| inner.id(text));
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let special: Vec<(String, String)> =
            SPECIAL.into_iter().filter_map(|name| Some((name.to_string(), named(name)?.to_string()))).collect();
        let has_template = !self.templates.is_empty();
        let with_bos = bos.is_some() && begins_with(&inner, bos);
        let template = match has_template {
            true => ChatTemplate::of_named(self.templates, special, self.path)?,
            false => ChatTemplate::plain(special, with_bos, self.path)?,
        };
        let has_bytes = inner.has_bytes();
        let vocab_size = inner.last().map_or(0, |id| id as usize + 1);
        let mut tokenizer = Tokenizer {
            inner,
            vocab_size,
            json: self.json,
            config: self.config,
            bos,
            eos,
            pad,
            eos_ids: Vec::new(),
            has_bytes,
            told_of_bos: AtomicBool::new(false),
            template,
            has_template,
            path: self.path.to_path_buf(),
        };
        tokenizer.set_ends(self.eos_ids);
        Ok(tokenizer)
    }
}

/// Names of special tokens that templates see, where they are there.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Whether plain texts are encoded with `bos` in front.
fn begins_with(inner: &Door, bos: Option<u32>) -> bool {
    inner.encode("a", true).is_ok_and(|e| e.ids.first().copied() == bos)
}

/// Templates as `tokenizer_config.json` holds them: a text, or a list of names and texts.
fn named_json(named: &[(String, String)]) -> Value {
    match named {
        [(name, source)] if name == template::DEFAULT => json!(source),
        several => several.iter().map(|(name, source)| json!({"name": name, "template": source})).collect(),
    }
}

/// A special token in a configuration: a string, or an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
