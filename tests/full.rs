//! Full fine-tuning against PyTorch: every gradient, twenty steps, and the last blocks alone. The fixtures and the script that made them
//! are in `tests/golden/full` and `scripts/make_full_golden.py`.

mod support;

use fourbit::{
    LoraConfig, Model, TrainConfig, Trainer,
    adapter::{FullConfig, QatConfig},
    data::Batch,
    evaluate,
    format::Safetensors,
    model::{LoadOptions, Quantization},
    quant::Scheme,
};
use support::{
    gpu,
    tiny::{self, assert_relative, batch, floats, golden, load, open},
};

/// Every 7th row of a matrix, all of a vector.
fn rows(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [_, cols] => values.chunks(cols).step_by(7).flatten().copied().collect(),
        _ => values.to_vec(),
    }
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32
}

/// One row, with a token that comes again.
fn row() -> Batch {
    let ids = [3u32, 10, 17, 24, 31, 10, 45, 52, 59, 10];
    Batch {
        batch: 1,
        seq_len: 10,
        input_ids: ids.to_vec(),
        labels: ids.map(|id| id as i32).to_vec(),
        segment_ids: vec![1; 10],
        position_ids: (0..10).collect(),
        attention_mask: vec![1; 10],
        pairs: Vec::new(),
        epoch: 0.0,
    }
}

/// As the other golden runs, with more weight decay.
fn config(rows: &Batch) -> TrainConfig {
    TrainConfig { weight_decay: 0.1, batch_size: rows.batch, ..tiny::config() }
}

fn check_gradients(model: &Model, want: &Safetensors, what: &str) -> usize {
    let mut compared = 0;
    for (name, parameter) in model.store().iter() {
        let got = parameter.grads.as_ref().unwrap().read::<f32>().unwrap();
        let dims = parameter.values.shape().dims();
        let what = format!("{what}: {name}");
        assert_relative(&what, &rows(&got, dims), &floats(want, &format!("grad/{name}")), 1e-4);
        assert_relative(&what, &[length(&got)], &floats(want, &format!("norm/{name}")), 1e-4);
        compared += 1;
    }
    compared
}

/// Also where heads are biased, tied to the embedding, and norms are about 1; in two micro-batches; and computed again.
#[test]
fn every_gradient_is_that_of_pytorch() {
    let Some(gpu) = gpu() else { return };
    for (family, folder, tensors) in
        [("llama", "tiny/model", 21), ("qwen2", "families/qwen2", 0), ("gemma", "families/gemma", 0)]
    {
        let want = open(&format!("full/{family}.safetensors"));
        let batch = if family == "llama" { batch(0) } else { row() };
        for (checkpointing, twice) in [(false, false), (true, false), (false, true)] {
            let mut model = load(&gpu, folder);
            let before = evaluate::logits(&model, &row().input_ids).unwrap();
            model.add_full(FullConfig::default(), true).unwrap();
            assert_eq!(evaluate::logits(&model, &row().input_ids).unwrap(), before, "the weights are the same numbers");
            let all = want.names().filter(|name| name.starts_with("grad/")).count();
            let accumulation = if twice { 2 } else { 1 };
            let config = TrainConfig {
                gradient_checkpointing: checkpointing,
                gradient_accumulation_steps: accumulation,
                ..config(&batch)
            };
            let mut trainer = Trainer::new(model, config).unwrap();
            // The mean over twice the same tokens.
            let metrics = trainer.step(&vec![batch.clone(); accumulation]).unwrap();
            assert_relative(family, &[metrics.loss as f32], &floats(&want, "loss")[..1], 1e-4);
            let compared = check_gradients(trainer.model(), &want, &format!("{family}, {checkpointing}, {twice}"));
            assert_eq!(compared, all);
            assert!(tensors == 0 || compared == tensors);
        }
    }
}

#[test]
fn twenty_steps_of_adamw_follow_pytorch_and_norms_do_not_decay() {
    let Some(gpu) = gpu() else { return };
    let want = open("full/llama.safetensors");
    let (losses, norms) = (floats(&want, "loss"), floats(&want, "grad_norm"));
    let mut model = load(&gpu, "tiny/model");
    model.add_full(FullConfig::default(), true).unwrap();
    let mut trainer = Trainer::new(model, config(&batch(0))).unwrap();
    for step in 0..20 {
        let metrics = trainer.step(&[batch(step % 4)]).unwrap();
        let what = format!("step {step}");
        assert_relative(&what, &[metrics.loss as f32], &losses[step..][..1], 1e-3);
        assert_relative(&what, &[metrics.grad_norm as f32], &norms[step..][..1], 1e-3);
    }
    for (name, parameter) in trainer.model().store().iter() {
        let got = rows(&parameter.values.read::<f32>().unwrap(), parameter.values.shape().dims());
        assert_relative(name, &got, &floats(&want, &format!("final/{name}")), 1e-3);
    }
}

#[test]
fn the_last_blocks_have_the_same_gradients_and_the_others_stay() {
    let Some(gpu) = gpu() else { return };
    let want = open("full/llama.safetensors");
    let mut model = load(&gpu, "tiny/bnb-nf4-dq");
    model.add_full(FullConfig { last_layers: Some(1) }, true).unwrap();
    let schemes: Vec<Scheme> = model.linears().map(|linear| linear.base.weight.scheme()).collect();
    assert!(schemes[..7].iter().all(|scheme| matches!(scheme, Scheme::Nf4 { .. })));
    assert_eq!(schemes[7..], [Scheme::F32; 7]);
    let mut trainer = Trainer::new(model, config(&batch(0))).unwrap();
    trainer.step(&[batch(0)]).unwrap();
    // Seven layers and two norms of the block, the final norm, the head.
    assert_eq!(check_gradients(trainer.model(), &want, "last"), 11);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |result: fourbit::Result<()>, words: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let full = FullConfig::default();
    let mut model = load(&gpu, "tiny/model");
    refused(model.add_full(FullConfig { last_layers: Some(3) }, true), &["last_layers", "expected 1 to 2, got 3"]);
    model.add_adapter(LoraConfig::default(), true).unwrap();
    refused(model.add_full(full, true), &["add_full", "adapter"]);
    model.detach().unwrap();
    model.add_full(full, true).unwrap();
    refused(model.add_full(full, true), &["trained already"]);
    refused(model.add_adapter(LoraConfig::default(), true), &["load it anew"]);
    refused(model.add_qat(QatConfig::new(Scheme::int(4, 16)), true), &["trained already"]);
    assert!(model.detach().is_none());
    let mut shuffled = load(&gpu, "checkpoints/gptq-4-act");
    refused(shuffled.add_full(full, true), &["full fine-tuning of model.layers.0", "columns in another order"]);
    let mut rounding = load(&gpu, "checkpoints/llm-int8");
    refused(rounding.add_full(full, true), &["rounded to 8 bits"]);
    // Of other schemes the numbers become floats.
    let options = LoadOptions { quantization: Quantization::To(Scheme::int(4, 16)) };
    let mut model = Model::load(&gpu, golden("tiny/model"), &options).unwrap();
    model.add_full(full, false).unwrap();
    assert!(model.linears().all(|linear| linear.base.weight.scheme() == Scheme::F32));
    assert!(!model.store().is_trainable());
}
