//! `calibrate` on the embedded model, and the observers of other subcommands.

use super::{MODEL, Place, ROWS, fourbit, support};
use fourbit::model::Source;
use serde_json::Value;
use std::fs;

const CALIBRATION: [&str; 6] = ["--calibration", ROWS, "--calibration-samples", "4", "--calibration-length", "64"];

/// By how many dB an output is kept better than the sum of what is lost of its input and of its weight.
fn gain(layer: &Value) -> f64 {
    let lost = |of: &str| layer[of]["sqnr"].as_f64().map_or(0.0, |decibels| 10f64.powf(-0.1 * decibels));
    layer["output_sqnr"].as_f64().unwrap() + 10.0 * (lost("input") + lost("weight")).log10()
}

#[test]
fn a_report_has_a_line_a_layer_and_is_saved() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let output = place.text("report.json");
    let words = |more: &[&'static str]| [&["calibrate", MODEL], &CALIBRATION[..], more].concat();
    let done = fourbit(&[&words(&["--observer", "percentile-99.9", "--json", "--output"])[..], &[&output]].concat());
    let report = done.json();
    let saved: Value = serde_json::from_slice(&fs::read(&output).unwrap()).unwrap();
    assert_eq!(saved, report);
    assert_eq!(report["recipe"], "rtn:int8-channel-sym-f32+a8-percentile-99.9");
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 28);
    assert_eq!(layers[13]["name"], "model.layers.1.mlp.down_proj");
    let source = Source::open(MODEL).unwrap();
    for layer in layers {
        let input = &layer["input"];
        let number = |value: &Value| value.as_f64().unwrap();
        let absmax = number(&input["high"]).max(-number(&input["low"]));
        assert!(number(&input["clip"]) < absmax && number(&input["clipped"]) > 0.0, "{layer}");
        // A thousandth of the numbers lies beyond the percentile, fewer half a step further.
        assert!(number(&input["clipped"]) < 0.0011, "{layer}");
        // A step of 1/127 of a row's largest number, whose errors have a variance of a twelfth: that number is at least the row's root
        // mean square, and at most sqrt(cols) times it.
        let cols = source.shape(&format!("{}.weight", layer["name"].as_str().unwrap())).unwrap()[1] as f64;
        let most = 10.0 * (12.0 * 127f64.powi(2)).log10();
        let weight = number(&layer["weight"]["sqnr"]);
        assert!(weight > most - 10.0 * cols.log10() && weight < most, "{layer}");
        // Errors lie in all directions, inputs in those that the weights amplify: outputs are kept no worse, and some dB better.
        assert!((-0.5..6.0).contains(&gain(layer)), "{}: {layer}", gain(layer));
    }

    // People get a table; the worst alone where they ask for them.
    let options = ["--method", "rtn:int4-g64", "--observer", "none"];
    let [whole, worst] = [&[][..], &["--worst", "2"]].map(|more| {
        let table = fourbit(&words(&[&options, more].concat()));
        assert_eq!(table.code, 0, "{}", table.stderr);
        let lines: Vec<String> = table.stdout.lines().map(str::to_owned).collect();
        assert!(lines[0].starts_with("layer") && lines[0].contains("output dB"), "{}", table.stdout);
        lines[1..].to_vec()
    });
    assert_eq!((whole.len(), worst.len()), (28, 2));
    let last = |line: &String| line.split_whitespace().last().unwrap().parse::<f64>().unwrap();
    let mut ratios: Vec<f64> = whole.iter().map(last).collect();
    ratios.sort_by(f64::total_cmp);
    assert_eq!(worst.iter().map(last).collect::<Vec<_>>(), ratios[..2]);
}

