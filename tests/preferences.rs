//! DPO and ORPO beside TRL's: what rows become, loss, metrics, gradients and steps. The golden and how it was made:
//! tests/golden/preference.json and scripts/make_preference_golden.py.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::{
    adapter::LoraConfig,
    data::{Batch, DataLoader, DataOptions, Dataset, Example, IGNORE, LoaderOptions, Row},
    gpu::Gpu,
    model::{Model, Quantization},
    train::{Objective, Schedule, StepMetrics, TrainConfig, Trainer},
};
use serde_json::Value;
use support::{embedded, golden::Golden, gpu};

const MODULES: [&str; 3] = ["q_proj", "v_proj", "down_proj"];

fn golden() -> Value {
    fourbit::format::read_json(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/preference.json")).unwrap()
}

fn rows(values: &Value) -> Vec<Row> {
    values.as_array().unwrap().iter().map(|row| Row::from_fields(row.as_object().unwrap()).unwrap()).collect()
}

fn options(length: usize) -> DataOptions {
    DataOptions { pairs: true, ..DataOptions::new(length, 1024) }
}

fn dataset(values: &Value) -> Dataset {
    Dataset::from_rows(&rows(values), Some(&embedded::tokenizer()), &options(512)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn rows_become_the_tokens_that_trl_makes_of_them() {
    let golden = golden();
    for (data, prepared) in [("data", "rows"), ("texts", "rows_of_texts"), ("implicit", "rows_of_implicit")] {
        let dataset = dataset(&golden[data]);
        let want = golden[prepared].as_array().unwrap();
        assert_eq!((dataset.len(), dataset.is_paired()), (2 * want.len(), true), "{data}");
        for (pair, want) in want.iter().enumerate() {
            for (which, answer) in ["chosen_ids", "rejected_ids"].into_iter().enumerate() {
                let (prompt, answer) = (ids(&want["prompt_ids"]), ids(&want[answer]));
                let example = dataset.example(2 * pair + which).unwrap();
                assert_eq!(example.input_ids, [&prompt[..], &answer].concat(), "{data} {pair} {which}");
                let labels = prompt.iter().map(|_| IGNORE).chain(answer.iter().map(|&id| id as i32));
                assert_eq!(example.labels, labels.collect::<Vec<i32>>(), "{data} {pair} {which}");
            }
        }
    }
}

/// The golden's adapter on the embedded model in floats, to be trained as the golden was.
fn trainer(gpu: &Gpu, objective: Objective) -> Trainer {
    let mut model = embedded::load(gpu, Quantization::AsStored);
    let lora = LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        target_modules: MODULES.map(str::to_owned).to_vec(),
        ..LoraConfig::default()
    };
    model.add_adapter(lora, true).unwrap();
    let golden = Golden::open("preference.safetensors");
    for (module, lora) in model.adapted() {
        for (side, tensor) in [("A", &lora.a.values), ("B", &lora.b.values)] {
            let values = golden.f32(&format!("adapter.{module}.lora_{side}"));
            tensor.write(bytemuck::cast_slice(&values)).unwrap();
        }
    }
    let config = TrainConfig {
        objective,
        learning_rate: 1e-3,
        lr_scheduler_type: Schedule::Constant,
        max_steps: 10,
        batch_size: 3,
        max_seq_length: 64,
        ..TrainConfig::default()
    };
    Trainer::new(model, config).unwrap()
}

fn objective(kind: &str) -> Objective {
    match kind {
        "dpo" => Objective::Dpo { beta: Objective::BETA },
        _ => Objective::Orpo { beta: Objective::BETA },
    }
}

/// All rows in one batch, as TRL's trainer of this kind has them.
fn batch(kind: &str) -> Batch {
    let golden = golden();
    if kind == "dpo" {
        let options = LoaderOptions { batch_size: 3, shuffle: false, ..LoaderOptions::default() };
        return DataLoader::new(dataset(&golden["data"]), options).unwrap().next_batch().unwrap();
    }
    let mut examples = Vec::new();
    for row in golden[kind]["rows"].as_array().unwrap() {
        for answer in ["chosen", "rejected"] {
            let labels = row[format!("{answer}_labels")].as_array().unwrap();
            examples.push(Example {
                input_ids: ids(&row[format!("{answer}_input_ids")]),
                labels: labels.iter().map(|label| label.as_i64().unwrap() as i32).collect(),
                attention_mask: None,
            });
        }
    }
    Batch::collate(&examples.iter().collect::<Vec<_>>(), 0)
}

/// `most` is relative: TRL's figures are of f32 sums in another order. Below 1e-2, where differences of log-probabilities cancel, it is a
/// part of that.
#[track_caller]
fn assert_near(what: &str, got: f64, want: f64, most: f64) {
    assert!((got - want).abs() <= most * want.abs().max(1e-2), "{what}: {got}, expected {want}");
}

#[test]
fn losses_metrics_and_gradients_are_those_of_trl() {
    let Some(gpu) = gpu() else { return };
    let (golden, tensors) = (golden(), Golden::open("preference.safetensors"));
    for kind in ["dpo", "orpo"] {
        let mut trainer = trainer(&gpu, objective(kind));
        let step = trainer.step(&[batch(kind)]).unwrap();
        let want = |name: &str| golden[kind]["metrics"][name].as_f64();
        assert_near(kind, step.loss, golden[kind]["loss"].as_f64().unwrap(), 1e-4);
        let line = serde_json::to_value(&step).unwrap();
        let mut compared = 0;
        for (name, got) in line.as_object().unwrap() {
            if let (Some(want), Some(got)) = (want(name).filter(|_| name != "num_tokens"), got.as_f64()) {
                assert_near(&format!("{kind} {name}"), got, want, 1e-4);
                compared += 1;
            }
        }
        assert_eq!(compared, if kind == "dpo" { 7 } else { 9 }, "{line}");
        for (module, lora) in trainer.model().adapted() {
            for (side, parameter) in [("A", lora.a), ("B", lora.b)] {
                let name = format!("{kind}.{module}.lora_{side}");
                let (got, want) = (parameter.grads.unwrap().read::<f32>().unwrap(), tensors.f32(&name));
                let largest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-4 * largest, "{name}: {worst:e} of {largest:e}");
            }
        }
    }
}

#[test]
fn ten_steps_follow_trl() {
    let Some(gpu) = gpu() else { return };
    for kind in ["dpo", "orpo"] {
        let mut trainer = trainer(&gpu, objective(kind));
        let batch = batch(kind);
        for (number, want) in golden()[kind]["steps"].as_array().unwrap().iter().enumerate() {
            let step = trainer.step(std::slice::from_ref(&batch)).unwrap();
            let [loss, norm, margin] = [0, 1, 2].map(|at| want[at].as_f64().unwrap());
            assert_near(&format!("{kind} loss of step {number}"), step.loss, loss, 1e-3);
            assert_near(&format!("{kind} norm of step {number}"), step.grad_norm, norm, 1e-3);
            let margins = step.preference.unwrap().rewards_margins;
            assert_near(&format!("{kind} margin of step {number}"), margins, margin, 1e-3);
        }
    }
}

/// Pairs count the same wherever they lie: in one batch, in several, with references that are known already or not.
#[test]
fn pairs_in_several_batches_are_those_of_one() {
    let Some(gpu) = gpu() else { return };
    let whole = batch("dpo");
    let apart: Vec<Batch> = {
        let options = LoaderOptions { batch_size: 1, shuffle: false, ..LoaderOptions::default() };
        let mut loader = DataLoader::new(dataset(&golden()["data"]), options).unwrap();
        loader.next_step(3).unwrap()
    };
    assert_eq!((whole.pairs.clone(), apart.len(), apart[2].pairs.clone()), (vec![0, 1, 2], 3, vec![2]));
    for kind in ["dpo", "orpo"] {
        let run = |batches: &[Batch]| -> Vec<StepMetrics> {
            let mut trainer = trainer(&gpu, objective(kind));
            (0..3).map(|_| trainer.step(batches).unwrap()).collect()
        };
        for (one, several) in run(std::slice::from_ref(&whole)).iter().zip(run(&apart)) {
            assert_near("loss", several.loss, one.loss, 1e-5);
            assert_near("norm", several.grad_norm, one.grad_norm, 1e-4);
            let [one, several] = [one, &several].map(|step| step.preference.clone().unwrap());
            assert_near("margin", several.rewards_margins, one.rewards_margins, 1e-4);
            assert_near("accuracy", several.rewards_accuracies, one.rewards_accuracies, 1e-6);
        }
    }
    // Nobody numbered these: their references are computed anew, to the same bits.
    let unnumbered = Batch { pairs: Vec::new(), ..whole.clone() };
    let run = |batch: &Batch| {
        let mut trainer = trainer(&gpu, objective("dpo"));
        let losses: Vec<f64> = (0..2).map(|_| trainer.step(std::slice::from_ref(batch)).unwrap().loss).collect();
        losses
    };
    assert_eq!(run(&unnumbered), run(&whole));
}

/// TRL's `extract_prompt`: a blank in front of the answers is theirs where they part, not where one of them ends first.
#[test]
fn a_prompt_that_is_not_given_is_what_both_answers_begin_with() {
    for (chosen, rejected, prompt) in [
        ("the sky is blue", "the sky is green", "the sky is"),
        ("a b", "a bc", "a "),
        ("a b", "a b", "a "),
        ("naïve 😀 yes", "naïve 😁 no", "naïve"),
        ("yes", "no", ""),
        ("", "no", ""),
    ] {
        let row = serde_json::json!({"chosen": chosen, "rejected": rejected});
        let [a, b] = [chosen, rejected].map(|text| text.strip_prefix(prompt).unwrap().to_owned());
        let expected = Row::Preference { prompt: prompt.to_owned(), chosen: a, rejected: b };
        assert_eq!(Row::from_fields(row.as_object().unwrap()).unwrap(), expected);
    }
}

#[test]
fn what_is_no_pair_is_refused() {
    let tokenizer = embedded::tokenizer();
    let load = |row: Value, options: &DataOptions| {
        let row = Row::from_fields(row.as_object().unwrap()).map_err(|e| e.to_string())?;
        Dataset::from_rows(&[row], Some(&tokenizer), options).map_err(|e| e.to_string())
    };
    let pair = serde_json::json!({"prompt": "a", "chosen": "b", "rejected": "c"});
    let error = load(pair.clone(), &DataOptions::new(64, 1024)).unwrap_err();
    assert!(error.contains("`objective` dpo or orpo") && error.contains("{prompt, completion}"), "{error}");
    let error = load(serde_json::json!({"prompt": "a", "completion": "b"}), &options(64)).unwrap_err();
    assert!(error.contains("expected two answers"), "{error}");
    let user = serde_json::json!([{"role": "user", "content": "a"}]);
    for (row, words) in [
        (serde_json::json!({"prompt": user, "chosen": "b", "rejected": "c"}), "three strings or three lists"),
        (serde_json::json!({"prompt": "a", "chosen": user, "rejected": "c"}), "three strings or three lists"),
        (serde_json::json!({"prompt": user, "chosen": [], "rejected": user}), "chosen: expected at least one message"),
        (serde_json::json!({"prompt": "x", "chosen": user, "rejected": user}), "is not the last turn that chosen"),
    ] {
        let error = load(row, &options(64)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    // An answer that is cut away leaves nothing to compare.
    let long = serde_json::json!({"prompt": "a b c d e f g h i j k l m n", "chosen": "b", "rejected": "c"});
    let error = load(long, &options(4)).unwrap_err();
    assert!(error.contains("raise `max_seq_length`"), "{error}");
    let options = LoaderOptions { packing: Some(64), ..LoaderOptions::default() };
    let error = DataLoader::new(load(pair, &self::options(64)).unwrap(), options).unwrap_err().to_string();
    assert!(error.contains("packing"), "{error}");

    let Some(gpu) = gpu() else { return };
    let mut trainer = trainer(&gpu, objective("orpo"));
    let odd = Batch::collate(&[&Example { input_ids: vec![1, 2], labels: vec![1, 2], attention_mask: None }], 0);
    let error = trainer.step(&[odd]).unwrap_err().to_string();
    assert!(error.contains("expected pairs of rows, got 1 rows"), "{error}");
    let mut model: Model = embedded::load(&gpu, Quantization::AsStored);
    model.add_adapter(LoraConfig::default(), true).unwrap();
    let config = TrainConfig { objective: Objective::Dpo { beta: 0.0 }, ..TrainConfig::default() };
    assert!(Trainer::new(model, config).err().unwrap().to_string().contains("beta"));
}
