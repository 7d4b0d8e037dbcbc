//! Methods on a whole model: the one that is compiled into the binary.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::{
    DType, Error, Gpu, Result,
    arch::LinearId,
    evaluate,
    method::{
        Awq, AwqOptions, BlockStats, Gptq, GptqOptions, InputStats, KeepBetter, Layer, LayerMethod, Method, Needs,
        PipelineOptions, Recipe, Rtn, Site, SmoothQuant, SmoothQuantOptions, quantize_model,
    },
    model::{Block, Model, Quantization, Source},
    nn::Linear,
    quant::Scheme,
};
use std::{cell::RefCell, path::Path};
use support::{Rng, embedded, folder::Size, gpu};

/// Samples of different lengths.
fn calibration() -> Vec<Vec<u32>> {
    let mut samples = embedded::samples(8);
    samples[0].truncate(61);
    samples[2].truncate(33);
    samples
}

const NF4: Scheme = Scheme::Nf4 { block_size: 64, double_quant: true };

#[test]
fn rounding_to_nearest_runs_no_text_and_equals_loading_in_the_scheme() {
    let Some(gpu) = gpu() else { return };
    let (source, mut names) = (embedded::source(), Vec::new());
    let ours = quantize_model(&gpu, &source, &Rtn { scheme: NF4 }, &PipelineOptions::default(), &[], |report| {
        names.push(report.name.clone());
        assert_eq!((report.done, report.total), (names.len(), 28));
        Ok(())
    })
    .unwrap();
    assert_eq!(names[8], "model.layers.1.self_attn.k_proj");
    let loaded = embedded::load(&gpu, Quantization::To(NF4));
    for (a, b) in ours.linears().zip(loaded.linears()) {
        assert_eq!(a.name, b.name);
        assert_eq!(a.base.weight.download().unwrap(), b.base.weight.download().unwrap(), "{}", a.name);
    }
}

/// Layer, tokens, Hessian, largest magnitudes, sums of magnitudes.
type Told = (String, usize, Vec<f32>, Vec<f32>, Vec<f32>);

/// Keeps what it is given and leaves the weights as floats.
#[derive(Default)]
struct Probe {
    seen: RefCell<Vec<Told>>,
}

impl LayerMethod for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, channels: true, ..Needs::default() }
    }

    fn fold(&self, _: &Gpu, _: &mut Block, stats: &mut BlockStats) -> Result<()> {
        assert_eq!(stats.site(Site::Down).hessian.as_ref().unwrap().shape().dims(), [448, 448]);
        Ok(())
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let (h, channels) = (layer.stats.hessian.as_ref().unwrap(), layer.stats.channels.as_ref().unwrap());
        let read = |t: &fourbit::Tensor| t.read::<f32>();
        let told =
            (layer.name.to_owned(), layer.stats.tokens, read(h)?, read(&channels.absmax)?, read(&channels.total)?);
        self.seen.borrow_mut().push(told);
        Rtn { scheme: Scheme::F32 }.quantize(gpu, layer)
    }
}

#[test]
fn statistics_are_those_of_all_tokens_wherever_the_states_lie() {
    let Some(gpu) = gpu() else { return };
    let samples = calibration();
    let mut runs = Vec::new();
    // All states on the device; a few of them; none, and each layer's input collected anew.
    for (bytes, true_sequential) in [(1 << 30, false), (150_000, false), (0, true)] {
        let probe = Probe::default();
        let options = PipelineOptions { true_sequential, activation_bytes: bytes, ..PipelineOptions::default() };
        let model = embedded::quantized(&gpu, &probe, &options, &samples);
        runs.push((probe.seen.into_inner(), evaluate::logits(&model, &samples[0]).unwrap()));
    }
    assert!(runs[0] == runs[1] && runs[0] == runs[2], "the same bits");
    let loaded = embedded::load(&gpu, Quantization::AsStored);
    let want = evaluate::logits(&loaded, &samples[0]).unwrap();
    // The weights were halves, which f32 holds exactly; the products run through another kernel.
    support::assert_close("logits", &runs[0].1, &want.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), 1e-3, 1e-4);
    let seen = &runs[0].0;
    assert_eq!(seen.len(), 28);
    let tokens: usize = samples.iter().map(Vec::len).sum();
    for (name, count, h, absmax, total) in seen {
        assert_eq!(*count, tokens);
        let n = absmax.len();
        for c in 0..n {
            let (mean_square, mean) = (h[c * n + c] / 2.0, total[c] / tokens as f32);
            let slack = 1.0 + 1e-4;
            assert!(mean * mean <= mean_square * slack, "{name} {c}: {mean} {mean_square}");
            assert!(mean_square.sqrt() <= absmax[c] * slack, "{name} {c}: {mean_square} {}", absmax[c]);
            assert!(absmax[c] * absmax[c] <= mean_square * tokens as f32 * slack, "{name} {c}");
        }
    }
}

