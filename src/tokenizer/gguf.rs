//! The tokenizer of a GGUF file: its metadata as a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::template::DEFAULT;
use super::{Parts, Tokenizer, ends};
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;

/// A GGUF file's `tokenizer.*` metadata, under the same names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `ggml.model`: `gpt2` or `llama`.
    pub model: String,
    /// `ggml.pre`: how text is split before merging (`gpt2` models).
    pub pre: Option<String>,
    /// `ggml.tokens`.
    pub tokens: Vec<String>,
    /// `ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `ggml.merges`: pairs with a blank between.
    pub merges: Vec<String>,
    /// `ggml.scores` (`llama` models).
    pub scores: Vec<f32>,
    /// `ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `ggml.eot_token_id`, `ggml.eom_token_id` and those of `fim_pad`, `fim_rep` and `fim_sep`: further tokens that end generation.
    pub more_eos: Vec<u32>,
    /// `ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `ggml.add_space_prefix` (`llama` models; yes where absent).
    pub add_space_prefix: Option<bool>,
    /// `chat_template`, and those by name: `chat_template.NAME`.
    pub chat_templates: Vec<(String, String)>,
}

pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// `▁`, SentencePiece's blank.
const BLANK: &str = "\u{2581}";

pub(super) fn build(vocab: &GgufVocab, path: &Path) -> Result<Tokenizer> {
    check(vocab, path)?;
    if vocab.model == "gpt2" && vocab.pre.is_none() {
        log::warn!(
            "{}: no tokenizer.ggml.pre; text is split as by GPT-2, which may not be the model's way",
            path.display()
        );
    }
    let (model, stages) = match vocab.model.as_str() {
        "gpt2" => (byte_level_model(vocab, path)?, byte_level_stages(vocab)?),
        "llama" => (sentencepiece_model(vocab, path)?, sentencepiece_stages(vocab)),
        other => return Err(Error::unsupported("GGUF tokenizer model", other, "gpt2, llama")),
    };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(vocab),
        "normalizer": stages.normalizer,
        "pre_tokenizer": stages.pre_tokenizer,
        "post_processor": post_processor(vocab),
        "decoder": stages.decoder,
        "model": model,
    });
    Parts {
        json: json.to_string().into_bytes(),
        config: config(vocab),
        eos_ids: vocab.more_eos.iter().copied().chain(ends::by_name(&vocab.tokens)).collect(),
        templates: vocab.chat_templates.clone(),
        path,
    }
    .build()
}

/// Lengths and ids that later steps rely on.
fn check(vocab: &GgufVocab, path: &Path) -> Result<()> {
    let n = vocab.tokens.len();
    let length = |name: &str, len: usize, may_be_absent: bool| {
        if len == n || (may_be_absent && len == 0) {
            return Ok(());
        }
        Err(Error::format(path, format!("tokenizer.ggml.{name}: expected {n} entries, one a token, got {len}")))
    };
    if n == 0 {
        return Err(Error::format(path, "tokenizer.ggml.tokens: expected at least one token, got none"));
    }
    length("token_type", vocab.token_types.len(), true)?;
    length("scores", vocab.scores.len(), vocab.model != "llama" || !vocab.merges.is_empty())?;
    let ids = [("bos", vocab.bos), ("eos", vocab.eos), ("padding", vocab.pad), ("unknown", vocab.unk)];
    for (name, id) in ids.into_iter().chain(vocab.more_eos.iter().map(|&id| ("eot", Some(id)))) {
        if let Some(id) = id.filter(|&id| id as usize >= n) {
            return Err(Error::format(path, format!("tokenizer.ggml.{name}_token_id: {id}, of {n} tokens")));
        }
    }
    Ok(())
}

