//! Quantization-aware training: a layer's gradients against an f64 reference, and what training promises of a model: it learns
//! what rounding lost, in the same bits every time, and what comes out is what it saw.

mod support;

use fourbit::train::Schedule;
use fourbit::{
    DType, Gpu, LoraConfig, Model, QuantizedTensor, Result, Tensor, Tokenizer, TrainConfig, Trainer,
    adapter::{AdaptedLinear, Adapter, Float, InputScales, Latent, Qat, QatConfig, QatLayer, Ranges, StepValues},
    data::{Batch, DataLoader, DataOptions, Dataset, LoaderOptions},
    evaluate,
    format::checkpoint::CompressedTensors,
    graph::{Graph, Value},
    model::{LoadOptions, Quantization, QuantizedFolder},
    nn::{Activations, Linear},
    quant::{PER_CHANNEL, Packed, ScaleType, Scheme, affine::stored_codes},
};
use support::{Rng, assert_close, gpu, int};

const EMBEDDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/embedded");

// ---------------------------------------------------------------- one layer

/// A layer that is trained through rounding, and what it is made of.
struct Case {
    config: QatConfig,
    /// [out, in]
    shape: [usize; 2],
    rank: Option<usize>,
    linear: AdaptedLinear,
    /// Keeps the adapter's memory.
    _adapter: Option<Adapter>,
}

const TOKENS: usize = 9;

fn case(gpu: &Gpu, config: QatConfig, shape: [usize; 2], rank: Option<usize>) -> Case {
    let [outputs, inputs] = shape;
    let mut rng = Rng(outputs as u64);
    // With an outlier, a row of zeros and a constant one.
    let mut w: Vec<f32> = rng.normals(outputs * inputs);
    w[0] = 30.0;
    w[inputs..2 * inputs].fill(0.0);
    w[2 * inputs..3 * inputs].fill(0.37);
    let packed = Packed::quantize(Scheme::F32, shape, &w).unwrap();
    let weight = QuantizedTensor::upload(gpu, "w", &packed).unwrap();
    let adapter = rank.map(|r| {
        let lora = LoraConfig { r, lora_alpha: 0.5 * r as f64, ..LoraConfig::default() };
        let adapter = Adapter::new(gpu, lora, &[("layer".to_owned(), inputs, outputs)], true).unwrap();
        adapter.modules[0].lora.b.write(bytemuck::cast_slice(&rng.normals(outputs * r))).unwrap();
        adapter
    });
    let lora = adapter.as_ref().map(|a| a.modules[0].lora.clone());
    let layer = QatLayer { name: "layer".to_owned(), weight: weight.clone(), lora: lora.clone() };
    let (_, mut latents) = Qat::new(gpu, config, &[layer], true).unwrap();
    let latent = latents.remove(0);
    if let Float::Whole(trained) = &latent.float {
        trained.values.write(bytemuck::cast_slice(&w)).unwrap();
    }
    let target = QuantizedTensor::zeros(gpu, "w", config.scheme, shape).unwrap();
    let mut g = Graph::new(gpu);
    latent.round(&mut g, "w", &target, true).unwrap();
    g.run().unwrap();
    if let Some(steps) = &latent.steps {
        // Smaller ones clamp numbers at both ends.
        let shorter: Vec<f32> = steps.values.read::<f32>().unwrap().iter().map(|s| 0.6 * s).collect();
        steps.values.write(bytemuck::cast_slice(&shorter)).unwrap();
    }
    let activation = config.activations.map(|scales| match (scales, &latent.input_step) {
        (InputScales::Dynamic, _) => Activations::Dynamic,
        (InputScales::Static, step) => {
            let own = || gpu.zeros("step", [1], DType::F32).unwrap();
            let scale = step.as_ref().map_or_else(own, |step| step.values.clone());
            scale.write(bytemuck::cast_slice(&[0.011f32])).unwrap();
            Activations::Static { scale }
        }
    });
    let bias = gpu.tensor("bias", [outputs], DType::F32, &rng.normals(outputs)).unwrap();
    let base = Linear { activation, ..Linear::new(target, Some(bias)) };
    let linear = AdaptedLinear { name: "layer".to_owned(), base, lora, latent: Some(latent) };
    Case { config, shape, rank, linear, _adapter: adapter }
}

