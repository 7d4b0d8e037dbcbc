//! Adapters in the forms that PEFT reads: the logits are PEFT's, also after saving again, and after merging. The fixtures and
//! the script that made them are in `tests/golden/adapters` and `scripts/make_adapter_golden.py`.

mod support;

use fourbit::{
    adapter::LoraConfig,
    data::Batch,
    evaluate,
    format::{Safetensors, peft},
    gpu::Gpu,
    method::{Merge, PipelineOptions, Rtn, quantize_model},
    model::{Combination, LoadOptions, Model, Quantization, Source, combine_adapters, load_adapter},
    quant::Scheme,
    train::{Schedule, TrainConfig, Trainer},
};
use std::{fs, path::PathBuf};
use support::gpu;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn load(gpu: &Gpu) -> Model {
    Model::load(gpu, format!("{GOLDEN}/tiny/model"), &LoadOptions::default()).unwrap()
}

fn folder(name: &str) -> PathBuf {
    format!("{GOLDEN}/adapters/{name}").into()
}

fn index() -> serde_json::Value {
    fourbit::format::read_json(folder("index.json")).unwrap()
}

fn ids() -> Vec<u32> {
    index()["input_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// The last row of logits.
fn last(model: &Model) -> Vec<f32> {
    let logits = evaluate::logits(model, &ids()).unwrap();
    logits[logits.len() - model.arch().vocab_size..].to_vec()
}

fn apart(got: &[f32], want: &[f32]) -> f32 {
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max) / largest
}

fn cases() -> Vec<String> {
    let folders = fs::read_dir(folder("")).unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_dir());
    let mut names: Vec<String> = folders.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 17);
    names
}

#[test]
fn logits_are_those_of_peft_and_stay_so_when_saved_again() {
    let Some(gpu) = gpu() else { return };
    let golden = Safetensors::open(folder("logits.safetensors")).unwrap();
    let want = |name: &str| golden.get(name).unwrap().to_f32().unwrap();
    let mut model = load(&gpu);
    assert!(apart(&last(&model), &want("none")) < 1e-5);
    let again = tempfile::tempdir().unwrap();
    for name in cases() {
        model.load_adapter(folder(&name), false).unwrap();
        // f32 sums in another order; singular vectors of f32 against those of f64.
        let bound = if name.starts_with("pissa") || name.starts_with("olora") { 5e-5 } else { 1e-5 };
        let before = last(&model);
        let got = apart(&before, &want(&name));
        assert!(got < bound, "{name}: {got:e}");
        assert!(apart(&want("none"), &want(&name)) > 1e-3, "{name} says nothing");
        model.save_adapter(again.path(), None).unwrap();
        model.load_adapter(again.path(), false).unwrap();
        assert_eq!(last(&model), before, "{name} saved again");
    }
}

#[test]
fn merged_floats_are_the_base_with_what_peft_adds() {
    let Some(gpu) = gpu() else { return };
    let golden = Safetensors::open(folder("logits.safetensors")).unwrap();
    let source = Source::open(format!("{GOLDEN}/tiny/model")).unwrap();
    let floats = |name: &str| {
        let weight = format!("{name}.weight");
        Ok(Some(source.packed(&weight, source.shape(&weight)?)?.dequantize()))
    };
    for name in ["pissa-sizes", "olora-rslora", "sizes-rslora"] {
        let adapter = load_adapter(&gpu, source.arch(), folder(name), false, &floats).unwrap();
        let method = Merge::new(Box::new(Rtn { scheme: Scheme::F32 }), &adapter).unwrap();
        let model = quantize_model(&gpu, &source, &method, &PipelineOptions::default(), &[ids()], |_| Ok(())).unwrap();
        let got = apart(&last(&model), &golden.get(name).unwrap().to_f32().unwrap());
        // The sum is rounded to f32 once more.
        assert!(got < 1e-4, "{name}: {got:e}");
    }
}

