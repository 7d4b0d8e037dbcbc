//! Tokenizers against transformers, from GGUF metadata and from model folders, and what is said about broken ones.
#![cfg(feature = "tokenizer")]

#[path = "support/text.rs"]
mod text;

use std::fs;

use fourbit::Error;
use fourbit::format::{Gguf, gguf::MetaValue};
use fourbit::tokenizer::{ChatContext, GgufVocab, Message, Tokenizer};
use serde_json::json;
use text::{chatml, file, folder, golden, numbers, strings, vocab};

#[test]
fn token_ids_and_texts_are_those_of_transformers() {
    let golden = golden();
    for (name, ids) in golden["ids"].as_object().unwrap() {
        let v = match name.as_str() {
            "sentencepiece" => vocab(&golden, name),
            pre => GgufVocab { pre: Some(pre.to_string()), ..vocab(&golden, "byte_level") },
        };
        let t = Tokenizer::from_gguf(&v, "golden").unwrap();
        for (i, text) in strings(&golden["texts"]).iter().enumerate() {
            let got = t.encode(text, false).unwrap();
            assert_eq!(got, numbers(&ids[i]), "{name}: {text:?}");
            assert_eq!(t.decode(&got, true).unwrap(), golden["decoded"][name][i].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn streaming_gives_the_same_text_in_whole_characters() {
    let golden = golden();
    for name in ["byte_level", "sentencepiece"] {
        let t = Tokenizer::from_gguf(&vocab(&golden, name), "golden").unwrap();
        for text in strings(&golden["texts"]) {
            let ids = t.encode(&text, false).unwrap();
            let mut stream = t.stream(true);
            let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{name}: {pieces:?}");
            pieces.push(stream.finish().unwrap());
            assert_eq!(pieces.concat(), t.decode(&ids, true).unwrap(), "{name}: {text:?}");
        }
        // Half of a character comes out only at the end.
        let half = &t.encode("🦀", false).unwrap();
        let mut stream = t.stream(true);
        let first: String = half[..half.len() - 1].iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(!first.contains(['\u{fffd}', '🦀']), "{first:?}");
        assert!(stream.finish().unwrap().contains('\u{fffd}'));
    }
}

#[test]
fn random_ids_stream_to_what_they_decode_to() {
    let golden = golden();
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for name in ["byte_level", "sentencepiece"] {
        let v = vocab(&golden, name);
        let t = Tokenizer::from_gguf(&v, "golden").unwrap();
        // Many of the sentencepiece vocabulary's first ids are bytes, most of them no text together.
        for (n, skip) in (0..1500).map(|n| (n, n % 2 == 0)) {
            let below = [v.tokens.len(), 300, 8][n % 3];
            let ids: Vec<u32> =
                (0..1 + next(12)).map(|_| next(below) as u32 + if n % 5 == 0 { 195 } else { 0 }).collect();
            let mut stream = t.stream(skip);
            let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            text += &stream.finish().unwrap();
            assert_eq!(text, t.decode(&ids, skip).unwrap(), "{name}: {ids:?}");
        }
    }
}

#[test]
fn offsets_cover_the_text() {
    let golden = golden();
    for name in ["byte_level", "sentencepiece"] {
        let t = Tokenizer::from_gguf(&vocab(&golden, name), "golden").unwrap();
        for text in strings(&golden["texts"]) {
            let encoded = t.encode_with_offsets(&text, false).unwrap();
            let mut covered = 0;
            for &(start, end) in &encoded.offsets {
                assert!(start <= covered && end >= covered.min(end), "{name}: {text:?} {:?}", encoded.offsets);
                covered = covered.max(end);
            }
            assert_eq!(covered, text.len(), "{name}: {text:?}");
        }
    }
}

#[test]
fn a_saved_tokenizer_is_the_same_tokenizer() {
    let golden = golden();
    for name in ["byte_level", "sentencepiece"] {
        let mut v = vocab(&golden, name);
        (v.bos, v.eos, v.more_eos) = (Some(1), Some(2), vec![0]);
        v.chat_templates = template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}");
        let t = Tokenizer::from_gguf(&v, "golden").unwrap();
        assert!(t.eos_ids().starts_with(&[2, 0]));
        let dir = folder();
        t.save(dir.path()).unwrap();
        let again = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!((again.bos_id(), again.eos_id(), again.vocab_size()), (Some(1), Some(2), v.tokens.len()));
        let messages = [Message::new("user", "Hi")];
        assert_eq!(
            again.apply_chat_template(&messages, true).unwrap(),
            t.apply_chat_template(&messages, true).unwrap()
        );
        for text in strings(&golden["texts"]) {
            assert_eq!(again.encode(&text, true).unwrap(), t.encode(&text, true).unwrap());
        }
    }
}

#[test]
fn a_folders_files_are_read_together() {
    let dir = folder();
    chatml().save(dir.path()).unwrap();
    let config = json!({
        "eos_token": {"content": "<|im_end|>", "special": true}, "bos_token": "<|begin_of_text|>",
        "add_bos_token": true,
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "named"}],
    });
    file(dir.path(), "tokenizer_config.json", &config.to_string());
    file(dir.path(), "special_tokens_map.json", r#"{"pad_token": "<|endoftext|>", "eos_token": "<|eot_id|>"}"#);
    file(dir.path(), "generation_config.json", r#"{"eos_token_id": [2, 6]}"#);
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id(), t.eos_ids()), (Some(3), Some(6), 0, &[6, 2][..]));
    // `add_bos_token` beside a tokenizer.json is dropped: its post-processor decides.
    assert_eq!(t.encode("cat", true).unwrap(), t.encode("cat", false).unwrap());
    assert_eq!(t.apply_chat_template(&[], false).unwrap(), "named");
    file(dir.path(), "chat_template.jinja", "from a file");
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(t.apply_chat_template(&[], false).unwrap(), "from a file");
    t.save(dir.path()).unwrap();
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(t.apply_chat_template(&[], false).unwrap(), "from a file");
    assert!(Tokenizer::find(dir.path().join("none")).unwrap().is_none());
    assert!(matches!(Tokenizer::from_dir(dir.path().join("none")), Err(Error::Io { .. })));
    file(dir.path(), "tokenizer.json", "{\"model\":");
    assert!(matches!(Tokenizer::from_dir(dir.path()), Err(Error::Format { .. })));
}

/// A copy of the embedded model's tokenizer.json with other files beside it.
fn beside(files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let dir = folder();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded/tokenizer.json"), dir.path().join("tokenizer.json"))
        .unwrap();
    for (name, value) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn added_tokens_and_special_tokens_are_read_as_transformers_reads_them() {
    let base = |more: serde_json::Value| {
        let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("tokenizer_config.json", config)
    };
    let token = json!({"content": "<new>", "special": true, "normalized": false});
    let plain = vec![691, 30, 333, 89, 32, 69, 30, 90, 19, 32];
    let new = vec![691, 1024, 69, 30, 90, 19, 32];
    // Ids of "ab<new>c<x1>" and of EOS by transformers 5.23.
    let cases = [
        (vec![base(json!({}))], plain.clone(), 2),
        (vec![base(json!({})), ("special_tokens_map.json", json!({"eos_token": "<|endoftext|>"}))], plain.clone(), 0),
        (
            vec![base(json!({})), ("added_tokens.json", json!({"<x1>": 1025, "<new>": 1024}))],
            vec![691, 1024, 69, 1025],
            2,
        ),
        (vec![base(json!({"added_tokens_decoder": {"1024": token}}))], new.clone(), 2),
        (
            vec![
                base(json!({"added_tokens_decoder": {"1024": token}})),
                ("special_tokens_map.json", json!({"eos_token": "<|endoftext|>"})),
                ("added_tokens.json", json!({"<x1>": 1025})),
            ],
            new.clone(),
            2,
        ),
        (
            vec![base(json!({"bos_token": "<|im_start|>", "add_bos_token": true, "add_eos_token": true}))],
            plain.clone(),
            2,
        ),
        (vec![base(json!({"eos_token": "<new>"}))], new.clone(), 1024),
        (vec![base(json!({"additional_special_tokens": ["<new>"]}))], new.clone(), 2),
        (vec![base(json!({"extra_special_tokens": {"some_token": "<new>"}}))], new, 2),
    ];
    for (files, ids, eos) in cases {
        let dir = beside(&files);
        let t = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!((t.encode("ab<new>c<x1>", true).unwrap(), t.eos_id()), (ids, Some(eos)), "{files:?}");
        // What is saved is the same tokenizer.
        let copy = folder();
        t.save(copy.path()).unwrap();
        assert_eq!(
            Tokenizer::from_dir(copy.path()).unwrap().encode("<new>", true).unwrap(),
            t.encode("<new>", true).unwrap()
        );
    }
    // transformers gives it 1024 without a word.
    let dir = beside(&[base(json!({})), ("added_tokens.json", json!({"<new>": 1030}))]);
    let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(message.contains("\"<new>\" the id 1030") && message.contains("1024"), "{message}");
    for (value, words) in [(json!("2"), "got \"2\""), (json!([2, -3]), "got [2,-3]"), (json!(1.5), "1.5")] {
        let dir = beside(&[base(json!({})), ("generation_config.json", json!({"eos_token_id": value}))]);
        let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("generation_config.json: eos_token_id") && message.contains(words), "{message}");
    }
    for (token, words) in [
        (json!({"content": "<new>", "lstrip": "yes"}), "lstrip: expected true or false, got \"yes\""),
        (json!({"content": 1}), "content: expected a text, got 1"),
        (json!("<new>"), "expected an object"),
        (json!({}), "a token's id and an object with content"),
    ] {
        let dir = beside(&[base(json!({"added_tokens_decoder": {"1024": token}}))]);
        let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("added_tokens_decoder") && message.contains(words), "{message}");
    }
}