/// What the device gives.
struct Got {
    y: Vec<f32>,
    dx: Vec<f32>,
    /// W as the device sees it before rounding.
    w: Vec<f32>,
    /// Of W, or of A and B.
    grads: Vec<Vec<f32>>,
    steps: Option<Vec<f32>>,
    input_step: Option<f32>,
}

fn run(gpu: &Gpu, case: &Case, x: &[f32], dy: &[f32], add: &[f32]) -> Got {
    let [outputs, inputs] = case.shape;
    let latent = case.linear.latent.as_ref().unwrap();
    let mut g = Graph::new(gpu);
    latent.round(&mut g, "w", &case.linear.base.weight, false).unwrap();
    let mut import = |rows: usize, cols: usize, values: &[f32]| {
        g.import(&gpu.tensor("values", [rows, cols], DType::F32, values).unwrap())
    };
    let (x, dy) = (import(TOKENS, inputs, x), import(TOKENS, outputs, dy));
    let add = import(TOKENS, inputs, add);
    let step = |g: &mut Graph, accumulate: f32| StepValues {
        seed: g.import(&gpu.zeros("seed", [2], DType::U32).unwrap()),
        accumulate: g.import(&gpu.tensor("accumulate", [1], DType::F32, &[accumulate]).unwrap()),
    };
    let (first, second) = (step(&mut g, 0.0), step(&mut g, 1.0));
    let (y, saved) = case.linear.forward(&mut g, &x, Some(&first)).unwrap();
    case.linear.backward(&mut g, &saved, &dy, None, &first, false).unwrap();
    // Accumulated once: the gradients come out doubled.
    let dx = case.linear.backward(&mut g, &saved, &dy, Some(&add), &second, true).unwrap().unwrap();
    let w = latent.weight(&mut g).unwrap().unwrap();
    let w = fourbit::kernels::elementwise::add(&mut g, &w, &w, 0.0).unwrap();
    for value in [&y, &dx, &w] {
        g.keep(value);
    }
    let program = g.run().unwrap();
    let read = |value: &Value| program.read::<f32>(value).unwrap();
    let of = |t: &Tensor| t.read::<f32>().unwrap();
    let grads = match &latent.float {
        Float::Whole(trained) => vec![of(trained.grads.as_ref().unwrap())],
        Float::Merged(_, lora) => {
            let (a, b) = lora.grads.as_ref().unwrap();
            vec![of(a), of(b)]
        }
        Float::Fixed => vec![],
    };
    Got {
        y: read(&y),
        dx: read(&dx),
        w: read(&w),
        grads,
        steps: latent.steps.as_ref().map(|s| of(s.grads.as_ref().unwrap())),
        input_step: latent.input_step.as_ref().map(|s| of(s.grads.as_ref().unwrap())[0]),
    }
}

/// sum over t of a(i, t) * b(t, j)
fn product(rows: usize, cols: usize, depth: usize, term: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    (0..rows * cols).map(|n| (0..depth).map(|t| term(n / cols, n % cols, t)).sum()).collect()
}

