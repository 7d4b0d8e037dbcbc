//! `quantize --method` and `compare` on the embedded model.

use super::{CALIBRATION, MODEL, Place, ROWS, fourbit, support};
use fourbit::method::Method;
use serde_json::Value;
use std::fs;

fn loss(model: &str, text: &str) -> f64 {
    let words =
        ["evaluate", "--model", model, "--data", text, "--max-tokens", "256", "--max-seq-length", "128", "--json"];
    fourbit(&words).json()["loss"].as_f64().unwrap()
}

#[test]
fn what_a_method_writes_is_what_it_measures() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (text, table) = (place.embedded_text(), place.text("table.json"));
    let words = ["compare", MODEL, "--methods", "gptq,hqq:int3-g32", "--data", &text, "--max-tokens", "256"];
    let more = ["--max-seq-length", "128", "--generate", "2", "--output", &table, "--json"];
    let words = [words.as_slice(), &more, &CALIBRATION].concat();
    let measured = fourbit(&words).json();
    let rows = measured["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["recipe"].as_str().unwrap()).collect();
    assert_eq!(names, ["stored", "gptq:int4-g64", "hqq:int3-g32"]);
    let number = |row: usize, field: &str| rows[row][field].as_f64().unwrap();
    // Losses rise as bits fall; f16 pairs take half a bit in groups of 64 and one in groups of 32.
    assert!(number(0, "loss") < number(1, "loss") && number(1, "loss") < number(2, "loss"), "{measured}");
    assert!((number(1, "bits_per_weight") - 4.5).abs() < 0.01 && (number(2, "bits_per_weight") - 4.0).abs() < 0.01);
    assert!(number(1, "tokens_per_second") > 0.0 && number(1, "peak_bytes") > 0.0);

    // Rows that are there are taken from the file, and the plot lies beside it, even if it was gone.
    let mut saved: Value = serde_json::from_slice(&fs::read(&table).unwrap()).unwrap();
    assert_eq!(saved["rows"], measured["rows"]);
    saved["rows"][1]["loss"] = 7.0.into();
    fs::write(&table, saved.to_string()).unwrap();
    fs::remove_file(place.path("table.svg")).unwrap();
    assert_eq!(fourbit(&words).json()["rows"][1]["loss"], 7.0);
    assert!(fs::read_to_string(place.path("table.svg")).unwrap().contains("gptq:int4-g64"));
    // A row without a loss, as a method that lost the model leaves one, is taken too.
    saved["rows"][1]["loss"] = Value::Null;
    saved["rows"][1]["perplexity"] = Value::Null;
    fs::write(&table, saved.to_string()).unwrap();
    assert!(fourbit(&words).json()["rows"][1]["loss"].is_null());
    let other = fourbit(&[words.as_slice(), &["--damping", "0.02"]].concat());
    assert!(other.error().contains("other settings"), "{}", other.error());

    // The folders have the same numbers: halves for scales, all else as it was.
    for (row, method) in [(1, &["gptq"][..]), (2, &["hqq", "--bits", "3", "--group-size", "32"])] {
        let out = place.text(method[0]);
        let words = [&["quantize", MODEL, "--output", &out, "--json", "--method"], method, &CALIBRATION].concat();
        assert_eq!(fourbit(&words).json()["quantized"], 28);
        let folder = loss(&out, &text);
        assert!((folder - number(row, "loss")).abs() < 1e-4, "{method:?}: {folder} and {}", number(row, "loss"));
    }
}

#[test]
fn a_gguf_file_is_written_with_its_tokenizer() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (text, out) = (place.embedded_text(), place.text("model.gguf"));
    let summary = fourbit(&["quantize", MODEL, "--scheme", "q8_0", "--output", &out, "--json"]).json();
    assert_eq!((summary["quantized"].as_u64(), summary["fallbacks"].as_u64()), (Some(28), Some(0)), "{summary}");
    let (file, model) = (loss(&out, &text), loss(MODEL, &text));
    // Embedding and head are in 8 bits too.
    assert!((file - model).abs() < 0.01 * model, "{file} and {model}");
}

