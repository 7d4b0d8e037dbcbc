//! Against PEFT's own records.

use crate::support::{
    gpu,
    tiny::{assert_relative, batch, config, floats, golden, load, open, relative},
};
use fourbit::{
    Ia3Config, LoraConfig, Model, TrainConfig, Trainer,
    adapter::QatConfig,
    evaluate,
    format::{Safetensors, peft, read_json},
    generate::{Generator, Sampling},
    method::{Merge, PipelineOptions, Rtn, quantize_model},
    model::{Source, load_adapter},
    quant::Scheme,
};
use serde_json::Value;

const KINDS: [&str; 2] = ["dora", "ia3"];
pub(crate) const PEFT: &str = "base_model.model.";

/// Floats, and the same numbers in NF4 with double quantization.
#[test]
fn loss_and_every_gradient_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    for (kind, (base, checkpointing)) in KINDS.into_iter().flat_map(|kind| {
        [("tiny/model", false), ("tiny/bnb-nf4-dq", false), ("tiny/bnb-nf4-dq", true)].map(|c| (kind, c))
    }) {
        let want = open(&format!("peft/{kind}.safetensors"));
        let mut model = load(&gpu, base);
        model.load_adapter(golden(&format!("peft/{kind}")), true).unwrap();
        let config = TrainConfig { gradient_checkpointing: checkpointing, ..config() };
        let mut trainer = Trainer::new(model, config).unwrap();
        let metrics = trainer.step(&[batch(0)]).unwrap();
        assert_relative(kind, &[metrics.loss as f32], &floats(&want, "loss")[..1], 1e-4);
        let mut compared = 0;
        for (name, parameter) in trainer.model().store().iter() {
            let got = parameter.grads.as_ref().unwrap().read::<f32>().unwrap();
            let golden = floats(&want, &format!("grad/{PEFT}{name}"));
            assert_relative(&format!("{kind} on {base}: gradient of {name}"), &got, &golden, 1e-4);
            compared += 1;
        }
        assert_eq!(compared, if kind == "dora" { 42 } else { 6 });
    }
}

#[test]
fn twenty_steps_of_adamw_follow_pytorch_and_are_written_as_peft_does() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        let want = open(&format!("peft/{kind}.safetensors"));
        let (losses, norms) = (floats(&want, "loss"), floats(&want, "grad_norm"));
        let mut model = load(&gpu, "tiny/bnb-nf4-dq");
        model.load_adapter(golden(&format!("peft/{kind}")), true).unwrap();
        let mut trainer = Trainer::new(model, config()).unwrap();
        for step in 0..20 {
            let metrics = trainer.step(&[batch(step % 4)]).unwrap();
            let what = format!("{kind}, step {step}");
            assert_relative(&what, &[metrics.loss as f32], &losses[step..][..1], 1e-3);
            assert_relative(&what, &[metrics.grad_norm as f32], &norms[step..][..1], 1e-3);
        }
        let folder = tempfile::tempdir().unwrap();
        trainer.model().save_adapter(folder.path(), Some("tiny")).unwrap();
        let (got, theirs) = (
            Safetensors::open(folder.path().join(peft::TENSORS)).unwrap(),
            open(&format!("peft/{kind}/{}", peft::TENSORS)),
        );
        assert_eq!(got.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
        for name in theirs.names() {
            assert_eq!(got.get(name).unwrap().shape, theirs.get(name).unwrap().shape, "{name}");
            let end = floats(&want, &format!("final/{name}"));
            assert_relative(name, &floats(&got, name), &end, 1e-3);
            assert!(relative(&floats(&theirs, name), &end) > 1e-3, "{name} has not learned");
        }
        let [mut ours, theirs] = [folder.path().join(peft::CONFIG), golden(&format!("peft/{kind}/{}", peft::CONFIG))]
            .map(|path| read_json::<Value>(path).unwrap());
        for field in ["target_modules", "feedforward_modules"] {
            if let Some(names) = ours[field].as_array_mut() {
                names.sort_by_key(|name| name.to_string());
            }
        }
        for (field, value) in ours.as_object().unwrap() {
            assert_eq!(value, &theirs[field], "{kind}: {field}");
        }
        // What was learned is heard at once: the norms are those of the last step.
        let ids = &batch(0).input_ids[..24];
        let now = evaluate::logits(trainer.model(), ids).unwrap();
        let mut fresh = load(&gpu, "tiny/bnb-nf4-dq");
        fresh.load_adapter(folder.path(), false).unwrap();
        assert_eq!(now, evaluate::logits(&fresh, ids).unwrap(), "{kind}");
        let speak = |model: &Model| {
            let sampling = Sampling { max_new_tokens: 12, ..Sampling::default() };
            Generator::new(model, 64).unwrap().generate(&[7, 8, 9], &sampling, &[], |_| Ok(true)).unwrap()
        };
        assert_eq!(speak(trainer.model()), speak(&fresh));
    }
}