/// The layer in f64, straight through where nothing is clamped; codes are those of f32, as rounding is defined.
fn check_against_f64(gpu: &Gpu, case: &Case) {
    let [outputs, inputs] = case.shape;
    let what = format!("{:?} {:?} rank {:?}", case.config, case.shape, case.rank);
    let mut rng = Rng(77);
    let (x, dy, add) = (rng.normals(TOKENS * inputs), rng.normals(TOKENS * outputs), rng.normals(TOKENS * inputs));
    let got = run(gpu, case, &x, &dy, &add);
    let latent = case.linear.latent.as_ref().unwrap();
    let packed = case.linear.base.weight.download().unwrap();
    if case.config.ranges == Ranges::Observed {
        let want = Packed::quantize(case.config.scheme, case.shape, &got.w).unwrap();
        assert_eq!((&packed.codes, &packed.scales), (&want.codes, &want.scales), "{what}: rounding to nearest");
    }
    let fq: Vec<f64> = packed.dequantize().iter().map(|&v| v.into()).collect();
    let f = |values: &[f32], i: usize| f64::from(values[i]);

    // Q(x), the clamped part of x, and the slope of its step.
    let mut qx: Vec<f64> = x.iter().map(|&v| v.into()).collect();
    let (mut inside, mut slope) = (vec![1.0; x.len()], vec![0.0; x.len()]);
    let mut round = |i: usize, step: f32| {
        let v = x[i] * (1.0 / step);
        let code = v.round_ties_even();
        qx[i] = f64::from(code.clamp(-127.0, 127.0) * step);
        inside[i] = if code.abs() <= 127.0 { 1.0 } else { 0.0 };
        slope[i] = if code.abs() <= 127.0 {
            f64::from(code) - f64::from(x[i]) / f64::from(step)
        } else {
            f64::from(code.signum()) * 127.0
        };
    };
    match &case.linear.base.activation {
        None => {}
        Some(Activations::Static { scale }) => {
            let step = scale.read::<f32>().unwrap()[0];
            (0..x.len()).for_each(|i| round(i, step));
            assert!(inside.contains(&0.0), "{what}: some inputs are clamped");
        }
        _ => {
            // The rows' rule is tested with its kernel; here what it gives is taken over.
            let mut g = Graph::new(gpu);
            let vx = g.import(&gpu.tensor("x", [TOKENS, inputs], DType::F32, &x).unwrap());
            let rounded = Activations::Dynamic.round(&mut g, &vx).unwrap();
            g.keep(&rounded);
            qx = g.run().unwrap().read::<f32>(&rounded).unwrap().iter().map(|&v| v.into()).collect();
        }
    }

    let bias = case.linear.base.bias.as_ref().unwrap().read::<f32>().unwrap();
    let mut y = product(TOKENS, outputs, inputs, |i, j, t| qx[i * inputs + t] * fq[j * inputs + t]);
    y.iter_mut().enumerate().for_each(|(n, y)| *y += f(&bias, n % outputs));
    // f32's rounding over sums of up to 264 products of magnitude 30.
    assert_close(&format!("{what}: y"), &got.y, &y, 2e-4, 1e-5);

    let dxq = product(TOKENS, inputs, outputs, |i, j, t| f(&dy, i * outputs + t) * fq[t * inputs + j]);
    let dx: Vec<f64> = (0..x.len()).map(|i| dxq[i] * inside[i] + f(&add, i)).collect();
    assert_close(&format!("{what}: dx"), &got.dx, &dx, 2e-4, 1e-5);
    if let Some(step) = got.input_step {
        let sum: f64 = dxq.iter().zip(&slope).map(|(d, s)| d * s).sum::<f64>() / (inputs as f64 * 127.0).sqrt();
        assert_close(&format!("{what}: input step"), &[step], &[2.0 * sum], 1e-3, 1e-4);
    }

    let mut dw = product(outputs, inputs, TOKENS, |i, j, t| f(&dy, t * outputs + i) * qx[t * inputs + j]);
    if let Scheme::Int { bits, .. } = packed.scheme {
        let (low, high) = stored_codes(bits);
        let (low, high) = (low as f32, high as f32);
        let block = packed.scheme.block_size();
        let mut steps = vec![0.0; dw.len().div_ceil(block)];
        let mut clamped = 0;
        for (i, d) in dw.iter_mut().enumerate() {
            let (scale, zero) = packed.affine(i / block);
            let v = got.w[i] * (1.0 / scale);
            let code = v.round_ties_even() + zero;
            steps[i / block] += *d
                * match code {
                    c if c < low => f64::from(low - zero),
                    c if c > high => f64::from(high - zero),
                    _ => f64::from(v.round_ties_even()) - f64::from(got.w[i]) / f64::from(scale),
                };
            if !(low..=high).contains(&code) {
                *d = 0.0;
                clamped += 1;
            }
        }
        let factor = 2.0 / (block as f64 * f64::from((1u32 << (bits - 1)) - 1)).sqrt();
        steps.iter_mut().for_each(|s| *s *= factor);
        if let Some(got) = &got.steps {
            assert!(clamped > 0, "{what}: some weights are clamped");
            assert_close(&format!("{what}: steps"), got, &steps, 1e-3, 1e-4);
        }
    }
    match &latent.float {
        Float::Merged(_, lora) => {
            let (a, b) = (lora.a.read::<f32>().unwrap(), lora.b.read::<f32>().unwrap());
            let (r, s) = (case.rank.unwrap(), 2.0 * f64::from(lora.scale));
            let da = product(r, inputs, outputs, |i, j, t| s * f(&b, t * r + i) * dw[t * inputs + j]);
            let db = product(outputs, r, inputs, |i, j, t| s * dw[i * inputs + t] * f(&a, j * inputs + t));
            assert_close(&format!("{what}: dA"), &got.grads[0], &da, 1e-3, 1e-4);
            assert_close(&format!("{what}: dB"), &got.grads[1], &db, 1e-3, 1e-4);
        }
        _ => {
            let dw: Vec<f64> = dw.iter().map(|d| 2.0 * d).collect();
            assert_close(&format!("{what}: dW"), &got.grads[0], &dw, 2e-5, 1e-5);
        }
    }
}

