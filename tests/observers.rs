//! Observers: the ranges that they choose, and the static scales that a whole model gets from them.
#![cfg(feature = "tokenizer")]

mod support;

#[path = "reference/mod.rs"]
mod reference;

use fourbit::{
    DType, Gpu,
    graph::Graph,
    method::{
        ActivationScales, BINS, LayerFigures, LayerMethod, Observed, Observer, PipelineOptions, Quip, Rtn, RtnObserved,
        Seen, SmoothQuant, W8A8, quantize_model,
    },
    model::{Block, Inputs, Model, Quantization},
    nn::{InputRounding, Keys, Pass},
    quant::{BlockSize, Scheme},
};
use reference::{
    observer::{divergences, histogram, squared_error},
    product, wide,
};
use support::{Rng, embedded, gpu};

fn seen(x: &[f32]) -> Seen {
    let fold = |f: fn(f32, f32) -> f32| x.iter().copied().reduce(f).unwrap();
    let (low, high) = (fold(f32::min), fold(f32::max));
    Seen { low, high, average: [low, high], histogram: Some(histogram(x, BINS)) }
}

fn clip(observer: Observer, x: &[f32]) -> f64 {
    f64::from(observer.clip(&seen(x), 127).unwrap())
}

const PERCENTILE: Observer = Observer::Percentile { percent: 99.99 };

/// Distributions that activations have: normal, heavy tails, uniform, lone outliers, one-sided.
fn distributions() -> Vec<(&'static str, Vec<f32>)> {
    let count = 100_000;
    let normals = |seed| Rng(seed).normals(count);
    let mut outlier = normals(3);
    outlier[500] = 30.0;
    let mut huge = normals(4);
    huge[500] = -1e4;
    let heavy = normals(5).iter().zip(normals(6)).map(|(a, b)| a * b * b).collect();
    let mut rng = Rng(7);
    let uniform = (0..count).map(|_| 4.0 * rng.uniform() - 2.0).collect();
    let one_sided = normals(8).iter().map(|v| v.max(0.0)).collect();
    vec![
        ("normal", normals(2)),
        ("outlier", outlier),
        ("huge outlier", huge),
        ("heavy", heavy),
        ("uniform", uniform),
        ("one-sided", one_sided),
        ("few", vec![0.3, -0.1, 2.5]),
    ]
}

#[test]
fn min_max_and_averages_are_what_was_seen() {
    let (low, high) = (-3.5f32, 2.0f32);
    let seen = Seen { low, high, average: [-1.25, 1.5], histogram: None };
    assert_eq!(Observer::MinMax.clip(&seen, 127).unwrap(), 3.5);
    assert_eq!(Observer::MovingAverage { constant: 0.01 }.clip(&seen, 127).unwrap(), 1.5);
    let message = Observer::Mse.clip(&seen, 127).unwrap_err().to_string();
    assert!(message.starts_with("mse: "), "{message}");
}

#[test]
fn percentiles_are_those_of_the_sorted_magnitudes() {
    for (name, x) in distributions() {
        let mut sorted: Vec<f64> = x.iter().map(|v| f64::from(v.abs())).collect();
        sorted.sort_by(f64::total_cmp);
        let width = sorted[sorted.len() - 1] / BINS as f64;
        for percent in [10.0, 50.0, 99.0, 99.99, 100.0] {
            let got = clip(Observer::Percentile { percent }, &x);
            let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
            let want = sorted[rank.max(1) - 1];
            // The number of that rank is somewhere in its bin.
            assert!((got - want).abs() <= 1.001 * width, "{name} {percent}: {got} {want} {width}");
        }
    }
}

