//! What a training step promises beyond its numbers: equal gradients however the work is cut, the same bits every time, and
//! replays that make nothing.

mod support;

use fourbit::{
    Error, Result, Tensor,
    adapter::{Adapter, Chunk, LoraConfig},
    data::Batch,
    generate::{Generator, Sampling},
    gpu::{Gpu, GpuOptions},
    model::{LoadOptions, Model},
    train::{Reduce, Schedule, TrainConfig, Trainer},
};
use std::sync::Arc;
use support::{Rng, gpu};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/bnb-nf4-dq");

fn model(gpu: &Gpu, dropout: f64) -> Model {
    let mut model = Model::load(gpu, TINY, &LoadOptions::default()).unwrap();
    let lora = LoraConfig { r: 8, lora_dropout: dropout, ..LoraConfig::default() };
    model.add_adapter(lora, true).unwrap();
    // B is zero in a new adapter, and then A has no gradient.
    for (i, (_, lora)) in model.adapted().enumerate() {
        let b = &lora.b.values;
        let values: Vec<f32> = Rng(i as u64).normals(b.shape().len()).iter().map(|v| 0.05 * v).collect();
        b.write(bytemuck::cast_slice(&values)).unwrap();
    }
    model
}

fn config(batch_size: usize) -> TrainConfig {
    TrainConfig { batch_size, max_seq_length: 100, learning_rate: 1e-3, ..TrainConfig::default() }
}

fn batch(rows: usize, seq_len: usize, seed: u64) -> Batch {
    let mut rng = Rng(seed);
    let tokens = rows * seq_len;
    Batch {
        batch: rows,
        seq_len,
        input_ids: (0..tokens).map(|_| (rng.bits() % 256) as u32).collect(),
        labels: (0..tokens).map(|_| if rng.uniform() < 0.3 { -100 } else { (rng.bits() % 256) as i32 }).collect(),
        attention_mask: vec![1; tokens],
        segment_ids: vec![1; tokens],
        position_ids: (0..tokens).map(|i| (i % seq_len) as u32).collect(),
        pairs: Vec::new(),
        epoch: 0.0,
    }
}

fn row(of: &Batch, index: usize) -> Batch {
    let range = index * of.seq_len..(index + 1) * of.seq_len;
    Batch {
        batch: 1,
        seq_len: of.seq_len,
        input_ids: of.input_ids[range.clone()].to_vec(),
        labels: of.labels[range.clone()].to_vec(),
        attention_mask: of.attention_mask[range.clone()].to_vec(),
        segment_ids: of.segment_ids[range.clone()].to_vec(),
        position_ids: of.position_ids[range].to_vec(),
        pairs: Vec::new(),
        epoch: 0.0,
    }
}

/// All gradients, and all values, of a trainer's adapter.
fn read(trainer: &Trainer) -> (Vec<f32>, Vec<f32>) {
    let (mut grads, mut values) = (Vec::new(), Vec::new());
    for chunk in trainer.model().store().chunks() {
        grads.extend(chunk.training.as_ref().unwrap().grads.read::<f32>().unwrap());
        values.extend(chunk.params.read::<f32>().unwrap());
    }
    (grads, values)
}

#[track_caller]
fn assert_same(what: &str, got: &[f32], want: &[f32], most: f32) {
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(largest > 0.0 && worst <= most * largest, "{what}: {worst} apart, the largest is {largest}");
}

#[test]
fn accumulated_micro_batches_equal_one_batch() {
    let Some(gpu) = gpu() else { return };
    let whole = batch(3, 40, 1);
    let mut one = Trainer::new(model(&gpu, 0.0), config(3)).unwrap();
    let in_one = one.step(std::slice::from_ref(&whole)).unwrap();
    let mut many = Trainer::new(model(&gpu, 0.0), TrainConfig { gradient_accumulation_steps: 3, ..config(1) }).unwrap();
    let in_many = many.step(&[row(&whole, 0), row(&whole, 1), row(&whole, 2)]).unwrap();
    assert!((in_one.loss - in_many.loss).abs() < 1e-5 * in_one.loss, "{} {}", in_one.loss, in_many.loss);
    assert_eq!(in_one.mean_token_accuracy, in_many.mean_token_accuracy);
    // The same terms, summed in another order.
    assert_same("gradients", &read(&many).0, &read(&one).0, 1e-5);
}

