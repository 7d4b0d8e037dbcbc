//! `merge` on the embedded model.

use super::{CALIBRATION, MODEL, Place, ROWS, fourbit, support};
use serde_json::{Value, json};
use std::fs;

/// A short training on the rows of the embedded model, in NF4.
fn adapter(place: &Place) -> String {
    let out = place.text("adapter");
    let train = ["--quantization", "nf4", "--max-steps", "16", "--batch-size", "2", "--learning-rate", "3e-3"];
    let words = ["finetune", "--model", MODEL, "--data", ROWS, "--output", &out, "--json", "--max-seq-length", "64"];
    assert_eq!(fourbit(&[words.as_slice(), &train].concat()).code, 0);
    out
}

#[test]
fn a_merge_tells_what_it_costs_and_the_folder_keeps_it() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (adapter, text) = (adapter(&place), place.embedded_text());
    let [nf4, floats] = ["merged", "floats"].map(|name| place.text(name));
    let measure = ["--data", &text, "--max-tokens", "256", "--max-seq-length", "128"];
    let words = ["merge", "--model", MODEL, "--adapter", &adapter, "--quantization", "nf4", "--output", &nf4, "--json"];
    let done = fourbit(&[words.as_slice(), &measure, &CALIBRATION].concat()).json();
    assert_eq!(done["recipe"], "gptq:nf4-g64");
    let loss = |what: &str| done[what]["loss"].as_f64().unwrap();
    let evaluate = |words: &[&str]| {
        let words = [&["evaluate", "--json"], words, &measure].concat();
        fourbit(&words).json()["loss"].as_f64().unwrap()
    };
    // The base as it was trained on, with its adapter; and what was written.
    let before = evaluate(&["--model", MODEL, "--adapter", &adapter, "--quantization", "nf4"]);
    assert!((loss("before") - before).abs() < 1e-6, "{done} {before}");
    assert!((evaluate(&["--model", &nf4]) - loss("merged")).abs() < 1e-4, "{done}");
    let lost = |what: &str| (loss(what) - loss("before")).abs();
    assert!(lost("merged") < lost("naive"), "{done}");

    // Nothing is rounded to nearest where that cannot be done.
    let quip = place.text("quip");
    let words = ["merge", "--model", MODEL, "--adapter", &adapter, "--method", "quip", "--output", &quip, "--json"];
    let run = fourbit(&[words.as_slice(), &measure, &CALIBRATION].concat());
    let told = run.json();
    assert!(told["naive"].is_null() && told["merged"]["loss"].as_f64().unwrap() > before, "{told}");
    assert!(run.stderr.contains("naive merge: none"), "{}", run.stderr);

    // As floats nothing is lost but halves' rounding of the sum.
    let words = ["merge", "--model", MODEL, "--adapter", &adapter, "--quantization", "nf4", "--output", &floats];
    let done = fourbit(&[words.as_slice(), &["--method", "rtn", "--scheme", "bf16", "--json"]].concat()).json();
    assert_eq!(done["recipe"], "rtn:bf16");
    let config: Value = serde_json::from_slice(&fs::read(place.path("floats/config.json")).unwrap()).unwrap();
    assert!(config["quantization_config"].is_null(), "{config}");
    let merged = evaluate(&["--model", &floats, "--quantization", "none"]);
    assert!((merged - before).abs() < 0.01 * before, "{merged} {before}");
    let base = evaluate(&["--model", MODEL, "--quantization", "none"]);
    assert!((merged - base).abs() > 0.02 * before, "{merged} {base}");
}

