//! Text to token ids and back, from `tokenizer.json` or a GGUF file's metadata, and the model's chat template.

mod clock;
mod folder;
mod gguf;
mod gguf_metadata;
mod stream;
mod template;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::format::atomic;
use crate::format::gguf::{Gguf, is_gguf};
pub use gguf::GgufVocab;
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Message};

/// A model's tokenizer with its special tokens and chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer.json` as it was read or made: what [`Tokenizer::save`] writes.
    json: Vec<u8>,
    /// `tokenizer_config.json` as it was read or made.
    config: Map<String, Value>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    /// (bos before, eos after) each text, where the configuration says so; otherwise the post-processor decides.
    affixes: Option<(bool, bool)>,
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
    /// Special tokens written out in the text become those tokens.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, add_special)?.ids)
    }

    /// [`Tokenizer::encode`] with each token's byte range; added tokens have an empty range.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let by_processor = add_special && self.affixes.is_none();
        let encoding = self
            .inner
            .encode(text, by_processor)
            .map_err(|e| Error::format(&self.path, format!("the tokenizer cannot encode the text: {e}")))?;
        let mut out = Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() };
        if let (true, Some((bos, eos))) = (add_special, self.affixes) {
            if let (true, Some(id)) = (bos, self.bos) {
                out.ids.insert(0, id);
                out.offsets.insert(0, (0, 0));
            }
            if let (true, Some(id)) = (eos, self.eos) {
                out.ids.push(id);
                out.offsets.push((text.len(), text.len()));
            }
        }
        Ok(out)
    }

    /// The text of `ids`, with or without the special tokens among them. Unknown ids give nothing, incomplete UTF-8
    /// gives U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::format(&self.path, format!("the tokenizer cannot decode the ids: {e}")))
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The text of one token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by the vocabulary's spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the id is a special (control) token.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// The token that begins a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, where the model has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Every token that ends generation: the tokenizer's and the generation configuration's, in that order.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The token to fill short rows with: the tokenizer's padding token, else its end token, else 0. Padding is masked,
    /// so the choice is without effect.
    pub fn pad_id(&self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }

    /// The chat template: the model's own, or [`ChatTemplate::plain`].
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The conversation as the model's prompt; with `add_generation_prompt`, up to where the answer begins.
    /// Encode it without adding special tokens: templates write them themselves.
    pub fn apply_chat_template(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, add_generation_prompt)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template, if the model has one) into an
    /// existing folder, for fourbit and transformers to load.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let mut config = self.config.clone();
        if self.has_template && !config.contains_key("chat_template") {
            config.insert("chat_template".into(), json!(self.template.source()));
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
    affixes: Option<(bool, bool)>,
    template: Option<String>,
    path: &'a Path,
}

impl Parts<'_> {
    fn build(self) -> Result<Tokenizer> {
        let inner = parse(&self.json).map_err(|e| Error::format(self.path, format!("tokenizer: {e}")))?;
        let named = |name: &str| self.config.get(name).and_then(token_text);
        let id = |name: &str| named(name).and_then(|text| inner.token_to_id(text));
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let mut eos_ids: Vec<u32> = Vec::new();
        for id in eos.into_iter().chain(self.eos_ids) {
            if !eos_ids.contains(&id) {
                eos_ids.push(id);
            }
        }
        let special: Vec<(String, String)> = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|name| Some((name.to_string(), named(name)?.to_string())))
            .collect();
        let has_template = self.template.is_some();
        let with_bos = bos.is_some() && begins_with(&inner, self.affixes, bos);
        let template = match self.template {
            Some(source) => ChatTemplate::new(&source, special, self.path)?,
            None => ChatTemplate::plain(special, with_bos, self.path)?,
        };
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Ok(Tokenizer {
            inner,
            vocab_size,
            json: self.json,
            config: self.config,
            bos,
            eos,
            pad,
            eos_ids,
            affixes: self.affixes,
            template,
            has_template,
            path: self.path.to_path_buf(),
        })
    }
}

/// Whether plain texts are encoded with `bos` in front.
fn begins_with(inner: &tokenizers::Tokenizer, affixes: Option<(bool, bool)>, bos: Option<u32>) -> bool {
    match affixes {
        Some((before, _)) => before,
        None => inner.encode("a", true).is_ok_and(|e| e.get_ids().first().copied() == bos),
    }
}

/// A special token in a configuration: a string, or an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Reads a `tokenizer.json`, without its padding and truncation, and with offsets that cover each token's whole text
/// (the byte-level post-processor otherwise cuts blanks off them; ids are the same).
fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    for key in ["padding", "truncation"] {
        value[key] = Value::Null;
    }
    keep_blanks(&mut value["post_processor"]);
    serde_json::from_value(value).map_err(|e| e.to_string())
}

fn keep_blanks(processor: &mut Value) {
    if processor["type"] == "ByteLevel" {
        processor["trim_offsets"] = json!(false);
    }
    if let Some(steps) = processor.get_mut("processors").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(keep_blanks);
    }
}
