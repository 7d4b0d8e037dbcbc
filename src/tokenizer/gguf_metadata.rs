//! A tokenizer as the metadata that llama.cpp reads from a GGUF file.

use serde_json::{Value, json};

use super::gguf::{BYTE, CONTROL, LLAMA3, NORMAL, QWEN2, TEKKEN, UNKNOWN, UNUSED, USER_DEFINED};
use super::template::DEFAULT;
use super::{GgufVocab, Tokenizer, begins_with, token_text};
use crate::error::{Error, Result};
use crate::format::gguf::MetaValue;

impl Tokenizer {
    /// The tokenizer as a GGUF file describes it, for an embedding of `rows`: ids without a token get one that is never used, and
    /// tokens beyond the embedding, which no model can read or write, are left out.
    ///
    /// Byte-level BPE becomes a `gpt2` vocabulary, whose way of splitting text must be one that llama.cpp has a name for; BPE
    /// with byte fallback (Llama 2, Mistral) a `llama` one, whose scores put the merges in their order. Errors: Format,
    /// Unsupported for another kind of tokenizer.
    pub fn gguf_vocab(&self, rows: usize) -> Result<GgufVocab> {
        let json: Value =
            serde_json::from_slice(&self.json).map_err(|e| Error::format(&self.path, format!("tokenizer: {e}")))?;
        let model = &json["model"];
        if model["type"].as_str().is_some_and(|ty| ty != "BPE") || !model["vocab"].is_object() {
            return Err(Error::unsupported("tokenizer for a GGUF file", &model["type"], "BPE"));
        }
        let has_row = |id: &u32| (*id as usize) < rows;
        let sentencepiece = model["byte_fallback"] == true;
        let mut vocab = GgufVocab {
            model: if sentencepiece { "llama" } else { "gpt2" }.into(),
            pre: if sentencepiece { None } else { Some(pre_tokenizer(&json["pre_tokenizer"])?.into()) },
            bos: self.bos.filter(has_row),
            eos: self.eos.filter(has_row),
            more_eos: self.eos_ids.iter().copied().filter(has_row).filter(|&id| Some(id) != self.eos).take(2).collect(),
            pad: self.pad.filter(has_row),
            unk: self.config.get("unk_token").and_then(token_text).and_then(|text| self.id(text)).filter(has_row),
            add_bos: Some(begins_with(&self.inner, self.bos)),
            add_eos: Some(self.encode("a", true)?.last().copied() == self.eos && self.eos.is_some()),
            add_space_prefix: Some(json["normalizer"].to_string().contains("\"Prepend\"")),
            chat_templates: if self.has_template { self.template.named().to_vec() } else { Vec::new() },
            ..GgufVocab::default()
        };
        self.list_tokens(&json, rows, &mut vocab)?;
        let merges = merges(&model["merges"])
            .ok_or_else(|| Error::format(&self.path, "tokenizer: model.merges: expected pairs of tokens".to_owned()))?;
        if sentencepiece {
            vocab.scores = scores(&vocab, &merges);
        } else {
            vocab.merges = merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect();
        }
        Ok(vocab)
    }

    fn list_tokens(&self, json: &Value, rows: usize, vocab: &mut GgufVocab) -> Result<()> {
        if self.vocab_size > rows {
            let path = self.path.display();
            log::warn!(
                "{path}: tokens with ids from {rows} on, which the model's embedding does not have, are left out"
            );
        }
        vocab.tokens = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        vocab.token_types = vec![UNUSED; rows];
        let bytes = vocab.model == "llama";
        let known = json["model"]["vocab"].as_object().into_iter().flatten();
        for (token, id) in known.filter_map(|(token, id)| Some((token, usize::try_from(id.as_u64()?).ok()?))) {
            let is_byte = bytes && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
            if let Some(place) = vocab.tokens.get_mut(id) {
                place.clone_from(token);
                vocab.token_types[id] = if is_byte { BYTE } else { NORMAL };
            }
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(content)) = (added["id"].as_u64(), added["content"].as_str()) else { continue };
            if let Some(place) = vocab.tokens.get_mut(id as usize) {
                *place = content.into();
                let unknown = bytes && vocab.unk == Some(id as u32);
                vocab.token_types[id as usize] = match added["special"] == true {
                    true if unknown => UNKNOWN,
                    true => CONTROL,
                    false => USER_DEFINED,
                };
            }
        }
        Ok(())
    }
}

