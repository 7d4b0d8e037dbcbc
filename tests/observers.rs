//! Observers: the ranges that they choose, and the static scales that a whole model gets from them.

mod support;

#[path = "reference/mod.rs"]
mod reference;

use fourbit::{
    Gpu,
    graph::Graph,
    method::{
        ActivationScales, BINS, LayerMethod, Observer, PipelineOptions, Rtn, Seen, SmoothQuant, W8A8, quantize_model,
    },
    model::{Block, Inputs, LoadOptions, Model, Quantization, Source},
    nn::Activations,
    quant::Scheme,
};
use reference::observer::{divergences, histogram, squared_error};
use std::path::PathBuf;
use support::{Rng, gpu};

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

fn embedded() -> (Source, Vec<Vec<u32>>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/embedded");
    let tokenizer = fourbit::Tokenizer::from_dir(&folder).unwrap();
    let text = std::fs::read_to_string(folder.join("train.jsonl")).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    (Source::open(folder).unwrap(), ids.chunks(64).take(5).map(<[u32]>::to_vec).collect())
}

/// The inputs of the linear layers of the first block, one list a sample.
fn inputs(gpu: &Gpu, model: &Model, samples: &[Vec<u32>]) -> [Vec<Vec<f32>>; 7] {
    let mut all: [Vec<Vec<f32>>; 7] = Default::default();
    for ids in samples {
        let tokens = Inputs::new(gpu, 1, ids.len()).unwrap();
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        tokens.write(ids, &positions, &vec![1; ids.len()], &vec![0; ids.len()]).unwrap();
        let rope = model.rope_table(ids.len()).unwrap();
        let mut g = Graph::new(gpu);
        let cx = model.context(&mut g, &tokens, &rope, None);
        let ids = g.import(&tokens.ids);
        let x = model.embed(&mut g, &ids).unwrap();
        let (_, saved) = model.blocks[0].forward(&mut g, &x, &cx).unwrap();
        let values = saved.linear_inputs().map(Clone::clone);
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
    match &block.linears()[index].base.activation {
        Some(Activations::Static { scale }) => scale.read::<f32>().unwrap()[0],
        other => panic!("no static scale: {other:?}"),
    }
}

const EAGER: Observer = Observer::MovingAverage { constant: 0.3 };

#[test]
fn static_scales_are_those_of_the_activations() {
    let Some(gpu) = gpu() else { return };
    let (source, samples) = embedded();
    let quantization = Quantization::To(Scheme::F32);
    let float = Model::from_source(&gpu, &source, &LoadOptions { quantization }).unwrap();
    let inputs = inputs(&gpu, &float, &samples);
    for observer in Observer::ALL.into_iter().chain([EAGER, Observer::Percentile { percent: 99.0 }]) {
        let method =
            W8A8 { method: Box::new(Rtn { scheme: Scheme::F32 }), activations: ActivationScales::Static(observer) };
        let model = quantize_model(&gpu, &source, &method, &PipelineOptions::default(), &samples, |_| Ok(())).unwrap();
        for (index, batches) in inputs.iter().enumerate() {
            let (got, want) = (scale(&model.blocks[0], index), expected(observer, batches) / 127.0);
            // The block is the same, and so are its activations; averages are rounded differently.
            assert!((got - want).abs() <= 1e-6 * want, "{observer}, layer {index}: {got} {want}");
        }
    }
}

#[test]
fn observers_see_inputs_as_they_are_after_folding() {
    let Some(gpu) = gpu() else { return };
    let (source, samples) = embedded();
    for observer in Observer::ALL.into_iter().chain([EAGER]) {
        // Collecting anew comes to the same at this site; one observer shows it.
        for true_sequential in [false, true] {
            if true_sequential && observer != Observer::Mse {
                continue;
            }
            let method =
                W8A8 { method: Box::new(SmoothQuant::default()), activations: ActivationScales::Static(observer) };
            let options = PipelineOptions { true_sequential, ..PipelineOptions::default() };
            let model = quantize_model(&gpu, &source, &method, &options, &samples, |_| Ok(())).unwrap();
            // The folded norm's output: nothing before it is rounded.
            let inputs = inputs(&gpu, &model, &samples);
            let (got, want) = (scale(&model.blocks[0], 0), expected(observer, &inputs[0]) / 127.0);
            // Min-max scales the ranges of channels instead of looking again: a rounding or two.
            assert!((got - want).abs() <= 1e-6 * want, "{observer}: {got} {want}");
            assert!((0..3).all(|index| scale(&model.blocks[0], index) == got), "{observer}: one input, one scale");
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
