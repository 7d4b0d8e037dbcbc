//! Configurations that are easily read otherwise, against what transformers computes from them: the cases of
//! `tests/golden/reading`, which `scripts/make_reading_golden.py` made; and files that have to be refused, by name.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::{
    DType,
    arch::Architecture,
    evaluate,
    export::{GgufFile, ModelWriter},
    format::{
        Safetensors, Stored,
        gguf::{self, MetaValue},
        safetensors::{TensorSpec, write_file},
    },
    generate::{Generator, Sampling},
    gpu::{Gpu, GpuOptions},
    model::{LoadOptions, Model, Source},
    quant::Scheme,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use support::gpu;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/reading");
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn golden() -> Value {
    fourbit::format::read_json(format!("{GOLDEN}/golden.json")).unwrap()
}

fn case(golden: &Value, name: &str) -> Value {
    golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone()
}

fn ids(golden: &Value) -> Vec<u32> {
    golden["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The shared weights that a case has, under its names.
fn tensors(case: &Value) -> Tensors {
    let file = Safetensors::open(format!("{GOLDEN}/weights.safetensors")).unwrap();
    let biases: Vec<&str> = case["biases"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    let kept = |name: &&str| !name.ends_with(".bias") || biases.iter().any(|module| name.contains(module));
    let read = |name: &str| {
        let view = file.get(name).unwrap();
        (name.to_owned(), (view.shape.to_vec(), view.to_f32().unwrap()))
    };
    let mut all: Tensors = file.names().filter(kept).map(read).collect();
    match case["head"].as_str().unwrap() {
        "none" => drop(all.remove(HEAD)),
        "alone" => drop(all.remove(EMBEDDING)),
        "same" => drop(all.insert(HEAD.to_owned(), all[EMBEDDING].clone())),
        _ => {}
    }
    if case["bare"] == true {
        all = all.into_iter().map(|(name, t)| (name.strip_prefix("model.").unwrap_or(&name).to_owned(), t)).collect();
    }
    all
}

fn write_folder(at: &Path, config: &Value, tensors: &Tensors) {
    fs::create_dir_all(at).unwrap();
    fs::write(at.join("config.json"), config.to_string()).unwrap();
    write_tensors(&at.join("model.safetensors"), tensors);
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let part = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
        (TensorSpec::new(name, DType::F32, shape.clone()), bytemuck::cast_slice(values).to_vec())
    };
    let parts: Vec<(TensorSpec, Vec<u8>)> = tensors.iter().map(part).collect();
    let parts: Vec<_> = parts.iter().map(|(spec, bytes)| (spec.clone(), &bytes[..])).collect();
    write_file(path, &parts).unwrap();
}

/// llama.cpp's name of a tensor, and its rows in llama.cpp's order: pairs of a rotation side by side.
fn of_gguf(name: &str, shape: &[usize], values: &[f32], heads: [usize; 2]) -> (String, Vec<f32>) {
    let outer =
        [(EMBEDDING, "token_embd.weight"), (HEAD, "output.weight"), ("model.norm.weight", "output_norm.weight")];
    if let Some((_, stored)) = outer.iter().find(|(n, _)| *n == name) {
        return ((*stored).to_owned(), values.to_vec());
    }
    let (layer, rest) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let (module, kind) = rest.rsplit_once('.').unwrap();
    let stored = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        _ => "ffn_down",
    };
    let heads = if stored == "attn_q" { heads[0] } else { heads[1] };
    let (rows, cols) = (shape[0], values.len() / shape[0]);
    let mut out = values.to_vec();
    if stored == "attn_q" || stored == "attn_k" {
        let half = rows / heads / 2;
        for row in 0..rows {
            let (head, within) = (row / (2 * half), row % (2 * half));
            let to = head * 2 * half + 2 * (within % half) + within / half;
            out[to * cols..][..cols].copy_from_slice(&values[row * cols..][..cols]);
        }
    }
    (format!("blk.{layer}.{stored}.{kind}"), out)
}

/// The files of a case's model, in as many parts as it says; blocks go round the parts.
fn write_gguf(at: &Path, case: &Value, tensors: &Tensors) -> Vec<PathBuf> {
    let config = &case["config"];
    let count = |name: &str| config[name].as_u64().unwrap() as usize;
    let heads = [count("num_attention_heads"), count("num_key_value_heads")];
    let mut all: Tensors = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let (stored, values) = of_gguf(name, shape, values, heads);
            (stored, (shape.clone(), values))
        })
        .collect();
    if let Some(divisors) = case["gguf"]["divisors"].as_array() {
        let divisors: Vec<f32> = divisors.iter().map(|d| d.as_f64().unwrap() as f32).collect();
        all.insert("rope_freqs.weight".to_owned(), (vec![divisors.len()], divisors));
    }
    let mut metadata = vec![("general.architecture".to_owned(), MetaValue::Text("llama".to_owned()))];
    for (key, name) in [
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
    ] {
        metadata.push((format!("llama.{key}"), MetaValue::U32(count(name) as u32)));
    }
    metadata.push(("llama.attention.layer_norm_rms_epsilon".to_owned(), MetaValue::F32(1e-5)));
    metadata.push(("llama.rope.freq_base".to_owned(), MetaValue::F32(10000.0)));
    for entry in case["gguf"]["metadata"].as_array().unwrap() {
        let value = match &entry[2] {
            Value::String(text) => MetaValue::Text(text.clone()),
            number => MetaValue::F32(number.as_f64().unwrap() as f32),
        };
        metadata.push((format!("llama.{}", entry[0].as_str().unwrap()), value));
    }
    let parts = case["gguf"]["parts"].as_u64().unwrap() as usize;
    (0..parts).map(|part| write_part(at, part, parts, &metadata, &all)).collect()
}

