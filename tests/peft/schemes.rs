//! Adapters on bases in every scheme, and behind transforms.

use crate::support::{Rng, gpu, packed};
use fourbit::{
    AdaLoraConfig, DType, Gpu, Ia3Config, LoraConfig, Model, PeftConfig, QuantizedTensor, evaluate,
    format::Safetensors,
    model::{LoadOptions, Quantization},
    quant::Scheme,
};

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

const IDS: [u32; 10] = [3, 10, 17, 24, 31, 6, 13, 20, 27, 2];

fn kinds() -> [PeftConfig; 3] {
    let lora = LoraConfig { r: 4, use_dora: true, ..LoraConfig::default() };
    let adalora = AdaLoraConfig { init_r: 5, target_r: 2, ..AdaLoraConfig::new(10) };
    [lora.into(), adalora.into(), Ia3Config::default().into()]
}

/// Moves all values of an adapter by a tenth of a normal number each, those of B from zero.
fn moved(model: &Model) {
    let mut rng = Rng(21);
    for (_, parameter) in model.store().iter() {
        let noise = rng.normals(parameter.values.shape().len());
        let before = parameter.values.read::<f32>().unwrap();
        let values: Vec<f32> = before.iter().zip(&noise).map(|(v, n)| v + 0.1 * n).collect();
        parameter.values.write(bytemuck::cast_slice(&values)).unwrap();
    }
    model.renew_norms().unwrap();
}

/// Logits of a new adapter of each kind, and of one that has moved.
fn logits(gpu: &Gpu, folder: &str, quantization: Quantization) -> Vec<(Vec<f32>, Vec<f32>)> {
    let logits = |config: PeftConfig| {
        let mut model = Model::load(gpu, golden(folder), &LoadOptions { quantization }).unwrap();
        let base = evaluate::logits(&model, &IDS).unwrap();
        model.add_adapter(config, false).unwrap();
        let new = evaluate::logits(&model, &IDS).unwrap();
        assert!(apart(&new, &base) < 1e-5, "{folder}, {quantization:?}: a new adapter says something");
        moved(&model);
        (new, evaluate::logits(&model, &IDS).unwrap())
    };
    kinds().map(logits).into()
}

fn apart(got: &[f32], want: &[f32]) -> f32 {
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max) / largest
}

/// Stored weights, with shuffled columns, code books, integers and tables, and the same numbers as plain f32.
#[test]
fn folders_of_other_tools_are_changed_as_their_floats_are() {
    let Some(gpu) = gpu() else { return };
    for folder in ["gptq-4-act", "gptq-3-act", "gptq-8-channel", "hqq", "aqlm", "awq", "llm-int8", "ct-int4"] {
        let folder = format!("checkpoints/{folder}");
        let stored = logits(&gpu, &folder, Quantization::AsStored);
        let plain = logits(&gpu, &folder, Quantization::To(Scheme::F32));
        // f32 sums in another order; LLM.int8() rounds the inputs to 8 bits.
        let most = if folder.ends_with("llm-int8") { 5e-2 } else { 1e-4 };
        for ((new, got), (_, want)) in stored.iter().zip(&plain) {
            assert!(apart(got, want) < most, "{folder}: {:e}", apart(got, want));
            assert!(apart(new, want) > 1e-3, "{folder}: the adapter says nothing");
        }
    }
}

/// The norms of rows, which a new adapter's magnitudes are, in every scheme.
#[test]
fn new_magnitudes_are_the_norms_of_the_stored_rows() {
    let Some(gpu) = gpu() else { return };
    let mut checked = 0;
    for scheme in Scheme::all() {
        if scheme.is_vector() {
            continue;
        }
        // Rows of 64 and 176 numbers hold no super-block of 256.
        let options = LoadOptions { quantization: Quantization::To(scheme) };
        let Ok(mut model) = Model::load(&gpu, golden("tiny/model"), &options) else { continue };
        let base = evaluate::logits(&model, &IDS).unwrap();
        model.add_adapter(kinds()[0].clone(), false).unwrap();
        let new = evaluate::logits(&model, &IDS).unwrap();
        assert!(apart(&new, &base) < 1e-5, "{scheme}: {:e}", apart(&new, &base));
        for linear in model.linears() {
            let floats = linear.base.weight.download().unwrap().dequantize();
            let name = format!("{}.lora_magnitude_vector", linear.name);
            let got = model.trained(&name).unwrap().values.read::<f32>().unwrap();
            for (row, got) in floats.chunks(linear.base.inputs()).zip(got) {
                let want = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                assert!((f64::from(got) - want).abs() <= 1e-6 * want, "{scheme}, {name}: {got}, expected {want}");
            }
        }
        checked += 1;
    }
    assert!(checked >= 15, "{checked} schemes");
}