pub(crate) const IDS: [u32; 10] = [3, 10, 17, 24, 31, 38, 45, 52, 59, 66];

/// Qwen 2, whose layers have biases: beside the base, saved again, and as a part of its floats.
#[test]
fn layers_with_biases_are_changed_as_peft_changes_them() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/qwen2.safetensors");
    let source = Source::open(golden("families/qwen2")).unwrap();
    let mut model = load(&gpu, "families/qwen2");
    let logits = |model: &Model| evaluate::logits(model, &IDS).unwrap();
    assert_relative("none", &logits(&model), &floats(&want, "none"), 1e-4);
    for kind in KINDS {
        let folder = golden(&format!("peft/qwen2-{kind}"));
        model.load_adapter(&folder, false).unwrap();
        let (before, golden) = (logits(&model), floats(&want, kind));
        assert_relative(kind, &before, &golden, 1e-4);
        assert!(relative(&floats(&want, "none"), &golden) > 1e-2, "{kind} says nothing");
        let again = tempfile::tempdir().unwrap();
        model.save_adapter(again.path(), None).unwrap();
        model.load_adapter(again.path(), false).unwrap();
        assert_eq!(logits(&model), before, "{kind} saved again");

        let adapter = load_adapter(&gpu, source.arch(), &folder, false, &|_| Ok(None)).unwrap();
        let method = Merge::new(Box::new(Rtn { scheme: Scheme::F32 }), &adapter).unwrap();
        let options = PipelineOptions::default();
        let merged = quantize_model(&gpu, &source, &method, &options, &[IDS.to_vec()], |_| Ok(())).unwrap();
        assert_relative(&format!("{kind} merged"), &logits(&merged), &golden, 1e-4);
        assert!(method.kept().is_empty());
    }
    model.detach().unwrap();
    assert_relative("detached", &logits(&model), &floats(&want, "none"), 1e-4);
}

#[test]
fn new_ones_change_nothing_yet_and_the_same_seed_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let base = evaluate::logits(&load(&gpu, "tiny/bnb-nf4-dq"), &IDS).unwrap();
    let run = |add: &dyn Fn(&mut Model)| {
        let mut model = load(&gpu, "tiny/bnb-nf4-dq");
        add(&mut model);
        assert_relative("new", &evaluate::logits(&model, &IDS).unwrap(), &base, 1e-5);
        let mut trainer = Trainer::new(model, TrainConfig { warmup_steps: 0, ..config() }).unwrap();
        for step in 0..3 {
            trainer.step(&[batch(step)]).unwrap();
        }
        let learned = evaluate::logits(trainer.model(), &IDS).unwrap();
        assert!(relative(&learned, &base) > 1e-4, "nothing was learned");
        learned
    };
    let dora = |model: &mut Model| {
        let lora = LoraConfig { r: 4, lora_dropout: 0.2, use_dora: true, use_rslora: true, ..LoraConfig::default() };
        model.add_adapter(lora, true).unwrap();
    };
    let ia3 = |model: &mut Model| {
        model.add_adapter(Ia3Config::default(), true).unwrap();
        let names: Vec<&str> = model.store().iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 6);
        assert!(names[2].ends_with("0.mlp.down_proj.ia3_l"), "{names:?}");
        assert_eq!(model.trained(names[2]).unwrap().values.shape().dims(), [1, 176]);
        assert_eq!(model.trained(names[0]).unwrap().values.shape().dims(), [32, 1]);
    };
    assert_eq!(run(&dora), run(&dora));
    assert_eq!(run(&ia3), run(&ia3));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |result: fourbit::Result<()>, words: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let mut model = load(&gpu, "tiny/model");
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let ia3 = |targets: &[&str], feedforward: &[&str]| Ia3Config {
        target_modules: names(targets),
        feedforward_modules: names(feedforward),
    };
    refused(model.add_adapter(ia3(&["k_proj"], &["down_proj"]), true), &["feedforward_modules", "down_proj"]);
    refused(model.add_adapter(ia3(&[], &["down_proj"]), true), &["feedforward_modules", "target_modules"]);
    refused(model.add_adapter(ia3(&["c_attn"], &[]), true), &["target_modules", "c_attn", "k_proj"]);
    for kind in KINDS {
        let mut model = load(&gpu, "tiny/model");
        model.load_adapter(golden(&format!("peft/{kind}")), true).unwrap();
        let what = if kind == "dora" { "use_dora" } else { "IA3" };
        refused(model.add_qat(QatConfig::new(Scheme::int(4, 16)), true), &["training through rounding", what]);
        // Of another model.
        let mut other = load(&gpu, "families/qwen2");
        assert!(other.load_adapter(golden(&format!("peft/{kind}")), false).is_err());
    }
}