fn write_part(at: &Path, part: usize, parts: usize, metadata: &[(String, MetaValue)], all: &Tensors) -> PathBuf {
    let mine: Vec<_> = all.iter().enumerate().filter(|(i, _)| i % parts == part).map(|(_, tensor)| tensor).collect();
    let mut metadata = if part == 0 { metadata.to_vec() } else { Vec::new() };
    let name = match parts {
        1 => "model.gguf".to_owned(),
        _ => {
            let half = |n: usize| MetaValue::Raw(2, (n as u16).to_le_bytes().to_vec());
            metadata.push(("split.no".to_owned(), half(part)));
            metadata.push(("split.count".to_owned(), half(parts)));
            metadata
                .push(("split.tensors.count".to_owned(), MetaValue::Raw(5, (all.len() as i32).to_le_bytes().to_vec())));
            format!("model-{:05}-of-{parts:05}.gguf", part + 1)
        }
    };
    let spec = |(name, (shape, _)): &(&String, &(Vec<usize>, Vec<f32>))| gguf::TensorSpec {
        name: (*name).clone(),
        stored: Stored::Plain(DType::F32),
        shape: shape.clone(),
    };
    let specs: Vec<gguf::TensorSpec> = mine.iter().map(spec).collect();
    let path = at.join(name);
    let mut writer = gguf::Writer::create(&path, &metadata, &specs).unwrap();
    for (name, (_, values)) in mine {
        writer.write(name, bytemuck::cast_slice(values)).unwrap();
    }
    writer.finish().unwrap();
    path
}

/// The paths under which a case's model can be opened.
fn write(at: &Path, case: &Value) -> Vec<PathBuf> {
    if case["gguf"].is_object() {
        return write_gguf(at, case, &tensors(case));
    }
    write_folder(at, &case["config"], &tensors(case));
    vec![at.to_owned()]
}

/// Largest difference of the last row of logits over the largest logit.
fn error(gpu: &Gpu, path: &Path, ids: &[u32], want: &Value) -> f64 {
    let model = Model::load(gpu, path, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let got = evaluate::logits(&model, ids).unwrap();
    let want: Vec<f64> = want.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let last = &got[got.len() - want.len()..];
    let most = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    last.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max) / most
}

