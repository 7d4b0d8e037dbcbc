//! Tokenizers against transformers, from GGUF metadata and from model folders, and what is said about broken ones.

#[path = "support/text.rs"]
mod text;

use std::fs;

use fourbit::Error;
use fourbit::format::Gguf;
use fourbit::tokenizer::{GgufVocab, Message, Tokenizer};
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
        v.chat_template = Some("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}".into());
        let t = Tokenizer::from_gguf(&v, "golden").unwrap();
        assert_eq!(t.eos_ids(), [2, 0]);
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
        "eos_token": {"content": "<|eot_id|>", "special": true}, "bos_token": "<|begin_of_text|>",
        "add_bos_token": true,
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "named"}],
    });
    file(dir.path(), "tokenizer_config.json", &config.to_string());
    file(dir.path(), "special_tokens_map.json", r#"{"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}"#);
    file(dir.path(), "generation_config.json", r#"{"eos_token_id": [2, 6]}"#);
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id(), t.eos_ids()), (Some(3), Some(6), 0, &[6, 2][..]));
    assert_eq!(t.encode("cat", true).unwrap()[0], 3);
    assert_ne!(t.encode("cat", false).unwrap()[0], 3);
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
    v.chat_template = Some("{{ messages[0].content }}".into());
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
    write(&entries[1..]);
    assert!(Tokenizer::open(&path).unwrap().is_none());
    write(&entries[..1]);
    assert!(Tokenizer::open(&path).unwrap_err().to_string().contains("tokenizer.ggml.tokens"));
    assert!(Tokenizer::open(file(dir.path(), "other.safetensors", "12345678")).unwrap().is_none());
}
