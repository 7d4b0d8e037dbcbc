//! Checkpoints of other tools: what `scripts/make_checkpoint_golden.py` made with their packages loads, gives their logits,
//! learns, and is written back.

mod support;

use fourbit::{
    DType,
    adapter::LoraConfig,
    data::Batch,
    evaluate,
    format::{
        Checkpoint, Safetensors, Weights,
        checkpoint::{self, Aqlm, Awq, Basis, Bitsandbytes, CompressedTensors, Gptq, Hqq, Rounding},
        safetensors::Writer,
    },
    gpu::{Gpu, GpuOptions},
    method::Recipe,
    model::{LoadOptions, Model, Quantization, Source},
    quant::{BlockSize, Packed, ScaleType, Scheme},
    train::{TrainConfig, Trainer},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};
use support::{Rng, gpu};

const FOLDERS: [&str; 12] = [
    "aqlm",
    "awq",
    "ct-int4",
    "ct-int4-act",
    "ct-int8",
    "gptq-2-v2",
    "gptq-3-act",
    "gptq-4-act",
    "gptq-4-sym",
    "gptq-8-channel",
    "hqq",
    "llm-int8",
];
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn int(bits: u8, block: impl Into<BlockSize>, symmetric: bool, scale: ScaleType) -> Scheme {
    Scheme::Int { bits, block: block.into(), symmetric, scale }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoints").join(name)
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn input_ids() -> Vec<u32> {
    let index = read_json(golden("golden.json"));
    index["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Largest difference over the largest wanted value.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs())).fold(0.0, f64::max) / largest
}

fn logits_agree(gpu: &Gpu, folder: &Path, want: &[f32], options: &LoadOptions, most: f64) {
    let model = Model::load(gpu, folder, options).unwrap();
    let got = evaluate::logits(&model, &input_ids()).unwrap();
    let error = relative(&got, want);
    assert!(error <= most, "{}: logits differ by {error:e} of the largest", folder.display());
}

fn golden_logits(name: &str, tensor: &str) -> Vec<f32> {
    Safetensors::open(golden(name).join("logits.safetensors")).unwrap().get(tensor).unwrap().to_f32().unwrap()
}

#[test]
fn logits_are_those_of_the_packages_that_made_the_files() {
    let Some(gpu) = gpu() else { return };
    for name in FOLDERS {
        // f32 sums in another order; where inputs are rounded, one between two codes may go to the other one.
        let (tensor, most) = if name == "llm-int8" { ("rounded", 1e-2) } else { ("logits", 1e-4) };
        logits_agree(&gpu, &golden(name), &golden_logits(name, tensor), &LoadOptions::default(), most);
    }
}

#[test]
fn weights_are_converted_with_their_columns_put_back() {
    let Some(gpu) = gpu() else { return };
    let options = LoadOptions { quantization: Quantization::To(Scheme::F32) };
    for name in ["gptq-4-act", "gptq-3-act", "ct-int4-act", "hqq", "aqlm", "llm-int8"] {
        logits_agree(&gpu, &golden(name), &golden_logits(name, "logits"), &options, 1e-4);
    }
}

#[test]
fn schemes_and_names_are_as_stored() {
    for (folder, name, scheme, shape) in [
        ("awq", Q, Scheme::int(4, 32), [64, 64]),
        // Groups of 64 in rows of 96: blocks of what divides both.
        ("gptq-4-act", DOWN, Scheme::int(4, 32), [64, 96]),
        ("gptq-4-act", Q, Scheme::int(4, 64), [64, 64]),
        ("gptq-3-act", Q, Scheme::int(3, 32), [64, 64]),
        ("gptq-8-channel", DOWN, int(8, 96, true, ScaleType::F16), [64, 96]),
        ("ct-int4", DOWN, int(4, 32, true, ScaleType::F16), [64, 96]),
        ("ct-int8", DOWN, int(8, 96, true, ScaleType::F16), [64, 96]),
        ("llm-int8", DOWN, Scheme::int8(96), [64, 96]),
        ("hqq", Q, int(8, 32, false, ScaleType::F32), [64, 64]),
        ("hqq", DOWN, Scheme::int(3, 32), [64, 96]),
    ] {
        let source = Source::open(golden(folder)).unwrap();
        assert_eq!(source.scheme(name).unwrap(), scheme, "{folder}");
        assert_eq!(source.shape(name).unwrap(), shape, "{folder}");
        assert_eq!(source.packed(name, shape).unwrap().scheme, scheme, "{folder}");
    }
    let plain = Source::open(golden("awq")).unwrap().names();
    assert_eq!(plain.len(), 7 + 4);
    for folder in FOLDERS {
        let source = Source::open(golden(folder)).unwrap();
        assert_eq!(source.names(), plain, "{folder}");
        assert!(plain.iter().all(|name| source.contains(name)), "{folder}");
        let shuffled = source.basis(Q).unwrap().is_some();
        assert_eq!(shuffled, folder.ends_with("-act") && folder != "gptq-4-act", "{folder}");
    }
    assert!(Source::open(golden("gptq-4-act")).unwrap().basis(DOWN).unwrap().is_some());
}

#[test]
fn what_rounds_its_inputs_says_so() {
    let rounding = |folder: &Path| Source::open(folder).unwrap().rounding(Q).unwrap();
    for folder in FOLDERS {
        let want = (folder == "llm-int8").then_some(Rounding::LlmInt8 { threshold: 6.0 });
        assert_eq!(rounding(&golden(folder)), want, "{folder}");
    }
    let inputs = |dynamic: bool, strategy: &str, symmetric: bool| {
        let folder = broken("ct-int8", "", |_, _| ());
        let path = folder.path().join("config.json");
        let mut config = read_json(path.clone());
        config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = json!({
            "dynamic": dynamic, "num_bits": 8, "strategy": strategy, "symmetric": symmetric, "type": "int",
        });
        fs::write(path, config.to_string()).unwrap();
        folder
    };
    assert_eq!(rounding(inputs(true, "token", true).path()), Some(Rounding::Dynamic));
    assert_eq!(rounding(inputs(true, "token", false).path()), None);
    let source = Source::open(inputs(false, "tensor", true).path()).unwrap();
    let error = source.rounding(Q).unwrap_err().to_string();
    assert!(error.contains("self_attn.q_proj.input_scale"), "{error}");
    assert_eq!(source.rounding("model.norm.weight").unwrap(), None);

    let written = CompressedTensors::new(Scheme::INT8_ROWS).unwrap().with_dynamic_inputs();
    let inputs = written.config(fourbit::DType::F16).unwrap()["config_groups"]["group_0"]["input_activations"].clone();
    assert_eq!((&inputs["strategy"], &inputs["dynamic"]), (&json!("token"), &json!(true)));
}

#[test]
fn a_device_that_only_counts_knows_their_sizes() {
    let dry = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
    for folder in FOLDERS {
        let source = Source::open(golden(folder)).unwrap();
        let model = Model::from_source(&dry, &source, &LoadOptions::default()).unwrap();
        let down = &model.blocks()[0].feed_forward.down.base;
        let packed = source.packed(DOWN, [64, 96]).unwrap();
        let order = match source.basis(DOWN).unwrap() {
            Some(Basis::Order(order)) => 8 * order.len(),
            _ => 0,
        };
        assert_eq!(down.weight.scheme(), packed.scheme);
        // Codes fill whole vec4.
        let (got, want) = (down.bytes() as usize, packed.bytes() + order);
        assert!((want..want + 16).contains(&got), "{folder}: {got} bytes, expected {want}");
    }
}

/// A step of training on a base as it is stored, with shuffled columns, integers of 8, 4, 3 and 2 bits and code books, and
/// on the same numbers as plain f32 in their own order. (A single layer with shuffled columns against f64:
/// `tests/kernels/permute.rs`.)
#[test]
fn adapters_learn_the_same_on_stored_weights_as_on_plain_floats() {
    let Some(gpu) = gpu() else { return };
    let gradients = |folder, quantization, checkpointing| {
        let mut model = Model::load(&gpu, golden(folder), &LoadOptions { quantization }).unwrap();
        model.add_adapter(LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() }, true).unwrap();
        let mut rng = Rng(11);
        for (_, lora) in model.adapted() {
            for tensor in [&lora.a.values, &lora.b.values] {
                let values: Vec<f32> = rng.normals(tensor.shape().len()).iter().map(|v| 0.1 * v).collect();
                tensor.write(bytemuck::cast_slice(&values)).unwrap();
            }
        }
        let config = TrainConfig {
            warmup_steps: 1,
            max_seq_length: 12,
            gradient_checkpointing: checkpointing,
            ..TrainConfig::default()
        };
        let ids = input_ids();
        let batch = Batch {
            batch: 1,
            seq_len: 12,
            labels: ids.iter().map(|&id| id as i32).collect(),
            input_ids: ids,
            segment_ids: vec![1; 12],
            position_ids: (0..12).collect(),
            attention_mask: vec![1; 12],
            pairs: Vec::new(),
            epoch: 0.0,
        };
        let mut trainer = Trainer::new(model, config).unwrap();
        let metrics = trainer.step(&[batch]).unwrap();
        assert!(metrics.grad_norm > 0.0);
        let tensors = trainer.model().store().iter();
        let gradients = tensors.map(|(name, t)| (name.to_owned(), t.grads.as_ref().unwrap().read::<f32>().unwrap()));
        gradients.collect::<Vec<_>>()
    };
    for (folder, checkpointing) in [("gptq-4-act", false), ("gptq-4-act", true), ("hqq", false), ("aqlm", false)] {
        let stored = gradients(folder, Quantization::AsStored, checkpointing);
        let plain = gradients(folder, Quantization::To(Scheme::F32), false);
        assert_eq!((stored.len(), plain.len()), (14, 14));
        for ((name, got), (_, want)) in stored.iter().zip(&plain) {
            let error = relative(got, want);
            // f32 sums in another order, carried through the block.
            assert!(error <= 1e-4, "{folder} {name}: gradients differ by {error:e} of the largest");
        }
    }
}

/// Writes packed weights and opens them again.
fn written(folder: &Path, layout: &dyn Checkpoint, weights: &[(&str, &Packed, Option<&Basis>)]) -> Weights {
    let path = folder.join("written.safetensors");
    let specs = weights.iter().flat_map(|(name, packed, _)| layout.specs(name, packed.shape).unwrap()).collect();
    let mut writer = Writer::create(&path, specs).unwrap();
    for (name, packed, basis) in weights {
        for (name, bytes) in layout.tensors(name, packed, *basis, DType::F16).unwrap() {
            writer.write(&name, &bytes).unwrap();
        }
    }
    writer.finish().unwrap();
    Weights::open(&path).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let x = Rng(3).normals(64 * 96);
    let mut cases: Vec<(Box<dyn Checkpoint>, Scheme)> = Vec::new();
    for bits in [2, 3, 4, 8] {
        for (block, symmetric) in [(32.into(), false), (32.into(), true), (BlockSize::Row, false)] {
            let scheme = int(bits, block, symmetric, ScaleType::F16);
            cases.push((Box::new(Gptq::new(scheme, false).unwrap()), scheme));
        }
        for scale in [ScaleType::F16, ScaleType::F32] {
            if bits != 8 || scale == ScaleType::F32 {
                cases.push((Box::new(Hqq::new(int(bits, 24, false, scale)).unwrap()), int(bits, 24, false, scale)));
            }
        }
    }
    for bits in 2..=8 {
        for (block, symmetric, scale) in [
            (32.into(), false, ScaleType::F16),
            (32.into(), true, ScaleType::F32),
            (BlockSize::Row, false, ScaleType::F32),
        ] {
            let scheme = int(bits, block, symmetric, scale);
            cases.push((Box::new(CompressedTensors::new(scheme).unwrap()), scheme));
        }
    }
    cases.push((Box::new(Awq::new(Scheme::int(4, 32)).unwrap()), Scheme::int(4, 32)));
    cases.push((Box::new(Awq::new(Scheme::int_per(4, BlockSize::Row)).unwrap()), Scheme::int_per(4, BlockSize::Row)));
    cases.push((Box::new(Bitsandbytes::new(Scheme::INT8_ROWS).unwrap()), Scheme::INT8_ROWS));
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: true };
    cases.push((Box::new(Bitsandbytes::new(nf4).unwrap()), nf4));
    for (layout, scheme) in cases {
        let packed = Packed::quantize(scheme, [64, 96], &x).unwrap();
        let weights = written(folder.path(), &*layout, &[(Q, &packed, None)]);
        // A model's configuration says the rest, as it would on disk.
        let reader = checkpoint::open(&layout.config(fourbit::DType::F16).unwrap(), "config.json".as_ref()).unwrap();
        assert!(reader.is_quantized(&weights, Q), "{layout:?}");
        let back = reader.read(&weights, Q).unwrap();
        assert_eq!(reader.describe(&weights, Q).unwrap().scheme, back.scheme, "{layout:?}");
        assert_eq!(back.codes, packed.codes, "{layout:?}");
        // LLM.int8 stores 127 times the scale, so that it may move by a last bit.
        let (got, want) = (back.dequantize(), packed.dequantize());
        let most = if scheme == Scheme::INT8_ROWS { 1e-6 } else { 0.0 };
        assert!(relative(&got, &want) <= most, "{layout:?}");
        assert_eq!(weights.names().filter_map(|n| reader.weight_name(&weights, n)).collect::<Vec<_>>(), [Q]);
    }
}

