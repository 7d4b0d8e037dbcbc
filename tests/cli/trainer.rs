//! Runs beside transformers' Trainer (`scripts/make_trainer_golden.py`): steps, epochs, learning rates and losses.

use super::{Place, fourbit, golden, support};
use fourbit::train::{Schedule, Warmup};
use serde_json::Value;
use std::fs;

fn trainer() -> Value {
    let path = golden("../trainer.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("a list, not {value}"))
}

#[test]
fn runs_take_the_steps_of_transformers() {
    if support::gpu().is_none() {
        return;
    }
    let (place, golden_file) = (Place::new(), trainer());
    let (model, adapter) = (golden("model"), golden("adapter_init"));
    for run in list(&golden_file["runs"]) {
        let rows = list(&golden_file["data"])[..run["rows"].as_u64().unwrap() as usize].iter();
        let text: Vec<String> = rows.map(Value::to_string).collect();
        fs::write(place.path("rows.jsonl"), text.join("\n")).unwrap();
        let (out, rows) = (place.text("out"), place.text("rows.jsonl"));
        let [model, adapter] = [&model, &adapter].map(|path| path.to_str().unwrap());
        let mut words = vec!["finetune", "--model", model, "--adapter", adapter, "--data", &rows, "--output", &out];
        words.extend(["--no-shuffle", "--quantization", "none", "--learning-rate", "0.01", "--weight-decay", "0.01"]);
        words.push("--json");
        let mut options = Vec::new();
        for (name, option) in [
            ("per_device_train_batch_size", "--batch-size"),
            ("gradient_accumulation_steps", "--gradient-accumulation-steps"),
            ("num_train_epochs", "--num-train-epochs"),
            ("max_steps", "--max-steps"),
            ("lr_scheduler_type", "--lr-scheduler-type"),
            ("warmup_steps", "--warmup-steps"),
        ] {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            options.extend(run.get(name).into_iter().flat_map(|value| [option.to_owned(), text(value)]));
        }
        words.extend(options.iter().map(String::as_str));
        let done = fourbit(&words).json();
        assert_eq!((&done["steps"], &done["epoch"]), (&run["steps"], &run["epoch"]), "{run}");
        let state: Value = serde_json::from_slice(&fs::read(place.path("out/trainer_state.json")).unwrap()).unwrap();
        let (got, want) = (list(&state["log_history"]), list(&run["log"]));
        assert_eq!(got.len(), want.len(), "{run}");
        for (step, (got, want)) in got.iter().zip(want).enumerate() {
            // f32 sums in another order, through up to nine steps of AdamW, whose first ones divide by tiny moments.
            let fields = [("loss", 1e-3), ("grad_norm", 1e-3), ("learning_rate", 1e-12), ("epoch", 0.0)];
            for ((field, most), want) in fields.into_iter().zip(list(want)) {
                let [got, want] = [&got[field], want].map(|value| value.as_f64().unwrap());
                let close = (got - want).abs() <= most * want.abs();
                assert!(close, "{field} of step {}: {got}, transformers {want}; {run}", step + 1);
            }
        }
    }
}

#[test]
fn schedules_are_those_of_transformers() {
    let golden_file = trainer();
    let schedules = list(&golden_file["schedules"]);
    for entry in schedules {
        let schedule: Schedule = entry["name"].as_str().unwrap().parse().unwrap();
        let total = entry["total"].as_u64().unwrap() as usize;
        let warmup: Warmup = entry["warmup"].to_string().parse().unwrap();
        for (step, want) in list(&entry["factors"]).iter().enumerate() {
            let (got, want) = (schedule.factor(step, warmup.steps(total), total), want.as_f64().unwrap());
            // The cosine may differ in its last bit between libraries.
            assert!((got - want).abs() <= 1e-15, "step {step} of {entry}: {got}");
        }
    }
    let seen = |schedule: &Schedule| schedules.iter().any(|entry| entry["name"] == schedule.name());
    assert!(Schedule::ALL.iter().all(seen), "every schedule is among them");
}

#[test]
fn warmup_is_steps_or_a_share_and_told_where_it_does_nothing() {
    if support::gpu().is_none() {
        return;
    }
    for text in ["1.5", "-1", "nan", "a"] {
        let error = text.parse::<Warmup>().unwrap_err().to_string();
        assert!(error.contains("warmup_steps") && error.contains(text), "{error}");
    }
    let place = Place::new();
    let note = "constant has no warm-up, as in transformers; constant_with_warmup has";
    for (name, told, rate) in [("constant", true, 1e-3), ("constant_with_warmup", false, 0.5e-3)] {
        let words =
            ["--lr-scheduler-type", name, "--warmup-steps", "0.5", "--max-steps", "4", "--learning-rate", "1e-3"];
        let run = place.finetune(&words);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(run.stderr.contains(note), told, "{}", run.stderr);
        let state: Value = serde_json::from_slice(&fs::read(place.path("out/trainer_state.json")).unwrap()).unwrap();
        assert_eq!(state["log_history"][1]["learning_rate"], rate, "two of four steps rise");
    }
}