#[test]
fn a_gguf_file_takes_what_a_method_chose() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (text, out, nearest) = (place.embedded_text(), place.text("gptq.gguf"), place.text("rtn.gguf"));
    let words = ["quantize", MODEL, "--method", "gptq", "--output", &out, "--json"];
    let summary = fourbit(&[words.as_slice(), &CALIBRATION].concat()).json();
    assert_eq!((summary["recipe"].as_str(), summary["quantized"].as_u64()), (Some("gptq:int4-g32-sym"), Some(28)));
    fourbit(&["quantize", MODEL, "--scheme", "q4_0", "--output", &nearest, "--json"]).json();
    let [gptq, nearest, model] = [&out, &nearest, MODEL].map(|path| loss(path, &text));
    // Both have the same embedding and head; the calibration text is the text that is measured.
    assert!(gptq - model < 0.9 * (nearest - model), "{gptq} {nearest} {model}");
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let before = place.names();
    let (out, gguf) = (place.text("out"), place.text("out.gguf"));
    for (words, expected) in [
        (&["--method", "gptq", "--output", &out][..], "--calibration"),
        (&["--method", "best", "--output", &out], "rtn, hqq, gptq"),
        (&["--method", "quip", "--output", &out], "--calibration"),
        (
            &["--method", "aqlm", "--finetune-epochs", "1", "--finetune-lr", "2", "--output", &out],
            "above 0 and below 1",
        ),
        (&["--method", "gptq", "--output", &gguf], "--calibration"),
        (&["--method", "gptq", "--scheme", "int4-g64", "--output", &gguf], "int4-g64"),
        (&["--method", "hqq", "--output", &gguf], "with zero points"),
        (&["--method", "smoothquant", "--scheme", "q8_0", "--output", &gguf], "activations"),
        (&["--scheme", "nf4", "--output", &gguf], "q4_k"),
        (&["--scheme", "int4-big", "--output", &out], "int4-big"),
        (&["--bits", "9", "--output", &out], "bits"),
        (&["--bits", "3", "--output", &gguf], "4, 5, 8 (q4_0, q5_0, q8_0)"),
        (&["--method", "llm-int8", "--bits", "4", "--output", &out], "unsupported bits for llm-int8: 4; supported: 8"),
        (&["--scheme", "e8p", "--output", &out], "unsupported scheme for rtn: e8p"),
        (&["--alpha", "0.7", "--output", &out], "--alpha: does nothing for rtn; taken by smoothquant"),
        (&["--method", "hqq", "--damping", "0.1", "--output", &out], "--damping: does nothing for hqq"),
        // The bits are taken; what is missing is the text.
        (&["--method", "quip", "--bits", "2", "--output", &out], "--calibration"),
        (&["--method", "aqlm", "--bits", "2", "--output", &out], "--calibration"),
        (&["--method", "gptq", "--bits", "5", "--output", &gguf], "--calibration"),
        (&["--method", "gptq", "--bits", "4", "--symmetric", "--output", &gguf], "--calibration"),
        (&["--scheme", "q4_k", "--block-size", "64", "--output", &gguf], "fixed"),
        (&["--symmetric", "--output", &out], "--symmetric"),
        (&["--group-size", "0", "--output", &out], "--group-size"),
    ] {
        let done = fourbit(&[&["quantize", MODEL], words].concat());
        assert!(done.error().contains(expected), "{words:?}: {}", done.error());
    }
    let tensors = format!("{MODEL}/model.safetensors");
    for (option, name) in [("--method", "hqq"), ("--weight-observer", "mse"), ("--activations", "a8-mse")] {
        let done = fourbit(&["quantize", &tensors, "--scheme", "int4-g32", option, name, "--output", &out]);
        assert!(done.error().starts_with(&format!("{option}: needs a model")), "{}", done.error());
    }
    for (words, expected) in [
        (&["awq"][..], "--calibration"),
        (&["rtn,hqq", "--no-clip"], "--no-clip: does nothing for rtn, hqq; taken by awq"),
        (&["awq,gptq", "--no-clip"], "--calibration"),
    ] {
        let done = fourbit(&[&["compare", MODEL, "--data", ROWS, "--methods"], words].concat());
        assert!(done.error().contains(expected), "{words:?}: {}", done.error());
    }
    assert_eq!(place.names(), before);
}

#[test]
fn bits_name_the_scheme_that_a_method_or_a_file_has() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    for (name, words, recipe) in [
        ("bits4.gguf", &["--bits", "4"][..], "rtn:q4_0"),
        ("bits8.gguf", &["--bits", "8", "--symmetric"], "rtn:q8_0"),
        ("bits8", &["--method", "llm-int8", "--bits", "8"], "llm-int8:int8-channel-sym-f32"),
    ] {
        let out = place.text(name);
        let done = fourbit(&[&["quantize", MODEL, "--output", &out, "--json"], words].concat()).json();
        assert_eq!((done["recipe"].as_str(), done["quantized"].as_u64()), (Some(recipe), Some(28)), "{words:?}");
    }
}

#[test]
fn a_text_that_is_both_shown_and_measured_is_told_of() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let text = place.embedded_text();
    // The same file by another name.
    let again = place.path("model/../text.txt").display().to_string();
    let told = |method: &str| {
        let words = ["compare", MODEL, "--methods", method, "--data", &text, "--calibration", &again];
        let few = ["--max-tokens", "32", "--generate", "0", "--calibration-samples", "2", "--calibration-length", "32"];
        let done = fourbit(&[&words[..], &few].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stderr.contains("is both --calibration and --data")
    };
    assert!(told("smoothquant"));
    assert!(!told("rtn"), "which is shown nothing");
}

