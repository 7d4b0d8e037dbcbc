//! Adapters that become part of quantized weights, on the model that is compiled into the binary.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::{
    Gpu, LoraConfig,
    adapter::Adapter,
    evaluate,
    method::{Gptq, GptqOptions, LayerMethod, Merge, PipelineOptions, Rtn},
    model::{Model, Quantization},
    quant::Scheme,
};
use support::{Rng, embedded, gpu};

const NF4: Scheme = Scheme::Nf4 { block_size: 64, double_quant: false };

/// Samples to calibrate with, and others to measure with.
fn samples() -> [Vec<Vec<u32>>; 2] {
    let mut samples = embedded::samples(12);
    let held_out = samples.split_off(8);
    [samples, held_out]
}

/// An adapter of some layers, of a rank that is no multiple of 4, whose update is about `size` of the weights' own size.
fn adapter(gpu: &Gpu, size: f32) -> Adapter {
    let target_modules = ["q_proj", "o_proj", "gate_proj", "down_proj"].map(str::to_owned).to_vec();
    let config = LoraConfig { r: 6, lora_alpha: 12.0, target_modules, ..LoraConfig::default() };
    let layers = config.layers(embedded::source().arch()).unwrap();
    let adapter = Adapter::new(gpu, config, &layers, false).unwrap();
    let mut rng = Rng(17);
    for lora in adapter.modules().filter_map(|(_, module)| module.lora()) {
        let values: Vec<f32> = rng.normals(lora.b.values.shape().len()).into_iter().map(|v| size * v).collect();
        lora.b.values.write(bytemuck::cast_slice(&values)).unwrap();
    }
    adapter
}

fn beside(gpu: &Gpu, base: Quantization) -> Model {
    let mut model = embedded::load(gpu, base);
    model.attach(adapter(gpu, 0.05)).unwrap();
    model
}

fn merged(gpu: &Gpu, base: Quantization, method: Box<dyn LayerMethod>) -> Model {
    let method = Merge::new(method, &adapter(gpu, 0.05)).unwrap();
    embedded::quantized(gpu, &method, &PipelineOptions { base, ..PipelineOptions::default() }, &samples()[0])
}

fn logits(model: &Model, samples: &[Vec<u32>]) -> Vec<f32> {
    samples.iter().flat_map(|ids| evaluate::logits(model, ids).unwrap()).collect()
}

#[test]
fn merged_floats_are_the_base_with_its_adapter() {
    let Some(gpu) = gpu() else { return };
    let [_, held_out] = samples();
    let without = logits(&embedded::load(&gpu, Quantization::AsStored), &held_out[..1]);
    for base in [Quantization::AsStored, Quantization::To(NF4)] {
        let want = logits(&beside(&gpu, base), &held_out[..1]);
        let got = logits(&merged(&gpu, base, Box::new(Rtn { scheme: Scheme::F32 })), &held_out[..1]);
        let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let difference = |a: &[f32]| a.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        // f32 roundings of sums in another order; the adapter itself changes much more.
        assert!(difference(&got) < 1e-4 * scale, "{base:?}: {}", difference(&got));
        assert!(difference(&without) > 0.05 * scale, "{base:?}: {}", difference(&without));
    }
}

#[test]
fn rounding_by_outputs_keeps_more_of_an_adapter_than_rounding_to_nearest() {
    let Some(gpu) = gpu() else { return };
    let [_, held_out] = samples();
    for scheme in [NF4, Scheme::int(4, 64)] {
        let base = Quantization::To(scheme);
        let want = logits(&beside(&gpu, base), &held_out);
        let error = |method: Box<dyn LayerMethod>| {
            let model = merged(&gpu, base, method);
            assert!(model.linears().all(|l| l.base.weight.scheme() == scheme));
            let got = logits(&model, &held_out);
            got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let nearest = error(Box::new(Rtn { scheme }));
        let ours = error(Box::new(Gptq::new(GptqOptions::new(scheme)).unwrap()));
        eprintln!("{scheme}: rounding to nearest {nearest:.3}, gptq {ours:.3}");
        assert!(ours < 0.8 * nearest, "{scheme}: {ours} against {nearest}");
    }
}

#[test]
fn what_is_left_of_the_updates_is_measured() {
    let Some(gpu) = gpu() else { return };
    let [samples, _] = samples();
    let q4_1 = Scheme::Q4_1;
    let kept = |base: Scheme, method: Box<dyn LayerMethod>, size: f32| {
        let method = Merge::new(method, &adapter(&gpu, size)).unwrap();
        let options = PipelineOptions { base: Quantization::To(base), ..PipelineOptions::default() };
        let model = embedded::quantized(&gpu, &method, &options, &samples);
        let layers = model.arch().blocks.len();
        let kept = method.kept();
        assert_eq!(kept.len(), if size == 0.0 { 0 } else { 4 * layers }, "layers that are adapted");
        let shares: Vec<f64> = kept.iter().map(|kept| kept.share).collect();
        let named = |kept: &fourbit::method::Kept| kept.layer.starts_with("model.layers.");
        assert!(kept.iter().all(named));
        (shares.iter().copied().fold(f64::MAX, f64::min), shares.iter().copied().fold(f64::MIN, f64::max))
    };
    let gptq = |scheme| Box::new(Gptq::new(GptqOptions::new(scheme)).unwrap());
    // Halves lose nothing that counts, with a Hessian or without.
    let (low, high) = kept(q4_1, Box::new(Rtn { scheme: Scheme::BF16 }), 0.05);
    assert!(low > 0.95 && high < 1.05, "bf16: {low} to {high}");
    // A base on the grid that the sum is rounded to: the update is less than half a step, and goes.
    for scheme in [q4_1, NF4] {
        let (low, high) = kept(scheme, Box::new(Rtn { scheme }), 0.001);
        assert!(low > -0.5 && high < 0.5, "{scheme}: {low} to {high}");
    }
    // By outputs most of an update stays that rounding to nearest loses.
    let (_, nearest) = kept(NF4, Box::new(Rtn { scheme: NF4 }), 0.01);
    let (low, high) = kept(NF4, gptq(NF4), 0.01);
    eprintln!("nf4: rounding to nearest up to {nearest:.3}, gptq {low:.3} to {high:.3}");
    assert!(low > nearest, "gptq: {low} to {high}, rounding to nearest at most {nearest}");
    kept(NF4, Box::new(Rtn { scheme: NF4 }), 0.0);
}
