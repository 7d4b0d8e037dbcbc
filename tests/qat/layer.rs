//! One layer: forward and backward through rounding, in f64 beside the device.

use crate::{
    reference::{
        product,
        steps::{factor, slope},
        transposed, wide,
    },
    support::{Rng, assert_close, gpu, int},
};
use fourbit::{
    DType, Gpu, LoraConfig, QuantizedTensor, Tensor,
    adapter::{Adapter, InputScales, Qat, QatConfig, Ranges},
    graph::{Graph, Value},
    kernels::elementwise,
    nn::{Adapted, Change, Float, InputRounding, Linear, Lora, Pass, StepValues},
    quant::{BlockSize, Packed, Scheme, affine::stored_codes},
};

/// A layer that is trained through rounding, and what it is made of.
struct Case {
    config: QatConfig,
    /// [out, in]
    shape: [usize; 2],
    rank: Option<usize>,
    linear: Adapted,
    /// Keeps the adapter's memory.
    _adapter: Option<Adapter>,
}

const TOKENS: usize = 9;

/// The pair of an adapter's first layer.
fn pair(adapter: &Adapter) -> Lora {
    adapter.modules().next().and_then(|(_, module)| module.lora()).unwrap()
}

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
        let adapter = Adapter::new(gpu, lora, &[("layer".to_owned(), [outputs, inputs])], true).unwrap();
        pair(&adapter).b.values.write(bytemuck::cast_slice(&rng.normals(outputs * r))).unwrap();
        adapter
    });
    let change = adapter.as_ref().map_or(Change::None, |a| Change::Lora(pair(a)));
    let layer = Adapted { change, ..Adapted::new("layer", Linear::new(weight, None)) };
    let (_, mut latents) = Qat::prepare(gpu, config, &[&layer], true).unwrap();
    let latent = latents.remove(0);
    let target = latent.target(gpu, "w", config.scheme, shape).unwrap();
    let mut g = Graph::new(gpu);
    latent.begin(&mut g, "w", &layer.base.weight, &target).unwrap();
    g.run().unwrap();
    if let Some(steps) = &latent.steps {
        // Smaller ones clamp numbers at both ends.
        let shorter: Vec<f32> = steps.values.read::<f32>().unwrap().iter().map(|s| 0.6 * s).collect();
        steps.values.write(bytemuck::cast_slice(&shorter)).unwrap();
    }
    let activation = config.activations.map(|scales| match (scales, &latent.input_step) {
        (InputScales::Dynamic, _) => InputRounding::Dynamic,
        (InputScales::Static, step) => {
            let own = || gpu.zeros("step", [1], DType::F32).unwrap();
            let scale = step.as_ref().map_or_else(own, |step| step.values.clone());
            scale.write(bytemuck::cast_slice(&[0.011f32])).unwrap();
            InputRounding::Static { scale }
        }
    });
    let bias = gpu.tensor("bias", [outputs], DType::F32, &rng.normals(outputs)).unwrap();
    let base = Linear { rounding: activation, ..Linear::new(target, Some(bias)) };
    let linear = Adapted { base, change: Change::Rounded(latent), ..layer };
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
    let latent = case.linear.change.rounded().unwrap();
    let mut g = Graph::new(gpu);
    latent.round(&mut g, "w", &case.linear.base.weight).unwrap();
    let mut import = |rows: usize, cols: usize, values: &[f32]| {
        g.import(&gpu.tensor("values", [rows, cols], DType::F32, values).unwrap())
    };
    let (x, dy) = (import(TOKENS, inputs, x), import(TOKENS, outputs, dy));
    let add = import(TOKENS, inputs, add);
    let step = |g: &mut Graph, accumulate: f32| StepValues {
        seed: Some(g.import(&gpu.zeros("seed", [2], DType::U32).unwrap())),
        accumulate: g.import(&gpu.tensor("accumulate", [1], DType::F32, &[accumulate]).unwrap()),
    };
    let (first, second) = (step(&mut g, 0.0), step(&mut g, 1.0));
    let pass = Pass::training(first);
    let (y, saved) = case.linear.forward(&mut g, &x, None, &pass).unwrap();
    case.linear.gradients(&mut g, &saved, &dy, pass.training_step().unwrap()).unwrap();
    // Accumulated once: the gradients come out doubled.
    let dx = case.linear.backward(&mut g, &saved, &dy, Some(&add), &second).unwrap();
    let w = latent.weight(&mut g).unwrap().unwrap();
    let w = elementwise::add(&mut g, &w, &w, 0.0).unwrap();
    for value in [&y, &dx, &w] {
        g.keep(value);
    }
    let program = g.run().unwrap();
    let read = |value: &Value| program.read::<f32>(value).unwrap();
    let of = |t: &Tensor| t.read::<f32>().unwrap();
    let grads = match &latent.float {
        Float::Whole(trained) => vec![of(trained.grads.as_ref().unwrap())],
        Float::Merged(merged) => {
            let grads = |p: &fourbit::nn::Parameter| of(p.grads.as_ref().unwrap());
            vec![grads(&merged.lora.a), grads(&merged.lora.b)]
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

/// The layer in f64, straight through where nothing is clamped; codes are those of f32, as rounding is defined.
fn check_against_f64(gpu: &Gpu, case: &Case) {
    let [outputs, inputs] = case.shape;
    let what = format!("{:?} {:?} rank {:?}", case.config, case.shape, case.rank);
    let mut rng = Rng(77);
    let (x, dy, add) = (rng.normals(TOKENS * inputs), rng.normals(TOKENS * outputs), rng.normals(TOKENS * inputs));
    let got = run(gpu, case, &x, &dy, &add);
    let latent = case.linear.change.rounded().unwrap();
    let packed = case.linear.base.weight.download().unwrap();
    if case.config.ranges == Ranges::Observed {
        let want = Packed::quantize(case.config.scheme, case.shape, &got.w).unwrap();
        assert_eq!((&packed.codes, &packed.scales), (&want.codes, &want.scales), "{what}: rounding to nearest");
    }
    let (fq, dy) = (wide(&packed.dequantize()), wide(&dy));

    // Q(x), the clamped part of x, and the slope of its step.
    let mut qx = wide(&x);
    let mut slopes = vec![(true, 0.0); x.len()];
    match &case.linear.base.rounding {
        None => {}
        Some(InputRounding::Static { scale }) => {
            let step = scale.read::<f32>().unwrap()[0];
            let code = |v: f32| (v * (1.0 / step)).round_ties_even().clamp(-127.0, 127.0);
            qx = x.iter().map(|&v| f64::from(code(v) * step)).collect();
            slopes = x.iter().map(|&v| slope(v, step, 0.0, (-127.0, 127.0))).collect();
            assert!(slopes.iter().any(|(inside, _)| !inside), "{what}: some inputs are clamped");
        }
        _ => {
            // The rows' rule is tested with its kernel; here what it gives is taken over.
            let mut g = Graph::new(gpu);
            let vx = g.import(&gpu.tensor("x", [TOKENS, inputs], DType::F32, &x).unwrap());
            let rounded = InputRounding::Dynamic.round(&mut g, &vx).unwrap();
            g.keep(&rounded);
            qx = wide(&g.run().unwrap().read::<f32>(&rounded).unwrap());
        }
    }

    let bias = case.linear.base.bias.as_ref().unwrap().read::<f32>().unwrap();
    let mut y = product(&qx, &fq, inputs);
    y.iter_mut().enumerate().for_each(|(n, y)| *y += f64::from(bias[n % outputs]));
    // f32's rounding over sums of up to 264 products of magnitude 30.
    assert_close(&format!("{what}: y"), &got.y, &y, 2e-4, 1e-5);

    let dxq = product(&dy, &transposed(&fq, inputs), outputs);
    let masked = dxq.iter().zip(&slopes).map(|(d, (inside, _))| if *inside { *d } else { 0.0 });
    let dx: Vec<f64> = masked.zip(&add).map(|(d, add)| d + f64::from(*add)).collect();
    assert_close(&format!("{what}: dx"), &got.dx, &dx, 2e-4, 1e-5);
    if let Some(step) = got.input_step {
        let sum: f64 = dxq.iter().zip(&slopes).map(|(d, (_, slope))| d * slope).sum();
        assert_close(&format!("{what}: input step"), &[step], &[2.0 * sum * factor(inputs, 127)], 1e-3, 1e-4);
    }

    let mut dw = product(&transposed(&dy, outputs), &transposed(&qx, inputs), TOKENS);
    if let Scheme::Int { bits, .. } = packed.scheme {
        let (low, high) = stored_codes(bits);
        let block = packed.block_size().unwrap();
        let mut steps = vec![0.0; dw.len().div_ceil(block)];
        let mut clamped = 0;
        for (i, d) in dw.iter_mut().enumerate() {
            let (scale, zero) = packed.affine(i / block);
            let (inside, slope) = slope(got.w[i], scale, zero, (low as f32, high as f32));
            steps[i / block] += *d * slope;
            if !inside {
                *d = 0.0;
                clamped += 1;
            }
        }
        steps.iter_mut().for_each(|s| *s *= 2.0 * factor(block, (1 << (bits - 1)) - 1));
        if let Some(got) = &got.steps {
            assert!(clamped > 0, "{what}: some weights are clamped");
            assert_close(&format!("{what}: steps"), got, &steps, 1e-3, 1e-4);
        }
    }
    match &latent.float {
        Float::Merged(merged) => {
            let lora = &merged.lora;
            let (a, b) = (lora.a.values.read::<f32>().unwrap(), lora.b.values.read::<f32>().unwrap());
            let (r, s) = (case.rank.unwrap(), 2.0 * f64::from(lora.scale));
            let scaled: Vec<f64> = dw.iter().map(|d| s * d).collect();
            let da = product(&transposed(&wide(&b), r), &transposed(&scaled, inputs), outputs);
            let db = product(&scaled, &wide(&a), inputs);
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
    let observed = QatConfig::new;
    let learned = |scheme| QatConfig { ranges: Ranges::Learned, ..QatConfig::new(scheme) };
    let with = |config: QatConfig, scales| QatConfig { activations: Some(scales), ..config };
    let configs = [
        observed(Scheme::F32),
        observed(Scheme::int(3, 64)),
        observed(Scheme::Nf4 { block_size: 64, double_quant: false }),
        with(observed(int(4, 64, true).with_block(BlockSize::Row)), InputScales::Dynamic),
        with(observed(Scheme::INT8_ROWS), InputScales::Static),
        learned(Scheme::int(2, 24).symmetric()),
        with(learned(Scheme::int(3, 64)), InputScales::Static),
    ];
    for config in configs {
        for shape in [[5, 63], [10, 264]] {
            if config.scheme.resolve(shape).validate_for(shape).is_err() {
                continue;
            }
            for rank in [None, Some(3)] {
                check_against_f64(&gpu, &case(&gpu, config, shape, rank));
            }
        }
    }
}

#[test]
fn a_weight_beyond_a_binding_is_refused_by_name() {
    use fourbit::gpu::GpuOptions;
    let dry = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
    let rows = dry.caps().max_binding as usize / 4 / 4096 + 1;
    let weight = QuantizedTensor::zeros(&dry, "w", Scheme::int(4, 64), [rows, 4096]).unwrap();
    for rank in [None, Some(2)] {
        let adapter = rank.map(|r| {
            let lora = LoraConfig { r, ..LoraConfig::default() };
            Adapter::new(&dry, lora, &[("wide".to_owned(), [rows, 4096])], true).unwrap()
        });
        let change = adapter.map_or(Change::None, |a| Change::Lora(pair(&a)));
        let base = Linear::new(weight.clone(), None);
        let layer = Adapted { change, ..Adapted::new("wide", base) };
        let message =
            Qat::prepare(&dry, QatConfig::new(Scheme::int(4, 64)), &[&layer], true).err().unwrap().to_string();
        assert!(message.starts_with("wide: expected a weight of at most"), "{message}");
    }
}