#[test]
fn the_threshold_of_llm_int8_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe: Recipe = "llm-int8".parse().unwrap();
    let packed = Packed::quantize(recipe.scheme, [64, 96], &Rng(3).normals(64 * 96)).unwrap();
    for (threshold, want) in [
        (4.5, Rounding::LlmInt8 { threshold: 4.5 }),
        (0.1, Rounding::LlmInt8 { threshold: 0.1 }),
        (0.0, Rounding::Dynamic),
    ] {
        recipe.options.threshold = threshold;
        let layout = recipe.layout().unwrap();
        let weights = written(folder.path(), &*layout, &[(Q, &packed, None)]);
        let reader = checkpoint::open(&layout.config(DType::F16).unwrap(), "config.json".as_ref()).unwrap();
        assert_eq!(reader.rounding(&weights, Q).unwrap(), Some(want));
    }
}

#[test]
fn how_gptq_was_calibrated_is_told() {
    let mut recipe: Recipe = "gptq:int4-g32".parse().unwrap();
    for (true_sequential, act_order) in [(false, true), (true, false)] {
        (recipe.options.true_sequential, recipe.options.act_order) = (true_sequential, act_order);
        let config = recipe.layout().unwrap().config(DType::F16).unwrap();
        assert_eq!(
            (&config["true_sequential"], &config["static_groups"]),
            (&json!(true_sequential), &json!(act_order))
        );
        // Static groups lie side by side, so that a reader needs no order.
        assert_eq!(config["desc_act"], false);
    }
    let untold = Gptq::new(Scheme::int(4, 32), false).unwrap().config(DType::F16).unwrap();
    assert!(untold.get("true_sequential").is_none());
}