#[test]
fn calibration_that_cannot_be_used_is_refused() {
    let Some(gpu) = gpu() else { return };
    let source = embedded::source();
    for (samples, expected) in [
        (vec![], "there is no sample"),
        (vec![vec![1], vec![]], "sample 1 has no token"),
        (vec![vec![5000]], "sample 0 has token 5000; the model's vocabulary has 1024"),
    ] {
        let error = quantize_model(&gpu, &source, &Probe::default(), &PipelineOptions::default(), &samples, |_| Ok(()));
        let message = error.err().expect("an error").to_string();
        assert!(message.starts_with("calibration: ") && message.contains(expected), "{message}");
    }
    let stop = |_: &fourbit::method::LayerReport| Err(Error::config("test", "stopped"));
    let rtn = Rtn { scheme: NF4 };
    assert!(quantize_model(&gpu, &source, &rtn, &PipelineOptions::default(), &[], stop).is_err());
}

/// Mean squared difference of the logits of all samples from those of the model as it is stored.
fn output_error(model: &Model, samples: &[Vec<u32>]) -> f64 {
    let float = embedded::load(model.gpu(), Quantization::AsStored);
    let errors = samples.iter().map(|ids| {
        let (a, b) = (evaluate::logits(model, ids).unwrap(), evaluate::logits(&float, ids).unwrap());
        let squares = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>() / a.len() as f64
    });
    errors.sum::<f64>() / samples.len() as f64
}

fn quantized(gpu: &Gpu, method: &dyn LayerMethod, true_sequential: bool) -> Model {
    let options = PipelineOptions { true_sequential, ..PipelineOptions::default() };
    embedded::quantized(gpu, method, &options, &calibration())
}

#[test]
fn calibrated_methods_lose_less_than_rounding_to_nearest() {
    let Some(gpu) = gpu() else { return };
    let samples = calibration();
    for bits in [4, 3] {
        let scheme = Scheme::int(bits, 64);
        let error = |method: &dyn LayerMethod, sequential| {
            let model = quantized(&gpu, method, sequential);
            assert!(model.linears().all(|l| l.base.weight.scheme() == scheme));
            output_error(&model, &samples)
        };
        let nearest = error(&Rtn { scheme }, false);
        let plain = GptqOptions { act_order: false, ..GptqOptions::new(scheme) };
        let gptq = |options| Gptq::new(options).unwrap();
        let figures = [
            ("gptq", error(&gptq(plain), false)),
            ("gptq, true sequential", error(&gptq(plain), true)),
            ("gptq, act-order", error(&gptq(GptqOptions { act_order: true, ..plain }), false)),
            (
                "gptq, groups of the order",
                error(&gptq(GptqOptions { act_order: true, static_groups: false, ..plain }), false),
            ),
            ("awq", error(&Awq::new(AwqOptions::new(scheme)).unwrap(), false)),
        ];
        eprintln!("{bits} bits: rtn {nearest:.5}, {figures:.5?}");
        for (name, figure) in figures {
            assert!(figure < 0.9 * nearest, "{bits} bits, {name}: {figure} against {nearest}");
        }
    }
}

/// Folds and then leaves the weights as floats.
struct FoldOnly<M>(M);

impl<M: LayerMethod> LayerMethod for FoldOnly<M> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
        self.0.fold(gpu, block, stats)
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        Rtn { scheme: Scheme::F32 }.quantize(gpu, layer)
    }
}

#[test]
fn folding_changes_weights_and_norms_but_not_the_model() {
    let Some(gpu) = gpu() else { return };
    let samples = calibration();
    let float = embedded::load(&gpu, Quantization::AsStored);
    let smooth = SmoothQuant::new(SmoothQuantOptions::default()).unwrap();
    let awq = Awq::new(AwqOptions::new(Scheme::int(3, 64))).unwrap();
    let models = [quantized(&gpu, &FoldOnly(smooth), false), quantized(&gpu, &FoldOnly(awq), false)];
    for model in models {
        let scale =
            evaluate::logits(&float, &samples[0]).unwrap().iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        // f32 roundings of scaled weights and activations.
        assert!(output_error(&model, &samples).sqrt() < 1e-5 * scale);
        for (a, b) in model.blocks().iter().zip(float.blocks()) {
            let read = |t: &fourbit::Tensor| t.read::<f32>().unwrap();
            let [a, b] = [a, b].map(|block| block.attention_norm.as_ref().expect("SmolLM2 has one"));
            assert_ne!(read(&a.weight.values), read(&b.weight.values));
        }
    }
}