#[test]
fn a_layers_gradients_equal_the_f64_reference() {
    let Some(gpu) = gpu() else { return };
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
    let learned = |scheme| QatConfig { ranges: Ranges::Learned, ..QatConfig::new(scheme) };
    let with = |config: QatConfig, scales| QatConfig { activations: Some(scales), ..config };
    let configs = [
        QatConfig::new(Scheme::int(3, 64)),
        QatConfig::new(int(4, PER_CHANNEL, true)),
        QatConfig::new(nf4),
        QatConfig::new(Scheme::F32),
        learned(Scheme::int(2, 24).symmetric()),
        learned(int(4, PER_CHANNEL, false)),
        with(QatConfig::new(Scheme::int(4, 64)), InputScales::Dynamic),
        with(QatConfig::new(Scheme::int8(PER_CHANNEL)), InputScales::Static),
        with(learned(Scheme::int(3, 64)), InputScales::Static),
    ];
    for config in configs {
        for shape in [[5, 63], [10, 264], [33, 24]] {
            if config.scheme.resolve(shape).validate_for(shape).is_err() {
                continue;
            }
            for rank in [None, Some(3)] {
                check_against_f64(&gpu, &case(&gpu, config, shape, rank));
            }
        }
    }
}

// ---------------------------------------------------------------- a model

fn loader(batch_size: usize) -> DataLoader {
    loader_of(batch_size, true)
}

/// Rows of the embedded data set, of which completions are learned, or all.
fn loader_of(batch_size: usize, completion_only: bool) -> DataLoader {
    let tokenizer = Tokenizer::open(EMBEDDED).unwrap().unwrap();
    let options = DataOptions { max_seq_length: 64, completion_only, vocab_size: 1024 };
    let dataset = Dataset::load(format!("{EMBEDDED}/train.jsonl"), Some(&tokenizer), &options).unwrap();
    let options = LoaderOptions { batch_size, pad_id: tokenizer.pad_id(), ..LoaderOptions::default() };
    DataLoader::new(dataset, options).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig { batch_size: 4, max_seq_length: 64, learning_rate: 1e-3, max_steps: 12, ..TrainConfig::default() }
}