#[test]
fn observers_are_taken_by_name() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let report = |more: &[&str]| {
        let report = fourbit(&[&["calibrate", MODEL, "--json"], &CALIBRATION[..], more].concat()).json();
        let clip = report["layers"][6]["input"]["clip"].as_f64();
        (report["recipe"].as_str().unwrap().to_owned(), clip)
    };
    let (recipe, whole) = report(&[]);
    assert_eq!(recipe, "rtn:int8-channel-sym-f32+a8-static");
    let (recipe, mse) = report(&["--observer", "mse"]);
    assert_eq!(recipe, "rtn:int8-channel-sym-f32+a8-mse");
    assert!(mse.unwrap() < whole.unwrap(), "{mse:?} {whole:?}");
    assert_eq!(report(&["--method", "smoothquant"]), ("smoothquant:int8-channel-sym-f32+a8".to_owned(), None));
    assert_eq!(report(&["--method", "llm-int8"]).0, "llm-int8:int8-channel-sym-f32");
    assert_eq!(report(&["--method", "quip"]).0, "quip:e8p");

    // Ranges of weights that are searched for are written as any other.
    let out = place.text("out");
    let observed = |observer: &str, out: &str| {
        let words = ["quantize", MODEL, "--bits", "3", "--weight-observer", observer, "--output", out, "--json"];
        assert_eq!(fourbit(&words).json()["quantized"], 28);
    };
    let (whole, clipped) = (place.text("whole"), place.text("clipped"));
    observed("mse", &out);
    observed("minmax", &whole);
    observed("percentile-95", &clipped);
    let scales = |folder: &str| {
        let name = "model.layers.0.mlp.down_proj.weight";
        let source = Source::open(folder).unwrap();
        source.packed(name, source.shape(name).unwrap()).unwrap().scales
    };
    assert_ne!(scales(&out), scales(&whole));
    assert_ne!(scales(&clipped), scales(&whole));
    assert_ne!(scales(&clipped), scales(&out));
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let place = Place::new();
    let (empty, missing, output) = (place.text("empty.txt"), place.text("none.txt"), place.text("report.json"));
    fs::write(&empty, "").unwrap();
    let before = place.names();
    for (words, expected) in [
        (&["--calibration", &empty][..], "has no sample of two tokens"),
        (&["--calibration", &missing], "none.txt"),
        (&["--calibration", ROWS, "--calibration-samples", "0"], "--calibration-samples: expected at least 1"),
        (&["--calibration", ROWS, "--calibration-length", "1"], "--calibration-length: "),
        (&[], "--calibration: calibrate needs a text"),
        (&["--calibration", ROWS, "--observer", "best"], "minmax, moving-average, percentile, mse, entropy"),
        (&["--calibration", ROWS, "--observer", "percentile-101"], "at most 100"),
        (&["--calibration", ROWS, "--observer", "mse", "--method", "rtn+a8"], "says already"),
        (&["--calibration", ROWS, "--observer", "mse", "--method", "stored"], "says already"),
        (&["--calibration", ROWS, "--observer", "mse", "--method", "llm-int8"], "its own way"),
        (&["--calibration", ROWS, "--method", "stored", "--alpha", "1"], "--alpha: does nothing for what is asked for"),
        (&["--calibration", ROWS, "--method", "awq", "--method-seed", "1"], "--method-seed: does nothing for awq"),
        (&["--calibration", ROWS, "--method", "best"], "rtn, hqq, gptq"),
        (&["--calibration", ROWS, "--method", "rtn:q4_k", "--weight-observer", "mse"], "observed ranges"),
        (&["--calibration", ROWS, "--weight-observer", "entropy"], "supported: minmax, mse, percentile"),
    ] {
        let done = fourbit(&[&["calibrate", MODEL, "--output", &output], words].concat());
        assert!(done.error().contains(expected), "{words:?}: {}", done.error());
    }
    let missing = fourbit(&["calibrate", "no-such-model", "--calibration", ROWS]);
    assert!(missing.error().contains("no-such-model"), "{}", missing.stderr);
    assert_eq!(place.names(), before, "nothing is written");
}

#[test]
fn static_scales_are_written_where_other_tools_find_them() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let rows = fs::read_to_string(ROWS).unwrap();
    let text = place.text("text.txt");
    fs::write(&text, &rows[..4000]).unwrap();
    let recipe = "rtn:int8-channel-sym-f32+a8-percentile-99";
    let reading = ["--data", &text, "--max-tokens", "128", "--max-seq-length", "128", "--json"];
    let compare = [&["compare", MODEL, "--generate", "0", "--methods", recipe], &reading[..], &CALIBRATION[..]];
    let table = fourbit(&compare.concat()).json();
    let measured = [0, 1].map(|row| table["rows"][row]["loss"].as_f64().unwrap());
    let out = place.text("out");
    let words = ["quantize", MODEL, "--scheme", "int8-channel-sym-f32", "--activations", "a8-percentile-99"];
    let done = fourbit(&[&words[..], &["--output", &out, "--json"], &CALIBRATION[..]].concat()).json();
    assert_eq!(done["recipe"], recipe);

    let config: Value = serde_json::from_slice(&fs::read(place.path("out/config.json")).unwrap()).unwrap();
    let inputs = &config["quantization_config"]["config_groups"]["group_0"]["input_activations"];
    assert_eq!((inputs["dynamic"].as_bool(), inputs["strategy"].as_str()), (Some(false), Some("tensor")));
    let weights = fourbit::format::Weights::open(place.path("out/model.safetensors")).unwrap();
    let scale = weights.get("model.layers.1.mlp.down_proj.input_scale").unwrap().to_f32().unwrap();
    assert!(scale.len() == 1 && scale[0] > 0.0, "{scale:?}");
    // Read back, the inputs are rounded as they were measured, which costs far more than the two readings differ by.
    let evaluate = [&["evaluate", "--model", &out], &reading[..]].concat();
    let loss = fourbit(&evaluate).json()["loss"].as_f64().unwrap();
    assert!((loss - measured[1]).abs() < 1e-5, "{loss} and {measured:?}");
    assert!((measured[1] - measured[0]).abs() > 1e-3, "{measured:?}");

    // What the stored model's own rounding costs; its weights lose nothing more.
    let report = fourbit(&[&["calibrate", &out, "--method", "stored", "--json"], &CALIBRATION[..]].concat()).json();
    assert_eq!(report["recipe"], "stored");
    let down = &report["layers"][13];
    assert!((down["input"]["clip"].as_f64().unwrap() / 127.0 - f64::from(scale[0])).abs() < 1e-6, "{down}");
    let clipped = down["input"]["clipped"].as_f64().unwrap();
    assert!(clipped > 0.005 && clipped < 0.012, "a hundredth was to be clipped: {down}");
    assert!(down["weight"]["sqnr"].is_null() && (-0.5..6.0).contains(&gain(down)), "{}: {down}", gain(down));

    for (words, expected) in [
        (
            &["--activations", "a8", "--output", &place.text("out.gguf")][..],
            "activations: a .gguf file cannot tell that inputs are rounded (a8)",
        ),
        (&["--activations", "best", "--output", &out], "a8-static"),
        (&["--activations", "a8", "--output", &place.text("nf4")], "integers (compressed-tensors)"),
        (&["--bits", "8", "--activations", "a8-mse", "--output", &place.text("new")], "--calibration"),
    ] {
        let refused = fourbit(&[&["quantize", MODEL], words].concat());
        assert!(refused.error().contains(expected), "{words:?}: {}", refused.error());
    }
}