#[test]
fn a_token_that_is_named_as_special_is_special() {
    let dir = folder();
    chatml().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
        token["special"] = (token["content"] == "<|im_end|>").into();
    }
    file(dir.path(), "tokenizer.json", &tokenizer.to_string());
    for (config, special) in [
        (json!({}), vec!["<|im_end|>"]),
        (json!({"pad_token": "<|im_start|>"}), vec!["<|im_end|>", "<|im_start|>"]),
        // This class names one itself.
        (json!({"tokenizer_class": "GemmaTokenizer"}), vec!["<|im_end|>", "<mask>"]),
        (
            json!({"tokenizer_class": "GemmaTokenizer", "mask_token": "<|im_start|>"}),
            vec!["<|im_end|>", "<|im_start|>"],
        ),
    ] {
        file(dir.path(), "tokenizer_config.json", &config.to_string());
        let t = Tokenizer::from_dir(dir.path()).unwrap();
        for token in ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<mask>"] {
            let got = t.id(token).is_some_and(|id| t.is_special(id));
            assert_eq!(got, special.contains(&token), "{token} with {config}");
        }
    }
}

#[test]
fn templates_have_names_and_places() {
    let named = |value: serde_json::Value| {
        ("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "chat_template": value}))
    };
    let render = |dir: &std::path::Path, tools: bool| {
        let t = Tokenizer::from_dir(dir).unwrap();
        let context = ChatContext { tools: tools.then(|| json!([])), ..ChatContext::default() };
        t.chat_template().render(&[Message::new("user", "Hi")], &context, false)
    };
    let files = [
        vec![named(json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]))],
        vec![named(json!({"default": "D", "tool_use": "T", "rag": "{% broken"}))],
        vec![
            named(json!("no")),
            ("chat_template.jinja", json!("D")),
            ("additional_chat_templates/tool_use.jinja", json!("T")),
        ],
    ];
    for files in files {
        let dir = beside(&files);
        assert_eq!((render(dir.path(), false).unwrap(), render(dir.path(), true).unwrap()), ("D".into(), "T".into()));
    }
    let dir = beside(&[named(json!({"tool_use": "T", "rag": "R"}))]);
    assert_eq!(render(dir.path(), true).unwrap(), "T");
    let message = render(dir.path(), false).unwrap_err().to_string();
    assert!(message.contains("expected one named default, got [tool_use, rag]"), "{message}");
    // A GGUF file of it has them under names that gguf's writer allows.
    let dir = beside(&[named(json!({"tool_use": "T", "default": "D", "r-a.g": "R"}))]);
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    let entries = t.gguf_vocab(8).unwrap().metadata();
    let get = |key: &str| entries.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    let text = |text: &str| Some(MetaValue::Text(text.to_owned()));
    let under = |name: &str| get(&format!("tokenizer.chat_template{name}"));
    assert_eq!([under(""), under(".tool_use"), under(".r_a_g")], [text("D"), text("T"), text("R")]);
    let MetaValue::Texts(mut names) = get("tokenizer.chat_templates").unwrap() else { panic!("a list of names") };
    names.sort();
    assert_eq!(names, ["r_a_g", "tool_use"]);
    let dir = beside(&[("chat_template.jinja", json!("a\r\n{{ 'b\r\nc' }}\rd"))]);
    assert_eq!(render(dir.path(), false).unwrap(), "a\nb\nc\nd");
}

