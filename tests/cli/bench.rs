//! `fourbit bench`: what it lists, prints, writes and compares.

use super::{fourbit, support};
use serde_json::Value;
use std::fs;

/// A case that is measured in a moment.
const CASE: &str = "layers/add";

#[test]
fn what_would_be_measured_is_listed() {
    if support::gpu().is_none() {
        return;
    }
    let all = fourbit(&["bench", "--list", "--shape", "smollm2-135m"]).stdout;
    let names: Vec<&str> = all.lines().collect();
    for name in ["limits", "model/step", "host/replay", "product/y/nf4-g64/256x576x1536", "method/gptq/576x1536"] {
        assert!(names.contains(&name), "{name}: {all}");
    }
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), names.len(), "no name twice");
    assert!(names.iter().all(|name| name.len() <= 50), "names are short");
    let some = fourbit(&["bench", "--list", "--json", "product/dx/q4", "limits"]).json();
    let some = some["names"].as_array().unwrap();
    assert!(some.len() == 4 && some.iter().all(|name| name == "limits" || name.as_str().unwrap().contains("dx/q4")));
    let larger = fourbit(&["bench", "--list", "--shape", "llama-2-7b", "product/dx"]).stdout;
    assert!(larger.contains("dx/nf4-g64/1024x4096x11008"), "{larger}");
}

#[test]
fn results_are_printed_written_and_compared() {
    if support::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (first, second, svg, shared) = (path("a.json"), path("b.json"), path("a.svg"), path("shared.json"));
    let files = ["--save", &first, "--share", &shared, "--svg", &svg];
    let words = ["bench", CASE, "hadamard", "limits", "--repeat", "2", "--json"];
    let line = fourbit(&[&words[..], &files].concat()).json();
    assert_eq!((&line["schema"], line["cases"].as_array().unwrap().len()), (&Value::from(1), 2));
    for case in line["cases"].as_array().unwrap() {
        assert_eq!(case["wall"].as_array().unwrap().len(), 2);
        assert!(case["seconds"].as_f64().unwrap() > 0.0 && case["of_limit"].as_f64().unwrap() > 0.0);
    }
    assert!(line["limits"]["gflops"].as_f64().unwrap() > 0.0);
    let saved: Value = serde_json::from_str(&fs::read_to_string(&first).unwrap()).unwrap();
    assert_eq!(saved, line);
    let text = fs::read_to_string(&shared).unwrap();
    assert!(!text.contains(&folder.path().display().to_string()) && text.contains(CASE.split('/').next().unwrap()));
    assert!(fs::read_to_string(&svg).unwrap().contains("operations a byte"));

    // The same file is the same; one whose times are twice as long is slower, and one without a case lacks it.
    let done = fourbit(&["bench", "--compare", &first, &first]);
    assert!(done.code == 0 && done.stdout.contains("0 slower, 0 faster, 2 alike"), "{}{}", done.stdout, done.stderr);
    let mut slower = saved.clone();
    for case in slower["cases"].as_array_mut().unwrap() {
        for list in ["wall", "processor"] {
            case[list].as_array_mut().unwrap().iter_mut().for_each(|s| *s = (s.as_f64().unwrap() * 9.0).into());
        }
    }
    fs::write(&second, slower.to_string()).unwrap();
    let done = fourbit(&["bench", "--compare", &first, &second]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("2 slower, 0 faster"), "{}", done.stdout);
    assert!(done.stderr.contains("2 slower beyond noise"), "{}", done.stderr);
    assert_eq!(fourbit(&["bench", "--compare", &second, &first]).code, 0, "faster is no failure");
    slower["cases"].as_array_mut().unwrap().remove(0);
    fs::write(&second, slower.to_string()).unwrap();
    let done = fourbit(&["bench", "--compare", &second, &first]);
    assert!(done.code == 1 && done.stderr.contains("1 in one file only"), "{}", done.stderr);
}

#[test]
fn tables_have_a_line_for_each_case() {
    if support::gpu().is_none() {
        return;
    }
    let csv = fourbit(&["bench", CASE, "--repeat", "1", "-o", "csv"]);
    let lines: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!(lines[0], "family,case,milliseconds,gflops,gb_per_second,percent_of_limit,limit");
    assert!(lines.len() == 2 && lines[1].starts_with("layers,add/1024x576,") && lines[1].ends_with(",memory"));
    let table = fourbit(&["bench", CASE, "--repeat", "1"]).stdout;
    assert!(table.contains("\nlayers: norms") && table.contains("\nadd/1024x576 "), "{table}");
    let md = fourbit(&["bench", CASE, "--repeat", "1", "-o", "md"]).stdout;
    assert!(md.contains("| add/1024x576 | "), "{md}");
}