#[test]
fn smooth_quant_evens_out_the_channels() {
    let Some(gpu) = gpu() else { return };
    // Collects what it smoothed.
    let smooth = SmoothQuant::new(SmoothQuantOptions::default()).unwrap();
    struct Watch(SmoothQuant, RefCell<Vec<[f64; 2]>>);
    impl LayerMethod for Watch {
        fn name(&self) -> &'static str {
            "watch"
        }
        fn needs(&self) -> Needs {
            self.0.needs()
        }
        fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
            let spread = |stats: &BlockStats| -> Result<f64> {
                let absmax = stats.site(Site::GateUp).channels.as_ref().unwrap().absmax.read::<f32>()?;
                let mean = absmax.iter().map(|v| f64::from(*v)).sum::<f64>() / absmax.len() as f64;
                Ok(absmax.iter().fold(0.0f64, |m, v| m.max(f64::from(*v))) / mean)
            };
            let before = spread(stats)?;
            self.0.fold(gpu, block, stats)?;
            self.1.borrow_mut().push([before, spread(stats)?]);
            Ok(())
        }
        fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
            self.0.quantize(gpu, layer)
        }
    }
    let watch = Watch(smooth, RefCell::default());
    let model = quantized(&gpu, &watch, false);
    for [before, after] in watch.1.into_inner() {
        assert!(after < before, "{before} {after}");
    }
    // 8 bits per channel: a part in 256 of each row's range.
    let error = output_error(&model, &calibration());
    let rtn = quantized(&gpu, &Rtn { scheme: Scheme::INT8_ROWS }, false);
    let nearest = output_error(&rtn, &calibration());
    assert!(error < 3.0 * nearest, "{error} {nearest}");
    assert!(SmoothQuant::new(SmoothQuantOptions { alpha: 1.5, ..SmoothQuantOptions::default() }).is_err());
}

/// Writes a number over the last one of a bf16 tensor.
fn overwrite(file: &Path, tensor: &str, value: f32) {
    let mut bytes = std::fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let end = 8 + header + json[tensor]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[end - 2..end].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn every_method_refuses_weights_that_are_not_finite_by_name() {
    let Some(gpu) = gpu() else { return };
    let size = Size { hidden: 64, intermediate: 64, layers: 1, heads: 2, kv_heads: 1, vocab: 32 };
    for (tensor, value) in [("self_attn.k_proj", f32::NAN), ("mlp.down_proj", f32::NEG_INFINITY)] {
        let folder = tempfile::tempdir().unwrap();
        size.write(folder.path());
        let tensor = format!("model.layers.0.{tensor}.weight");
        overwrite(&folder.path().join("model.safetensors"), &tensor, value);
        let source = Source::open(folder.path()).unwrap();
        for method in Method::ALL {
            let recipe = Recipe::new(method, method.default_scheme());
            let built = recipe.build().unwrap();
            let result = quantize_model(&gpu, &source, &*built, &recipe.pipeline(), &[vec![1, 2, 3]], |_| Ok(()));
            let message = result.err().unwrap_or_else(|| panic!("{recipe} takes {value}")).to_string();
            let named = message.starts_with(&format!("{tensor}: ")) && message.contains("not finite");
            assert!(named, "{recipe}: {message}");
        }
    }
}

/// Σ x xᵀ of `tokens` normals times a mixture, so that channels go along with each other as in a kind of text. [n, n]
fn moments(kind: u64, seed: u64, tokens: usize, n: usize) -> Vec<f64> {
    let (mixture, mut rng) = (Rng(kind).normals(n * n), Rng(seed));
    let mut sum = vec![0.0; n * n];
    for _ in 0..tokens {
        let source = rng.normals(n);
        // A few directions carry most of an input.
        let weight = |j: usize| f64::from(source[j]) / (1.0 + j as f64);
        let x: Vec<f64> = (0..n).map(|i| (0..n).map(|j| weight(j) * f64::from(mixture[i * n + j])).sum()).collect();
        (0..n * n).for_each(|k| sum[k] += x[k / n] * x[k % n]);
    }
    sum
}

#[test]
fn rounding_is_kept_where_it_loses_less_of_what_is_held_back() {
    let Some(gpu) = gpu() else { return };
    let (rows, n, scheme) = (48, 64, Scheme::int(3, 32));
    let w: Vec<f32> = Rng(4).normals(rows * n).iter().map(|v| 0.1 * v).collect();
    let tensor = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        gpu.tensor("moments", [n, n], DType::F32, &values).unwrap()
    };
    let quantize = |method: &dyn LayerMethod, stats: &InputStats| {
        let weight = gpu.tensor("w", [rows, n], DType::F32, &w).unwrap();
        method
            .quantize(&gpu, &Layer { id: LinearId::Q, name: "layer", weight, bias: None, stats })
            .unwrap()
            .weight
            .download()
            .unwrap()
    };
    let gptq = || Gptq::new(GptqOptions::new(scheme)).unwrap();
    // Another kind of text misleads, the same does not.
    for (kind, misled) in [(2, true), (1, false)] {
        let held = moments(1, 7, 300, n);
        let stats = InputStats {
            tokens: 300,
            hessian: Some(tensor(&moments(kind, 8, 300, n))),
            held_back: Some(tensor(&held)),
            ..InputStats::default()
        };
        let lost = |other: &[f32]| -> f64 {
            let delta: Vec<f64> = w.iter().zip(other).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
            let row = |d: &[f64]| (0..n * n).map(|k| d[k / n] * held[k] * d[k % n]).sum::<f64>();
            delta.chunks(n).map(row).sum()
        };
        let whole = lost(&vec![0.0; rows * n]);
        let (by_method, rounded) = (quantize(&gptq(), &stats), quantize(&Rtn { scheme }, &stats));
        let better = KeepBetter::new(Box::new(gptq()), Box::new(Rtn { scheme }));
        let made = quantize(&better, &stats);
        let compared = better.compared().remove(0);
        for (got, want) in [(compared.method, &by_method), (compared.rounding, &rounded)] {
            let want = lost(&want.dequantize()) / whole;
            // Sums of f32 products in which little cancels.
            assert!((got - want).abs() <= 1e-4 * want, "{kind}: {got} {want}");
        }
        assert_eq!(compared.keeps_rounding(), misled, "{compared:?}");
        assert_eq!(made, if misled { rounded } else { by_method }, "{kind}");
        assert_eq!(compared.layer, "layer");
    }
}