#[test]
fn vectors_are_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::open(golden("aqlm")).unwrap();
    let packed = source.packed(DOWN, [64, 96]).unwrap();
    assert_eq!(packed.scheme, Scheme::Aqlm);
    let weights = written(folder.path(), &Aqlm, &[(DOWN, &packed, None)]);
    let reader = checkpoint::open(&Aqlm.config(fourbit::DType::F16).unwrap(), "config.json".as_ref()).unwrap();
    assert_eq!(reader.read(&weights, DOWN).unwrap(), packed);
    let codes = DOWN.replace("weight", "codes");
    assert!(weights.get(&codes).unwrap().bytes == source.weights().get(&codes).unwrap().bytes);
    let other = Packed::quantize(Scheme::int(4, 32), [64, 96], &[0.0; 64 * 96]).unwrap();
    assert!(Aqlm.tensors(DOWN, &other, None, DType::F16).is_err());
}

#[test]
fn an_order_of_columns_is_written_as_g_idx() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::open(golden("gptq-3-act")).unwrap();
    let packed = source.packed(DOWN, [64, 96]).unwrap();
    let order = source.basis(DOWN).unwrap().unwrap();
    let layout = Gptq::new(packed.scheme, true).unwrap();
    let weights = written(folder.path(), &layout, &[(DOWN, &packed, Some(&order))]);
    let theirs = source.weights();
    for part in ["qweight", "qzeros", "scales", "g_idx"] {
        let name = DOWN.replace("weight", part);
        assert!(weights.get(&name).unwrap().bytes == theirs.get(&name).unwrap().bytes, "{part}");
    }
    assert_eq!(layout.config(fourbit::DType::F16).unwrap()["desc_act"], true);
    let awq = Awq::new(Scheme::int(4, 32)).unwrap();
    let four = Packed::quantize(Scheme::int(4, 32), [8, 32], &[0.5; 256]).unwrap();
    assert!(awq.tensors(Q, &four, Some(&Basis::Order(vec![0; 32])), DType::F16).is_err());
}