/// Super-blocks and lattices, whose rows the tiny model has not: 1/norm of V against f64, out of the packed weight alone.
#[test]
fn norms_of_wide_rows_come_out_of_packed_weights() {
    use fourbit::{
        graph::Graph,
        kernels::{dequantize, diagonal},
        nn::{Dora, Linear, Lora, Parameter},
    };
    let Some(gpu) = gpu() else { return };
    let (rows, cols, rank) = (24, 512, 3);
    for scheme in Scheme::all() {
        let mut rng = Rng(7);
        let values = packed(scheme, [rows, cols], &rng.normals(rows * cols));
        let (w, floats) = (QuantizedTensor::upload(&gpu, "w", &values).unwrap(), values.dequantize());
        let [a, b] = [rank * cols, rows * rank].map(|len| rng.normals(len));
        let tensor = |shape: &[usize], values: &[f32]| {
            Parameter::frozen(gpu.tensor("values", shape, DType::F32, values).unwrap())
        };
        let (a_tensor, b_tensor) = (tensor(&[rank, cols], &a), tensor(&[rows, rank], &b));
        let lora = Lora { a: a_tensor, b: b_tensor, scale: 0.5, dropout: 0.0, layer: 0 };
        let squares = gpu.zeros("squares", [rows], DType::F32).unwrap();
        let base = Linear::new(w, None);
        let mut g = Graph::new(&gpu);
        let out = g.import(&squares);
        let replace = g.import(&gpu.tensor("replace", [1], DType::F32, &[0.0f32]).unwrap());
        let part = dequantize::dequantize(&mut g, &base.weight).unwrap();
        diagonal::rows(&mut g, &part, &part, 1.0, &out, &replace).unwrap();
        // The rows of the identity: y is V/‖V‖, transposed, times magnitudes of one.
        let change = Dora::new(lora, tensor(&[rows], &vec![1.0; rows]), squares).unwrap();
        change.renew(&mut g, &base).unwrap();
        let layer = fourbit::nn::Adapted {
            change: fourbit::nn::Change::Dora(change),
            ..fourbit::nn::Adapted::new("layer", base)
        };
        let mut units = vec![0.0f32; cols * cols];
        (0..cols).for_each(|i| units[i * cols + i] = 1.0);
        let x = g.import(&gpu.tensor("x", [cols, cols], DType::F32, &units).unwrap());
        let (y, _) = layer.forward(&mut g, &x, None, &fourbit::nn::Pass::inference()).unwrap();
        g.keep(&y);
        let got = g.run().unwrap().read::<f32>(&y).unwrap();
        for row in 0..rows {
            let v = |c: usize| {
                let update = (0..rank).map(|j| f64::from(b[row * rank + j]) * f64::from(a[j * cols + c])).sum::<f64>();
                f64::from(floats[row * cols + c]) + 0.5 * update
            };
            let norm = (0..cols).map(|c| v(c).powi(2)).sum::<f64>().sqrt();
            for c in 0..cols {
                let (got, want) = (f64::from(got[c * rows + row]), v(c) / norm);
                assert!((got - want).abs() < 1e-5, "{scheme}, row {row}, column {c}: {got}, expected {want}");
            }
        }
    }
}

/// DoRA's tensors are few and small beside a pair's.
#[test]
fn a_saved_one_holds_a_vector_for_each_layer() {
    let Some(gpu) = gpu() else { return };
    let mut model = Model::load(&gpu, golden("tiny/bnb-nf4-dq"), &LoadOptions::default()).unwrap();
    model.add_adapter(kinds()[0].clone(), false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path(), None).unwrap();
    let file = Safetensors::open(folder.path().join("adapter_model.safetensors")).unwrap();
    let vectors: Vec<&str> = file.names().filter(|name| name.ends_with(".lora_magnitude_vector")).collect();
    assert_eq!(vectors.len(), 14);
    assert!(vectors.iter().all(|name| file.get(name).unwrap().shape.len() == 1));
}