#[test]
fn adapters_with_ranks_of_their_own_are_trained_as_peft_trains_them() {
    let Some(gpu) = gpu() else { return };
    let ids = ids();
    let length = ids.len();
    let batch = Batch {
        batch: 1,
        seq_len: length,
        labels: ids.iter().map(|&id| id as i32).collect(),
        input_ids: ids,
        attention_mask: vec![1; length],
        segment_ids: vec![1; length],
        position_ids: (0..length as u32).collect(),
        pairs: Vec::new(),
        epoch: 0.0,
    };
    let index = index();
    for name in ["sizes", "sizes-rslora"] {
        let mut model = load(&gpu);
        model.load_adapter(folder(name), true).unwrap();
        let lr_scheduler_type = Schedule::Constant;
        let config =
            TrainConfig { learning_rate: 1e-2, lr_scheduler_type, max_seq_length: length, ..TrainConfig::default() };
        let mut trainer = Trainer::new(model, config).unwrap();
        for step in 0..4 {
            let metrics = trainer.step(std::slice::from_ref(&batch)).unwrap();
            let want = |what: &str| index["training"][name][what][step].as_f64().unwrap();
            // f32 sums in another order, over four steps.
            assert!((metrics.loss / want("loss") - 1.0).abs() < 1e-4, "{name}, step {step}: {}", metrics.loss);
            let norm = metrics.grad_norm / want("grad_norm") - 1.0;
            assert!(norm.abs() < 1e-3, "{name}, step {step}: {}", metrics.grad_norm);
        }
        // Saved, each module has its rank again.
        let place = tempfile::tempdir().unwrap();
        trainer.model().save_adapter(place.path(), None).unwrap();
        let (saved, first) = (peft::Adapter::open(place.path()).unwrap(), peft::Adapter::open(folder(name)).unwrap());
        assert_eq!(saved.modules(), first.modules());
        for module in first.modules() {
            assert_eq!(saved.config.rank(module).unwrap(), first.config.rank(module).unwrap(), "{name}: {module}");
        }
    }
}

fn refused(result: fourbit::Result<()>, words: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn an_initial_product_wants_a_base_in_floats_and_no_training() {
    let Some(gpu) = gpu() else { return };
    let nf4 = Quantization::To(Scheme::Nf4 { block_size: 64, double_quant: false });
    let mut quantized = Model::load(&gpu, format!("{GOLDEN}/tiny/model"), &LoadOptions { quantization: nf4 }).unwrap();
    for name in ["pissa", "olora"] {
        refused(
            quantized.load_adapter(folder(name), false),
            &["quantized base", "Quantization::AsStored", "method::Merge"],
        );
        refused(load(&gpu).load_adapter(folder(name), true), &["training", "method::Merge"]);
    }
    quantized.load_adapter(folder("regex"), true).unwrap();
}

/// A copy of an adapter whose configuration has this field.
fn edited(name: &str, field: &str, value: serde_json::Value) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let mut json: serde_json::Value = fourbit::format::read_json(folder(name).join(peft::CONFIG)).unwrap();
    json[field] = value;
    fs::write(place.path().join(peft::CONFIG), json.to_string()).unwrap();
    fs::copy(folder(name).join(peft::TENSORS), place.path().join(peft::TENSORS)).unwrap();
    place
}

#[test]
fn configuration_and_tensors_that_do_not_agree_are_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let mut model = load(&gpu);
    let cases = [
        ("layers", "layers_to_transform", serde_json::json!([0]), vec!["layers.1.self_attn.q_proj", "does not target"]),
        ("layers", "layers_to_transform", serde_json::json!(null), vec!["layers.0.self_attn.q_proj", "no tensors"]),
        ("regex", "exclude_modules", serde_json::json!(["v_proj"]), vec!["v_proj", "does not target"]),
        ("sizes", "rank_pattern", serde_json::json!({}), vec!["q_proj", "[2, 64]"]),
        ("regex", "use_rslora", serde_json::json!("true"), vec!["use_rslora", "true or false"]),
        ("regex", "lora_alpha", serde_json::json!("8"), vec!["lora_alpha", "a number"]),
        ("regex", "r", serde_json::json!(2.5), vec!["r: expected"]),
        ("regex", "init_lora_weights", serde_json::json!("pissa_niter_4"), vec!["pissa_niter_4", "random"]),
        ("regex", "init_lora_weights", serde_json::json!("corda"), vec!["corda"]),
        ("regex", "init_lora_weights", serde_json::json!("loftq"), vec!["loftq"]),
        ("regex", "init_lora_weights", serde_json::json!("PiSSA"), vec!["init_lora_weights", "PiSSA"]),
        ("regex", "task_type", serde_json::json!("SEQ_CLS"), vec!["SEQ_CLS"]),
        ("regex", "a_field_of_tomorrow", serde_json::json!(1), vec!["a_field_of_tomorrow", "not known"]),
    ];
    for (name, field, value, words) in cases {
        let place = edited(name, field, value);
        refused(model.load_adapter(place.path(), false), &words);
    }
}