#[test]
fn the_least_error_is_that_of_trying_every_range() {
    for (name, x) in distributions() {
        let largest = x.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        let chosen = clip(Observer::Mse, &x);
        let ours = squared_error(&x, chosen, 127.0);
        let tried = (1..=200).map(|i| largest * f64::from(i) / 200.0);
        let least = tried.map(|c| squared_error(&x, c, 127.0)).fold(f64::INFINITY, f64::min);
        if x.len() > 100 {
            // Ranges are tried in steps of 2 %, and a bin's numbers count as evenly spread.
            assert!(ours <= 1.02 * least, "{name}: {chosen} of {largest} costs {ours}, the best {least}");
        }
        // What trying proves of the reference too: clipping everything is no answer.
        assert!(ours < squared_error(&x, largest / 200.0, 127.0), "{name}");
    }
}

#[test]
fn entropy_is_that_of_the_published_calibration() {
    for (name, x) in distributions() {
        let counts: Vec<f64> = histogram(&x, BINS).chunks(4).map(|c| c.iter().map(|&n| f64::from(n)).sum()).collect();
        let width = x.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs()))) / 2048.0;
        let all = divergences(&counts, 128);
        let least = all.iter().fold(f64::INFINITY, |m, (_, d)| m.min(*d));
        let chosen = clip(Observer::Entropy, &x);
        // The middle of the bin after those that are kept, but never beyond the largest number.
        let kept = ((chosen / width - 0.5).round() as usize + usize::from(chosen > 2047.75 * width)).min(2048);
        let (_, ours) = all.iter().find(|(k, _)| *k == kept).unwrap_or_else(|| panic!("{name}: {kept}"));
        assert!(*ours <= least + 1e-9, "{name}: {kept} bins diverge by {ours}, the least is {least}");
    }
}

#[test]
fn ranges_suit_their_distributions() {
    let named = |name: &str| distributions().into_iter().find(|(n, _)| *n == name).unwrap().1;
    for observer in Observer::ALL {
        let full = clip(observer, &named("uniform"));
        assert!((1.95..=2.0).contains(&full), "{observer}: uniform numbers use their whole range, got {full}");
        assert_eq!(clip(observer, &[0.0; 100]), 0.0, "{observer}");
        let constant = clip(observer, &[-0.37; 100]);
        assert!((constant - 0.37).abs() < 0.01 * 0.37, "{observer}: {constant}");
    }
    // One number of 30 among 100 000 normals: worth clipping, by every measure but the range itself.
    let outlier = named("outlier");
    assert_eq!(clip(Observer::MinMax, &outlier), 30.0);
    for (observer, most) in [(PERCENTILE, 5.0), (Observer::Mse, 25.0), (Observer::Entropy, 6.0)] {
        let clip = clip(observer, &outlier);
        assert!(clip > 3.0 && clip < most, "{observer}: {clip}");
    }
}

/// The inputs of the linear layers of the first block, one list per sample.
fn inputs(gpu: &Gpu, model: &Model, samples: &[Vec<u32>]) -> [Vec<Vec<f32>>; 7] {
    let mut all: [Vec<Vec<f32>>; 7] = Default::default();
    for ids in samples {
        let tokens = Inputs::new(gpu, 1, ids.len()).unwrap();
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        tokens.write(ids, &positions, &vec![1; ids.len()], &vec![0; ids.len()]).unwrap();
        let ropes = model.rope_tables(ids.len()).unwrap();
        let mut g = Graph::new(gpu);
        let cx = model.context(&mut g, &tokens, &ropes, Pass::inference());
        let (ids, segments) = (g.import(&tokens.ids), g.import(&tokens.segments));
        let x = model.embed(&mut g, &ids).unwrap();
        let (_, saved) = model.blocks()[0].forward(&mut g, &x, &cx, Keys::Own(&segments)).unwrap();
        let values: Vec<_> = model.blocks()[0].linears().map(|(id, _)| saved.input(id.reads()).clone()).collect();
        values.iter().for_each(|v| g.keep(v));
        let run = g.run().unwrap();
        all.iter_mut().zip(&values).for_each(|(all, v)| all.push(run.read::<f32>(v).unwrap()));
    }
    all
}

