//! Methods on whole models: the one that is compiled into the binary, and (where it is there) SmolLM2.

mod support;

use fourbit::{
    Error, Gpu, Result, evaluate,
    method::{BlockStats, Layer, LayerMethod, Needs, PipelineOptions, Rtn, Site, quantize_model},
    model::{Block, LoadOptions, Model, Quantization, Source},
    nn::Linear,
    quant::Scheme,
};
use std::{cell::RefCell, path::PathBuf};
use support::gpu;

fn embedded() -> Source {
    Source::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/embedded")).unwrap()
}

/// Ids of the text that the embedded model learned, in samples of different lengths.
fn calibration() -> Vec<Vec<u32>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/embedded");
    let tokenizer = fourbit::Tokenizer::from_dir(&folder).unwrap();
    let text = std::fs::read_to_string(folder.join("train.jsonl")).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    [61usize, 64, 33, 64, 64, 64, 64, 64].iter().zip(ids.chunks(64)).map(|(&len, ids)| ids[..len].to_vec()).collect()
}

const NF4: Scheme = Scheme::Nf4 { block_size: 64, double_quant: true };

#[test]
fn rounding_to_nearest_runs_no_text_and_equals_loading_in_the_scheme() {
    let Some(gpu) = gpu() else { return };
    let source = embedded();
    let mut names = Vec::new();
    let ours = quantize_model(&gpu, &source, &Rtn { scheme: NF4 }, &PipelineOptions::default(), &[], |report| {
        names.push(report.name.clone());
        assert_eq!((report.done, report.total), (names.len(), 28));
        Ok(())
    })
    .unwrap();
    assert_eq!(names[8], "model.layers.1.self_attn.k_proj");
    let loaded = Model::from_source(&gpu, &source, &LoadOptions { quantization: Quantization::To(NF4) }).unwrap();
    for (a, b) in ours.blocks.iter().flat_map(Block::linears).zip(loaded.blocks.iter().flat_map(Block::linears)) {
        assert_eq!(a.name, b.name);
        assert_eq!(a.base.weight.download().unwrap(), b.base.weight.download().unwrap(), "{}", a.name);
    }
}

/// Keeps what it is told and leaves the weights as floats.
#[derive(Default)]
struct Probe {
    /// Layer, site, tokens, Hessian, largest magnitudes, sums of magnitudes.
    seen: RefCell<Vec<(String, usize, Vec<f32>, Vec<f32>, Vec<f32>)>>,
}

impl LayerMethod for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, channels: true }
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
    let (source, samples) = (embedded(), calibration());
    let mut runs = Vec::new();
    // All states on the device; a few of them; none, and each layer's input collected anew.
    for (bytes, true_sequential) in [(1 << 30, false), (150_000, false), (0, true)] {
        let probe = Probe::default();
        let options = PipelineOptions { true_sequential, activation_bytes: bytes };
        let model = quantize_model(&gpu, &source, &probe, &options, &samples, |_| Ok(())).unwrap();
        runs.push((probe.seen.into_inner(), evaluate::logits(&model, &samples[0]).unwrap()));
    }
    assert!(runs[0] == runs[1] && runs[0] == runs[2], "the same bits");
    let loaded = Model::from_source(&gpu, &source, &LoadOptions::default()).unwrap();
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
    let source = embedded();
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