#[test]
fn models_compute_what_transformers_computes_from_their_files() {
    let Some(gpu) = gpu() else { return };
    let golden = golden();
    let ids = ids(&golden);
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        for path in write(folder.path(), case) {
            let error = error(&gpu, &path, &ids, &case["logits"]);
            // f32 sums in another order, and logits rounded to five places.
            if error > 5e-5 {
                wrong.push(format!("{} from {}: off by {error:.1e}", case["name"], path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_cache_sees_each_block_through_its_own_window() {
    let Some(gpu) = gpu() else { return };
    let golden = golden();
    let ids = ids(&golden);
    for name in ["Qwen2's window in the upper blocks", "Qwen2's window by layer_types", "Mistral's window"] {
        let folder = tempfile::tempdir().unwrap();
        let mut case = case(&golden, name);
        // Long enough for the window's cache to go round.
        case["config"]["max_position_embeddings"] = 512.into();
        let path = write(folder.path(), &case).remove(0);
        let model = Model::load(&gpu, &path, &LoadOptions::default()).unwrap();
        let rows: Vec<usize> = model.kv_cache(400, 256).unwrap().iter().map(|cache| cache.capacity()).collect();
        let windows = model.arch().blocks.iter().map(|block| block.window.map_or(400, |window| window + 256));
        assert!(rows.iter().copied().eq(windows) && rows.iter().any(|rows| *rows < 300), "{name}: {rows:?}");
        let vocab = model.arch().vocab_size;
        let likeliest = |ids: &[u32]| {
            let logits = evaluate::logits(&model, ids).unwrap();
            let last = &logits[logits.len() - vocab..];
            (0..vocab).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap() as u32
        };
        let mut generator = Generator::new(&model, 400).unwrap();
        let sampling = Sampling { max_new_tokens: 12, ..Sampling::default() };
        for length in [ids.len(), 300] {
            let mut all: Vec<u32> = ids.iter().copied().cycle().take(length).collect();
            generator.reset();
            for token in generator.generate(&all, &sampling, &[], |_| Ok(true)).unwrap() {
                assert_eq!(token, likeliest(&all), "{name}, position {}", all.len());
                all.push(token);
            }
            assert_eq!(all.len(), length + 12);
        }
    }
}

/// The message with which a changed folder is refused.
fn refused(name: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> String {
    let golden = golden();
    let case = case(&golden, name);
    let (mut config, mut tensors) = (case["config"].clone(), tensors(&case));
    change(&mut config, &mut tensors);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config, &tensors);
    // Opening alone finds it: no device is needed.
    Source::open(folder.path()).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{name} is read"))
}

#[test]
fn tensors_that_nothing_uses_are_refused_by_name() {
    let one = || (vec![32], vec![0.5; 32]);
    for (extra, meaning) in [
        ("model.layers.0.self_attn.o_proj.bias", "the layer has no bias"),
        ("model.layers.4.input_layernorm.weight", "has 4 blocks, and it is of block 4"),
        ("model.layers.1.self_attn.q_norm.weight", "normalizes queries or keys"),
        ("model.layers.1.block_sparse_moe.gate.weight", "mixture of experts"),
        ("model.layers.1.mlp.down_proj.lora_A.weight", "load_adapter"),
        ("model.layers.0.mlp.up_proj.scales", "quantization_config does not tell"),
        ("score.weight", "another task"),
        ("model.layers.00.input_layernorm.weight", "no such tensor"),
        ("model.layers.0.self_attn.sinks", "no such tensor"),
    ] {
        let message = refused("Mistral without the key", |_, tensors| drop(tensors.insert(extra.to_owned(), one())));
        let meaning = meaning.replace("the layer has no bias", "this layer has no bias");
        assert!(message.contains(extra) && message.contains(&meaning), "{message}");
    }
}

#[test]
fn what_changes_nothing_is_passed_over() {
    let golden = golden();
    let case = case(&golden, "Mistral without the key");
    let mut all = tensors(&case);
    all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (vec![4], vec![1.0; 4]));
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &case["config"], &all);
    let source = Source::open(folder.path()).unwrap();
    assert!(!source.names().iter().any(|name| name.contains("inv_freq")), "a copy of the model has no use for it");
    // A dtype that cannot be read, of a tensor that nobody asks for; a header whose metadata are null.
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    header["__metadata__"] = Value::Null;
    header["model.layers.0.self_attn.rotary_emb.inv_freq"]["dtype"] = "F8_E5M2_NEW".into();
    header["model.unheard_of"] =
        json!({"dtype": "F4", "shape": [3], "data_offsets": [bytes.len() - 8 - len, bytes.len() - 8 - len + 2]});
    let header = header.to_string();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header.as_bytes());
    changed.extend(&bytes[8 + len..]);
    changed.extend([0, 0]);
    fs::write(&path, changed).unwrap();
    let source = Source::open(folder.path()).unwrap();
    let error = source.weights().get("model.unheard_of").unwrap_err().to_string();
    assert!(error.contains("F4") && error.contains("model.unheard_of"), "{error}");
}

#[test]
fn fields_of_another_type_or_meaning_are_refused_by_name() {
    for (field, value, expected) in [
        ("tie_word_embeddings", json!("false"), "true or false, got \"false\""),
        ("rms_norm_eps", json!("1e-5"), "a number, got \"1e-5\""),
        ("num_attention_heads", json!(4.0), "a whole number"),
        ("sliding_window", json!("8"), "a whole number"),
        ("sliding_window", json!(-1), "a whole number"),
        ("hidden_act", json!("gelu"), "one of silu, swish"),
        ("rope_theta", json!(null), "a number, got null"),
        ("rope_scaling", json!({"rope_type": "su", "factor": 2.0}), "su"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": "2"}), "rope_scaling.factor: expected a number"),
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 0.0}),
            "rope_scaling.factor: expected a positive number",
        ),
        ("rope_scaling", json!({"full_attention": {"rope_type": "default"}}), "one scaling for all blocks"),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("is_causal", json!(false), "is_causal"),
        ("layer_types", json!(["full_attention"]), "one type for each of 4 blocks"),
        ("layer_types", json!(["chunked_attention", "full_attention", "full_attention", "full_attention"]), "chunked"),
        ("quantization", json!({"group_size": 64, "bits": 4}), "mlx-lm"),
        ("model_type", json!("mixtral"), "a mixture of experts"),
        ("model_type", json!("gemma3"), "gemma3"),
    ] {
        let message = refused("Mistral without the key", |config, _| config[field] = value.clone());
        assert!(
            message.contains(expected) && (message.contains(field) || field == "model_type"),
            "{field} {value}: {message}"
        );
    }
}