#[test]
fn what_stands_beside_an_adapter_serves_instead_of_the_bases() {
    let base = beside(&[("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "chat_template": "base"}))]);
    let said = |adapter: &std::path::Path| {
        let t = Tokenizer::with_adapter(base.path(), adapter).unwrap().unwrap();
        (t.apply_chat_template(&[Message::new("user", "Hi")], false).unwrap(), t.eos_id())
    };
    let adapter = folder();
    assert_eq!(said(adapter.path()), ("base".into(), Some(2)));
    file(adapter.path(), "chat_template.jinja", "adapter");
    assert_eq!(said(adapter.path()), ("adapter".into(), Some(2)));
    let whole = beside(&[("tokenizer_config.json", json!({"eos_token": "<|endoftext|>"}))]);
    assert_eq!(said(whole.path()), ("base".into(), Some(0)));
}

#[test]
fn a_text_gets_one_bos() {
    let mut v = vocab(&golden(), "sentencepiece");
    (v.bos, v.eos) = (Some(1), Some(2));
    let t = Tokenizer::from_gguf(&v, "golden").unwrap();
    let once = t.encode("<s>the cat", true).unwrap();
    assert_eq!(once.iter().filter(|&&id| id == 1).count(), 1);
    assert_eq!(once, t.encode("<s>the cat", false).unwrap());
    assert_eq!(t.encode("the cat", true).unwrap()[0], 1);
}

#[test]
fn the_token_behind_an_answer_ends_generation() {
    let ends = |template: &str, eos: u32| {
        let mut v = vocab(&golden(), "byte_level");
        (v.bos, v.eos, v.chat_templates) = (Some(3), Some(eos), self::template(template));
        // By name alone they would end generation too.
        v.tokens.iter_mut().filter(|t| *t == "<|im_end|>").for_each(|t| *t = "<|over|>".into());
        Tokenizer::from_gguf(&v, "golden").unwrap().eos_ids().to_vec()
    };
    let chatml = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|over|>\n' }}{% endfor %}";
    assert_eq!(ends(chatml, 0), [0, 2, 6]);
    // The next header is written whether it is asked for or not.
    assert_eq!(ends(&format!("{chatml}{{{{ '<|im_start|>assistant\n' }}}}"), 0), [0, 2, 6]);
    // A header behind the answer is no end, and a template may have none.
    let open = "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\n' + m.content + '\n' }}{% endfor %}";
    assert_eq!(ends(open, 0), [0, 6]);
    assert_eq!(ends(&format!("{open}{{{{ '<|start_header_id|>assistant\n' }}}}"), 0), [0, 6]);
    // The last answer ends with another token than those before it.
    let last = "{% for m in messages %}{{ '<|im_start|>' + m.content + ('<|end_header_id|>' if loop.last else '<|over|>') }}{% endfor %}";
    assert_eq!(ends(last, 0), [0, 5, 6]);
}

#[test]
fn gguf_vocabularies_that_lie_are_refused() {
    let golden = golden();
    type Change = fn(&mut GgufVocab);
    let build = |change: Change, name: &str| {
        let mut v = vocab(&golden, name);
        change(&mut v);
        Tokenizer::from_gguf(&v, "v.gguf").map(drop).unwrap_err().to_string()
    };
    let cases: [(&str, Change, &str); 8] = [
        ("byte_level", |v| v.model = "bert".into(), "unsupported GGUF tokenizer model: bert"),
        ("byte_level", |v| v.pre = Some("klingon".into()), "klingon"),
        ("byte_level", |v| v.tokens.clear(), "at least one token"),
        ("byte_level", |v| v.token_types.truncate(3), "token_type"),
        ("byte_level", |v| v.eos = Some(700), "eos_token_id"),
        ("byte_level", |v| v.merges.push("nopair".into()), "nopair"),
        ("byte_level", |v| v.merges.push("no such-token".into()), "v.gguf"),
        ("sentencepiece", |v| v.scores.clear(), "scores"),
    ];
    for (name, change, words) in cases {
        let message = build(change, name);
        assert!(message.contains(words), "{message}");
    }
}

/// One chat template, which serves every conversation.
fn template(source: &str) -> Vec<(String, String)> {
    vec![("default".to_owned(), source.to_owned())]
}

/// Metadata of a GGUF file: a key, its type number and its bytes.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&gguf_text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn gguf_array(kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &items.concat()].concat()
}

#[test]
fn a_gguf_files_metadata_is_the_tokenizer() {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const BOOL: u32 = 7;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let mut v = vocab(&golden(), "sentencepiece");
    (v.bos, v.eos, v.more_eos, v.add_bos) = (Some(1), Some(2), vec![7], Some(true));
    v.chat_templates = template("{{ messages[0].content }}");
    let tokens: Vec<_> = v.tokens.iter().map(|t| gguf_text(t)).collect();
    let kinds: Vec<_> = v.token_types.iter().map(|t| t.to_le_bytes().to_vec()).collect();
    let scores: Vec<_> = v.scores.iter().map(|s| s.to_le_bytes().to_vec()).collect();
    let entries = [
        entry("tokenizer.ggml.model", TEXT, &gguf_text("llama")),
        entry("tokenizer.ggml.tokens", ARRAY, &gguf_array(TEXT, &tokens)),
        entry("tokenizer.ggml.token_type", ARRAY, &gguf_array(I32, &kinds)),
        entry("tokenizer.ggml.scores", ARRAY, &gguf_array(F32, &scores)),
        entry("tokenizer.ggml.bos_token_id", U32, &1u32.to_le_bytes()),
        entry("tokenizer.ggml.eos_token_id", U32, &2u32.to_le_bytes()),
        entry("tokenizer.ggml.eot_token_id", U32, &7u32.to_le_bytes()),
        entry("tokenizer.ggml.unknown_token_id", U32, &0u32.to_le_bytes()),
        entry("tokenizer.ggml.add_bos_token", BOOL, &[1]),
        entry("tokenizer.chat_template", TEXT, &gguf_text("{{ messages[0].content }}")),
    ];
    let dir = folder();
    let path = dir.path().join("vocab.gguf");
    let write = |entries: &[Vec<u8>]| {
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &(entries.len() as u64).to_le_bytes()];
        fs::write(&path, [head.concat(), entries.concat()].concat()).unwrap();
    };
    write(&entries);
    assert_eq!(GgufVocab::read(&Gguf::open(&path).unwrap()).unwrap(), v);
    let t = Tokenizer::open(&path).unwrap().unwrap();
    assert_eq!((t.eos_ids(), t.encode("cat", true).unwrap()[0]), (&[2, 7][..], 1));
    assert_eq!(t.apply_chat_template(&[Message::new("user", "Hi")], true).unwrap(), "Hi");
    // Templates by name, as llama.cpp and the package gguf write them.
    let names = gguf_array(TEXT, &[gguf_text("tool_use")]);
    let named = [
        entry("tokenizer.chat_template.tool_use", TEXT, &gguf_text("{{ tools | length }} tools")),
        entry("tokenizer.chat_templates", ARRAY, &names),
    ];
    write(&[&entries[..], &named[..]].concat());
    let t = Tokenizer::open(&path).unwrap().unwrap();
    let render = |tools: Option<serde_json::Value>| {
        let context = ChatContext { tools, ..ChatContext::default() };
        t.chat_template().render(&[Message::new("user", "Hi")], &context, false).unwrap()
    };
    assert_eq!((render(None), render(Some(json!([1, 2])))), ("Hi".to_owned(), "2 tools".to_owned()));
    let message = |more: &[Vec<u8>]| {
        write(&[&entries[..], more].concat());
        Tokenizer::open(&path).unwrap_err().to_string()
    };
    let lost = message(&named[1..]);
    assert!(lost.contains("names tool_use, and there is no tokenizer.chat_template.tool_use"), "{lost}");
    for (key, kind, value, expected) in [
        ("padding_token_id", TEXT, gguf_text("2"), "tokenizer.ggml.padding_token_id: expected a whole number"),
        ("padding_token_id", I32, (-1i32).to_le_bytes().to_vec(), "from 0 to 4294967295, got -1"),
        (
            "add_eos_token",
            U32,
            1u32.to_le_bytes().to_vec(),
            "tokenizer.ggml.add_eos_token: expected true or false, got 1",
        ),
        ("pre", U32, 1u32.to_le_bytes().to_vec(), "tokenizer.ggml.pre: expected a text, got 1"),
        ("add_mid_token", BOOL, vec![1], "tokenizer.ggml.add_mid_token is true: this field is not known"),
    ] {
        let message = message(&[entry(&format!("tokenizer.ggml.{key}"), kind, &value)]);
        assert!(message.contains(expected), "{message}");
    }
    write(&entries[1..]);
    assert!(Tokenizer::open(&path).unwrap().is_none());
    write(&entries[..1]);
    assert!(Tokenizer::open(&path).unwrap_err().to_string().contains("tokenizer.ggml.tokens"));
    assert!(Tokenizer::open(file(dir.path(), "other.safetensors", "12345678")).unwrap().is_none());
}