/// Keeps Σ x xᵀ of what is shown and of what is held back, and leaves the weights as floats.
struct HeldBack {
    held_back: bool,
    seen: RefCell<Vec<[Vec<f32>; 2]>>,
}

impl LayerMethod for HeldBack {
    fn name(&self) -> &'static str {
        "held back"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, held_back: self.held_back, ..Needs::default() }
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let shown = layer.stats.hessian.as_ref().unwrap().read::<f32>()?;
        let shown = shown.into_iter().map(|v| v * layer.stats.tokens as f32 / 2.0).collect();
        let held = layer.stats.held_back.as_ref().map(|h| h.read::<f32>()).transpose()?.unwrap_or_default();
        self.seen.borrow_mut().push([shown, held]);
        Rtn { scheme: Scheme::F32 }.quantize(gpu, layer)
    }
}

#[test]
fn what_is_held_back_is_the_last_of_four_samples_and_nothing_else() {
    let Some(gpu) = gpu() else { return };
    let run = |held_back: bool, samples: &[Vec<u32>]| {
        let probe = HeldBack { held_back, seen: RefCell::default() };
        embedded::quantized(&gpu, &probe, &PipelineOptions::default(), samples);
        probe.seen.into_inner()
    };
    let samples = calibration();
    for (samples, shown, held) in
        [(samples[..5].to_vec(), vec![0, 1, 2, 4], vec![3]), (samples[..2].to_vec(), vec![0], vec![1])]
    {
        let both = run(true, &samples);
        let of = |numbers: &[usize]| run(false, &numbers.iter().map(|&i| samples[i].clone()).collect::<Vec<_>>());
        for (part, want) in [of(&shown), of(&held)].iter().enumerate() {
            for (layer, (got, want)) in both.iter().zip(want).enumerate() {
                let most = want[0].iter().fold(0.0f32, |most, v| most.max(v.abs()));
                let near = got[part].iter().zip(&want[0]).all(|(a, b)| (a - b).abs() <= 1e-5 * most);
                assert!(near, "{} samples, part {part}, layer {layer}", samples.len());
            }
        }
    }
    let method = HeldBack { held_back: true, seen: RefCell::default() };
    let options = PipelineOptions::default();
    let error = quantize_model(&gpu, &embedded::source(), &method, &options, &samples[..1], |_| Ok(())).err().unwrap();
    assert_eq!(error.to_string(), "calibration: at least 2 samples are needed where some are held back");
}