#[test]
fn checkpointing_gives_the_same_gradients_with_less_memory() {
    let Some(gpu) = gpu() else { return };
    let data = batch(2, 90, 2);
    let mut plain = Trainer::new(model(&gpu, 0.1), config(2)).unwrap();
    plain.step(std::slice::from_ref(&data)).unwrap();
    let mut lean = Trainer::new(model(&gpu, 0.1), TrainConfig { gradient_checkpointing: true, ..config(2) }).unwrap();
    lean.step(std::slice::from_ref(&data)).unwrap();
    assert_eq!(read(&plain).0, read(&lean).0, "the forward pass is recorded again, so the bits are the same");
    assert!(lean.activation_bytes() < plain.activation_bytes());
}

/// Below a limit of memory the fewest blocks are computed again that it takes, and every number stays.
#[test]
fn a_limit_of_memory_keeps_what_fits() {
    let Some(gpu) = gpu() else { return };
    let data = batch(2, 90, 2);
    let limited = |memory_limit| GpuOptions { memory_limit, ..GpuOptions::from_env().unwrap() };
    let counted = |memory_limit, gradient_checkpointing| {
        let dry = Gpu::open(&GpuOptions { dry: true, ..limited(memory_limit) }).unwrap();
        let trainer = Trainer::new(model(&dry, 0.1), TrainConfig { gradient_checkpointing, ..config(2) })?;
        Ok::<_, Error>((trainer.checkpointed_blocks(), dry.peak_bytes()))
    };
    let blocks = model(&gpu, 0.1).arch().blocks.len();
    let (none, most) = counted(None, false).unwrap();
    let (all, least) = counted(None, true).unwrap();
    assert_eq!((none, all), (0, blocks));
    assert_eq!(counted(Some(2 * most), false).unwrap(), (0, most));
    // A sixteenth stays free, so that what takes all of it does not fit.
    let (some, less) = counted(Some(most), false).unwrap();
    assert!(
        0 < some && some < blocks && least < less && less <= most - most / 16,
        "{some} of {blocks}, {less} bytes of {most}"
    );
    assert_eq!(counted(Some(least), false).unwrap().0, blocks, "all, where none suffice");
    let refused = counted(Some(least - 1), false).unwrap_err().to_string();
    assert!(refused.contains("raise the limit"), "{refused}");

    let mut plain = Trainer::new(model(&gpu, 0.1), config(2)).unwrap();
    plain.step(std::slice::from_ref(&data)).unwrap();
    let gpu = Gpu::open(&limited(Some(most))).unwrap();
    let mut within = Trainer::new(model(&gpu, 0.1), config(2)).unwrap();
    assert_eq!(within.checkpointed_blocks(), some, "as counted");
    within.step(std::slice::from_ref(&data)).unwrap();
    assert_eq!(read(&within).0, read(&plain).0);
    // Programs are cut anew in their second run, and shorter rows have programs of their own.
    for (step, seq_len) in [90, 90, 30].into_iter().enumerate() {
        within.step(&[batch(2, seq_len, step as u64)]).unwrap();
    }
    assert!(gpu.peak_bytes() <= most, "{} bytes of {most}", gpu.peak_bytes());
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let run = |seed: u64| {
        let mut trainer = Trainer::new(model(&gpu, 0.2), TrainConfig { seed, ..config(1) }).unwrap();
        for step in 0..4 {
            trainer.step(&[batch(1, 30 + 20 * step, step as u64)]).unwrap();
        }
        read(&trainer).1
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8), "the seed draws the dropout masks");
}

#[test]
fn padding_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let data = batch(1, 30, 3);
    let mut short = Trainer::new(model(&gpu, 0.0), config(1)).unwrap();
    let a = short.step(std::slice::from_ref(&data)).unwrap();
    let mut long = Trainer::new(model(&gpu, 0.0), config(1)).unwrap();
    let b = long.step(&[data.padded_to(99, 5).unwrap()]).unwrap();
    assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{} {}", a.loss, b.loss);
    assert_same("gradients", &read(&long).0, &read(&short).0, 1e-5);
}