/// What an observer chooses for batches that were read back.
fn expected(observer: Observer, batches: &[Vec<f32>]) -> f32 {
    let mut seen = seen(&batches.concat());
    if let Observer::MovingAverage { constant } = observer {
        let range = |x: &[f32]| {
            let fold = |f: fn(f32, f32) -> f32| x.iter().copied().reduce(f).unwrap();
            [fold(f32::min), fold(f32::max)].map(f64::from)
        };
        let mut average = range(&batches[0]);
        for x in &batches[1..] {
            let own = range(x);
            (0..2).for_each(|i| average[i] += f64::from(constant) * (own[i] - average[i]));
        }
        seen.average = average.map(|v| v as f32);
    }
    observer.clip(&seen, 127).unwrap()
}

fn scale(block: &Block, index: usize) -> f32 {
    match &block.linears().nth(index).unwrap().1.base.rounding {
        Some(InputRounding::Static { scale }) => scale.read::<f32>().unwrap()[0],
        other => panic!("no static scale: {other:?}"),
    }
}

const EAGER: Observer = Observer::MovingAverage { constant: 0.3 };

#[test]
fn static_scales_are_those_of_the_activations() {
    let Some(gpu) = gpu() else { return };
    let samples = embedded::samples(5);
    let inputs = inputs(&gpu, &embedded::load(&gpu, Quantization::To(Scheme::F32)), &samples);
    for observer in Observer::ALL.into_iter().chain([EAGER, Observer::Percentile { percent: 99.0 }]) {
        let method =
            W8A8 { method: Box::new(Rtn { scheme: Scheme::F32 }), activations: ActivationScales::Static(observer) };
        let model = embedded::quantized(&gpu, &method, &PipelineOptions::default(), &samples);
        for (index, batches) in inputs.iter().enumerate() {
            let (got, want) = (scale(&model.blocks()[0], index), expected(observer, batches) / 127.0);
            // The block is the same, and so are its activations; averages are rounded differently.
            assert!((got - want).abs() <= 1e-6 * want, "{observer}, layer {index}: {got} {want}");
        }
    }
}

#[test]
fn observers_see_inputs_as_they_are_after_folding() {
    let Some(gpu) = gpu() else { return };
    let samples = embedded::samples(5);
    for observer in Observer::ALL.into_iter().chain([EAGER]) {
        // Collecting anew comes to the same at this site; one observer shows it.
        for true_sequential in [false, true] {
            if true_sequential && observer != Observer::Mse {
                continue;
            }
            let method =
                W8A8 { method: Box::new(SmoothQuant::default()), activations: ActivationScales::Static(observer) };
            let options = PipelineOptions { true_sequential, ..PipelineOptions::default() };
            let model = embedded::quantized(&gpu, &method, &options, &samples);
            // The folded norm's output: nothing before it is rounded.
            let inputs = inputs(&gpu, &model, &samples);
            let (got, want) = (scale(&model.blocks()[0], 0), expected(observer, &inputs[0]) / 127.0);
            // Min-max scales the ranges of channels instead of looking again: a rounding or two.
            assert!((got - want).abs() <= 1e-6 * want, "{observer}: {got} {want}");
            assert!((0..3).all(|index| scale(&model.blocks()[0], index) == got), "{observer}: one input, one scale");
        }
    }
}

#[test]
fn needs_say_what_is_collected() {
    let needs = |observer| {
        W8A8 { method: Box::new(SmoothQuant::default()), activations: ActivationScales::Static(observer) }.needs()
    };
    // Min-max costs no pass more.
    assert_eq!(needs(Observer::MinMax), SmoothQuant::default().needs());
    assert_eq!(needs(Observer::Mse).observer, Some(Observer::Mse));
    assert!(Observer::ALL.map(Observer::needs_histogram) == [false, false, true, true, true]);
}