#[test]
fn families_fill_in_what_their_classes_do() {
    let read = |json: Value| Architecture::from_json(json, Path::new("config.json")).unwrap();
    let windows = |arch: &Architecture| arch.blocks.iter().map(|block| block.window).collect::<Vec<_>>();
    let llama = read(json!({"model_type": "llama"}));
    assert_eq!((llama.vocab_size, llama.hidden_size, llama.intermediate_size), (32000, 4096, 11008));
    assert_eq!((llama.attention.heads, llama.attention.kv_heads, llama.max_positions), (32, 32, 2048));
    assert_eq!(windows(&llama), vec![None; 32]);
    let mistral = read(json!({"model_type": "mistral"}));
    assert_eq!((mistral.attention.kv_heads, mistral.intermediate_size, mistral.max_positions), (8, 14336, 131_072));
    assert_eq!(windows(&mistral), vec![Some(4096); 32]);
    let heads = read(json!({"model_type": "mistral", "num_key_value_heads": null, "sliding_window": null}));
    assert_eq!((heads.attention.kv_heads, heads.blocks[0].window), (32, None));
    let qwen = read(json!({"model_type": "qwen2", "use_sliding_window": true}));
    assert_eq!((qwen.vocab_size, qwen.attention.kv_heads, qwen.max_positions), (151_936, 32, 32768));
    assert_eq!((qwen.blocks[27].window, qwen.blocks[28].window), (None, Some(4096)));
}

#[test]
fn one_file_wins_over_an_index_and_an_index_may_promise_too_much() {
    let golden = golden();
    let case = case(&golden, "Mistral without the key");
    let all = tensors(&case);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write_folder(at, &case["config"], &all);
    fs::write(at.join("model.safetensors.index.json"), r#"{"weight_map": {"stale": "gone.safetensors"}}"#).unwrap();
    Source::open(at).unwrap();
    fs::rename(at.join("model.safetensors"), at.join("model-00001-of-00001.safetensors")).unwrap();
    let error = Source::open(at).err().unwrap().to_string();
    assert!(error.contains("gone.safetensors"), "{error}");
    let mut map: serde_json::Map<String, Value> =
        all.keys().map(|name| (name.clone(), "model-00001-of-00001.safetensors".into())).collect();
    map.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), "model-00001-of-00001.safetensors".into());
    fs::write(at.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    let source = Source::open(at).unwrap();
    let error = source.weights().get("model.layers.0.self_attn.rotary_emb.inv_freq").unwrap_err().to_string();
    assert!(error.contains("index.json says that it is there"), "{error}");
}