fn model(gpu: &Gpu, lora: Option<usize>, qat: QatConfig) -> Model {
    let mut model = Model::load(gpu, EMBEDDED, &LoadOptions::default()).unwrap();
    if let Some(r) = lora {
        model.add_adapter(LoraConfig { r, lora_alpha: 2.0 * r as f64, ..LoraConfig::default() }, true).unwrap();
    }
    model.add_qat(qat, true).unwrap();
    if qat.activations == Some(InputScales::Static) {
        model.observe_inputs(&samples()).unwrap();
    }
    model
}

fn samples() -> Vec<Vec<u32>> {
    let mut loader = loader(1);
    (0..3).map(|_| loader.next_batch().input_ids).collect()
}

/// Trains for the steps of `config`; gives the model back and the losses.
fn train(model: Model, config: TrainConfig) -> (Model, Vec<f64>) {
    let mut loader = loader(config.batch_size);
    let steps = config.max_steps;
    let mut trainer = Trainer::new(model, config).unwrap();
    let losses = (0..steps).map(|_| trainer.step(&[loader.next_batch()]).unwrap().loss).collect();
    (trainer.into_model(), losses)
}

/// Mean loss of the first batches, without changing anything.
fn loss(model: Model) -> f64 {
    let mut model = model;
    if model.qat.is_none() {
        // What is stored is rounded to floats, that is: not at all.
        model.add_qat(QatConfig::new(Scheme::F32), true).unwrap();
    }
    let (_, losses) = train(model, TrainConfig { learning_rate: 0.0, max_steps: 6, ..config() });
    losses.iter().sum::<f64>() / losses.len() as f64
}

fn all(model: &Model, of: impl Fn(&fourbit::adapter::Chunk) -> Tensor) -> Vec<f32> {
    model.trained().flat_map(|chunk| of(chunk).read::<f32>().unwrap()).collect()
}

fn values(model: &Model) -> Vec<f32> {
    all(model, |chunk| chunk.params.clone())
}

fn gradients(model: &Model) -> Vec<f32> {
    all(model, |chunk| chunk.training.as_ref().unwrap().grads.clone())
}

fn weights(model: &Model) -> Vec<Packed> {
    let linears = model.blocks.iter().flat_map(|b| b.linears());
    linears.map(|l| l.base.weight.download().unwrap()).collect()
}

/// W of every layer, as rounding sees it.
fn floats(model: &Model) -> Vec<Vec<f32>> {
    let latent = |latent: &Latent| -> Result<Vec<f32>> {
        let mut g = Graph::new(model.gpu());
        let w = latent.weight(&mut g)?.unwrap();
        let copy = fourbit::kernels::elementwise::add(&mut g, &w, &w, 0.0)?;
        g.keep(&copy);
        g.run()?.read(&copy)
    };
    let linears = model.blocks.iter().flat_map(|b| b.linears());
    linears.map(|l| latent(l.latent.as_ref().unwrap()).unwrap()).collect()
}

const IDS: [u32; 20] = [1, 294, 268, 201, 358, 299, 273, 419, 279, 259, 401, 84, 540, 453, 498, 16, 2, 201, 1, 770];