#[test]
fn a_replayed_step_makes_nothing() {
    if gpu().is_none() {
        return;
    }
    // A device of its own: the other tests make things on the shared one meanwhile.
    let gpu = Gpu::open(&GpuOptions::from_env().unwrap()).unwrap();
    let mut trainer = Trainer::new(model(&gpu, 0.0), config(1)).unwrap();
    for length in [100, 30] {
        trainer.step(&[batch(1, length, 4)]).unwrap();
    }
    let made = gpu.created();
    for length in [90, 64, 50, 99, 31] {
        trainer.step(&[batch(1, length, length as u64)]).unwrap();
    }
    assert_eq!(gpu.created(), made, "five steps in lengths whose buckets are there");

    // A device that only counts makes as much of it.
    let dry = Gpu::open(&GpuOptions { dry: true, ..GpuOptions::from_env().unwrap() }).unwrap();
    let mut planned = Trainer::new(model(&dry, 0.0), config(1)).unwrap();
    let longest = planned.activation_bytes();
    planned.step(&[batch(1, 30, 4)]).unwrap();
    assert_eq!(planned.activation_bytes(), longest, "shorter rows fit into the memory of the longest");
    assert_eq!(dry.allocated_bytes(), gpu.allocated_bytes());
}

/// Loss of the first step at learning rate 0 with all values moved by `by` along `direction`, and the gradients.
fn loss_along(gpu: &Gpu, dropout: f64, direction: &[f32], by: f32) -> (f64, Vec<f32>) {
    let model = model(gpu, dropout);
    let mut at = 0;
    for chunk in model.store().chunks() {
        let mut values = chunk.params.read::<f32>().unwrap();
        for value in &mut values {
            *value += by * direction[at];
            at += 1;
        }
        chunk.params.write(bytemuck::cast_slice(&values)).unwrap();
    }
    let mut trainer = Trainer::new(model, TrainConfig { learning_rate: 0.0, ..config(2) }).unwrap();
    let loss = trainer.step(&[batch(2, 60, 8)]).unwrap().loss;
    (loss, read(&trainer).0)
}

#[test]
fn gradients_are_the_slope_of_the_loss_with_and_without_dropout() {
    let Some(gpu) = gpu() else { return };
    for dropout in [0.0, 0.25] {
        let grads = loss_along(&gpu, dropout, &vec![0.0; 1 << 20], 0.0).1;
        // Padding between matrices has no gradient; along it nothing changes.
        let direction: Vec<f32> =
            Rng(11).normals(grads.len()).iter().map(|v| v / (grads.len() as f32).sqrt()).collect();
        let slope: f64 = grads.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        // A random direction is nearly flat, so half of it is the gradient's own.
        let norm = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let mixed: Vec<f32> = direction.iter().zip(&grads).map(|(d, g)| d + (f64::from(*g) / norm) as f32).collect();
        let slope = slope + norm;
        let step = 0.01;
        let above = loss_along(&gpu, dropout, &mixed, step).0;
        let below = loss_along(&gpu, dropout, &mixed, -step).0;
        let measured = (above - below) / (2.0 * f64::from(step));
        // The loss is known to 1e-6 of about 6, the curvature along 0.01 is far below a percent.
        assert!((measured / slope - 1.0).abs() < 0.01, "dropout {dropout}: slope {measured}, gradients give {slope}");
    }
}

#[test]
fn impossible_steps_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut trainer = Trainer::new(model(&gpu, 0.0), config(1)).unwrap();
    // 110 tokens fit a program of 128, but not the positions that there are rotations for.
    for tokens in [110, 200] {
        let long = trainer.step(&[batch(1, tokens, 6)]).unwrap_err().to_string();
        assert!(long.contains("at most 100 tokens") && long.contains(&format!("got {tokens}")), "{long}");
    }
    let mut silent = batch(1, 30, 7);
    silent.labels.fill(-100);
    assert!(trainer.step(&[silent]).unwrap_err().to_string().contains("predict no token"));
    let untrained = Model::load(&gpu, TINY, &LoadOptions::default()).unwrap();
    assert!(Trainer::new(untrained, config(1)).is_err());
}

