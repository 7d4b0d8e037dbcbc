//! Adapters that become part of quantized weights, on the model that is compiled into the binary.

mod support;

use fourbit::{
    Gpu, LoraConfig,
    adapter::Adapter,
    evaluate,
    method::{Gptq, GptqOptions, LayerMethod, Merge, PipelineOptions, Rtn},
    model::{Block, Model, Quantization},
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
    let layers = embedded::source().config.targets(&config).unwrap();
    let adapter = Adapter::new(gpu, config, &layers, false).unwrap();
    let mut rng = Rng(17);
    for module in &adapter.modules {
        let values: Vec<f32> = rng.normals(module.lora.b.shape().len()).into_iter().map(|v| size * v).collect();
        module.lora.b.write(bytemuck::cast_slice(&values)).unwrap();
    }
    adapter
}

fn beside(gpu: &Gpu, base: Quantization) -> Model {
    let mut model = embedded::load(gpu, base);
    model.attach(adapter(gpu, 0.05)).unwrap();
    model
}

fn merged(gpu: &Gpu, base: Quantization, method: Box<dyn LayerMethod>) -> Model {
    let method = Merge { method, adapter: adapter(gpu, 0.05) };
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
            assert!(model.blocks.iter().flat_map(Block::linears).all(|l| l.base.weight.scheme() == scheme));
            let got = logits(&model, &held_out);
            got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let nearest = error(Box::new(Rtn { scheme }));
        let ours = error(Box::new(Gptq::new(GptqOptions::new(scheme)).unwrap()));
        eprintln!("{scheme}: rounding to nearest {nearest:.3}, gptq {ours:.3}");
        assert!(ours < 0.8 * nearest, "{scheme}: {ours} against {nearest}");
    }
}