#[test]
fn what_cannot_be_merged_is_refused_before_anything_is_written() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let adapter = adapter(&place);
    let before = place.names();
    let out = place.text("out");
    for (words, expected) in [
        (&["--output", &out][..], "--adapter"),
        (&["--output", &out, "--adapter", &adapter], "--calibration"),
        (&["--output", &out, "--adapter", &adapter, "--scheme", "q4_k"], "q4_k"),
        (&["--output", &out, "--adapter", &place.text("nowhere"), "--method", "rtn"], "nowhere"),
        (&["--output", MODEL, "--adapter", &adapter, "--method", "rtn"], "--output"),
        (&["--output", &out, "--adapter", &adapter, "--threshold", "1"], "--threshold: does nothing for gptq"),
    ] {
        let done = fourbit(&[&["merge", "--model", MODEL], words].concat());
        assert!(done.error().contains(expected), "{words:?}: {}", done.error());
    }
    // What is refused is refused before anything is measured.
    let text = place.embedded_text();
    let words = ["merge", "--model", MODEL, "--adapter", &adapter, "--method", "rtn", "--scheme", "e8p"];
    let done = fourbit(&[&words[..], &["--data", &text, "--output", &out]].concat());
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(done.error().contains("unsupported scheme for rtn: e8p"), "{}", done.error());
    fs::remove_file(text).unwrap();
    // An adapter for another model.
    let done = fourbit(&[
        "merge",
        "--model",
        &place.text("model"),
        "--adapter",
        &adapter,
        "--method",
        "rtn",
        "--output",
        &out,
    ]);
    assert!(done.error().contains("which this model has not"), "{}", done.error());
    assert_eq!(place.names(), before);
}

#[test]
fn updates_that_rounding_takes_away_are_named() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let adapter = adapter(&place);
    let [base, out, floats] = ["base.gguf", "merged.gguf", "floats"].map(|name| place.text(name));
    fourbit(&["quantize", MODEL, "--scheme", "q4_1", "--output", &base, "--json"]).json();
    let merge = |model: &str, output: &str, scheme: &str| {
        let words = ["merge", "--model", model, "--adapter", &adapter, "--method", "rtn", "--scheme", scheme];
        fourbit(&[words.as_slice(), &["--output", output, "--json"]].concat())
    };
    // On the grid that the base is on, an update of less than half a step goes.
    let run = merge(&base, &out, "q4_1");
    let kept = run.json()["update_kept"].clone();
    let below = kept["below_half"].as_array().unwrap();
    assert_eq!(kept["layers"].as_array().unwrap().len(), 28, "{kept}");
    assert!(below.len() > 14 && kept["least"].as_f64().unwrap() < 0.5, "{kept}");
    for word in ["warning: ", "rtn:q4_1", below[0].as_str().unwrap(), "--method gptq", "--scheme q8_0"] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    // What the warning names keeps it.
    for (output, scheme) in [(&out, "q8_0"), (&floats, "bf16")] {
        let run = merge(&base, output, scheme);
        let kept = run.json()["update_kept"].clone();
        assert!(
            kept["below_half"].as_array().unwrap().is_empty() && kept["mean"].as_f64().unwrap() > 0.9,
            "{scheme}: {kept}"
        );
        assert!(!run.stderr.contains("warning: "), "{scheme}: {}", run.stderr);
    }
    // A method that looks at a text says what needs none.
    let words = ["merge", "--model", MODEL, "--adapter", &adapter, "--data", ROWS, "--output", &out];
    let done = fourbit(&words);
    for word in ["--calibration: gptq", "--data", "--method rtn --scheme bf16", "q8_0"] {
        assert!(done.error().contains(word), "{word}: {}", done.error());
    }
}

