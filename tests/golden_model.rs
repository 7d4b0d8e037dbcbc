//! The tiny Llama against PyTorch and PEFT: logits, loss, every LoRA gradient, and twenty steps of AdamW. The fixtures and
//! the script that made them are in `tests/golden` and `scripts/make_golden.py`.

mod support;

use fourbit::{
    adapter::LoraConfig,
    data::{DataOptions, Dataset, Row},
    evaluate,
    format::Safetensors,
    train::{TrainConfig, Trainer},
};
use support::{
    gpu,
    tiny::{assert_relative, batch, config, floats, golden, load, open},
};

const PEFT: &str = "base_model.model.";

#[test]
fn logits_are_those_of_transformers_for_floats_and_bitsandbytes() {
    let Some(gpu) = gpu() else { return };
    let want = floats(&open("tiny/base.safetensors"), "logits");
    let b = batch(0);
    for folder in ["tiny/model", "tiny/bnb-nf4-dq"] {
        let model = load(&gpu, folder);
        for row in 0..2 {
            let real = b.attention_mask[row * 24..(row + 1) * 24].iter().filter(|&&m| m == 1).count();
            let got = evaluate::logits(&model, &b.input_ids[row * 24..row * 24 + real]).unwrap();
            let want = &want[row * 24 * 256..(row * 24 + real) * 256];
            // f32 sums in another order; the sizes are a few units.
            assert_relative(&format!("{folder}, row {row}"), &got, want, 1e-4);
        }
    }
}

/// One step at learning rate 0: the loss, and every gradient as it stands before clipping.
fn check_gradients(golden: &str, use_rslora: bool, checkpointing: bool) {
    let Some(gpu) = gpu() else { return };
    let golden = open(golden);
    let mut model = load(&gpu, "tiny/bnb-nf4-dq");
    let lora = LoraConfig { r: 8, lora_alpha: 16.0, use_rslora, ..LoraConfig::default() };
    model.add_adapter(lora, true).unwrap();
    for (module, lora) in model.adapted() {
        for (side, tensor) in [("A", &lora.a.values), ("B", &lora.b.values)] {
            let values = floats(&golden, &format!("param/{PEFT}{module}.lora_{side}.weight"));
            tensor.write(bytemuck::cast_slice(&values)).unwrap();
        }
    }
    let mut trainer = Trainer::new(model, TrainConfig { gradient_checkpointing: checkpointing, ..config() }).unwrap();
    let metrics = trainer.step(&[batch(0)]).unwrap();
    assert_eq!(metrics.learning_rate, 0.0);
    assert_relative("loss", &[metrics.loss as f32], &floats(&golden, "loss"), 1e-4);
    for (module, lora) in trainer.model().adapted() {
        for (side, parameter) in [("A", lora.a), ("B", lora.b)] {
            let name = format!("grad/{PEFT}{module}.lora_{side}.weight");
            assert_relative(&name, &parameter.grads.unwrap().read().unwrap(), &floats(&golden, &name), 1e-4);
        }
    }
}

#[test]
fn lora_gradients_are_those_of_peft() {
    check_gradients("tiny/lora.safetensors", false, false);
}

#[test]
fn lora_gradients_with_checkpointing_are_those_of_peft() {
    check_gradients("tiny/lora.safetensors", false, true);
}

#[test]
fn rslora_gradients_are_those_of_peft() {
    check_gradients("tiny/rslora.safetensors", true, false);
}

#[test]
fn twenty_steps_of_adamw_follow_pytorch() {
    let Some(gpu) = gpu() else { return };
    let want = open("tiny/lora_train.safetensors");
    let (losses, norms) = (floats(&want, "loss"), floats(&want, "grad_norm"));
    let mut model = load(&gpu, "tiny/bnb-nf4-dq");
    model.load_adapter(golden("tiny/adapter_init"), true).unwrap();
    let mut trainer = Trainer::new(model, config()).unwrap();
    let (mut got_losses, mut got_norms) = (Vec::new(), Vec::new());
    for step in 0..20 {
        let metrics = trainer.step(&[batch(step % 4)]).unwrap();
        got_losses.push(metrics.loss as f32);
        got_norms.push(metrics.grad_norm as f32);
    }
    for step in 0..20 {
        assert_relative(&format!("loss of step {step}"), &got_losses[step..][..1], &losses[step..][..1], 1e-3);
        assert_relative(&format!("gradient norm of step {step}"), &got_norms[step..][..1], &norms[step..][..1], 1e-3);
    }
    let folder = tempfile::tempdir().unwrap();
    trainer.model().save_adapter(folder.path(), Some("tiny-llama")).unwrap();
    let got = Safetensors::open(folder.path().join("adapter_model.safetensors")).unwrap();
    let want = open("tiny/adapter_final/adapter_model.safetensors");
    assert_eq!(got.names().collect::<Vec<_>>(), want.names().collect::<Vec<_>>());
    for name in want.names() {
        assert_relative(name, &floats(&got, name), &floats(&want, name), 1e-3);
    }
}

#[test]
fn losses_of_masked_rows_are_those_of_transformers() {
    let Some(gpu) = gpu() else { return };
    let golden: serde_json::Value = fourbit::format::read_json(golden("masks.json")).unwrap();
    let model = load(&gpu, "tiny/model");
    let options = DataOptions::new(64, 256);
    let cases = golden["cases"].as_array().unwrap();
    let rows: Vec<Row> = (cases.iter())
        .map(|case| {
            let numbers = |name: &str| case["row"][name].as_array().unwrap().iter().map(|v| v.as_i64().unwrap());
            Row::Tokens {
                input_ids: numbers("input_ids").map(|id| id as u32).collect(),
                labels: numbers("labels").map(|label| label as i32).collect(),
                attention_mask: Some(numbers("attention_mask").map(|seen| seen as u8).collect()),
            }
        })
        .collect();
    let set = Dataset::from_rows(&rows, None, &options).unwrap();
    assert_eq!(set.len(), 10);
    for (example, case) in set.iter().map(Result::unwrap).zip(cases) {
        let got = evaluate::loss(&model, std::slice::from_ref(&example), |_| Ok(())).unwrap().loss;
        let want = case["loss"].as_f64().unwrap();
        assert!((got - want).abs() < 2e-5, "{:?}: {got}, transformers {want}", example.attention_mask);
    }
}
