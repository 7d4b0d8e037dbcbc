//! What `evaluate` measures of which file, and by which convention.

use super::{MODEL, Place, ROWS, fourbit, support};
use serde_json::{Value, json};
use std::fs;

/// `fourbit evaluate` of a file with the embedded model as it is stored.
fn evaluate(model: &str, data: &str, more: &[&str]) -> super::Done {
    let words = ["evaluate", "--model", model, "--quantization", "none", "--data", data];
    fourbit(&[words.as_slice(), more].concat())
}

/// The first rows that the embedded model learned, under another name.
fn chats(place: &Place, name: &str) -> String {
    let rows: Vec<String> = fs::read_to_string(ROWS).unwrap().lines().take(9).map(str::to_owned).collect();
    fs::write(place.path(name), rows.join("\n")).unwrap();
    place.text(name)
}

#[test]
fn rows_are_measured_as_finetune_learns_them() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let rows = chats(&place, "chats.jsonl");
    let out = place.text("out");
    for whole in ["true", "false"] {
        // A step over all rows reports the loss before it changes anything.
        let words =
            ["finetune", "--model", MODEL, "--data", &rows, "--output", &out, "--json", "--quantization", "none"];
        let options = ["--max-steps", "1", "--batch-size", "9", "--completion-only-loss", whole];
        let learned = fourbit(&[words.as_slice(), &options].concat()).json();
        let run = evaluate(MODEL, &rows, &["--completion-only-loss", whole, "--json"]);
        let measured = run.json();
        let [a, b] = [&learned, &measured].map(|value| value["loss"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5 * a, "{learned} {measured}");
        assert_eq!((&measured["measured"], &measured["sequences"]), (&json!("rows"), &json!(9)));
        let what = if whole == "true" { "what is learned of 9 rows" } else { "every token of 9 rows" };
        assert!(run.stderr.contains(what), "{}", run.stderr);
    }
    // Whole rows up to a number of tokens; one alone where no more fit.
    let part = evaluate(MODEL, &rows, &["--max-tokens", "100", "--json"]).json();
    assert!((1..9).contains(&part["sequences"].as_u64().unwrap()), "{part}");
    assert!(evaluate(MODEL, &rows, &["--max-tokens", "3"]).error().contains("--max-tokens"));
}

#[test]
fn the_kind_of_file_is_told_by_its_name_and_content() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let measured = |data: &str| evaluate(MODEL, data, &["--json"]).json()["measured"].clone();
    assert_eq!(measured(&chats(&place, "no-extension")), "rows");
    assert_eq!(measured(&chats(&place, "text.md")), "prose", "a text that shows rows is a text");
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chats.parquet");
    assert_eq!(measured(parquet), "rows");
    let array = place.text("array.data");
    fs::write(&array, r#"[ {"prompt": "Hello", "completion": " there, friend"} ]"#).unwrap();
    let run = evaluate(MODEL, &array, &[]);
    assert!(run.stdout.contains("what is learned of 1 rows"), "{}", run.stdout);
    assert_eq!(run.stderr.matches("joined without the chat template, as in TRL").count(), 1, "{}", run.stderr);
    // A name that promises rows is held to it.
    fs::write(place.path("prose.jsonl"), "Once upon a time.").unwrap();
    let done = evaluate(MODEL, &place.text("prose.jsonl"), &[]);
    assert!(done.error().contains("prose.jsonl") && done.error().contains("JSON"), "{}", done.error());
    let done = evaluate(MODEL, parquet, &["--convention", "llama.cpp"]);
    assert!(done.error().contains("--convention") && done.error().contains("holds rows"), "{}", done.error());
}

/// Losses of llama.cpp v0.5.0 (npm's @node-llama-cpp/linux-x64 3.22.1) on the embedded model as a GGUF file of f32, by
/// scripts/llama_perplexity.c with a cache of f32: windows of 64 and of 33 tokens, and of 64 with `<|im_start|>` as a BOS.
const LLAMA_CPP: [(&str, bool, usize, f64); 3] =
    [("64", false, 1798, 5.265352), ("33", false, 1808, 5.224751), ("64", true, 1798, 5.359942)];

#[test]
fn the_convention_of_llama_cpp_gives_its_figures() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let text = place.embedded_text();
    let model = place.text("with-bos");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{MODEL}/{name}"), format!("{model}/{name}")).unwrap();
    }
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = format!("{model}/{name}");
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    change("tokenizer_config.json", &|config| config["bos_token"] = "<|im_start|>".into());
    change("tokenizer.json", &|tokenizer| {
        let token = json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
        let [a, b] = ["A", "B"].map(|id| json!({"Sequence": {"id": id, "type_id": 0}}));
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [token, a],
            "pair": [token, a, b],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        });
    });
    for (window, bos, tokens, loss) in LLAMA_CPP {
        let model = if bos { model.as_str() } else { MODEL };
        let words = ["--convention", "llama.cpp", "--max-seq-length", window, "--json"];
        let got = evaluate(model, &text, &words).json();
        assert_eq!((&got["tokens"], &got["convention"]), (&json!(tokens), &json!("llama.cpp")), "{got}");
        // Its attention sums in halves here and there.
        assert!((got["loss"].as_f64().unwrap() - loss).abs() < 3e-4, "{window} {bos}: {got}, llama.cpp {loss}");
    }
    let windows = evaluate(MODEL, &text, &["--max-seq-length", "64", "--json"]).json();
    assert!(windows["loss"].as_f64().unwrap() > 5.4, "without context first tokens cost more: {windows}");
    let done = evaluate(MODEL, &text, &["--convention", "llama.cpp", "--max-tokens", "100", "--max-seq-length", "64"]);
    assert!(done.error().contains("2 x 64") && done.error().contains("100"), "{}", done.error());
    let help = fourbit(&["evaluate", "--help"]);
    assert!(help.stdout.contains("llama.cpp") && help.stdout.contains("14.58"), "{}", help.stdout);
}

#[test]
fn a_model_that_was_not_named_is_told_first() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (rows, out) = (chats(&place, "chats.jsonl"), place.text("out"));
    for words in [
        &["finetune", "--data", &rows, "--max-steps", "1", "--output", &out][..],
        &["evaluate", "--data", &rows],
        &["plan", "--data", &rows],
        &["generate", "--prompt", "a", "--max-new-tokens", "1"],
    ] {
        let run = fourbit(words);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("no --model: ") && first.contains("part of fourbit"), "{words:?}: {}", run.stderr);
    }
    assert!(!evaluate(MODEL, &rows, &[]).stderr.contains("no --model"));
}