impl GgufVocab {
    /// The entries `tokenizer.*` of a GGUF file, which [`GgufVocab::read`] reads again.
    pub fn metadata(&self) -> Vec<(String, MetaValue)> {
        let mut entries = vec![];
        let mut add = |name: &str, value: Option<MetaValue>| {
            entries.extend(value.map(|value| (format!("tokenizer.{name}"), value)));
        };
        let text = |text: &Option<String>| text.clone().map(MetaValue::Text);
        let id = |id: Option<u32>| id.map(MetaValue::U32);
        let flag = |flag: Option<bool>| flag.map(MetaValue::Bool);
        add("ggml.model", Some(MetaValue::Text(self.model.clone())));
        add("ggml.pre", text(&self.pre));
        add("ggml.tokens", Some(MetaValue::Texts(self.tokens.clone())));
        add("ggml.token_type", Some(MetaValue::Integers(self.token_types.clone())));
        add("ggml.scores", (!self.scores.is_empty()).then(|| MetaValue::Floats(self.scores.clone())));
        add("ggml.merges", (!self.merges.is_empty()).then(|| MetaValue::Texts(self.merges.clone())));
        add("ggml.bos_token_id", id(self.bos));
        add("ggml.eos_token_id", id(self.eos));
        add("ggml.eot_token_id", id(self.more_eos.first().copied()));
        add("ggml.eom_token_id", id(self.more_eos.get(1).copied()));
        add("ggml.padding_token_id", id(self.pad));
        add("ggml.unknown_token_id", id(self.unk));
        add("ggml.add_bos_token", flag(self.add_bos));
        add("ggml.add_eos_token", flag(self.add_eos));
        add("ggml.add_space_prefix", flag(self.add_space_prefix));
        // As the package gguf writes several: other signs than letters and digits become underscores.
        let mut names = Vec::new();
        for (name, source) in &self.chat_templates {
            let source = Some(MetaValue::Text(source.clone()));
            if name == DEFAULT {
                add("chat_template", source);
                continue;
            }
            let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            add(&format!("chat_template.{name}"), source);
            names.push(name);
        }
        add("chat_templates", (!names.is_empty()).then_some(MetaValue::Texts(names)));
        entries
    }
}

/// llama.cpp's name for how a byte-level tokenizer splits text: the inverse of what reading a GGUF file does.
fn pre_tokenizer(json: &Value) -> Result<&'static str> {
    let mut steps = match json["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![json],
    };
    let splits_as_gpt2 = |step: &Value| step["type"] == "ByteLevel" && step["use_regex"] != false;
    let last = steps.pop().filter(|step| step["type"] == "ByteLevel");
    let name = match (&steps[..], last) {
        ([], Some(last)) if splits_as_gpt2(last) => Some("gpt-2"),
        ([digits], Some(last)) if digits["type"] == "Digits" && splits_as_gpt2(last) => {
            (digits["individual_digits"] == true).then_some("smollm")
        }
        ([split], Some(last)) if split["type"] == "Split" && !splits_as_gpt2(last) => {
            let named = [(LLAMA3, "llama-bpe"), (QWEN2, "qwen2"), (TEKKEN, "tekken")];
            named.into_iter().find(|(regex, _)| split["pattern"] == json!({"Regex": regex})).map(|(_, name)| name)
        }
        _ => None,
    };
    let supported = "the ways of GPT-2, SmolLM, Llama 3, Qwen2 and Tekken";
    name.ok_or_else(|| Error::unsupported("way of splitting text (pre_tokenizer) for a GGUF file", json, supported))
}

/// Pairs of tokens, which older files write with a blank between.
fn merges(json: &Value) -> Option<Vec<(&str, &str)>> {
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) if pair.len() == 2 => Some((pair[0].as_str()?, pair[1].as_str()?)),
            _ => None,
        }
    }
    json.as_array()?.iter().map(pair).collect()
}

/// SentencePiece joins the neighbours whose joint token scores highest: earlier merges score higher, and what no merge
/// makes scores lowest.
fn scores(vocab: &GgufVocab, merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks = std::collections::HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    let last = -(merges.len() as f32);
    let score = |(token, ty): (&String, &i32)| match (*ty, ranks.get(token)) {
        (UNKNOWN | CONTROL | BYTE, _) => 0.0,
        (_, Some(&rank)) => -(rank as f32),
        _ => last,
    };
    vocab.tokens.iter().zip(&vocab.token_types).map(score).collect()
}