/// 10 · log10(Σ x² / Σ (x - y)²)
fn decibels(x: &[f64], y: &[f64]) -> f64 {
    let squares = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
    let difference: Vec<f64> = x.iter().zip(y).map(|(a, b)| a - b).collect();
    10.0 * (squares(x) / squares(&difference)).log10()
}

fn reported(gpu: &Gpu, method: &dyn LayerMethod, samples: &[Vec<u32>]) -> (Model, Vec<LayerFigures>) {
    let options = PipelineOptions { report: true, ..PipelineOptions::default() };
    let mut all = Vec::new();
    let model = quantize_model(gpu, &embedded::source(), method, &options, samples, |layer| {
        all.push(layer.figures.expect("a report was asked for"));
        assert_eq!((layer.done, layer.total), (all.len(), 28));
        Ok(())
    });
    (model.unwrap(), all)
}

/// The figures of the first block are those of an f64 computation from what is read back.
fn check_figures(gpu: &Gpu, method: &dyn LayerMethod, clips: bool) {
    let samples = embedded::samples(2);
    let (model, figures) = reported(gpu, method, &samples);
    let float = embedded::load(gpu, Quantization::To(Scheme::F32));
    let inputs = inputs(gpu, &model, &samples);
    let near = |what: &str, got: Option<f64>, want: f64| {
        let got = got.expect("something is lost");
        assert!((got - want).abs() < 0.01, "{what}: {got} dB, want {want}");
    };
    for (index, figures) in figures[..7].iter().enumerate() {
        let [made, float] = [&model, &float].map(|m| m.blocks()[0].linears().nth(index).unwrap().1);
        let x = wide(&inputs[index].concat());
        let extent = |x: &[f64]| {
            [x.iter().copied().fold(f64::INFINITY, f64::min), x.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
        };
        assert_eq!([figures.input.low, figures.input.high].map(f64::from), extent(&x), "{}", made.name);
        let rounded = match &made.base.rounding {
            Some(InputRounding::Static { scale }) => {
                let scale = scale.read::<f32>().unwrap()[0];
                let code = |v: f64| (v as f32 * (1.0 / scale)).round_ties_even();
                let beyond = x.iter().filter(|v| code(**v).abs() > 127.0).count() as f64 / x.len() as f64;
                // Numbers right at half a step may count either way.
                assert!((figures.input.clipped - beyond).abs() <= 0.02 * beyond, "{} {beyond}", figures.input.clipped);
                assert_eq!(beyond > 0.0, clips);
                assert_eq!(figures.input.clip, Some(127.0 * scale));
                x.iter().map(|v| f64::from(code(*v).clamp(-127.0, 127.0) * scale)).collect()
            }
            _ => x.clone(),
        };
        let packed = made.base.weight.download().unwrap();
        let (w, stored) = (wide(&float.base.weight.download().unwrap().dequantize()), wide(&packed.dequantize()));
        assert_eq!([figures.weight.low, figures.weight.high].map(f64::from), extent(&w), "{}", made.name);
        near("weight", figures.weight.sqnr, decibels(&w, &stored));
        match made.base.rounding.is_some() {
            true => near("input", figures.input.sqnr, decibels(&x, &rounded)),
            false => assert_eq!((figures.input.sqnr, figures.input.clip, figures.input.clipped), (None, None, 0.0)),
        }
        let cols = made.base.inputs();
        near("output", figures.output_sqnr, decibels(&product(&x, &w, cols), &product(&rounded, &stored, cols)));
        // Blocks whose range was searched for clip some; half a step is what the others may be off by.
        let beyond = w.iter().zip(&stored).enumerate().filter(|(i, (w, s))| {
            let block = i / packed.block_size().unwrap();
            (*w - *s).abs() > 0.502 * f64::from(packed.affine(block).0)
        });
        let beyond = beyond.count() as f64 / w.len() as f64;
        assert!((figures.weight.clipped - beyond).abs() <= 1e-4, "{} {beyond}", figures.weight.clipped);
    }
}

#[test]
fn reports_are_those_of_an_f64_computation() {
    let Some(gpu) = gpu() else { return };
    let scheme = Scheme::INT8_ROWS;
    let activations = |percent| ActivationScales::Static(Observer::Percentile { percent });
    let w8a8 = |percent| W8A8 { method: Box::new(Rtn { scheme }), activations: activations(percent) };
    check_figures(&gpu, &w8a8(99.0), true);
    check_figures(&gpu, &w8a8(100.0), false);
    check_figures(&gpu, &Rtn { scheme: Scheme::int(4, 64) }, false);
    check_figures(&gpu, &RtnObserved::new(Scheme::int(3, 64), Observer::Mse).unwrap(), false);
}

#[test]
fn weights_behind_transforms_and_floats_are_reported_too() {
    let Some(gpu) = gpu() else { return };
    let samples = embedded::samples(5);
    for figures in reported(&gpu, &Quip::new(0, 0.01).unwrap(), &samples).1 {
        // Transforms make normal numbers of weights: no code of one bit keeps those better than 6.02 dB, none of two bits better
        // than twice that. Rounding is for the output's sake, of which more is kept than of the weight.
        let (weight, output) = (figures.weight.sqnr.unwrap(), figures.output_sqnr.unwrap());
        assert!(weight > 6.02 && weight < 12.04 && output > weight, "{weight} {output}");
    }
    for figures in reported(&gpu, &Rtn { scheme: Scheme::F32 }, &samples[..1]).1 {
        assert_eq!([figures.input.sqnr, figures.weight.sqnr, figures.output_sqnr], [None; 3], "nothing is lost");
    }
}

#[test]
fn searched_ranges_lose_less_than_whole_ones() {
    let Some(gpu) = gpu() else { return };
    let samples = embedded::samples(1);
    for scheme in [Scheme::int(3, 64), Scheme::int_per(4, BlockSize::Row), Scheme::Nf3 { block_size: 64 }] {
        let whole = reported(&gpu, &Rtn { scheme }, &samples).1;
        let searched = reported(&gpu, &RtnObserved::new(scheme, Observer::Mse).unwrap(), &samples).1;
        for (whole, searched) in whole.iter().zip(&searched) {
            let [whole, searched] = [whole, searched].map(|figures| figures.weight.sqnr.unwrap());
            // The whole range is tried too, so no block loses by it; reports are good to 0.01 dB.
            assert!(searched > whole + 0.1, "{scheme}: {searched} dB, whole ranges {whole}");
        }
    }
    assert!(RtnObserved::new(Scheme::Q4_K, Observer::Mse).is_err());
    let ragged = RtnObserved::new(Scheme::int(4, 40), Observer::Mse).unwrap();
    let error = quantize_model(&gpu, &embedded::source(), &ragged, &PipelineOptions::default(), &[], |_| Ok(()));
    let message = error.err().expect("groups of 40").to_string();
    assert!(message.starts_with("model.layers.0.self_attn.q_proj.weight: groups of 40"), "{message}");
}

#[test]
fn inputs_that_are_not_finite_are_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    for (value, fine) in [(2.0, true), (f32::NAN, false), (f32::INFINITY, false)] {
        let observed = Observed::new(&gpu, Observer::Mse).unwrap();
        let mut g = Graph::new(&gpu);
        let x = g.import(&gpu.tensor("x", [2, 2], DType::F32, &[1.0f32, -0.5, value, 0.0]).unwrap());
        observed.record_range(&mut g, &x).unwrap();
        observed.record_histogram(&mut g, &x).unwrap();
        g.run().unwrap();
        match observed.clip("model.layers.3.mlp.down_proj") {
            Ok(clip) => assert!(fine && clip <= 2.0 && clip > 1.0, "{value}: {clip}"),
            Err(error) => {
                let message = error.to_string();
                assert!(!fine && message.starts_with("model.layers.3.mlp.down_proj: "), "{message}");
            }
        }
    }
}