#[test]
fn adapters_of_other_programs_are_refused_by_what_they_are() {
    let Some(gpu) = gpu() else { return };
    let mut model = load(&gpu);
    let place = edited("regex", "r", serde_json::json!(2));
    fs::rename(place.path().join(peft::TENSORS), place.path().join("adapter_model.bin")).unwrap();
    refused(model.load_adapter(place.path(), false), &["adapter_model.bin", "save_pretrained"]);
    fs::rename(place.path().join("adapter_model.bin"), place.path().join("adapters.safetensors")).unwrap();
    refused(model.load_adapter(place.path(), false), &["adapters.safetensors", "MLX", "mlx_lm.fuse"]);
    let mlx =
        serde_json::json!({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 8, "scale": 20.0}});
    fs::write(place.path().join(peft::CONFIG), mlx.to_string()).unwrap();
    refused(model.load_adapter(place.path(), false), &["MLX", "mlx_lm.fuse"]);
}

#[test]
fn new_adapters_may_have_sizes_and_full_names_of_their_own() {
    let Some(gpu) = gpu() else { return };
    let mut model = load(&gpu);
    let module = "model.layers.1.mlp.up_proj".to_owned();
    let config = LoraConfig {
        r: 2,
        target_modules: vec![module.clone(), "q_proj".to_owned()],
        ranks: [(module.clone(), 5)].into(),
        alphas: [(module.clone(), 10.0)].into(),
        ..LoraConfig::default()
    };
    model.add_adapter(config.clone(), true).unwrap();
    let place = tempfile::tempdir().unwrap();
    model.save_adapter(place.path(), None).unwrap();
    let saved = peft::Adapter::open(place.path()).unwrap();
    assert_eq!((saved.config.rank(&module).unwrap(), saved.config.alpha(&module).unwrap()), (5, 10.0));
    assert_eq!(saved.config.rank("model.layers.0.self_attn.q_proj").unwrap(), 2);
    assert_eq!(saved.modules().len(), 3);
    let unknown = LoraConfig { target_modules: vec!["model.layers.2.mlp.up_proj".to_owned()], ..config };
    refused(model.add_adapter(unknown, true), &["model.layers.2.mlp.up_proj is no layer of this model"]);
}

/// Sums of adapters: their logits are those of PEFT's `add_weighted_adapter` (scripts/make_combine_golden.py).
#[test]
fn weighted_sums_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    let golden = Safetensors::open(folder("combined.safetensors")).unwrap();
    let mut model = load(&gpu);
    let (place, mut seen) = (tempfile::tempdir().unwrap(), 0);
    for name in golden.names() {
        let (kind, adapters) = name.split_once(':').unwrap();
        let open = |text: &str| {
            let (name, weight) = text.split_once('=').unwrap();
            (peft::Adapter::open(folder(name)).unwrap(), weight.parse::<f64>().unwrap())
        };
        let adapters: Vec<_> = adapters.split(',').map(open).collect();
        let combination = match kind {
            "cat" => Combination::Cat,
            "linear" => Combination::Linear,
            _ => Combination::Svd(Some(3)),
        };
        let (config, tensors) = combine_adapters(&adapters, combination).unwrap();
        peft::save(place.path().join(kind), &config, &tensors).unwrap();
        model.load_adapter(place.path().join(kind), false).unwrap();
        let got = apart(&last(&model), &golden.get(name).unwrap().to_f32().unwrap());
        // The singular value decompositions are two programs', the forward passes two devices', all in f32.
        assert!(got < 2e-5, "{name}: {got:e}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn what_cannot_be_summed_is_refused() {
    let open = |name: &str| (peft::Adapter::open(folder(name)).unwrap(), 1.0);
    let error = |names: &[&str], how| {
        let adapters: Vec<_> = names.iter().map(|name| open(name)).collect();
        combine_adapters(&adapters, how).unwrap_err().to_string()
    };
    assert!(error(&[], Combination::Cat).contains("none to combine"));
    assert!(
        error(&["exclude", "pissa"], Combination::Cat).contains("PiSSA"),
        "{}",
        error(&["exclude", "pissa"], Combination::Cat)
    );
    let ranks = error(&["exclude", "sizes"], Combination::Linear);
    assert!(ranks.contains("[2, 3]") && ranks.contains("cat and svd"), "{ranks}");
    assert!(error(&["exclude"], Combination::Svd(Some(0))).contains("svd_rank"));
    let weights = [(peft::Adapter::open(folder("exclude")).unwrap(), f64::NAN)];
    assert!(combine_adapters(&weights, Combination::Cat).unwrap_err().to_string().contains("NaN"));
}
