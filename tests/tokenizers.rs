//! Real tokenizers against transformers: hashes of what it makes of `golden/tokenizers.json`'s texts and conversations, which
//! `scripts/make_tokenizer_golden.py` wrote.
//!
//! `FOURBIT_TOKENIZERS` names the folder of the tokenizers, which `scripts/test.sh` fetches; `FOURBIT_GEMMA3` the GGUF file of Gemma 3,
//! which `scripts/verify_gemma.py` does.
#![cfg(feature = "tokenizer")]

use std::path::Path;

use fourbit::Result;
use fourbit::tokenizer::{ChatContext, Message, Tokenizer};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/tokenizers.json")).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

/// A place that an environment variable names, or a line that says what is missing.
fn named(variable: &str, script: &str) -> Option<String> {
    let place = std::env::var(variable).ok();
    if place.is_none() {
        eprintln!("skipped: {variable} does not say where it is ({script} fetches it)");
    }
    place
}

/// FNV-1a of 64 bits, as `scripts/make_template_golden.py` takes it.
fn digest(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// Ids with the tokens around a text, and without, and what the latter decode to.
fn of_text(t: &Tokenizer, text: &str) -> [String; 3] {
    let bare = t.encode(text, false).unwrap();
    [joined(&t.encode(text, true).unwrap()), joined(&bare), t.decode(&bare, true).unwrap()]
}

/// Texts of `texts` whose hashes are others.
fn others(t: &Tokenizer, texts: &[Value], hashes: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (text, hashes) in texts.iter().map(|text| text.as_str().unwrap()).zip(hashes) {
        let got = of_text(t, text);
        for ((got, hash), what) in got.iter().zip(hashes.as_array().unwrap()).zip(["ids", "bare ids", "decoded"]) {
            if digest(got) != hash.as_str().unwrap() {
                wrong.push(format!("{what} of {text:?}: {got:?}"));
            }
        }
    }
    wrong
}

#[test]
fn texts_get_the_ids_that_transformers_gives_them() {
    let Some(folder) = named("FOURBIT_TOKENIZERS", "scripts/tokenizers.sh") else { return };
    let golden = golden();
    let texts = list(&golden, "texts");
    assert!(texts.len() >= 300, "{}", texts.len());
    let mut wrong = Vec::new();
    for (name, own) in golden["tokenizers"].as_object().unwrap() {
        let t = Tokenizer::from_dir(Path::new(&folder).join(name)).unwrap();
        wrong.extend(others(&t, texts, list(own, "texts")).into_iter().map(|other| format!("{name}: {other}")));
    }
    assert!(wrong.is_empty(), "{} others:\n{}", wrong.len(), wrong.join("\n"));
}

/// A conversation's text, ids of it, the prompt for its last answer, ids of it.
fn of_conversation(t: &Tokenizer, case: &Value) -> Vec<Result<String>> {
    let some = |name: &str| Some(case[name].clone()).filter(|value| !value.is_null());
    let variables = case["kwargs"].as_object().cloned().unwrap_or_default();
    let context = ChatContext { tools: some("tools"), documents: None, variables };
    let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let mut made = Vec::new();
    for (messages, prompt) in [(&messages[..], false), (&messages[..messages.len() - 1], true)] {
        let render = || t.chat_template().render(messages, &context, prompt);
        made.push(render());
        made.push(render().and_then(|text| Ok(joined(&t.encode(&text, false)?))));
    }
    made
}

#[test]
fn conversations_become_the_texts_and_ids_that_transformers_makes() {
    let Some(folder) = named("FOURBIT_TOKENIZERS", "scripts/tokenizers.sh") else { return };
    let golden = golden();
    let cases = list(&golden, "conversations");
    let mut compared = 0;
    for (name, own) in golden["tokenizers"].as_object().unwrap() {
        let t = Tokenizer::from_dir(Path::new(&folder).join(name)).unwrap();
        assert_eq!(t.has_chat_template(), !own["conversations"].is_null(), "{name}");
        let mut wrong = Vec::new();
        for (n, (case, hashes)) in cases.iter().zip(own["conversations"].as_array().into_iter().flatten()).enumerate() {
            for (got, hash) in of_conversation(&t, case).into_iter().zip(hashes.as_array().unwrap()) {
                let hash = hash.as_str().unwrap();
                let same = match (hash.strip_prefix("refused"), &got) {
                    (Some(words), Err(e)) => e.to_string().contains(words.trim_start_matches(": ")),
                    (None, Ok(text)) => digest(text) == hash,
                    _ => false,
                };
                compared += 1;
                if !same {
                    wrong.push(format!("{n}: {hash}: {got:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{name}: {} others:\n{}", wrong.len(), wrong.join("\n"));
    }
    assert!(compared >= 3 * 50 * 4, "{compared}");
}

/// What the stream gives for these ids, piece by piece, and at its end.
fn streamed(t: &Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = t.stream(false);
    let pieces = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (pieces, stream.finish().unwrap())
}

#[test]
fn characters_that_come_in_bytes_are_streamed_whole() {
    let Some(folder) = named("FOURBIT_TOKENIZERS", "scripts/tokenizers.sh") else { return };
    let golden = golden();
    let texts = || list(&golden, "texts").iter().map(|text| text.as_str().unwrap()).filter(|t| !t.contains('\u{fffd}'));
    for name in golden["tokenizers"].as_object().unwrap().keys() {
        let t = Tokenizer::from_dir(Path::new(&folder).join(name)).unwrap();
        let mut whole = 0;
        for text in texts() {
            let ids = t.encode(text, false).unwrap();
            let (pieces, end) = streamed(&t, &ids);
            let all = pieces.concat() + &end;
            assert!(!all.contains('\u{fffd}'), "{name}: {text:?}: {pieces:?} {end:?}");
            assert_eq!(all, t.decode(&ids, false).unwrap(), "{name}: {text:?}");
            whole += usize::from(pieces.iter().any(|p| !p.is_ascii()));
        }
        assert!(whole > 80, "{name}: {whole}");
        // Each character in bytes, which a model may choose though there is a token for it, and a letter behind each.
        let Some(letter) = t.id("<0x41>").and(t.id("a")) else { continue };
        for text in texts() {
            let mut ids = vec![letter];
            let mut expected = vec!["a".to_owned()];
            for c in text.chars() {
                let bytes = c.to_string().into_bytes();
                ids.extend(bytes.iter().map(|byte| t.id(&format!("<0x{byte:02X}>")).unwrap()));
                ids.push(letter);
                expected.extend(vec![String::new(); bytes.len()]);
                expected.push(format!("{c}a"));
            }
            let (pieces, end) = streamed(&t, &ids);
            assert_eq!((pieces, end.as_str()), (expected, ""), "{name}: {text:?}");
        }
    }
}

#[test]
fn gemmas_gguf_file_gives_the_ids_of_its_tokenizer_json() {
    let Some(file) = named("FOURBIT_GEMMA3", "scripts/models.sh gemma3") else { return };
    let golden = golden();
    let t = Tokenizer::open(&file).unwrap().unwrap();
    let hashes = list(&golden["tokenizers"]["gemma3"], "texts");
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (text, hashes) in list(&golden, "texts").iter().zip(hashes) {
        let text = text.as_str().unwrap();
        // The file has the tokens that the embedding has rows for, all but the first of these, and its runs of blanks are made of
        // blanks, where those of tokenizer.json are made of the sign for them.
        if text.contains("<image_soft_token>") || text.contains(" \u{2581}") || text.contains("\u{2581}\u{2581}") {
            continue;
        }
        compared += 1;
        for (got, hash) in of_text(&t, text).iter().zip(&hashes.as_array().unwrap()[..2]) {
            if digest(got) != hash.as_str().unwrap() {
                wrong.push(format!("{text:?}: {got}"));
            }
        }
    }
    assert!(compared > 280, "{compared}");
    assert!(wrong.is_empty(), "{} others:\n{}", wrong.len(), wrong.join("\n"));
    // As llama.cpp reads it.
    assert_eq!(t.encode(" \u{2581}a", true).unwrap(), [2, 236_743, 496]);
}