impl GgufVocab {
    /// Reads the metadata of a mapped file. Errors: [`Error::Format`] for entries of another type, for keys of a tokenizer that
    /// are not known, or without `tokenizer.ggml.model` and `tokenizer.ggml.tokens`.
    pub fn read(file: &Gguf) -> Result<GgufVocab> {
        let fields = file.fields("tokenizer.ggml.")?;
        let missing = |name: &str| {
            Error::format(file.path(), format!("no tokenizer.ggml.{name}, so there is no tokenizer in it"))
        };
        let text = |name: &str| Ok::<_, Error>(fields.text(name)?.map(String::from));
        // Lists as long as a vocabulary are read from where they lie.
        let texts = |name: &str| {
            fields.ignore(&[name]);
            let list = file.texts(&format!("tokenizer.ggml.{name}"))?;
            Ok::<Option<Vec<String>>, Error>(list.map(|list| list.into_iter().map(String::from).collect()))
        };
        let numbers = |name: &str| {
            fields.ignore(&[name]);
            Ok::<_, Error>(file.numbers(&format!("tokenizer.ggml.{name}"))?.unwrap_or_default())
        };
        let id = |name: &str| {
            let id = fields.integer(&format!("{name}_token_id"), 0..=u32::MAX.into())?;
            Ok::<_, Error>(id.map(|id| id as u32))
        };
        let flag = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(_) => fields.flag(name, false).map(Some),
        };
        let mut more = Vec::new();
        for name in ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
            more.push(id(name)?);
        }
        let vocab = GgufVocab {
            model: text("model")?.ok_or_else(|| missing("model"))?,
            pre: text("pre")?,
            tokens: texts("tokens")?.ok_or_else(|| missing("tokens"))?,
            token_types: numbers("token_type")?.into_iter().map(|t| t as i32).collect(),
            merges: texts("merges")?.unwrap_or_default(),
            scores: numbers("scores")?.into_iter().map(|s| s as f32).collect(),
            bos: id("bos")?,
            eos: id("eos")?,
            more_eos: more.into_iter().flatten().collect(),
            pad: id("padding")?,
            unk: id("unknown")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_templates: chat_templates(file)?,
        };
        // What other kinds of vocabularies (BERT's, T5's) or infilling want.
        fields.ignore(&["token_type_count", "add_sep_token", "remove_extra_whitespaces", "precompiled_charsmap"]);
        for name in ["seperator", "cls", "mask", "fim_pre", "fim_suf", "fim_mid", "prefix", "suffix", "middle"] {
            id(name)?;
        }
        fields.refuse_unknown()?;
        Ok(vocab)
    }

    fn token_type(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    /// Whether plain texts begin with BOS: the file's word, else what llama.cpp assumes for the kind.
    fn begins_with_bos(&self) -> bool {
        self.bos.is_some() && self.add_bos.unwrap_or(self.model == "llama" || self.ignores_merges())
    }

    fn ends_with_eos(&self) -> bool {
        self.eos.is_some() && self.add_eos == Some(true)
    }

    /// Llama 3 and Tekken vocabularies take a whole word that is a token, whatever the merges.
    fn ignores_merges(&self) -> bool {
        matches!(self.pre.as_deref(), Some("llama-bpe" | "llama3" | "llama-v3" | "tekken" | "pixtral"))
    }

    fn ids_by_token(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }
}

/// The template, and those by name, as llama.cpp and the package gguf write them. Errors: Format, also where
/// `tokenizer.chat_templates` lists a name that has none.
fn chat_templates(file: &Gguf) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    for key in file.keys().filter(|key| key.starts_with("tokenizer.chat_template")) {
        match key.strip_prefix("tokenizer.chat_template").and_then(|rest| rest.strip_prefix('.')) {
            Some(name) => templates.push((name.to_owned(), file.text(key)?)),
            None if key == "tokenizer.chat_template" => templates.push((DEFAULT.to_owned(), file.text(key)?)),
            None => {}
        }
    }
    for name in file.texts("tokenizer.chat_templates")?.unwrap_or_default() {
        if !templates.iter().any(|(known, _)| known == name) {
            let message =
                format!("tokenizer.chat_templates names {name}, and there is no tokenizer.chat_template.{name}");
            return Err(Error::format(file.path(), message));
        }
    }
    Ok(templates.into_iter().filter_map(|(name, source)| Some((name, source?.to_owned()))).collect())
}

/// Control tokens are special; user-defined ones are only matched whole.
fn added_tokens(vocab: &GgufVocab) -> Vec<Value> {
    // llama.cpp takes tokens that end generation for control tokens, whatever the file says.
    let ends = ends::by_name(&vocab.tokens);
    let named = [vocab.bos, vocab.eos, vocab.pad, vocab.unk];
    let added = |id: usize| match vocab.token_type(id) {
        CONTROL | UNKNOWN => Some(true),
        _ if named.contains(&Some(id as u32)) || ends.contains(&(id as u32)) => Some(true),
        USER_DEFINED => Some(false),
        _ => None,
    };
    let entry = |(id, content): (usize, &String)| {
        let special = added(id).filter(|_| !content.is_empty())?;
        Some(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        }))
    };
    vocab.tokens.iter().enumerate().filter_map(entry).collect()
}

