//! Training of weights from the command line, through rounding and as floats.

use super::{Place, fourbit, support};
use fourbit::{
    format::{Safetensors, checkpoint::Rounding},
    model::Source,
    quant::Scheme,
};
use serde_json::Value;
use std::fs;

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn what_was_trained_through_rounding_is_a_quantized_folder() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let options = ["--qat", "int3-g16", "--full", "--qat-ranges", "learned", "--qat-activations", "static"];
    let training = ["--batch-size", "3", "--learning-rate", "0.003", "--json"];
    let (model, rows, out) = (place.text("model"), place.text("rows.jsonl"), place.text("out"));
    let plan = ["plan", "--model", &model, "--data", &rows];
    let plan = fourbit(&[plan.as_slice(), &options, &training].concat()).json();
    let run = place.finetune(&[options.as_slice(), &training, &["--max-steps", "8"]].concat()).json();
    assert!(run["mean_loss"]["last"].as_f64() < run["mean_loss"]["first"].as_f64(), "{run}");
    let [ran, planned] = [&run, &plan].map(|value| value["peak_bytes"].as_f64().unwrap());
    assert!((ran / planned - 1.0).abs() < 0.1, "{ran} bytes, {planned} planned");
    // Two layers of 64 x 64 twice, 32 x 64 twice and 176 x 64 thrice; a step a 16 weights; one an input.
    let weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 176 * 64);
    assert_eq!(plan["trainable_parameters"], weights + weights / 16 + 14);

    let source = Source::open(place.path("out")).unwrap();
    assert_eq!(source.scheme(Q).unwrap(), Scheme::int(3, 16));
    assert!(matches!(source.rounding(Q).unwrap(), Some(Rounding::Static(scale)) if scale > 0.0));
    let state: Value = serde_json::from_slice(&fs::read(place.path("out/trainer_state.json")).unwrap()).unwrap();
    assert_eq!(state["global_step"], 8);
    // What was written has learned: the model rounded without training loses more.
    fs::write(place.path("ids.json"), "[3,10,17,24,31,38,45,52,59,66,73,80,87,94,101,108]").unwrap();
    let ids = place.text("ids.json");
    let loss = |words: &[&str]| {
        let words = [&["evaluate", "--input-ids", ids.as_str(), "--json"], words].concat();
        fourbit(&words).json()["loss"].as_f64().unwrap()
    };
    let (trained, rounded) = (loss(&["--model", &out]), loss(&["--model", &model, "--quantization", "int3-g16"]));
    assert!(trained < rounded, "{trained} {rounded}");
}

#[test]
fn an_adapter_is_merged_into_what_is_written() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let options = ["--qat", "nf4", "--lora-r", "4", "--learning-rate", "0.01", "--max-steps", "2", "--json"];
    let run = place.finetune(&options).json();
    assert_eq!(run["steps"], 2);
    let source = Source::open(place.path("out")).unwrap();
    assert_eq!(source.scheme(Q).unwrap(), Scheme::Nf4 { block_size: 64, double_quant: false });
    assert!(!place.path("out/adapter_model.safetensors").exists());
    let (model, base) = (place.text("model"), place.text("base"));
    fourbit(&["quantize", &model, "--scheme", "nf4", "--output", &base, "--json"]).json();
    let shape = source.shape(Q).unwrap();
    let without = Source::open(&base).unwrap().packed(Q, shape).unwrap();
    assert_ne!(source.packed(Q, shape).unwrap(), without, "the adapter is in it");
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let place = Place::new();
    assert_eq!(place.finetune(&["--last-layers", "1"]).code, 2);
    assert_eq!(place.finetune(&["--full", "--qat", "nf4", "--last-layers", "1"]).code, 2);
    assert_eq!(place.finetune(&["--qat-ranges", "learned"]).code, 2);
    for (options, word) in [
        (["--qat", "q4_k", "--full"].as_slice(), "q4_k"),
        (&["--qat", "int4-g16", "--full", "--lora-r", "8"], "--full"),
        (&["--qat", "int4-g16", "--qat-ranges", "guessed"], "guessed"),
        (&["--qat", "nf4", "--qat-ranges", "learned"], "learned ranges"),
        (&["--qat", "int4-g16", "--qat-activations", "often"], "often"),
        (&["--qat", "int4-g48"], "48"),
        (&["--full", "--lora-r", "8"], "--full"),
        (&["--full", "--quantization", "nf4"], "--quantization"),
        (&["--full", "--last-layers", "3"], "expected 1 to 2, got 3"),
    ] {
        let done = place.finetune(options);
        assert!(done.error().contains(word), "{options:?}: {}", done.stderr);
    }
    assert_eq!(place.names(), ["model", "rows.jsonl"], "nothing was begun");
}

/// Full fine-tuning of floats and of halves: planned, trained, written in the dtype that was stored; all weights, or the last block alone.
#[test]
fn all_weights_or_the_last_ones_learn() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ids.json"), "[3,10,17,24,31,38,45,52,59,66]").unwrap();
    let (rows, ids, out) = (place.text("rows.jsonl"), place.text("ids.json"), place.text("out"));
    let halves = ["--scheme", "bf16", "--output", &place.text("halves"), "--json"];
    fourbit(&[&["quantize", &place.text("model")], halves.as_slice()].concat()).json();
    let loss = |folder: &str| {
        let words = ["evaluate", "--model", folder, "--input-ids", &ids, "--quantization", "none", "--json"];
        fourbit(&words).json()["loss"].as_f64().unwrap()
    };
    let file = |folder: &str| Safetensors::open(place.path(folder).join("model.safetensors")).unwrap();
    let whole = ["--full"].as_slice();
    for (folder, options) in
        [("model", whole), ("model", &["--full", "--last-layers", "1"]), ("halves", &["--full", "--last-layers", "1"])]
    {
        let (model, last) = (place.text(folder), options.len() > 1);
        let plan = ["plan", "--model", &model, "--max-seq-length", "20", "--batch-size", "2", "--json"];
        let plan = fourbit(&[&plan, options].concat()).json();
        let common = ["finetune", "--model", &model, "--data", &rows, "--output", &out, "--learning-rate", "0.003"];
        let run = fourbit(&[&common, ["--batch-size", "2", "--max-steps", "6", "--json"].as_slice(), options].concat())
            .json();
        assert_eq!(run["peak_bytes"], plan["peak_bytes"], "{folder}, {options:?}: {run} {plan}");
        assert!(!place.path("out/adapter_model.safetensors").exists());
        let (before, after) = (loss(&model), loss(&out));
        assert!(after < before - 0.1, "{folder}, {options:?}: {after}, {before} before");
        let (learned, stored) = (file("out"), file(folder));
        assert_eq!(learned.names().collect::<Vec<_>>(), stored.names().collect::<Vec<_>>());
        for name in stored.names() {
            let (got, was) = (learned.get(name).unwrap(), stored.get(name).unwrap());
            assert_eq!((got.shape, got.stored), (was.shape, was.stored), "{name}");
            let frozen = last && (name.contains(".layers.0.") || name == "model.embed_tokens.weight");
            assert_eq!(got.bytes == was.bytes, frozen, "{folder}, {options:?}: {name}");
        }
        fs::remove_dir_all(&out).unwrap();
    }
}