#[test]
fn their_files_are_written_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let group = Scheme::int(4, 32);
    let Scheme::Int { bits, block, scale, .. } = group else { unreachable!() };
    let symmetric = Scheme::Int { bits, block, symmetric: true, scale };
    let row8 = Scheme::Int { bits: 8, block: BlockSize::Row, symmetric: true, scale };
    let layouts: [(&str, Box<dyn Checkpoint>); 6] = [
        ("awq", Box::new(Awq::new(group).unwrap())),
        ("gptq-4-sym", Box::new(Gptq::new(symmetric, false).unwrap())),
        ("gptq-8-channel", Box::new(Gptq::new(row8, false).unwrap())),
        ("ct-int4", Box::new(CompressedTensors::new(symmetric).unwrap())),
        ("ct-int8", Box::new(CompressedTensors::new(row8).unwrap())),
        ("hqq", Box::new(Hqq::new(group).unwrap())),
    ];
    for (name, layout) in layouts {
        let source = Source::open(golden(name)).unwrap();
        let gate = "model.layers.0.mlp.gate_proj.weight";
        let packed = source.packed(gate, [96, 64]).unwrap();
        let ours = written(folder.path(), &*layout, &[(gate, &packed, None)]);
        for part in ours.names() {
            let (got, want) = (ours.get(part).unwrap(), source.weights().get(part).unwrap());
            assert_eq!((got.stored, got.shape), (want.stored, want.shape), "{name}: {part}");
            assert_eq!(got.bytes, want.bytes, "{name}: {part}");
        }
    }
}

