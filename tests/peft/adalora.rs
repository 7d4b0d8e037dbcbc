//! AdaLoRA against PEFT's records: the term of the loss, every gradient, and which ranks go at which step.

use super::golden::{IDS, PEFT};
use crate::support::{
    gpu,
    tiny::{assert_relative, batch, floats, golden, load, open, relative},
};
use fourbit::{
    AdaLoraConfig, Model, TrainConfig, Trainer,
    adapter::QatConfig,
    evaluate,
    format::{Safetensors, peft, read_json},
    method::{Merge, PipelineOptions, Rtn, quantize_model},
    model::{Source, load_adapter},
    quant::Scheme,
    train::Schedule,
};
use serde_json::Value;

/// A constant rate of 1e-2, as the records were made with.
fn config(max_steps: usize, max_grad_norm: f64) -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        lr_scheduler_type: Schedule::Constant,
        weight_decay: 0.01,
        max_grad_norm,
        max_steps,
        batch_size: 2,
        max_seq_length: 24,
        ..TrainConfig::default()
    }
}

fn singular(model: &Model) -> Vec<(String, Vec<f32>)> {
    let e = model.store().iter().filter(|(name, _)| name.ends_with(".lora_E"));
    e.map(|(name, parameter)| (name.to_owned(), parameter.values.read::<f32>().unwrap())).collect()
}

#[test]
fn loss_and_every_gradient_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/adalora.safetensors");
    for base in ["tiny/model", "tiny/bnb-nf4-dq"] {
        let mut model = load(&gpu, base);
        model.load_adapter(golden("peft/adalora"), true).unwrap();
        let mut trainer = Trainer::new(model, config(10, 0.0)).unwrap();
        let metrics = trainer.step(&[batch(0)]).unwrap();
        assert_relative("loss", &[metrics.loss as f32], &floats(&want, "loss")[..1], 1e-4);
        let gradients: Vec<_> = trainer.model().store().iter().collect();
        assert_eq!(gradients.len(), 42);
        for (name, parameter) in gradients {
            let got = parameter.grads.as_ref().unwrap().read::<f32>().unwrap();
            assert_relative(name, &got, &floats(&want, &format!("grad/{PEFT}{name}")), 1e-4);
        }
    }
}

#[test]
fn ranks_go_as_peft_takes_them_away() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/adalora.safetensors");
    let losses = floats(&want, "loss");
    let mut model = load(&gpu, "tiny/bnb-nf4-dq");
    model.load_adapter(golden("peft/adalora"), true).unwrap();
    let mut trainer = Trainer::new(model, config(10, 0.0)).unwrap();
    let mut ranks = Vec::new();
    for step in 0..10 {
        let metrics = trainer.step(&[batch(step % 4)]).unwrap();
        assert_relative(&format!("step {step}"), &[metrics.loss as f32], &losses[step..][..1], 1e-3);
        let all = singular(trainer.model());
        for (name, got) in &all {
            let want = floats(&want, &format!("E/{step}/{PEFT}{name}"));
            let zero = |values: &[f32]| values.iter().map(|v| *v == 0.0).collect::<Vec<_>>();
            assert_eq!(zero(got), zero(&want), "step {step}: {name}");
            if want.iter().any(|v| *v != 0.0) {
                assert_relative(&format!("step {step}: {name}"), got, &want, 2e-3);
            }
        }
        ranks.push(all.iter().flat_map(|(_, e)| e).filter(|e| **e != 0.0).count());
    }
    assert_eq!(ranks, [84, 84, 84, 60, 44, 35, 30, 28, 28, 28]);
    let logits = |model: &Model| evaluate::logits(model, &IDS).unwrap();
    let learned = logits(trainer.model());
    assert_relative("logits", &learned, &floats(&want, "logits"), 2e-3);

    // Written as PEFT writes it: without the ranks that are gone.
    let folder = tempfile::tempdir().unwrap();
    trainer.model().save_adapter(folder.path(), Some("tiny")).unwrap();
    let got = Safetensors::open(folder.path().join(peft::TENSORS)).unwrap();
    let theirs = open(&format!("peft/adalora-final/{}", peft::TENSORS));
    assert_eq!(got.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
    for name in theirs.names() {
        assert_eq!(got.get(name).unwrap().shape, theirs.get(name).unwrap().shape, "{name}");
        let end = floats(&theirs, name);
        if !end.is_empty() {
            assert_relative(name, &floats(&got, name), &end, 5e-3);
        }
    }
    let [mut ours, theirs] =
        [folder.path().join(peft::CONFIG), golden(&format!("peft/adalora-final/{}", peft::CONFIG))]
            .map(|path| read_json::<Value>(path).unwrap());
    ours["target_modules"].as_array_mut().unwrap().sort_by_key(|name| name.to_string());
    for (field, value) in ours.as_object().unwrap() {
        assert_eq!(value, &theirs[field], "{field}");
    }
    let mut fresh = load(&gpu, "tiny/bnb-nf4-dq");
    fresh.load_adapter(folder.path(), false).unwrap();
    assert_relative("read back", &logits(&fresh), &learned, 1e-5);
    let error = fresh.load_adapter(folder.path(), true).unwrap_err().to_string();
    assert!(error.contains("rank_pattern") && error.contains("checkpoint"), "{error}");
}