#[test]
fn awq_says_once_that_long_groups_are_not_cut() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let text = place.embedded_text();
    let told = |method: &str| {
        let words = ["compare", MODEL, "--methods", method, "--data", &text, "--calibration", ROWS];
        let few = ["--max-tokens", "32", "--generate", "0", "--calibration-samples", "2", "--calibration-length", "32"];
        let done = fourbit(&[&words[..], &few].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stderr.matches("awq cuts no ranges").count()
    };
    // Rows of 448 columns, four of them.
    assert_eq!(told("awq:int4-channel"), 1);
    assert_eq!(told("awq:int4-g64"), 0);
}

#[test]
fn blocks_are_fine_tuned_where_asked() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (text, out) = (place.embedded_text(), place.text("quip"));
    let words = ["quantize", MODEL, "--method", "quip", "--output", &out, "--json"];
    let more = ["--finetune-epochs", "2", "--finetune-blocks", "1"];
    let told = fourbit(&[words.as_slice(), &more, &CALIBRATION].concat()).json();
    let blocks = told["finetuned"].as_array().unwrap();
    let number = |block: &Value, field: &str| block[field].as_f64().unwrap();
    assert_eq!(blocks.len(), 4, "{told}");
    assert!(blocks.iter().all(|b| number(b, "error_after") <= number(b, "error_before")), "{told}");
    assert!(number(&blocks[0], "error_after") < number(&blocks[0], "error_before"), "{told}");
    assert_eq!(blocks[3]["after_layer"], "model.layers.0.mlp.down_proj");
    let plain = place.text("plain");
    fourbit(&[&["quantize", MODEL, "--method", "quip", "--output", &plain, "--json"][..], &CALIBRATION].concat())
        .json();
    assert_ne!(loss(&out, &text), loss(&plain, &text), "what was learned is written");
}

#[test]
fn few_tokens_are_told_before_the_work_with_the_samples_to_give() {
    let place = Place::new();
    let (text, out) = (place.embedded_text(), place.text("out"));
    // A device that is not there ends each run before the work.
    let told = |method: &str, samples: usize, more: &[&str]| {
        let samples = samples.to_string();
        let words = ["quantize", MODEL, "--method", method, "--calibration", &text, "--calibration-length", "64"];
        let rest = ["--calibration-samples", &samples, "--output", &out, "--device", "999"];
        let done = fourbit(&[&words[..], &rest, more].concat());
        assert!(done.error().contains("999"), "{}", done.error());
        done.stderr.lines().find(|line| line.starts_with("warning: ")).map(str::to_owned)
    };
    // Layers of 448 columns.
    let enough = (Method::TOKENS_PER_COLUMN * 448).div_ceil(64);
    for method in ["gptq", "quip", "aqlm"] {
        let warning = told(method, 8, &[]).unwrap();
        for part in ["512 tokens", method, "448 columns", &format!("--calibration-samples {enough}")] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
    assert!(told("gptq", enough - 1, &[]).is_some());
    assert_eq!(told("gptq", enough, &[]), None);
    assert!(told("gptq", enough, &["--keep-better"]).unwrap().contains("are held back"));
    for method in ["awq", "smoothquant", "rtn"] {
        assert_eq!(told(method, 2, &[]), None, "{method} takes little of a text");
    }
    std::fs::write(&text, fs::read_to_string(&text).unwrap().split_at(600).0).unwrap();
    assert!(told("gptq", 100, &[]).unwrap().contains("the text holds no more than"));
}

#[test]
fn layers_that_keep_rounding_are_named() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let out = place.text("out");
    let shown = ["--calibration", ROWS, "--calibration-samples", "2", "--calibration-length", "16"];
    let words = ["quantize", MODEL, "--method", "gptq", "--scheme", "int3-g64", "--output", &out, "--keep-better"];
    let run = fourbit(&[&words[..], &shown, &["--json"]].concat());
    let told = run.json();
    let (kept, compared) = (told["kept_rounding"].as_array().unwrap(), told["held_back"].as_array().unwrap());
    assert!(compared.len() == 28 && !kept.is_empty() && kept.len() < 28, "{told}");
    for layer in compared {
        let loses_more = layer["method"].as_f64() > layer["rounding"].as_f64();
        assert_eq!(kept.contains(&layer["layer"]), loses_more, "{layer}");
        assert_eq!(run.stderr.contains(&format!("{}: loses", layer["layer"].as_str().unwrap())), loses_more, "{layer}");
    }
    // Rounded and fitted layers go into one folder.
    let words = ["evaluate", "--model", &out, "--data", ROWS, "--max-tokens", "128", "--json"];
    assert!(fourbit(&words).json()["loss"].as_f64().unwrap() < 4.0);
    let done = fourbit(&["quantize", MODEL, "--method", "hqq", "--keep-better", "--output", &out]);
    assert_eq!(done.error(), "--keep-better: does nothing for hqq; taken by gptq, awq");
}