#[test]
fn training_through_rounding_beats_rounding_afterwards() {
    let Some(gpu) = gpu() else { return };
    let scheme = Scheme::int(2, 64);
    let rows = loader_of(1, false);
    let rows = rows.dataset().examples().iter().enumerate();
    let (held_out, rows): (Vec<_>, Vec<_>) = rows.partition(|(n, _)| n % 5 == 0);
    let text: Vec<u32> = held_out.iter().flat_map(|(_, row)| row.input_ids.clone()).collect();
    let loss = |model: &Model| evaluate::perplexity(model, &text, 128, |_| {}).unwrap().loss;
    let trained = |qat: QatConfig| {
        let (lr_scheduler_type, warmup_steps, max_steps) = (Schedule::Cosine, 2, 40);
        let config = TrainConfig { lr_scheduler_type, warmup_steps, max_steps, ..config() };
        let mut trainer = Trainer::new(model(&gpu, None, qat), config).unwrap();
        let mut rows = rows.iter().map(|(_, row)| *row).cycle();
        for _ in 0..max_steps {
            let batch: Vec<_> = rows.by_ref().take(4).collect();
            trainer.step(&[Batch::collate(&batch, 0)]).unwrap();
        }
        let mut model = trainer.into_model();
        model.convert_qat().unwrap();
        model
    };
    let mut rounded = trained(QatConfig::new(Scheme::F32));
    let float = loss(&rounded);
    rounded.add_qat(QatConfig::new(scheme), false).unwrap();
    rounded.convert_qat().unwrap();
    let rounded = loss(&rounded);
    let observed = loss(&trained(QatConfig::new(scheme)));
    let learned = loss(&trained(QatConfig { ranges: Ranges::Learned, ..QatConfig::new(scheme) }));
    println!("float {float:.4}, rounded {rounded:.4}, trained through rounding {observed:.4}, LSQ {learned:.4}");
    assert!(float < rounded && observed < rounded, "{float} {rounded} {observed}");
    // A third of what rounding lost is won back at least.
    assert!(learned < rounded - (rounded - float) / 3.0, "{float} {rounded} {learned}");
}

#[test]
fn the_converted_model_is_the_one_that_was_trained() {
    let Some(gpu) = gpu() else { return };
    let learned = QatConfig { ranges: Ranges::Learned, ..QatConfig::new(Scheme::int(4, 64)) };
    let cases = [
        (None, QatConfig::new(Scheme::int(3, 64))),
        (None, QatConfig { activations: Some(InputScales::Static), ..learned }),
        (Some(4), QatConfig { activations: Some(InputScales::Dynamic), ..QatConfig::new(Scheme::int8(PER_CHANNEL)) }),
        (Some(4), learned),
        (None, QatConfig::new(Scheme::Nf4 { block_size: 64, double_quant: false })),
    ];
    for (lora, qat) in cases {
        let (mut model, losses) = train(model(&gpu, lora, qat), TrainConfig { max_steps: 3, ..config() });
        assert!(losses.iter().all(|l| l.is_finite()));
        let (seen, floats, before) = (weights(&model), floats(&model), evaluate::logits(&model, &IDS).unwrap());
        if qat.ranges == Ranges::Observed {
            for (packed, w) in seen.iter().zip(&floats) {
                let want = Packed::quantize(qat.scheme, packed.shape, w).unwrap();
                assert_eq!((&packed.codes, &packed.scales), (&want.codes, &want.scales), "{qat:?}");
            }
        }
        if let (Ranges::Learned, Scheme::Int { scale: ScaleType::F16, .. }) = (qat.ranges, qat.scheme) {
            for (linear, packed) in model.blocks.iter().flat_map(|b| b.linears()).zip(&seen) {
                let steps = linear.latent.as_ref().unwrap().steps.as_ref().unwrap().values.read::<f32>().unwrap();
                for (b, step) in steps.iter().enumerate() {
                    assert_eq!(packed.affine(b).0, half::f16::from_f32(*step).to_f32(), "{qat:?}: step {b}");
                }
            }
        }
        model.convert_qat().unwrap();
        assert!(model.adapter.is_none() && model.trained().next().is_none());
        for (a, b) in weights(&model).iter().zip(&seen) {
            assert_eq!((&a.codes, &a.scales), (&b.codes, &b.scales), "{qat:?}");
        }
        assert_eq!(evaluate::logits(&model, &IDS).unwrap(), before, "{qat:?}: the same kernels over the same numbers");
    }
}

