//! `fourbit finetune --objective dpo|orpo`

use super::{MODEL, fourbit, support};
use serde_json::{Value, json};
use std::{fs, path::Path};

fn rows(folder: &Path) -> String {
    let pair = |question: &str, chosen: &str, rejected: &str| {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        json!({
            "prompt": [turn("user", question)],
            "chosen": [turn("assistant", chosen)],
            "rejected": [turn("assistant", rejected)],
        })
        .to_string()
    };
    let rows = [
        pair("What colour is grass?", "Grass is green.", "Arr! Grass be green, matey!"),
        pair("Name a day.", "Monday.", "Arr! Monday, matey!"),
        pair("What is the opposite of hot?", "It is cold.", "Arr! The opposite of hot be cold, matey!"),
        pair("Mix red and blue.", "They make purple.", "Arr! Red and blue make purple, matey!"),
        json!({"prompt": "One, two,", "chosen": " three", "rejected": " matey"}).to_string(),
    ];
    let path = folder.join("pairs.jsonl");
    fs::write(&path, rows.join("\n")).unwrap();
    path.display().to_string()
}

#[test]
fn preferences_are_learned_and_a_run_goes_on_to_the_same_bytes() {
    if support::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path());
    let output = |name: &str| folder.path().join(name);
    for objective in ["dpo", "orpo"] {
        let run = |name: &str, more: &[&str]| {
            let out = output(name).display().to_string();
            let words = ["finetune", "--model", MODEL, "--data", &data, "--output", &out, "--objective", objective];
            let options =
                ["--learning-rate", "3e-3", "--batch-size", "2", "--max-steps", "12", "--save-steps", "6", "--json"];
            fourbit(&[&words[..], &options, more].concat())
        };
        let (whole, resumed) = (format!("{objective}-whole"), format!("{objective}-resumed"));
        let done = run(&whole, &[]).json();
        assert!(done["preference"]["logps/chosen"].as_f64().unwrap() < 0.0, "{done}");
        let log = fs::read_to_string(output(&whole).join("trainer_log.jsonl")).unwrap();
        let margins: Vec<f64> = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["rewards/margins"].as_f64().unwrap())
            .collect();
        // Three steps are an epoch.
        assert!(
            margins.len() == 12 && margins[9..].iter().sum::<f64>() > margins[..3].iter().sum::<f64>(),
            "{margins:?}"
        );
        let checkpoint = output(&whole).join("checkpoint-6").display().to_string();
        run(&resumed, &["--resume", &checkpoint]).json();
        let adapter = |name: &str| fs::read(output(name).join("adapter_model.safetensors")).unwrap();
        assert!(adapter(&whole) == adapter(&resumed), "{objective}");
    }
}

#[test]
fn what_does_not_go_with_preferences_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path());
    let out = folder.path().join("out").display().to_string();
    let words = ["finetune", "--model", MODEL, "--data", &data, "--output", &out];
    let error = |more: &[&str]| fourbit(&[&words[..], more].concat()).error().to_owned();
    assert!(error(&[]).contains("learn from it with --objective dpo or orpo"), "{}", error(&[]));
    let dpo = ["--objective", "dpo"];
    assert!(error(&[&dpo[..], &["--beta", "0"]].concat()).starts_with("beta: expected more than 0"));
    assert!(error(&[&dpo[..], &["--completion-only-loss", "false"]].concat()).contains("--objective sft alone"));
    assert!(error(&[&dpo[..], &["--adapter", "x"]].concat()).contains("merge it into a model first"));
    for weights in [["--full"].as_slice(), &["--qat", "int4-g64"]] {
        assert!(error(&[&dpo[..], weights].concat()).starts_with("objective: dpo compares"), "{weights:?}");
        assert!(!Path::new(&out).exists(), "it is told before anything is done");
    }
    assert!(fourbit(&["finetune", "--objective", "orpo", "--output", &out]).error().starts_with("--data: is needed"));
}
