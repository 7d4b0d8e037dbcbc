//! `tokenizer.json` from strangers: what is no tokenizer is refused by the file's name, and an id that the model has no row for
//! takes no memory and reaches no model.
#![cfg(feature = "tokenizer")]

#[path = "support/text.rs"]
mod text;

use std::fs;

use fourbit::Error;
use fourbit::data::{DataOptions, Dataset, samples};
use fourbit::tokenizer::Tokenizer;
use serde_json::{Value, json};
use text::{file, folder};

const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded/tokenizer.json");

/// A folder with this `tokenizer.json`, and beside it files that add a token, or none.
fn with(text: &str, adds: bool) -> tempfile::TempDir {
    let dir = folder();
    fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    if adds {
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"bos_token": "<more>"}"#).unwrap();
    }
    dir
}

#[test]
fn what_is_no_tokenizer_is_refused_by_the_files_name() {
    let published: Value = serde_json::from_slice(&fs::read(PUBLISHED).unwrap()).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut file = published.clone();
        change(&mut file);
        file.to_string()
    };
    let texts = [
        String::new(),
        "[]".into(),
        "null".into(),
        "3".into(),
        "\"tokenizer\"".into(),
        "{".into(),
        "{}".into(),
        r#"{"model": []}"#.into(),
        "[".repeat(10_000),
        changed(&|file| file["model"]["vocab"] = json!([])),
        changed(&|file| file["model"]["type"] = json!("Klingon")),
        changed(&|file| file["model"]["merges"] = json!([["no", "such"]])),
        changed(&|file| file["added_tokens"] = json!("<s>")),
        changed(&|file| file["added_tokens"] = json!([{"id": u64::MAX, "content": "<s>"}])),
        changed(&|file| file["pre_tokenizer"] = json!({"type": "Split"})),
        changed(&|file| file["decoder"] = json!([])),
        changed(&|file| file["post_processor"] = json!(["ByteLevel"])),
    ];
    for text in texts {
        for adds in [false, true] {
            let dir = with(&text, adds);
            let error = Tokenizer::from_dir(dir.path()).map(drop).unwrap_err();
            let start: String = text.chars().take(60).collect();
            assert!(
                matches!(&error, Error::Format { path, .. } if path.ends_with("tokenizer.json")),
                "{start}: {error}"
            );
        }
    }
}

#[test]
fn an_id_without_a_row_takes_no_memory_and_reaches_no_model() {
    const FAR: u32 = 3_000_000_000;
    let mut published: Value = serde_json::from_slice(&fs::read(PUBLISHED).unwrap()).unwrap();
    let rows = published["model"]["vocab"].as_object().unwrap().len();
    published["model"]["vocab"]["<far>"] = json!(FAR);
    let entry = json!({"id": FAR, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    published["added_tokens"].as_array_mut().unwrap().push(entry);
    let dir = with(&published.to_string(), false);
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<far>", "bos_token": "<|im_start|>"}"#)
        .unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let ids = tokenizer.encode("a<far>", false).unwrap();
    assert_eq!((ids[1], tokenizer.eos_id()), (FAR, Some(FAR)));

    // One token a row, whatever ids the file has; they were as many as the largest id.
    let vocab = tokenizer.gguf_vocab(rows).unwrap();
    assert_eq!((vocab.tokens.len(), vocab.token_types.len()), (rows, rows));
    assert!(!vocab.tokens.contains(&"<far>".to_owned()));
    assert_eq!((vocab.bos, vocab.eos), (tokenizer.bos_id(), None));
    assert!(vocab.more_eos.iter().all(|&id| (id as usize) < rows));

    assert_eq!((tokenizer.beyond(rows), tokenizer.beyond(rows - 1)), (vec![FAR], vec![rows as u32 - 1, FAR]));
    assert!(tokenizer.beyond(FAR as usize + 1).is_empty());
    let error = tokenizer.expect_rows("prompt", &ids, rows).unwrap_err().to_string();
    assert_eq!(error, format!("prompt: token 1 is {FAR} (\"<far>\"); the model's vocabulary has {rows}"));
    assert!(tokenizer.expect_rows("prompt", &ids[..1], rows).is_ok());

    // Its end would stand behind every row.
    fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let options = DataOptions { completion_only: false, ..DataOptions::new(64, rows) };
    let data = file(dir.path(), "rows.jsonl", "{\"text\": \"a\"}\n{\"text\": \"a<far>b\"}\n");
    let error = Dataset::load(data, Some(&tokenizer), &options).map(drop).unwrap_err().to_string();
    assert!(error.contains("row 2") && error.contains(&format!("{FAR} (\"<far>\") is outside")), "{error}");

    let prose = file(dir.path(), "prose.txt", "a<far>b");
    let error = samples(&prose, Some(&tokenizer), 1, &DataOptions::new(16, rows)).map(drop).unwrap_err().to_string();
    assert!(error.contains("calibration") && error.contains("<far>"), "{error}");
}