/// A copy of a golden folder with a tensor changed by `edit`, which gets its header entry and its bytes.
fn broken(name: &str, tensor: &str, edit: impl Fn(&mut Value, &mut Vec<u8>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let file = fs::read(golden(name).join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..8 + len]).unwrap();
    let (mut data, mut changed) = (Vec::new(), serde_json::Map::new());
    for (key, mut entry) in header.into_iter().filter(|(key, _)| key != "__metadata__") {
        let at = |i: usize| 8 + len + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let mut bytes = file[at(0)..at(1)].to_vec();
        if key == tensor {
            edit(&mut entry, &mut bytes);
        }
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        data.extend(bytes);
        changed.insert(key, entry);
    }
    let header = Value::Object(changed).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn broken_weights_are_refused_with_their_names() {
    let base = Q.strip_suffix(".weight").unwrap();
    type Edit = fn(&mut Value, &mut Vec<u8>);
    let narrow: Edit = |entry, bytes| {
        let rows = entry["shape"][0].as_u64().unwrap();
        bytes.truncate(bytes.len() / 2);
        entry["shape"][0] = json!(rows / 2);
    };
    let nan: Edit = |_, bytes| bytes[..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let nan32: Edit = |_, bytes| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let seven: Edit = |_, bytes| bytes[..4].copy_from_slice(&7i32.to_le_bytes());
    let wide: Edit = |_, bytes| bytes[..8].copy_from_slice(&i64::MAX.to_le_bytes());
    let negative: Edit = |_, bytes| bytes[4..8].copy_from_slice(&(-1i32).to_le_bytes());
    let unsigned: Edit = |entry, _| entry["dtype"] = json!("F32");
    let text: Edit = |_, bytes| bytes[0] = b'9';
    for (folder, part, edit, message) in [
        ("gptq-4-sym", "qweight", narrow, "expected [8, 64]"),
        ("gptq-4-sym", "qweight", unsigned, "expected I32"),
        ("gptq-4-sym", "qzeros", narrow, "expected [2, 8]"),
        ("gptq-4-sym", "scales", nan, "not finite"),
        ("gptq-4-sym", "g_idx", narrow, "expected [4, 64]"),
        ("gptq-4-sym", "g_idx", negative, "column 1 is in group -1 of 2"),
        ("gptq-3-act", "g_idx", seven, "column 0 is in group 7 of 2"),
        ("awq", "qzeros", narrow, "expected [2, 8]"),
        ("awq", "scales", narrow, "expected [1, 8], got [2, 8]"),
        ("awq", "qweight", narrow, "expected 1 groups of 32 columns, got 2"),
        ("hqq", "nbits", seven, "nbits of 2, 3, 4 or 8, got 7"),
        ("hqq", "axis", seven, "expected axis 1"),
        ("hqq", "W_q", narrow, "bytes of W_q"),
        ("hqq", "zero", narrow, "expected [128, 1]"),
        ("hqq", "scale", nan, "not finite"),
        ("hqq", "packing", text, "expected the packing 8bit_u8"),
        ("hqq", "shape", wide, "fits memory"),
        ("aqlm", "codes", narrow, "expected [32, 1, 1, 1]"),
        ("aqlm", "scales", narrow, "expected [64, 1, 1, 1]"),
        ("aqlm", "codebooks", narrow, "expected [2, 256, 1, 8]"),
        ("aqlm", "codebooks", nan, "not finite"),
        ("llm-int8", "SCB", narrow, "expected [64]"),
        ("llm-int8", "SCB", nan32, "not finite"),
        ("llm-int8", "weight_format", text, "weight_format 0 (rows), got 57"),
        ("ct-int4", "weight_packed", narrow, "32 rows of codes"),
        ("ct-int4", "weight_scale", narrow, "expected [64, groups] scales"),
        ("ct-int4", "weight_shape", wide, "rows of codes for a weight of"),
        ("ct-int4-act", "weight_g_idx", seven, "column 0 is in group 7 of 2"),
        ("ct-int4-act", "weight_zero_point", narrow, "expected [8, 2]"),
        ("ct-int8", "weight", narrow, "scales"),
    ] {
        let copy = broken(folder, &format!("{base}.{part}"), edit);
        let source = Source::open(copy.path()).unwrap();
        let error = source.packed(Q, [64, 64]).err().map(|e| e.to_string());
        let error = error.unwrap_or_else(|| panic!("{folder}: a broken {part} is read"));
        assert!(error.contains(message) && error.contains("q_proj"), "{folder} {part}: {error}");
        assert!(error.contains("model.safetensors") || error.contains(&*copy.path().to_string_lossy()), "{error}");
    }
}

#[test]
fn configurations_that_would_be_read_wrongly_are_refused() {
    for (config, message) in [
        (json!({"quant_method": "fp8"}), "quantization method of the model: fp8"),
        (json!({"quant_method": "quip", "codebook": "E8P12"}), "codebook \"E8P12\""),
        (json!({"quant_method": "gptq", "bits": 5}), "bits of a GPTQ model: 5"),
        (json!({"quant_method": "gptq"}), "quantization_config.bits"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "marlin"),
        (json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), "group_size"),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "gemv"),
        (json!({"quant_method": "awq", "bits": 8}), "bits of an AWQ model: 8"),
        (
            json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"a": {}}}),
            "float-quantized",
        ),
        (
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"type": "float", "num_bits": 4}}}}),
            "float of 4 bits",
        ),
        (
            json!({"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16}),
            "num_codebooks of an AQLM model: 1",
        ),
        (json!({"quant_method": "compressed-tensors", "transform_config": {"u": {}}}), "transform_config"),
        (json!({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}), "kv_cache_scheme"),
        (
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": "4"}}}}),
            "quantization_config.config_groups.a.weights.num_bits: expected a whole number",
        ),
        (json!({"quant_method": "gptq", "bits": 4, "sym": "true"}), "quantization_config.sym: expected true or false"),
        (json!({"quant_method": "gptq", "bits": 4, "rotation": "x"}), "rotation is \"x\": this field is not known"),
        (json!({"quant_method": "gptq", "bits": 4, "dynamic": {"-:lm_head": {}}}), "rules for single layers"),
        (json!({"quant_method": "awq", "bits": 4, "zero_point": false}), "zero_point"),
        (json!({"quant_method": "bitsandbytes", "llm_int8_threshold": "6"}), "llm_int8_threshold: expected a number"),
    ] {
        let error = checkpoint::open(&config, "config.json".as_ref())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_else(|| panic!("{config}"));
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn what_a_layout_cannot_hold_is_refused() {
    let f16 = |bits| Scheme::int(bits, 32);
    assert!(Gptq::new(f16(5), false).is_err());
    assert!(Gptq::new(Scheme::int8(32), false).is_err());
    let tensor = Scheme::int_per(4, BlockSize::Tensor);
    for refused in [
        Gptq::new(tensor, false).map(drop),
        Awq::new(tensor).map(drop),
        Hqq::new(tensor).map(drop),
        CompressedTensors::new(tensor).map(drop),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("one scale per tensor; supported: one scale per group or row"), "{message}");
    }
    assert!(Awq::new(f16(8)).is_err());
    assert!(Hqq::new(Scheme::Q4_0).is_err());
    assert!(Bitsandbytes::new(f16(4)).is_err());
    assert!(Gptq::new(f16(4), false).unwrap().specs(Q, [64, 48]).is_err());
    assert!(Gptq::new(f16(4), false).unwrap().specs(Q, [48, 64]).is_err());
    assert!(Awq::new(f16(4)).unwrap().specs(Q, [12, 64]).is_err());
    assert!(Awq::new(f16(4)).unwrap().specs("lm_head", [16, 64]).is_err());
    assert!(Hqq::new(f16(4)).unwrap().specs(Q, [3, 32]).is_err());
    // HQQ's zero points are no integers.
    let mut packed = Packed::quantize(f16(4), [64, 64], &Rng(1).normals(4096)).unwrap();
    packed.scales[3] = packed.scales[3] & 0xffff | u32::from(half::f16::from_f32(3.5).to_bits()) << 16;
    for layout in [&Gptq::new(f16(4), false).unwrap() as &dyn Checkpoint, &Awq::new(f16(4)).unwrap()] {
        let error = layout.tensors(Q, &packed, None, DType::F16).err().unwrap().to_string();
        assert!(error.contains("block 3 has the zero point 3.5") && error.contains("q_proj"), "{error}");
    }
    assert!(Hqq::new(f16(4)).unwrap().tensors(Q, &packed, None, DType::F16).is_ok());
}
