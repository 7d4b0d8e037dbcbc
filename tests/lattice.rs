//! QuIP# and AQLM on the model that is compiled into the binary.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::{
    DType, Gpu, Result,
    arch::LinearId,
    evaluate,
    export::{ModelWriter, QuantizedFolder},
    format::{checkpoint, manifest},
    graph::Graph,
    method::{Aqlm, Hqq, InputStats, Layer, LayerMethod, Needs, PipelineOptions, Quip, Rtn},
    model::{LoadOptions, Model, Quantization, Source},
    nn::Linear,
    quant::Scheme,
};
use std::cell::RefCell;
use support::{embedded, gpu};

/// tr(ΔW H ΔWᵀ) of each layer by QuIP#, AQLM, HQQ and rounding, all at about 2 bits; goes on with QuIP#'s layers.
#[derive(Default)]
struct Contest {
    quip: Quip,
    losses: RefCell<Vec<(String, [f64; 4])>>,
}

impl Contest {
    fn loss(&self, gpu: &Gpu, layer: &Layer<'_>, linear: &Linear) -> Result<f64> {
        let [rows, cols] = layer.shape();
        let (w, h) = (layer.weight.read::<f32>()?, layer.stats.hessian.as_ref().unwrap().read::<f32>()?);
        // What the layer makes of the unit vectors is its weight's transpose, transforms included.
        let unit: Vec<f32> = (0..cols * cols).map(|i| f32::from(u8::from(i / cols == i % cols))).collect();
        let mut g = Graph::new(gpu);
        let x = g.import(&gpu.tensor("unit", [cols, cols], DType::F32, &unit)?);
        let y = linear.forward(&mut g, &x, None, None)?;
        g.keep(&y);
        let y = g.run()?.read::<f32>(&y)?;
        let mut loss = 0.0;
        for r in 0..rows {
            let e: Vec<f64> = (0..cols).map(|c| f64::from(w[r * cols + c]) - f64::from(y[c * rows + r])).collect();
            for i in 0..cols {
                loss += e[i] * (0..cols).map(|j| f64::from(h[i * cols + j]) * e[j]).sum::<f64>();
            }
        }
        Ok(loss)
    }
}

impl LayerMethod for Contest {
    fn name(&self) -> &'static str {
        "contest"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, ..Needs::default() }
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let ours = self.quip.quantize(gpu, layer)?;
        let aqlm = Aqlm::default().quantize(gpu, layer)?;
        let hqq = Hqq::new(2, 64).quantize(gpu, layer)?;
        let rtn = Rtn { scheme: Scheme::int(2, 64) }.quantize(gpu, layer)?;
        let mut losses = [0.0; 4];
        for (loss, linear) in losses.iter_mut().zip([&ours, &aqlm, &hqq, &rtn]) {
            *loss = self.loss(gpu, layer, linear)?;
        }
        self.losses.borrow_mut().push((layer.name.to_owned(), losses));
        Ok(ours)
    }
}

#[test]
fn vectors_lose_less_than_integers_of_two_bits() {
    let Some(gpu) = gpu() else { return };
    let (contest, samples) = (Contest::default(), embedded::samples(16));
    let model = embedded::quantized(&gpu, &contest, &PipelineOptions::default(), &samples);
    a_folder_holds_it(&gpu, &model, &samples[0]);
    let losses = contest.losses.into_inner();
    assert!(losses.len() >= 28);
    let mut sums = [0.0; 4];
    for (name, all) in &losses {
        println!("{name}: quip {:.4}, aqlm {:.4}, hqq {:.4}, rtn {:.4}", all[0], all[1], all[2], all[3]);
        assert!(all[0].max(all[1]) < all[2].min(all[3]), "{name}: {all:?}");
        sums.iter_mut().zip(all).for_each(|(sum, v)| *sum += v);
    }
    // Two bits by themselves lose three times as much; here integers even have half a bit more for their scales.
    assert!(sums[0].max(sums[1]) < 0.5 * sums[2].min(sums[3]), "{sums:?}");
}

/// QuIP#'s folder: the same model with its transforms, on which adapters can be trained, and its numbers as floats.
fn a_folder_holds_it(gpu: &Gpu, model: &Model, ids: &[u32]) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("quip");
    let job = QuantizedFolder::open(embedded::FOLDER, Scheme::E8p, Box::new(checkpoint::Quip), &output).unwrap();
    let summary = job.write_model(model, &mut |_| Ok(())).unwrap().commit().unwrap();
    assert_eq!(summary.quantized, 28);
    let want = evaluate::logits(model, ids).unwrap();
    let loaded = Model::load(gpu, &output, &LoadOptions::default()).unwrap();
    assert!(loaded.linears().all(|l| l.base.weight.scheme() == Scheme::E8p));
    assert_eq!(evaluate::logits(&loaded, ids).unwrap(), want, "the same bits");
    // Out of its basis: f32 sums of some hundred terms.
    let floats = LoadOptions { quantization: Quantization::To(Scheme::F32) };
    let floats = Model::load(gpu, &output, &floats).unwrap();
    assert!(floats.linears().all(|l| l.base.transform.is_none()));
    let scale = want.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let want: Vec<f64> = want.iter().map(|v| f64::from(*v)).collect();
    support::assert_close("floats", &evaluate::logits(&floats, ids).unwrap(), &want, 1e-4 * scale, 0.0);
    // Lies are found before anything is computed.
    let config = output.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"E8P\"", "\"E8P12RVQ4B\"")).unwrap();
    std::fs::remove_file(output.join(manifest::MANIFEST)).unwrap();
    assert!(Source::open(&output).err().unwrap().to_string().contains("E8P12RVQ4B"));
    // A method without transforms does not fit.
    let plain = embedded::load(gpu, Quantization::To(Scheme::int(4, 64)));
    assert!(job.write_model(&plain, &mut |_| Ok(())).is_err());
}

#[test]
fn what_is_not_finite_is_refused_with_its_name() {
    let Some(gpu) = gpu() else { return };
    let refused = |method: &dyn LayerMethod, weight: f32, diagonal: f32| {
        let weights: Vec<f32> = (0..256).map(|i| weight * (i % 7 - 3) as f32).collect();
        let hessian: Vec<f32> = (0..256).map(|i| if i / 16 == i % 16 { diagonal } else { 0.0 }).collect();
        let tensor = |values: &[f32]| gpu.tensor("test", [16, 16], DType::F32, values).unwrap();
        let stats =
            InputStats { tokens: 16, hessian: Some(tensor(&hessian)), channels: None, held_back: None, observed: None };
        let layer =
            Layer { id: LinearId::Q, name: "model.down_proj", weight: tensor(&weights), bias: None, stats: &stats };
        method.quantize(&gpu, &layer).err().map(|error| error.to_string())
    };
    for method in [&Quip::default() as &dyn LayerMethod, &Aqlm::default()] {
        assert_eq!(refused(method, 1.0, 1.0), None);
        for value in [f32::NAN, f32::INFINITY] {
            let message = refused(method, 1.0, value).unwrap();
            let expected = "model.down_proj.weight: the inputs of the calibration text are not finite";
            assert!(message.starts_with(expected), "{}: {message}", method.name());
        }
    }
    // The square of a row's size is beyond f32.
    let message = refused(&Aqlm::default(), 1e25, 1.0).unwrap();
    assert!(message.starts_with("model.down_proj.weight: no code books give a finite error"), "{message}");
}