/// A value that is not finite spoils a step of one trainer, and is gone in the next: nothing else of it is left.
#[test]
fn a_bad_step_is_left_out_and_leaves_nothing() {
    let Some(gpu) = gpu() else { return };
    let config =
        TrainConfig { lr_scheduler_type: Schedule::Constant, weight_decay: 0.1, max_bad_steps: 1, ..config(1) };
    let [mut spoiled, mut fine] = [(); 2].map(|()| Trainer::new(model(&gpu, 0.0), config.clone()).unwrap());
    let rows = [1, 2, 3].map(|seed| batch(1, 40, seed));
    for trainer in [&mut spoiled, &mut fine] {
        trainer.step(&rows[..1]).unwrap();
    }
    let values = |trainer: &Trainer| {
        let chunks = trainer.model().store().chunks();
        let of = |chunk: &Chunk| {
            let training = chunk.training.as_ref().unwrap();
            [&chunk.params, &training.m, &training.v].map(|tensor| tensor.read::<f32>().unwrap())
        };
        chunks.iter().map(of).collect::<Vec<_>>()
    };
    let name = "model.layers.1.self_attn.q_proj.lora_B.weight";
    let tensor = spoiled.model().store().get(name).unwrap().values.clone();
    let good = tensor.read::<f32>().unwrap();
    let before = values(&spoiled);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut changed = good.clone();
        changed[5] = bad;
        tensor.write(bytemuck::cast_slice(&changed)).unwrap();
        let metrics = spoiled.step(&rows[1..2]).unwrap();
        assert!(metrics.is_left_out() && metrics.step == spoiled.steps());
        tensor.write(bytemuck::cast_slice(&good)).unwrap();
        assert_eq!(values(&spoiled), before);
        assert!(!spoiled.step(&rows[2..]).unwrap().is_left_out());
        if bad.is_nan() {
            fine.step(&rows[2..]).unwrap();
        }
        let (after, want) = (values(&spoiled), values(&fine));
        if bad.is_nan() {
            assert_eq!(after, want, "as if the bad step had never been");
        }
        // For the next round both begin anew from here.
        for (chunk, old) in spoiled.model().store().chunks().iter().zip(&before) {
            let training = chunk.training.as_ref().unwrap();
            for (tensor, old) in [&chunk.params, &training.m, &training.v].into_iter().zip(old) {
                tensor.write(bytemuck::cast_slice(old)).unwrap();
            }
        }
    }
    assert_eq!((spoiled.steps(), spoiled.skipped()), (5, 2));
    // One in a row is left out, the second ends the run, and says where the number is.
    let mut changed = good.clone();
    changed[5] = f32::NAN;
    tensor.write(bytemuck::cast_slice(&changed)).unwrap();
    assert!(spoiled.step(&rows[..1]).unwrap().is_left_out());
    let Err(Error::Diverged { step, loss, place, .. }) = spoiled.step(&rows[..1]) else { panic!("it goes on") };
    assert_eq!(
        (step, loss.is_nan(), place.as_deref()),
        (7, true, Some("the input of model.layers.1.self_attn.o_proj"))
    );
}

/// Two processes that happen to see the same rows: all sums are twice their own, and powers of two keep the bits.
struct Twins;

impl Reduce for Twins {
    fn count(&mut self, own: usize) -> Result<usize> {
        Ok(2 * own)
    }

    fn gradients(&mut self, arrays: &[&Tensor]) -> Result<()> {
        for array in arrays {
            let doubled: Vec<f32> = array.read::<f32>()?.iter().map(|v| 2.0 * v).collect();
            array.write(bytemuck::cast_slice(&doubled))?;
        }
        Ok(())
    }

    fn metrics(&mut self, sums: &mut [f32]) -> Result<()> {
        sums.iter_mut().for_each(|sum| *sum *= 2.0);
        Ok(())
    }
}

#[test]
fn processes_that_sum_their_gradients_take_one_step() {
    let Some(gpu) = gpu() else { return };
    let batches = [batch(2, 60, 3), batch(2, 41, 4)];
    let mut alone = Trainer::new(model(&gpu, 0.0), config(2)).unwrap();
    let mut together = Trainer::new(model(&gpu, 0.0), config(2)).unwrap().reducing(Twins);
    for _ in 0..2 {
        let (a, b) = (alone.step(&batches).unwrap(), together.step(&batches).unwrap());
        assert_eq!((a.loss, a.grad_norm), (b.loss, b.grad_norm));
        assert_eq!(a.mean_token_accuracy, b.mean_token_accuracy);
    }
    assert_eq!(read(&alone), read(&together));
}

