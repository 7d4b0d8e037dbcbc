//! Layers and whole models whose activations are rounded to 8 bits.
#![cfg(feature = "tokenizer")]

mod support;

#[path = "reference/mod.rs"]
mod reference;

use fourbit::{
    DType, Gpu, evaluate,
    graph::Graph,
    kernels::QuantizedTensor,
    method::{ActivationScales, LayerMethod, LlmInt8, Observer, PipelineOptions, Rtn, SmoothQuant, W8A8},
    model::Quantization,
    nn::{InputRounding, Linear, linear::LowRank},
    quant::{Packed, Scheme},
};
use reference::{product, transposed, wide};
use support::{Rng, assert_close, embedded, gpu};

const INT8: Scheme = Scheme::INT8_ROWS;

/// y = Q(x) · Wᵀ + b + s · xa · Bᵀ and dx = dy · W + s · dxa · A, of a weight in `scheme`.
fn check(gpu: &Gpu, scheme: Scheme, activation: InputRounding, tokens: usize) {
    let (cols, rows, rank) = (96, 40, 4);
    let mut rng = Rng(3);
    let [mut x, w, dy, xa, b, dxa, a, bias] =
        [tokens * cols, rows * cols, tokens * rows, tokens * rank, rows * rank, tokens * rank, rank * cols, rows]
            .map(|len| rng.normals(len));
    x[5] = 9.0;
    let packed = Packed::quantize(scheme, [rows, cols], &w).unwrap();
    let bias_tensor = gpu.tensor("bias", [rows], DType::F32, &bias).unwrap();
    let weight = QuantizedTensor::upload(gpu, "w", &packed).unwrap();
    let layer = Linear { rounding: Some(activation.clone()), ..Linear::new(weight, Some(bias_tensor)) };
    let mut g = Graph::new(gpu);
    let mut import = |shape: [usize; 2], v: &[f32]| g.import(&gpu.tensor("t", shape, DType::F32, v).unwrap());
    let (tx, tdy) = (import([tokens, cols], &x), import([tokens, rows], &dy));
    let (txa, tb) = (import([tokens, rank], &xa), import([rows, rank], &b));
    let (tdxa, ta) = (import([tokens, rank], &dxa), import([rank, cols], &a));
    let y = layer.forward(&mut g, &tx, Some(LowRank { xa: &txa, factor: &tb, scale: 0.5 }), None).unwrap();
    let dx = layer.backward(&mut g, &tdy, Some(LowRank { xa: &tdxa, factor: &ta, scale: 0.5 }), None).unwrap();
    let rounded = activation.round(&mut g, &tx).unwrap();
    [&y, &dx, &rounded].iter().for_each(|v| g.keep(v));
    let run = g.run().unwrap();
    let rounded = run.read::<f32>(&rounded).unwrap();
    assert!(rounded != x, "something is rounded");

    let w = wide(&packed.dequantize());
    let low = product(&wide(&xa), &wide(&b), rank);
    let want: Vec<f64> = (product(&wide(&rounded), &w, cols).iter().zip(&low).enumerate())
        .map(|(i, (y, low))| y + 0.5 * low + f64::from(bias[i % rows]))
        .collect();
    // Sums of about 100 products of some units, each rounded.
    assert_close("y", &run.read::<f32>(&y).unwrap(), &want, 2e-4, 1e-5);
    let through = product(&wide(&dxa), &transposed(&wide(&a), cols), rank);
    let own = product(&wide(&dy), &transposed(&w, cols), rows);
    let want: Vec<f64> = own.iter().zip(&through).map(|(d, t)| d + 0.5 * t).collect();
    assert_close("dx", &run.read::<f32>(&dx).unwrap(), &want, 2e-4, 1e-5);
}

#[test]
fn a_layer_rounds_its_input_and_neither_its_update_nor_its_gradient() {
    let Some(gpu) = gpu() else { return };
    let scale = gpu.tensor("scale", [1], DType::F32, &[0.02f32]).unwrap();
    for scheme in [INT8, Scheme::Nf4 { block_size: 32, double_quant: false }] {
        // Few tokens take another product than many.
        for tokens in [1, 20] {
            for activation in [
                InputRounding::Dynamic,
                InputRounding::Static { scale: scale.clone() },
                InputRounding::LlmInt8 { threshold: 6.0 },
            ] {
                check(&gpu, scheme, activation, tokens);
            }
        }
    }
}

#[test]
fn models_with_activations_in_8_bits_stay_near_the_one_in_floats() {
    let Some(gpu) = gpu() else { return };
    let samples = embedded::samples(6);
    let want = evaluate::logits(&embedded::load(&gpu, Quantization::AsStored), &samples[0]).unwrap();
    let error = |method: &dyn LayerMethod, rounds: bool| {
        let model = embedded::quantized(&gpu, method, &PipelineOptions::default(), &samples);
        for layer in model.linears() {
            assert_eq!(layer.base.rounding.is_some(), rounds, "{}", layer.name);
            assert_eq!(layer.base.weight.scheme(), INT8.resolve(layer.base.weight.shape()));
        }
        let got = evaluate::logits(&model, &samples[0]).unwrap();
        let squares = |v: f32| f64::from(v).powi(2);
        let error: f64 = got.iter().zip(&want).map(|(a, b)| squares(a - b)).sum();
        (error / want.iter().map(|v| squares(*v)).sum::<f64>()).sqrt()
    };
    let rtn = Rtn { scheme: INT8 };
    let smooth = SmoothQuant::default();
    let w8a8 = |method: Box<dyn LayerMethod>, activations| error(&W8A8 { method, activations }, true);
    let weights = error(&rtn, false);
    let figures = [
        ("llm.int8()", error(&LlmInt8::default(), true)),
        ("naive, dynamic", w8a8(Box::new(rtn), ActivationScales::Dynamic)),
        ("naive, static", w8a8(Box::new(rtn), ActivationScales::Static(Observer::MinMax))),
        ("smooth, dynamic", w8a8(Box::new(smooth), ActivationScales::Dynamic)),
        ("smooth, static", w8a8(Box::new(smooth), ActivationScales::Static(Observer::MinMax))),
    ];
    eprintln!("weights alone {weights:.5}, {figures:.5?}");
    for (name, figure) in figures {
        // A step of 1/127 of the range is some percent of a typical number; a mistake of scale would be all of it.
        assert!(figure > 0.5 * weights && figure < 0.1, "{name}: {figure}, weights alone {weights}");
    }
}

#[test]
fn a_threshold_must_be_positive() {
    for threshold in [0.0, -1.0, f32::NAN] {
        let message = LlmInt8::new(threshold).unwrap_err().to_string();
        assert!(message.contains("expected a positive number"), "{message}");
    }
}
