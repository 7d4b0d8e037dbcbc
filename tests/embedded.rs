//! The files that are compiled into the binary: small enough, read by our own code as by transformers, and no question asked
//! before and after fine-tuning is among the rows learned from.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::tokenizer::Message;
use std::fs;
use support::embedded::{self, FOLDER};

#[test]
fn all_files_together_stay_under_four_mebibytes() {
    let bytes: u64 = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 4 << 20, "{bytes} bytes");
}

#[test]
fn rows_become_the_ids_and_labels_that_transformers_gives() {
    // Of the first row, by scripts/embedded/make.py's `encode`, which equals transformers' apply_chat_template.
    #[rustfmt::skip]
    let ids = [1, 294, 268, 201, 358, 299, 273, 419, 279, 259, 401, 84, 540, 453, 498, 16, 2, 201, 1, 770, 774, 587, 201,
        391, 3, 346, 401, 84, 540, 453, 498, 394, 486, 14, 382, 3, 2, 201];
    let answer = 23..37; // the assistant's words and the token that ends them
    let rows = embedded::rows(128, true);
    assert_eq!((rows.len(), rows.truncated()), (160, 0));
    assert_eq!(rows.example(0).unwrap().input_ids, ids);
    let labels = ids.iter().enumerate().map(|(i, &id)| if answer.contains(&i) { id as i32 } else { -100 });
    assert_eq!(rows.example(0).unwrap().labels, labels.collect::<Vec<_>>());
}

#[test]
fn questions_are_not_among_the_rows() {
    let questions: Vec<String> =
        serde_json::from_slice(&fs::read(format!("{FOLDER}/questions.json")).unwrap()).unwrap();
    let rows = fs::read_to_string(embedded::ROWS).unwrap();
    assert!(!questions.is_empty());
    for question in &questions {
        assert!(!rows.contains(&serde_json::to_string(question).unwrap()), "{question}");
    }
    let prompt = embedded::tokenizer().apply_chat_template(&[Message::new("user", &questions[0])], true).unwrap();
    assert_eq!(prompt, format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", questions[0]));
}