#[test]
fn split_files_that_do_not_belong_together_are_refused() {
    let golden = golden();
    let case = case(&golden, "GGUF in three files, with biases");
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), &case);
    let open = |path: &Path| Source::open(path).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(open(&paths[2]), "");
    let renamed = folder.path().join("model.gguf");
    fs::rename(&paths[1], &renamed).unwrap();
    assert!(open(&paths[0]).contains("part 2 of 3 of the model is missing"), "{}", open(&paths[0]));
    assert!(open(&renamed).contains("one of 3 parts"), "{}", open(&renamed));
    fs::copy(&paths[0], &paths[1]).unwrap();
    assert!(open(&paths[2]).contains("expected split.no 1"), "{}", open(&paths[2]));
}

#[test]
fn own_files_come_back_with_their_divisors() {
    let golden = golden();
    let case = case(&golden, "llama3 from a length beside it");
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &case).remove(0);
    let file = folder.path().join("own.gguf");
    GgufFile::open(&path, Scheme::F32, &file)
        .unwrap()
        .round(&|| panic!("no device is needed"), &mut |_| Ok(()))
        .unwrap();
    let noop = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
    Model::load(&noop, &file, &LoadOptions::default()).unwrap();
    let Some(gpu) = gpu() else { return };
    // The base is stored in f32, and so are the divisors.
    let off = error(&gpu, &file, &ids(&golden), &case["logits"]);
    assert!(off <= 1e-4, "{off:e}");
}

#[test]
fn gguf_metadata_of_another_meaning_are_refused_by_key() {
    let golden = golden();
    let case = case(&golden, "GGUF, rope.scale_linear");
    for (key, value, expected) in [
        ("rope.scaling.type", json!("longrope"), "longrope"),
        ("rope.scaling.factor", json!(-2.0), "llama.rope.scaling.factor: expected a positive number"),
        ("rope.scaling.attn_factor", json!(2.0), "llama.rope.scaling.attn_factor"),
        ("rope.dimension_count", json!(4.0), "llama.rope.dimension_count"),
        ("attention.key_length", json!("8"), "llama.attention.key_length"),
        ("logit_scale", json!(2.0), "llama.logit_scale is 2.0: this field is not known"),
        ("attention.sliding_window", json!(8.0), "llama.attention.sliding_window"),
    ] {
        let mut case = case.clone();
        case["gguf"]["metadata"] = json!([[key, "", value]]);
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &case).remove(0);
        let error = Source::open(&path).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{key} is read"));
        assert!(error.contains(expected), "{key}: {error}");
    }
}

/// Longer texts have other rotations in these files: one list alone would be right for some texts only.
#[test]
fn one_of_two_lists_of_factors_is_refused() {
    let lists = ["rope_factors_short.weight", "rope_factors_long.weight"];
    for (there, missing) in [(lists[0], lists[1]), (lists[1], lists[0])] {
        let folder = tempfile::tempdir().unwrap();
        let metadata = [("general.architecture".to_owned(), MetaValue::Text("phi3".to_owned()))];
        let tensors = Tensors::from([
            ("token_embd.weight".to_owned(), (vec![8, 4], vec![1.0; 32])),
            (there.to_owned(), (vec![2], vec![1.0; 2])),
        ]);
        let path = write_part(folder.path(), 0, 1, &metadata, &tensors);
        let error =
            Source::open(&path).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{missing} is not missed"));
        assert!(error.contains(missing), "{error}");
    }
}

const CHECKPOINTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/checkpoints");

/// A copy of a quantized folder; `change` may take from its configuration and add tensors.
fn copy_of(
    folder: &str,
    change: impl FnOnce(&mut Value, &Safetensors, &mut Vec<(TensorSpec, Vec<u8>)>),
) -> tempfile::TempDir {
    let file = Safetensors::open(format!("{CHECKPOINTS}/{folder}/model.safetensors")).unwrap();
    let mut config: Value = fourbit::format::read_json(format!("{CHECKPOINTS}/{folder}/config.json")).unwrap();
    let mut parts: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for name in file.names() {
        let view = file.get(name).unwrap();
        let Stored::Plain(dtype) = view.stored else { unreachable!() };
        parts.push((TensorSpec::new(name, dtype, view.shape), view.bytes.to_vec()));
    }
    change(&mut config, &file, &mut parts);
    let copy = tempfile::tempdir().unwrap();
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let parts: Vec<_> = parts.iter().map(|(spec, bytes)| (spec.clone(), &bytes[..])).collect();
    write_file(copy.path().join("model.safetensors"), &parts).unwrap();
    copy
}