#[test]
fn a_step_and_generation_of_a_shape_are_measured() {
    if support::gpu().is_none() {
        return;
    }
    let words = ["bench", "model/", "--model", super::MODEL, "--max-seq-length", "64", "--repeat", "1", "--json"];
    let model = &fourbit(&words).json()["models"][0];
    let planned = model["planned_bytes"].as_f64().unwrap();
    let peak = model["peak_bytes"].as_f64().unwrap();
    assert!((peak / planned - 1.0).abs() < 0.02, "{peak} bytes, planned {planned}");
    assert!(model["error"].is_null() && model["kernels"].as_array().unwrap().len() > 10, "{model}");
    for (what, tokens) in [("step", 64), ("pp512", 512), ("tg128", 128)] {
        assert_eq!(model[what]["tokens"], tokens, "{what}");
        assert!(model[what]["seconds"].as_f64().unwrap() > 0.0);
    }
    let done = fourbit(&["bench", "host/", "--model", super::MODEL, "--max-seq-length", "64", "--repeat", "1"]);
    assert!(done.stdout.contains("us of processor time a dispatch"), "{}{}", done.stdout, done.stderr);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    if support::gpu().is_none() {
        return;
    }
    for (words, expected) in [
        (&["bench", "nothing-of-this-name"][..], "is in no name; --list prints them"),
        (&["bench", "limits", "--repeat", "0"], "--repeat: expected at least 1, got 0"),
        (&["bench", "limits", "--shape", "gpt-2"], "unsupported shape: gpt-2; supported: smollm2-135m"),
        (&["plan", "--shape", "smollm2-135m", "--data", "rows.jsonl"], "--data: needs a model's files"),
        (&["plan", "--shape", "smollm2-135m", "--blocks", "31"], "--blocks: smollm2-135m has 30 blocks, expected 1 to"),
        (&["bench", "--compare", "Cargo.toml", "Cargo.toml"], "no results of fourbit bench"),
        (&["plan", "--memory-budget", "6 apples"], "--memory-budget: expected bytes, as 1500000000, 1.5GB or 1.5GiB"),
    ] {
        let done = fourbit(words);
        assert!(done.code == 1 && done.error().contains(expected), "{words:?}: {}", done.error());
    }
}

/// A budget of memory is kept by computing blocks again, as few as that takes; one that is too little is told.
#[test]
fn a_budget_of_memory_is_planned() {
    if support::gpu().is_none() {
        return;
    }
    let plan = |more: &[&str]| {
        let words = ["plan", "--shape", "smollm2-135m", "--double-quant", "--max-seq-length", "512", "--json"];
        fourbit(&[&words[..], more].concat()).json()
    };
    let number = |plan: &serde_json::Value, name: &str| plan[name].as_u64().unwrap();
    let whole = plan(&[]);
    assert!(whole["memory_budget_bytes"].is_null() && number(&whole, "checkpointed_blocks") == 0);
    let mut before = (0, number(&whole, "peak_bytes"));
    for budget in [600_000_000, 500_000_000, 400_000_000] {
        let within = plan(&["--memory-budget", &budget.to_string()]);
        let now = (number(&within, "checkpointed_blocks"), number(&within, "peak_bytes"));
        assert!(
            now.0 > before.0 && now.0 < 30 && now.1 < before.1 && now.1 <= budget,
            "{budget}: {now:?} after {before:?}"
        );
        before = now;
    }
    let least = plan(&["--memory-budget", "50MB"]);
    assert!(number(&least, "checkpointed_blocks") == 30 && number(&least, "peak_bytes") > 50_000_000, "{least}");
    let said = fourbit(&["plan", "--shape", "smollm2-135m", "--memory-budget", "50MB"]);
    assert!(said.stdout.contains("which is too little"), "{}", said.stdout);
}

/// The plan of a model far larger than any device here takes a moment, and holds what its weights take.
#[test]
fn the_largest_shape_is_planned() {
    if support::gpu().is_none() {
        return;
    }
    let words =
        ["plan", "--shape", "llama-3.1-70b", "--double-quant", "--gradient-checkpointing", "--max-seq-length", "512"];
    let start = std::time::Instant::now();
    let plan = fourbit(&[&words[..], &["--json"]].concat()).json();
    eprintln!("planned in {:.2} s", start.elapsed().as_secs_f64());
    let weights = plan["weights_bytes"].as_f64().unwrap();
    // 68.5 G numbers of 4.127 bits in the blocks, 2.1 G of 16 outside.
    let expected = 68.45e9 * 4.127 / 8.0 + 2.101e9 * 2.0;
    assert!((weights / expected - 1.0).abs() < 0.005, "{weights}, not {expected}");
}