#[test]
fn a_run_ends_where_its_schedule_does() {
    let Some(gpu) = gpu() else { return };
    let mut trainer = Trainer::new(model(&gpu, 0.0), TrainConfig { max_steps: 1, ..config(1) }).unwrap();
    trainer.step(&[Batch { epoch: 0.25, ..batch(1, 20, 1) }]).map(|metrics| assert_eq!(metrics.epoch, 0.25)).unwrap();
    let message = trainer.step(&[batch(1, 20, 1)]).unwrap_err().to_string();
    assert!(message.starts_with("max_steps: step 2 is past the 1 of the run"), "{message}");
}

#[test]
fn batches_that_contradict_themselves_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut trainer = Trainer::new(model(&gpu, 0.0), config(2)).unwrap();
    let mut message = |change: fn(&mut Batch)| {
        let mut batch = batch(2, 20, 1);
        change(&mut batch);
        trainer.step(&[batch]).unwrap_err().to_string()
    };
    assert_eq!(
        message(|b| b.input_ids[21] = 256),
        "input_ids: of row 1, token 1 is 256; the model's vocabulary has 256"
    );
    assert!(message(|b| b.labels[3] = -1).starts_with("labels: of row 0, token 3 is -1; expected -100"));
    assert!(message(|b| b.labels[3] = 256).starts_with("labels: of row 0, token 3 is 256"));
    assert!(
        message(|b| b.position_ids[39] = 100).starts_with("position_ids: of row 1, token 19 is 100; there are 100")
    );
    assert!(message(|b| b.attention_mask[39] = 0).starts_with("attention_mask: of row 1, token 19 is 0"));
    assert!(message(|b| b.labels.truncate(39)).starts_with("labels of a batch: expected 2 rows of 20 tokens, got 39"));
}

#[test]
fn an_adapter_that_does_not_fit_leaves_the_one_there_is() {
    let Some(gpu) = gpu() else { return };
    let mut model = model(&gpu, 0.0);
    let before = fourbit::evaluate::logits(&model, &[1, 2, 3]).unwrap();
    let config = LoraConfig { r: 2, ..LoraConfig::default() };
    let layers = [("model.layers.0.self_attn.q_proj".to_owned(), [3, 5])];
    let wrong = Adapter::new(&gpu, config, &layers, false).unwrap();
    let message = model.attach(wrong).unwrap_err().to_string();
    assert!(message.starts_with("model.layers.0.self_attn.q_proj: expected in "), "{message}");
    assert_eq!(model.adapter().and_then(|config| Some(config.lora()?.r)), Some(8));
    assert_eq!(fourbit::evaluate::logits(&model, &[1, 2, 3]).unwrap(), before);
}

#[test]
fn one_loaded_model_is_trained_and_speaks_with_its_adapter_and_without() {
    let Some(gpu) = gpu() else { return };
    let base = Model::load(&gpu, TINY, &LoadOptions::default()).unwrap();
    let adapted = Arc::new(model(&gpu, 0.0));
    let mut trainer = Trainer::new(adapted.clone(), config(2)).unwrap();
    let mut generator = Generator::new(adapted.clone(), 64).unwrap();
    let sampling = Sampling { max_new_tokens: 20, ..Sampling::default() };
    let mut speak = |base_only: bool| {
        generator.set_base_only(base_only);
        generator.reset();
        generator.generate(&[7, 8, 9], &sampling, &[], |_| Ok(true)).unwrap()
    };
    let own = Generator::new(&base, 64).unwrap().generate(&[7, 8, 9], &sampling, &[], |_| Ok(true)).unwrap();
    let before = speak(false);
    assert_eq!(speak(true), own);
    assert_ne!(before, own, "the adapter has a say");
    for _ in 0..8 {
        trainer.step(&[batch(2, 60, 5)]).unwrap();
    }
    assert_eq!(speak(true), own, "the base stays");
    let after = speak(false);
    assert_ne!(after, before, "what was learned is heard at once");
    let fresh = Generator::new(adapted, 64).unwrap().generate(&[7, 8, 9], &sampling, &[], |_| Ok(true)).unwrap();
    assert_eq!(after, fresh);
}
