//! `fourbit parameters`

use super::{MODEL, fourbit};
use serde_json::Value;

#[test]
fn methods_are_counted_as_they_train() {
    let line =
        fourbit(&["parameters", "--shape", "llama-2-7b", "--method", "lora,ia3", "--lora-r", "16", "--json"]).json();
    assert_eq!(line["parameters"], 6_738_415_616u64);
    let count = |at: usize| line["methods"][at]["parameters"].as_u64().unwrap();
    // 32 layers: 4 of 4096 x 4096 and 3 of 4096 x 11008, and q and v alone; keys, values and what the last layer reads.
    assert_eq!(count(0), 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008)));
    assert_eq!(count(1), 32 * 16 * 2 * (4096 + 4096));
    assert_eq!(count(2), 32 * (4096 + 4096 + 11_008));
    // Of a folder, whose weights may all be trained.
    let line = fourbit(&["parameters", "--model", MODEL, "--method", "full", "--json"]).json();
    assert_eq!(line["methods"][0]["parameters"], line["parameters"]);
    assert!(line["methods"][1]["parameters"].as_u64() < line["parameters"].as_u64());
    let error = fourbit(&["parameters", "--model", MODEL, "--target-modules", "q_prj"]);
    assert!(error.error().contains("q_prj"), "{}", error.error());
}

#[test]
fn published_tables_are_printed() {
    let line = fourbit(&["parameters", "--published", "--json"]).json();
    let rows = line["gpt3"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[14]["published_millions"]), (19, &Value::from(304.4)));
    assert_eq!(line["taught"][0]["lora"], 2_498_560);
}