struct Stages {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

/// Splits of the GPT-2 family; letters, numbers and other signs apart, a blank before each word.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn byte_level_stages(vocab: &GgufVocab) -> Result<Stages> {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let pre_tokenizer = match vocab.pre.as_deref().unwrap_or("default") {
        "gpt-2" | "gpt2" | "default" | "olmo" | "mpt" | "jais" | "phi-2" => bytes(true),
        // Every digit by itself, then as GPT-2.
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "smaug-bpe" | "dbrx" => split(LLAMA3),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" => split(QWEN2),
        "tekken" => split(TEKKEN),
        other => {
            let supported =
                "gpt-2, smollm, starcoder, llama-bpe, qwen2, tekken; a model folder with tokenizer.json works";
            return Err(Error::unsupported("GGUF pre-tokenizer (tokenizer.ggml.pre)", other, supported));
        }
    };
    Ok(Stages { normalizer: Value::Null, pre_tokenizer, decoder: bytes(true) })
}

fn byte_level_model(vocab: &GgufVocab, path: &Path) -> Result<Value> {
    Ok(json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": vocab.ignores_merges(),
        "vocab": vocab.ids_by_token(), "merges": listed_merges(vocab, path)?,
    }))
}

fn sentencepiece_stages(vocab: &GgufVocab) -> Stages {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", BLANK)];
    let mut decoders = vec![replace(BLANK, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if vocab.add_space_prefix.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": BLANK}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Stages {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
    }
}

fn sentencepiece_model(vocab: &GgufVocab, path: &Path) -> Result<Value> {
    let merges = if vocab.merges.is_empty() { merges_by_score(vocab) } else { listed_merges(vocab, path)? };
    let bytes = (0..vocab.tokens.len()).any(|id| vocab.token_type(id) == BYTE);
    let unknown = vocab.unk.map(|id| vocab.tokens[id as usize].clone());
    Ok(json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": bytes, "ignore_merges": false,
        "vocab": vocab.ids_by_token(), "merges": merges,
    }))
}

fn listed_merges(vocab: &GgufVocab, path: &Path) -> Result<Vec<Value>> {
    let pair = |merge: &String| {
        // The first token has at least one character, which may itself be a blank.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let at = first + merge[first..].find(' ')?;
        Some(json!([&merge[..at], &merge[at + 1..]]))
    };
    let bad = |m: &String| Error::format(path, format!("tokenizer.ggml.merges: expected two tokens, got {m:?}"));
    vocab.merges.iter().map(|m| pair(m).ok_or_else(|| bad(m))).collect()
}

/// SentencePiece merges the neighbours whose joint token has the highest score. As a list: every cut of every token
/// into two tokens, best score first; among equals longer left parts, then longer right parts, then by id, which is
/// transformers' order.
fn merges_by_score(vocab: &GgufVocab) -> Vec<Value> {
    let ids: HashMap<&str, usize> = vocab.tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut cuts = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        // Control and byte tokens are never made of text.
        if matches!(vocab.token_type(id), UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        let length = token.chars().count();
        for (n, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                cuts.push((vocab.scores[id], n, length - n, id, l, r));
            }
        }
    }
    cuts.sort_by(|a, b| {
        let descending = b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2));
        descending.then_with(|| (a.3, a.4, a.5).cmp(&(b.3, b.4, b.5)))
    });
    cuts.into_iter().map(|(.., l, r)| json!([vocab.tokens[l], vocab.tokens[r]])).collect()
}

fn post_processor(vocab: &GgufVocab) -> Value {
    let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    let mut pair = vec![single[0].clone(), json!({"Sequence": {"id": "B", "type_id": 1}})];
    let mut special = Map::new();
    let mut add = |id: Option<u32>| {
        let id = id.expect("begins_with_bos and ends_with_eos are true only with an id");
        let token = &vocab.tokens[id as usize];
        special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        move |type_id: u32| json!({"SpecialToken": {"id": token, "type_id": type_id}})
    };
    if vocab.begins_with_bos() {
        let bos = add(vocab.bos);
        single.insert(0, bos(0));
        pair.insert(0, bos(0));
        pair.insert(2, bos(1));
    }
    if vocab.ends_with_eos() {
        let eos = add(vocab.eos);
        single.push(eos(0));
        pair.push(eos(1));
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
}

fn config(vocab: &GgufVocab) -> Map<String, Value> {
    let mut config = Map::new();
    let named =
        [("bos_token", vocab.bos), ("eos_token", vocab.eos), ("pad_token", vocab.pad), ("unk_token", vocab.unk)];
    for (name, id) in named {
        let token = id.map_or(Value::Null, |id| json!(vocab.tokens[id as usize]));
        config.insert(name.into(), token);
    }
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config
}
