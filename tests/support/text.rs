//! The vocabularies and chats of `golden/text.json`, made by `scripts/make_text_golden.py` through transformers.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use fourbit::tokenizer::{GgufVocab, Tokenizer};
use serde_json::Value;

pub fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/text.json")).unwrap()
}

pub fn strings(v: &Value) -> Vec<String> {
    v.as_array().map(|a| a.iter().map(|v| v.as_str().unwrap().to_string()).collect()).unwrap_or_default()
}

pub fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn vocab(golden: &Value, name: &str) -> GgufVocab {
    let v = &golden["vocabs"][name];
    GgufVocab {
        model: v["model"].as_str().unwrap().to_string(),
        pre: (name == "byte_level").then(|| "smollm".to_string()),
        tokens: strings(&v["tokens"]),
        token_types: numbers(&v["token_types"]).into_iter().map(|t| t as i32).collect(),
        merges: strings(&v["merges"]),
        scores: v["scores"].as_array().into_iter().flatten().map(|s| s.as_f64().unwrap() as f32).collect(),
        unk: Some(0),
        ..GgufVocab::default()
    }
}

/// The byte-level vocabulary with a ChatML template.
pub fn chatml() -> Tokenizer {
    let golden = golden();
    let case = golden["chats"].as_array().unwrap().iter().find(|c| c["name"] == "chatml").unwrap();
    chat_tokenizer(&golden, case)
}

pub fn chat_tokenizer(golden: &Value, case: &Value) -> Tokenizer {
    let mut v = vocab(golden, case["vocab"].as_str().unwrap());
    let id = |name: &str| case[name].as_str().and_then(|t| v.tokens.iter().position(|x| x == t)).map(|i| i as u32);
    (v.bos, v.eos) = (id("bos"), id("eos"));
    v.chat_templates =
        case["template"].as_str().map(|source| ("default".to_owned(), source.to_owned())).into_iter().collect();
    Tokenizer::from_gguf(&v, "golden").unwrap()
}

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}