#[test]
fn a_scale_a_row_stays_one_and_short_groups_are_divided() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    // Their vocabulary has 32 tokens.
    let row = |row: u32| (0..20).map(|i| (3 + row * 11 + i * 7) % 32).collect::<Vec<u32>>();
    let lines: Vec<String> = (0..6).map(|r| json!({"input_ids": row(r), "labels": row(r)}).to_string()).collect();
    fs::write(place.path("rows.jsonl"), lines.join("\n")).unwrap();
    let rows = place.text("rows.jsonl");
    let checkpoint = |name: &str| format!("{}/tests/golden/checkpoints/{name}", env!("CARGO_MANIFEST_DIR"));
    let adapter = place.text("adapter");
    let words = ["finetune", "--model", &checkpoint("ct-int8"), "--data", &rows, "--output", &adapter];
    let train = ["--max-steps", "6", "--batch-size", "3", "--learning-rate", "1e-2", "--max-seq-length", "32"];
    assert_eq!(fourbit(&[&words[..], &train].concat()).code, 0);
    let shown = ["--calibration", &rows, "--calibration-samples", "4", "--calibration-length", "16"];
    // Rows of 64 and of 96 columns. In gptq-4-act groups are of 64, so that the last one of 96 columns is of 32.
    for (base, method, recipe, layout, group) in [
        ("ct-int8", "rtn", "rtn:int8-channel-sym", "compressed-tensors", json!(null)),
        ("gptq-8-channel", "gptq", "gptq:int8-channel-sym", "gptq", json!(-1)),
        ("llm-int8", "gptq", "gptq:int8-channel-sym-f32", "compressed-tensors", json!(null)),
        ("llm-int8", "llm-int8", "llm-int8:int8-channel-sym-f32", "bitsandbytes", json!(null)),
        ("gptq-4-act", "gptq", "gptq:int4-g32", "gptq", json!(32)),
    ] {
        let (base, out) = (checkpoint(base), place.text("out"));
        let words = ["merge", "--model", &base, "--adapter", &adapter, "--method", method, "--output", &out];
        let shown = if method == "gptq" { &shown[..] } else { &[] };
        let done = fourbit(&[&words[..], &["--data", &rows, "--json"], shown].concat()).json();
        assert_eq!(done["recipe"], recipe, "{base}");
        let config: Value = serde_json::from_slice(&fs::read(place.path("out/config.json")).unwrap()).unwrap();
        let told = &config["quantization_config"];
        assert_eq!(told["quant_method"], layout, "{base} {method}");
        let weights = &told["config_groups"]["group_0"]["weights"];
        let (size, strategy) = match layout {
            "compressed-tensors" => (&weights["group_size"], &weights["strategy"]),
            _ => (&told["group_size"], &Value::Null),
        };
        assert_eq!(*size, group, "{told}");
        assert_eq!(strategy.as_str(), (layout == "compressed-tensors").then_some("channel"), "{told}");
        // 8 bits keep what was learned.
        let loss = |value: &Value| value["loss"].as_f64().unwrap();
        if recipe.contains("int8") {
            assert!((loss(&done["merged"]) - loss(&done["before"])).abs() < 0.02, "{base} {method}: {done}");
            assert!(done["update_kept"]["mean"].as_f64().unwrap() > 0.8, "{base} {method}: {done}");
        }
        // What was written reads as what was measured.
        if method == "gptq" && layout == "compressed-tensors" {
            let measured = fourbit(&["evaluate", "--model", &out, "--data", &rows, "--json"]).json();
            assert!((loss(&measured) - loss(&done["merged"])).abs() < 1e-4, "{measured} {done}");
        }
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn folders_of_floats_say_what_is_stored() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let out = place.text("out");
    let dtypes = |model: &str, scheme: &str| {
        fourbit(&["quantize", model, "--scheme", scheme, "--output", &out, "--json"]).json();
        let config: Value = serde_json::from_slice(&fs::read(place.path("out/config.json")).unwrap()).unwrap();
        let dtype = config["dtype"].as_str().or(config["torch_dtype"].as_str()).unwrap().to_owned();
        fs::remove_dir_all(&out).unwrap();
        dtype
    };
    // transformers rounds what it loads to this dtype, so it is the widest of what the file holds.
    let tiny = place.text("model");
    let stored = fourbit::format::Weights::open(MODEL).unwrap().get("model.norm.weight").unwrap().stored;
    assert_eq!(stored, fourbit::format::Stored::Plain(fourbit::DType::F16));
    for (model, scheme, dtype) in [
        (MODEL, "f32", "float32"),
        (MODEL, "bf16", "float32"),
        (MODEL, "f16", "float16"),
        (&tiny, "bf16", "float32"),
        (&tiny, "f32", "float32"),
    ] {
        assert_eq!(dtypes(model, scheme), dtype, "{model} {scheme}");
    }
}
