//! Where answers end: `generate`, and what `merge` leaves for other programs.

use super::{MODEL, Place, ROWS, fourbit, support};
use serde_json::{Value, json};
use std::fs;

/// The embedded model with another EOS than its template's end of a turn, as base models come that are tuned to chat.
fn base_with_other_eos(place: &Place) -> String {
    let folder = place.path("base");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{MODEL}/{name}"), folder.join(name)).unwrap();
    }
    for (name, key, value) in
        [("config.json", "eos_token_id", json!(0)), ("tokenizer_config.json", "eos_token", json!("<|endoftext|>"))]
    {
        let mut json: Value = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
        json[key] = value;
        fs::write(folder.join(name), json.to_string()).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn generation_tells_why_it_stopped() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let base = base_with_other_eos(&place);
    let answer = |model: &str, more: &[&str]| {
        let words = ["generate", "--model", model, "--prompt", "What colour is the sky?", "--json"];
        let told = fourbit(&[words.as_slice(), more].concat()).json();
        [&told["text"], &told["stop_reason"], &told["stop"]].map(Clone::clone)
    };
    let whole = answer(MODEL, &[]);
    let text = whole[0].as_str().unwrap();
    assert_eq!(whole[1..], [json!("end_token"), json!("<|im_end|>")]);
    assert!(text.len() > 8, "{text:?}");
    // The template's end of a turn ends the answer also where it is not EOS.
    assert_eq!(answer(&base, &[]), whole);
    // The first of the texts that end it, which is left out.
    let (word, late) = (text.split(' ').nth(1).unwrap(), text.split(' ').next_back().unwrap());
    let cut = &text[..text.find(word).unwrap()];
    assert_eq!(
        answer(MODEL, &["--stop", late, "--stop", word, "--stop", "~~"]),
        [json!(cut), json!("stop_text"), json!(word)]
    );
    assert_eq!(answer(MODEL, &["--stop", "~~"]), whole);
    assert_eq!(answer(MODEL, &["--max-new-tokens", "2"])[1..], [json!("max_new_tokens"), Value::Null]);
    // The model has no more positions.
    let config = place.path("base/config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["max_position_embeddings"] = json!(24);
    fs::write(&config, json.to_string()).unwrap();
    assert_eq!(answer(&base, &[])[1..], [json!("positions"), Value::Null]);
    assert!(
        fourbit(&["generate", "--model", MODEL, "--prompt", "a", "--stop", ""])
            .error()
            .contains("--stop: expected a text")
    );
}

#[test]
fn a_merged_model_knows_its_ends_and_its_dtype() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (base, adapter) = (base_with_other_eos(&place), place.text("adapter"));
    let words = [
        "finetune",
        "--model",
        &base,
        "--data",
        ROWS,
        "--output",
        &adapter,
        "--max-steps",
        "1",
        "--max-seq-length",
        "64",
    ];
    assert_eq!(fourbit(&words).code, 0);
    let merged = |name: &str, scheme: &str| {
        let out = place.text(name);
        let words =
            ["merge", "--model", &base, "--adapter", &adapter, "--method", "rtn", "--scheme", scheme, "--output", &out];
        assert_eq!(fourbit(&words).code, 0);
        let read =
            |file: &str| serde_json::from_slice::<Value>(&fs::read(place.path(name).join(file)).unwrap()).unwrap();
        (read("config.json")["torch_dtype"].clone(), read("generation_config.json")["eos_token_id"].clone())
    };
    // What is stored, and where tensors differ (the embedding stays f16) what holds them all.
    assert_eq!(merged("floats", "f32"), (json!("float32"), json!([0, 2])));
    assert_eq!(merged("halves", "f16"), (json!("float16"), json!([0, 2])));
    assert_eq!(merged("mixed", "bf16"), (json!("float32"), json!([0, 2])));
    // A template beside the adapter goes along, and its end; the base's stays one.
    fs::write(
        place.path("adapter/chat_template.jinja"),
        "{% for m in messages %}{{ m.content + '<|im_start|>' }}{% endfor %}",
    )
    .unwrap();
    assert_eq!(merged("own", "f16").1, json!([0, 1, 2]));
    let config = fs::read_to_string(place.path("own/tokenizer_config.json")).unwrap();
    assert!(config.contains("m.content + '<|im_start|>'"), "{config}");
}

#[test]
fn rows_tell_once_what_is_not_read_as_it_stands() {
    let place = Place::new();
    let row = |n: usize| {
        json!({"id": n, "source": if n == 1 { json!("x") } else { Value::Null }, "conversations": [
        {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]})
    };
    let rows: Vec<String> = (0..3).map(|n| row(n).to_string()).collect();
    fs::write(place.path("rows.jsonl"), rows.join("\n")).unwrap();
    let data = place.text("rows.jsonl");
    let run = fourbit(&["plan", "--model", MODEL, "--data", &data]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for words in [
        "the key id is not read (3 of 3 rows have it)",
        "the key source is not read (1 of 3 rows have it)",
        "the role human is read as user (3 turns)",
        "the role gpt is read as assistant (3 turns)",
    ] {
        assert_eq!(run.stderr.matches(words).count(), 1, "{words}: {}", run.stderr);
    }
}

#[test]
fn an_entry_of_the_tokenizer_without_a_row_is_told_once_and_its_use_refused() {
    let place = Place::new();
    let base = base_with_other_eos(&place);
    let config = place.path("base/tokenizer_config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["additional_special_tokens"] = json!(["<image>"]);
    fs::write(&config, json.to_string()).unwrap();
    let data = place.text("rows.jsonl");
    let rows = |text: &str| fs::write(place.path("rows.jsonl"), json!({"text": text}).to_string()).unwrap();
    rows("one two");
    let run = fourbit(&["plan", "--model", &base, "--data", &data]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let note = "note: the tokenizer has \"<image>\" (1024), the model's vocabulary 1024 tokens: texts that hold it are refused";
    assert_eq!(run.stderr.matches(note).count(), 1, "{}", run.stderr);
    rows("one <image> two");
    let words = "row 1: input_ids: 1024 (\"<image>\") is outside the vocabulary of 1024 tokens";
    for command in [&["plan"][..], &["evaluate"], &["finetune", "--output", &place.text("out")]] {
        let run = fourbit(&[command, &["--model", &base, "--data", &data]].concat());
        assert!(run.code == 1 && run.stderr.contains(words), "{command:?}: {}", run.stderr);
    }
    let run = fourbit(&["generate", "--model", &base, "--prompt", "<image>", "--raw"]);
    assert!(run.code == 1 && run.stderr.contains("(\"<image>\"); the model's vocabulary has 1024"), "{}", run.stderr);
}