/// Every weight of two folders is the same.
fn assert_same(copy: &Path, folder: &str) {
    let (got, want) = (Source::open(copy).unwrap(), Source::open(format!("{CHECKPOINTS}/{folder}")).unwrap());
    assert_eq!(got.names(), want.names());
    for name in want.names() {
        let shape = want.shape(&name).unwrap();
        assert_eq!(got.packed(&name, shape).unwrap(), want.packed(&name, shape).unwrap(), "{name}");
        assert_eq!(got.basis(&name).unwrap(), want.basis(&name).unwrap(), "{name}");
    }
}

#[test]
fn folders_of_before_quantization_config_are_read() {
    for (folder, file, config) in [
        (
            "gptq-4-act",
            "quantize_config.json",
            json!({"bits": 4, "group_size": 64, "damp_percent": 0.01, "desc_act": true, "static_groups": false,
            "sym": false, "true_sequential": true, "model_name_or_path": null, "model_file_base_name": "model"}),
        ),
        ("awq", "quant_config.json", json!({"zero_point": true, "q_group_size": 32, "w_bit": 4, "version": "GEMM"})),
    ] {
        let copy = copy_of(folder, |config, _, _| drop(config.as_object_mut().unwrap().remove("quantization_config")));
        assert!(Source::open(copy.path()).is_err(), "codes of a layout that nothing tells");
        fs::write(copy.path().join(file), config.to_string()).unwrap();
        assert_same(copy.path(), folder);
        let wrong = config.to_string().replace(":true", ":\"true\"");
        fs::write(copy.path().join(file), wrong).unwrap();
        let error = Source::open(copy.path()).err().unwrap().to_string();
        assert!(error.contains(file) && error.contains("true or false, got \"true\""), "{error}");
    }
}

#[test]
fn an_index_of_groups_that_was_never_filled_in_is_none() {
    let add = |value: i32| {
        copy_of("ct-int4", |_, file, parts| {
            for name in file.names().filter_map(|name| name.strip_suffix(".weight_packed")) {
                let cols = file.get(&format!("{name}.weight_shape")).unwrap().to_i64().unwrap()[1] as usize;
                let index = vec![value; cols];
                let spec = TensorSpec::new(format!("{name}.weight_g_idx"), DType::I32, [cols]);
                parts.push((spec, bytemuck::cast_slice(&index).to_vec()));
            }
        })
    };
    assert_same(add(-1).path(), "ct-int4");
    let filled = add(7);
    let source = Source::open(filled.path()).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let error = source.packed(name, source.shape(name).unwrap_or([64, 64])).unwrap_err().to_string();
    assert!(error.contains("in group 7"), "{error}");
}

#[test]
fn parts_of_no_weight_and_weights_told_twice_are_refused() {
    let with = |folder: &str, name: &str| {
        let copy = copy_of(folder, |_, _, parts| parts.push((TensorSpec::new(name, DType::F32, [2]), vec![0; 8])));
        Source::open(copy.path()).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{name} is read"))
    };
    let q = "model.layers.0.self_attn.q_proj";
    for (folder, part) in
        [("gptq-4-act", "perm"), ("awq", "g_idx"), ("aqlm", "shift"), ("hqq", "outliers"), ("llm-int8", "CB")]
    {
        let message = with(folder, &format!("{q}.{part}"));
        assert!(message.contains(&format!("{q}.{part}")) && message.contains("is not used"), "{message}");
    }
    let message = with("gptq-4-act", &format!("{q}.weight"));
    assert!(message.contains("in another form too"), "{message}");
}

#[test]
fn a_folder_with_a_sentencepiece_model_alone_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    let why = fourbit::tokenizer::Tokenizer::why_none(folder.path());
    assert!(why.contains("tokenizer.model alone") && why.contains("save_pretrained"), "{why}");
    assert!(fourbit::tokenizer::Tokenizer::why_none("nowhere").contains("no tokenizer.json"));
}