#[test]
fn accumulated_micro_batches_equal_one_batch_and_checkpointing_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let learned = QatConfig { ranges: Ranges::Learned, ..QatConfig::new(Scheme::int(3, 64)) };
    let qat = QatConfig { activations: Some(InputScales::Static), ..learned };
    let whole = loader(2).next_batch();
    let seq = whole.seq_len;
    let row = |n: usize| {
        let range = n * seq..(n + 1) * seq;
        Batch {
            batch: 1,
            seq_len: seq,
            input_ids: whole.input_ids[range.clone()].to_vec(),
            labels: whole.labels[range.clone()].to_vec(),
            attention_mask: whole.attention_mask[range.clone()].to_vec(),
            segment_ids: whole.segment_ids[range.clone()].to_vec(),
            position_ids: whole.position_ids[range].to_vec(),
        }
    };
    for lora in [None, Some(4)] {
        let step = |batches: &[Batch], config: TrainConfig| {
            let mut trainer = Trainer::new(model(&gpu, lora, qat), config).unwrap();
            trainer.step(batches).unwrap();
            (gradients(trainer.model()), trainer.activation_bytes())
        };
        let config = TrainConfig { batch_size: 2, ..config() };
        let (one, bytes) = step(std::slice::from_ref(&whole), config.clone());
        let many = TrainConfig { gradient_accumulation_steps: 2, batch_size: 1, ..config.clone() };
        let (many, _) = step(&[row(0), row(1)], many);
        let largest = one.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = one.iter().zip(&many).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The same terms, summed in another order; sums of inputs' steps have thousands.
        assert!(worst <= 1e-4 * largest, "{worst} apart, the largest is {largest}");
        let (lean, fewer) = step(std::slice::from_ref(&whole), TrainConfig { gradient_checkpointing: true, ..config });
        assert_eq!(one, lean, "the forward pass is recorded again, so the bits are the same");
        assert!(fewer < bytes, "{fewer} {bytes}");
    }
}

#[test]
fn the_same_run_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let qat = QatConfig { ranges: Ranges::Learned, ..QatConfig::new(Scheme::int(2, 64)) };
    for lora in [None, Some(8)] {
        let run = || values(&train(model(&gpu, lora, qat), TrainConfig { max_steps: 3, ..config() }).0);
        let first = run();
        assert_eq!(first, run());
        assert_ne!(first, values(&model(&gpu, lora, qat)), "something was learned");
    }
}

#[test]
fn an_adapter_learns_through_rounding() {
    let Some(gpu) = gpu() else { return };
    let qat = QatConfig::new(Scheme::int(3, 64));
    let before = loss(model(&gpu, Some(8), qat));
    let (trained, _) = train(model(&gpu, Some(8), qat), TrainConfig { learning_rate: 4e-3, ..config() });
    let mut converted = trained;
    converted.convert_qat().unwrap();
    let after = loss(converted);
    assert!(after < before - 0.2, "{before} -> {after}");
}

#[test]
fn weight_decay_leaves_steps_alone() {
    let Some(gpu) = gpu() else { return };
    let qat = QatConfig { ranges: Ranges::Learned, ..QatConfig::new(Scheme::int(4, 64)) };
    let start = model(&gpu, None, qat);
    let chunks: Vec<(bool, Vec<f32>)> = start.trained().map(|c| (c.decays, c.params.read::<f32>().unwrap())).collect();
    assert_eq!(chunks.iter().map(|c| c.0).collect::<Vec<_>>(), [true, false]);
    // With so large an eps gradients move nothing, and decay alone is seen.
    let decay = TrainConfig { weight_decay: 0.5, eps: 1e12, max_steps: 1, ..config() };
    let (after, _) = train(start, decay);
    for ((decays, before), chunk) in chunks.iter().zip(after.trained()) {
        let now = chunk.params.read::<f32>().unwrap();
        let want: Vec<f64> = before.iter().map(|v| f64::from(*v) * if *decays { 1.0 - 5e-4 } else { 1.0 }).collect();
        assert_close("decay", &now, &want, 1e-9, 1e-6);
    }
}