#[test]
fn other_intervals_and_clipped_gradients() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/adalora-clipped.safetensors");
    let losses = floats(&want, "loss");
    let mut model = load(&gpu, "tiny/model");
    let schedule = AdaLoraConfig {
        init_r: 4,
        target_r: 1,
        tinit: 1,
        tfinal: 4,
        delta_t: 3,
        beta1: 0.7,
        beta2: 0.9,
        orth_reg_weight: 0.1,
        ..AdaLoraConfig::new(14)
    };
    model.add_adapter(schedule, true).unwrap();
    for (name, parameter) in model.store().iter() {
        let values = floats(&want, &format!("param/{PEFT}{name}"));
        parameter.values.write(bytemuck::cast_slice(&values)).unwrap();
    }
    let mut trainer = Trainer::new(model, config(14, 1.0)).unwrap();
    let mut ranks = Vec::new();
    for step in 0..14 {
        let metrics = trainer.step(&[batch(step % 4)]).unwrap();
        assert_relative(&format!("step {step}"), &[metrics.loss as f32], &losses[step..][..1], 1e-3);
        let all = singular(trainer.model());
        for (name, got) in &all {
            let want = floats(&want, &format!("E/{step}/{PEFT}{name}"));
            let zero = |values: &[f32]| values.iter().map(|v| *v == 0.0).collect::<Vec<_>>();
            assert_eq!(zero(got), zero(&want), "step {step}: {name}");
        }
        ranks.push(all.iter().flat_map(|(_, e)| e).filter(|e| **e != 0.0).count());
    }
    assert_eq!(
        ranks,
        [56, 56, 56, 33, 56, 56, 17, 56, 56, 14, 14, 14, 14, 14],
        "what was taken away learns again in between"
    );
    assert_relative("logits", &evaluate::logits(trainer.model(), &IDS).unwrap(), &floats(&want, "logits"), 5e-3);
}

/// PEFT's own folder after the allocation, in which two layers have no rank at all.
#[test]
fn what_peft_saved_is_read_and_merged() {
    let Some(gpu) = gpu() else { return };
    let want = floats(&open("peft/adalora.safetensors"), "logits");
    let mut model = load(&gpu, "tiny/model");
    let base = evaluate::logits(&model, &IDS).unwrap();
    model.load_adapter(golden("peft/adalora-final"), false).unwrap();
    let logits = evaluate::logits(&model, &IDS).unwrap();
    assert_relative("logits", &logits, &want, 1e-4);
    assert!(relative(&base, &want) > 1e-2, "the adapter says nothing");
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path(), None).unwrap();
    model.load_adapter(folder.path(), false).unwrap();
    assert_eq!(evaluate::logits(&model, &IDS).unwrap(), logits, "saved again");

    let source = Source::open(golden("tiny/model")).unwrap();
    let adapter = load_adapter(&gpu, source.arch(), golden("peft/adalora-final"), false, &|_| Ok(None)).unwrap();
    let method = Merge::new(Box::new(Rtn { scheme: Scheme::F32 }), &adapter).unwrap();
    let options = PipelineOptions::default();
    let merged = quantize_model(&gpu, &source, &method, &options, &[IDS.to_vec()], |_| Ok(())).unwrap();
    assert_relative("merged", &evaluate::logits(&merged, &IDS).unwrap(), &want, 1e-4);
    // Two layers have no update of which something could be left.
    let kept = method.kept();
    assert_eq!(kept.len(), 12);
    assert!(kept.iter().all(|kept| (kept.share - 1.0).abs() < 1e-3), "{kept:?}");
    let error = model.add_qat(QatConfig::new(Scheme::int(4, 16)), true).unwrap_err().to_string();
    assert!(error.contains("AdaLoRA"), "{error}");
}

/// With dropped inputs and two micro-batches a step.
#[test]
fn the_same_seed_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let run = || {
        let mut model = load(&gpu, "tiny/bnb-nf4-dq");
        let base = evaluate::logits(&model, &IDS).unwrap();
        let schedule = AdaLoraConfig { init_r: 4, target_r: 2, lora_dropout: 0.1, ..AdaLoraConfig::new(6) };
        model.add_adapter(schedule, true).unwrap();
        assert_relative("new", &evaluate::logits(&model, &IDS).unwrap(), &base, 1e-6);
        let config = TrainConfig { gradient_accumulation_steps: 2, ..config(6, 1.0) };
        let mut trainer = Trainer::new(model, config).unwrap();
        for step in 0..6 {
            trainer.step(&[batch(step % 4), batch((step + 1) % 4)]).unwrap();
        }
        (singular(trainer.model()), evaluate::logits(trainer.model(), &IDS).unwrap())
    };
    let first = run();
    assert_eq!(first, run());
    assert!(first.0.iter().flat_map(|(_, e)| e).any(|e| *e == 0.0));
}
