//! Tokenizers, chat templates and rows of text.

use super::{folder, input::Input, used};
use fourbit::{
    data::{DataOptions, Dataset, holds_rows, samples},
    tokenizer::{ChatContext, ChatTemplate, Message, Tokenizer},
};
use serde_json::{Value, json};
use std::{path::Path, sync::OnceLock};

const TEMPLATE: &str = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}";

/// Small tokenizers of every model, with steps of every kind that published ones have.
fn good(kind: usize) -> Value {
    let model = match kind {
        0 => json!({"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "\u{2581}": 6, "<0x0A>": 7, "\u{120}": 8},
            "merges": [["a", "b"]]}),
        1 => json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["a", -1.0], ["b", -2.0], ["ab", -0.5]]}),
        2 => {
            json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "##b": 4}})
        }
        _ => {
            json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}})
        }
    };
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}, {"type": "Prepend", "prepend": "\u{2581}"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model,
    })
}

fn good_config() -> Value {
    json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "unk_token": "<unk>", "pad_token": null,
        "added_tokens_decoder": {"1": {"content": "<s>", "special": true}}, "additional_special_tokens": [],
        "model_max_length": 64, "chat_template": TEMPLATE})
}

/// `tokenizer.json` as it is, or with `tokenizer_config.json` and others beside it changed.
pub fn tokenizer(data: &[u8]) {
    let (mut json, mut config) = (good(0), good_config());
    let mut text = None;
    let mut others = (json!({"eos_token_id": [2]}), json!({"bos_token": "<s>"}));
    if data.first() == Some(&b'{') {
        text = Some(data.to_vec());
    } else {
        let mut input = Input::new(data);
        let choice = input.byte();
        json = good(usize::from(choice & 3));
        if choice & 4 == 4 {
            config.as_object_mut().expect("an object").remove("added_tokens_decoder");
        }
        input.changes(|input| match input.byte() {
            0..160 => input.edit(&mut json),
            160..224 => input.edit(&mut config),
            224..240 => input.edit(&mut others.0),
            _ => input.edit(&mut others.1),
        });
    }
    let files = [config, others.0, others.1].map(|json| json.to_string().into_bytes());
    let text = text.unwrap_or_else(|| json.to_string().into_bytes());
    let folder = folder(&[
        ("tokenizer.json", &text),
        ("tokenizer_config.json", &files[0]),
        ("generation_config.json", &files[1]),
        ("special_tokens_map.json", &files[2]),
    ]);
    let Ok(tokenizer) = Tokenizer::from_dir(folder.path()) else { return };
    for text in ["ab a\u{301}\u{1f600} 12\n", "<s>a</s>", ""] {
        for special in [false, true] {
            let Ok(encoded) = tokenizer.encode_with_offsets(text, special) else { continue };
            used(tokenizer.decode(&encoded.ids, special).is_ok());
            let mut stream = tokenizer.stream(special);
            encoded.ids.iter().for_each(|&id| used(stream.push(id).is_ok()));
            used(stream.finish().is_ok());
        }
    }
    used(tokenizer.decode(&[0, 5, 7, 1 << 20, u32::MAX], false).is_ok());
    used((tokenizer.eos_ids().len(), tokenizer.is_special(1), tokenizer.is_added(9), tokenizer.pad_id()));
    used(tokenizer.gguf_vocab(16).is_ok());
    used(tokenizer.apply_chat_template(&[Message::new("user", "ab")], true).is_ok());
    used(tokenizer.save(folder.path()).is_ok());
}

/// A template, and behind a zero byte the conversation as JSON.
pub fn template(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let source = String::from_utf8_lossy(&data[..end]);
    let messages: Option<Vec<Message>> = data.get(end + 1..).and_then(|rest| serde_json::from_slice(rest).ok());
    let messages = messages.unwrap_or_else(|| {
        vec![Message::new("system", "Be brief."), Message::new("user", "What is 2+2?"), Message::new("assistant", "4")]
    });
    let special = vec![("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())];
    let Ok(template) = ChatTemplate::new(&source, special, Path::new("chat_template.jinja")) else { return };
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let context = ChatContext { tools: Some(tools), ..ChatContext::default() };
    if template.render(&messages, &context, true).is_ok() {
        used(template.render_marked(&messages, &context).is_ok());
    }
}

/// JSON lines or a JSON array, with a tokenizer and without.
pub fn rows(data: &[u8]) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| {
        let (json, config) = (good(0).to_string(), good_config().to_string());
        let folder = folder(&[("tokenizer.json", json.as_bytes()), ("tokenizer_config.json", config.as_bytes())]);
        Tokenizer::from_dir(folder.path()).expect("a good tokenizer")
    });
    if data.starts_with(b"PAR1") {
        return;
    }
    let folder = folder(&[("rows.jsonl", data)]);
    let path = folder.path().join("rows.jsonl");
    used(holds_rows(&path));
    for (tokenizer, completion_only, max_seq_length) in
        [(None, true, 8), (Some(tokenizer), true, 64), (Some(tokenizer), false, 16)]
    {
        let options = DataOptions { completion_only, max_row_bytes: 1 << 12, ..DataOptions::new(max_seq_length, 16) };
        match Dataset::load(&path, tokenizer, &options) {
            Ok(rows) => used((rows.longest(), rows.tokens())),
            Err(error) => assert!(error.to_string().contains("rows.jsonl"), "{error}"),
        }
    }
    let options = DataOptions { max_row_bytes: 1 << 12, ..DataOptions::new(8, 16) };
    used(samples(&path, Some(tokenizer), 4, &options).is_ok());
}