#[test]
fn a_trained_model_is_written_and_read() {
    let Some(gpu) = gpu() else { return };
    let scheme = Scheme::int(3, 64);
    for activations in [None, Some(InputScales::Static)] {
        let qat = QatConfig { ranges: Ranges::Learned, activations, ..QatConfig::new(scheme) };
        let (mut model, _) = train(model(&gpu, None, qat), TrainConfig { max_steps: 2, ..config() });
        model.convert_qat().unwrap();
        let out = tempfile::tempdir().unwrap();
        let layout = CompressedTensors::new(scheme).unwrap();
        let layout = if activations.is_some() { layout.with_static_inputs() } else { layout };
        let job = QuantizedFolder::open(EMBEDDED, scheme, Box::new(layout), out.path().join("model")).unwrap();
        job.write_model(&model, |_| Ok(())).unwrap().0.commit().unwrap();
        let read = Model::load(&gpu, out.path().join("model"), &LoadOptions::default()).unwrap();
        assert_eq!(read.blocks[0].q.base.weight.scheme(), scheme);
        assert_eq!(read.blocks[0].q.base.activation.is_some(), activations.is_some());
        assert_eq!(evaluate::logits(&read, &IDS).unwrap(), evaluate::logits(&model, &IDS).unwrap());
        if activations.is_some() {
            // The plain layout has no room for the scales; the other one demands them.
            let unrounded =
                Model::load(&gpu, EMBEDDED, &LoadOptions { quantization: Quantization::To(scheme) }).unwrap();
            let message = job.write_model(&unrounded, |_| Ok(())).err().unwrap().to_string();
            assert!(message.contains("no static scale"), "{message}");
        }
    }
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let Some(gpu) = gpu() else { return };
    let load = || Model::load(&gpu, EMBEDDED, &LoadOptions::default()).unwrap();
    let refusal = |model: &mut Model, qat: QatConfig| model.add_qat(qat, true).unwrap_err().to_string();
    let nf4 = |double_quant| Scheme::Nf4 { block_size: 64, double_quant };
    assert!(refusal(&mut load(), QatConfig::new(Scheme::Q4K)).contains("q4_k"));
    assert!(refusal(&mut load(), QatConfig::new(nf4(true))).contains("without double quantization"));
    let learned = QatConfig { ranges: Ranges::Learned, ..QatConfig::new(nf4(false)) };
    assert!(refusal(&mut load(), learned).contains("learned ranges"));
    let mut dropping = load();
    dropping.add_adapter(LoraConfig { lora_dropout: 0.1, ..LoraConfig::default() }, true).unwrap();
    assert!(refusal(&mut dropping, QatConfig::new(Scheme::int(4, 64))).starts_with("lora_dropout: "));

    let mut model = load();
    model
        .add_qat(QatConfig { activations: Some(InputScales::Static), ..QatConfig::new(Scheme::int(4, 64)) }, true)
        .unwrap();
    assert!(model.add_adapter(LoraConfig::default(), true).is_err(), "too late for an adapter");
    assert!(model.observe_inputs(&[]).is_err());
    let message = Trainer::new(model, config()).err().unwrap().to_string();
    assert!(message.contains("observe_inputs"), "{message}");

    let mut broken = load();
    let mut packed = broken.blocks[1].up.base.weight.download().unwrap();
    packed.codes[3] = 0x7e00_7e00;
    broken.blocks[1].up.base.weight = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
    let message = refusal(&mut broken, QatConfig::new(Scheme::int(4, 64)));
    assert!(message.starts_with("model.layers.1.mlp.up_proj.weight: element 6 is not finite"), "{message}");
}
