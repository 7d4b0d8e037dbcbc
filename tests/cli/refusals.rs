//! Input that is broken: one clear error that names the thing and the remedy, and nothing half-written.

use super::{Place, command, fourbit, support};
use fourbit::{
    DType,
    format::{
        Gguf, Safetensors, Weights,
        safetensors::{TensorSpec, write_file},
    },
};
use serde_json::Value;
use std::{fs, path::Path};

/// Runs `finetune` and `quantize` on the place's model, each of which must refuse with all of `words` and write nothing.
#[track_caller]
fn model_is_refused(place: &Place, words: &[&str]) {
    let before = place.names();
    let (model, out) = (place.text("model"), place.text("out"));
    for done in [place.finetune(&["--max-steps", "1"]), fourbit(&["quantize", &model, "--output", &out])] {
        let error = done.error();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
    assert_eq!(place.names(), before, "nothing is written");
}

/// Writes the place's model again with some tensors changed: `change` gets name and shape, and returns the new shape or
/// nothing to leave the tensor out.
fn rewrite(place: &Place, change: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) {
    let path = place.path("model/model.safetensors");
    let copy = place.path("old.safetensors");
    fs::rename(&path, &copy).unwrap();
    let old = Weights::open(&copy).unwrap();
    let mut tensors = Vec::new();
    for name in old.names() {
        let view = old.get(name).unwrap();
        if let Some(shape) = change(name, view.shape) {
            let bytes = 4 * shape.iter().product::<usize>();
            tensors.push((TensorSpec::new(name, DType::F32, shape), &view.bytes[..bytes]));
        }
    }
    write_file(path, &tensors).unwrap();
    drop(old);
    fs::remove_file(copy).unwrap();
}

#[test]
fn safetensors_that_are_cut_off_or_lie() {
    let place = Place::new();
    let path = place.path("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    model_is_refused(&place, &["model.safetensors"]);
    fs::write(&path, &whole[..5]).unwrap();
    model_is_refused(&place, &["model.safetensors"]);
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &lying).unwrap();
    model_is_refused(&place, &["model.safetensors"]);
    fs::write(&path, "").unwrap();
    model_is_refused(&place, &["model.safetensors", "empty"]);
    fs::remove_file(&path).unwrap();
    model_is_refused(&place, &["model.safetensors"]);
}

#[test]
fn gguf_files_that_are_cut_off_or_lie() {
    let place = Place::new();
    fs::remove_dir_all(place.path("model")).unwrap();
    let head =
        |tensors: u64| [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &0u64.to_le_bytes()].concat();
    let info = |extent: u64| {
        let name = "token_embd.weight";
        let words = [name.len() as u64, extent, 0];
        [
            &words[0].to_le_bytes(),
            name.as_bytes(),
            &1u32.to_le_bytes(),
            &words[1].to_le_bytes(),
            &0u32.to_le_bytes(),
            &words[2].to_le_bytes(),
        ]
        .concat()
    };
    for bytes in [
        head(1)[..10].to_vec(),
        head(u64::MAX),
        head(1),
        [head(1), info(1 << 60)].concat(),
        [head(1), info(64)].concat(),
    ] {
        fs::write(place.path("model"), bytes).unwrap();
        model_is_refused(&place, &[&place.text("model")]);
    }
    fs::write(place.path("model"), "no model at all").unwrap();
    model_is_refused(&place, &[&place.text("model")]);
}

#[test]
fn tensors_that_are_missing_or_misshapen() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    rewrite(&place, |name, shape| (name != "model.norm.weight").then(|| shape.to_vec()));
    model_is_refused(&place, &["model.norm.weight"]);
    let place = Place::new();
    let name = "model.layers.1.self_attn.k_proj.weight";
    rewrite(&place, |n, shape| Some(if n == name { vec![16, 64] } else { shape.to_vec() }));
    model_is_refused(&place, &[name, "[32, 64]", "[16, 64]"]);
}

#[test]
fn architectures_that_are_unknown() {
    let place = Place::new();
    let path = place.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["model_type"] = "gpt2".into();
    fs::write(&path, config.to_string()).unwrap();
    model_is_refused(&place, &["gpt2", "llama"]);
    fs::write(&path, "{").unwrap();
    model_is_refused(&place, &["config.json"]);
    fs::remove_file(&path).unwrap();
    model_is_refused(&place, &["config.json"]);
    fs::remove_dir_all(place.path("model")).unwrap();
    model_is_refused(&place, &["model"]);
}

#[test]
fn data_that_cannot_be_learned() {
    let place = Place::new();
    let before = place.names();
    let refused = |rows: &str, words: &[&str]| {
        fs::write(place.path("rows.jsonl"), rows).unwrap();
        let done = place.finetune(&["--max-steps", "1"]);
        for word in words {
            assert!(done.error().contains(word), "{word:?} is not in: {}", done.error());
        }
        assert_eq!(place.names(), before);
    };
    refused("", &["rows.jsonl", "no rows"]);
    refused(r#"{"input_ids":[1,2,3],"labels":[1,2,256]}"#, &["row 1", "256", "vocabulary"]);
    refused(r#"{"input_ids":[1,2,900],"labels":[1,2,3]}"#, &["row 1", "900", "vocabulary"]);
    refused(r#"{"input_ids":[1,2,3],"labels":[-100,-100,-100]}"#, &["learn"]);
    refused(r#"{"text":"a"}"#, &["row 1", "tokenizer"]);
    refused("not json", &["row 1", "JSON"]);
    fs::remove_file(place.path("rows.jsonl")).unwrap();
    assert!(place.finetune(&[]).error().contains("rows.jsonl"));
    assert!(fourbit(&["finetune", "--model", &place.text("model")]).error().contains("--data"));
}

#[test]
fn options_that_cannot_work() {
    let place = Place::new();
    let before = place.names();
    for (words, expected) in [
        (["--max-seq-length", "4096"], "128"),
        (["--max-seq-length", "1"], "at least 2"),
        (["--max-steps", "0"], "max_steps"),
        (["--logging-steps", "0"], "--logging-steps"),
        (["--batch-size", "0"], "batch_size"),
        (["--gradient-accumulation-steps", "65537"], "at most 65536"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--lr-scheduler-type", "polynomial"], "cosine"),
        (["--block-size", "48"], "block_size"),
        (["--num-train-epochs", "0"], "--num-train-epochs"),
    ] {
        let done = match words[1] {
            "-1" => place.finetune(&["--learning-rate=-1"]),
            _ => place.finetune(&words),
        };
        assert!(done.error().contains(expected), "{words:?}: {}", done.error());
    }
    let both = place.finetune(&["--quantization", "int8", "--double-quant"]);
    assert!(both.error().contains("--double-quant"));
    fs::write(place.path("out"), "a file").unwrap();
    assert!(place.finetune(&[]).error().contains("--output"));
    fs::remove_file(place.path("out")).unwrap();
    let model = place.text("model");
    assert!(fourbit(&["quantize", &model, "--output", &model]).error().contains("--output"));
    assert_eq!(place.names(), before);
}

#[test]
fn adapters_that_do_not_fit() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let missing = place.text("adapter");
    assert!(place.finetune(&["--adapter", &missing]).error().contains("adapter_config.json"));
    for words in [["--lora-r", "0"], ["--target-modules", "lm_head"], ["--lora-dropout", "1"]] {
        let name = words[0][2..].replace('-', "_");
        let done = place.finetune(&words);
        assert!(done.error().contains(&name), "{}", done.error());
    }
    // An adapter of another model.
    fourbit(&["finetune", "--max-steps", "1", "--output", &missing, "--json"]).json();
    let error = place.finetune(&["--adapter", &missing]);
    assert!(error.error().contains("layers"), "{}", error.error());
    assert!(!place.path("out").exists());
}

#[test]
fn prompts_and_texts_that_do_not_fit() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let long = "word ".repeat(2000);
    let done = fourbit(&["generate", "--prompt", &long]);
    assert!(done.error().contains("prompt"), "{}", done.error());
    assert!(fourbit(&["generate", "--prompt", "a", "--temperature=-1"]).error().contains("temperature"));
    assert!(fourbit(&["generate", "--model", &place.text("model"), "--prompt", "a"]).error().contains("tokenizer"));
    assert!(fourbit(&["generate"]).error().contains("--prompt"));
    fs::write(place.path("ids.json"), "[1,2,999]").unwrap();
    let ids = place.text("ids.json");
    assert!(fourbit(&["evaluate", "--model", &place.text("model"), "--input-ids", &ids]).error().contains("999"));
    fs::write(place.path("empty.txt"), "").unwrap();
    assert!(fourbit(&["evaluate", "--data", &place.text("empty.txt")]).error().contains("two tokens"));
    fs::write(place.path("short.json"), "[[1],[2]]").unwrap();
    let done = fourbit(&["evaluate", "--input-ids", &place.text("short.json")]);
    assert!(done.error().starts_with("--input-ids: no text"), "{}", done.error());
    let (model, text) = (place.text("model"), place.text("empty.txt"));
    let done = fourbit(&["compare", &model, "--data", &text, "--methods", "rtn"]);
    assert!(done.error().starts_with("--data: ") && done.error().contains("tokenizer"), "{}", done.error());
}

#[test]
fn devices_that_are_absent_or_too_small() {
    let place = Place::new();
    let before = place.names();
    if cfg!(target_os = "linux") {
        let words = place.finetune_words(&[]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for words in [words.as_slice(), &["devices"], &["plan"], &["bench"]] {
            let output = command(words).env("VK_ICD_FILENAMES", "/nonexistent").env_remove("VK_DRIVER_FILES").output();
            let done = super::Done::of(output.unwrap());
            assert!(
                done.error().starts_with("no GPU: ") && done.error().contains("mesa-vulkan-drivers"),
                "{}",
                done.error()
            );
        }
    }
    if support::gpu().is_none() {
        return;
    }
    let done = place.finetune(&["--device", "no such device"]);
    assert!(done.error().contains("no such device") && done.error().contains("0: "), "{}", done.error());
    for limit in ["1000", "200000", "400000"] {
        let words = place.finetune_words(&["--max-steps", "1"]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let done = super::Done::of(command(&words).env("FOURBIT_MEMORY_LIMIT", limit).output().unwrap());
        assert!(
            done.error().contains("bytes of device memory") && done.error().contains("--max-seq-length"),
            "{}",
            done.error()
        );
    }
    let output = command(&["devices"]).env("FOURBIT_SUBGROUPS", "maybe").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "devices are listed whatever the options say");
    let output = command(&["plan"]).env("FOURBIT_SUBGROUPS", "maybe").output().unwrap();
    assert!(super::Done::of(output).error().contains("FOURBIT_SUBGROUPS"));
    assert_eq!(place.names(), before);
}

#[test]
fn attention_dropout_that_transformers_would_apply_is_told() {
    let place = Place::new();
    let path = place.path("model/config.json");
    let mut config: Value = fourbit::format::read_json(&path).unwrap();
    let said = |done: super::Done| {
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stderr.matches("attention_dropout is 0.1").count()
    };
    assert_eq!(said(place.finetune(&["--max-steps", "1"])), 0);
    config["attention_dropout"] = 0.1.into();
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(said(place.finetune(&["--max-steps", "1"])), 1);
}

/// Makes the first number of the first float tensor whose name is such one a number that is none; the tensor's name.
fn spoil(file: &Path, such: impl Fn(&str) -> bool) -> String {
    let (name, offset, dtype) = {
        let weights = Safetensors::open(file).unwrap();
        let is_float = |name: &&str| ["F32", "F16", "BF16"].contains(&&*weights.get(name).unwrap().stored.to_string());
        let name = weights.names().filter(is_float).find(|name| such(name)).unwrap();
        let view = weights.get(name).unwrap();
        let bytes = fs::read(file).unwrap();
        let start = bytes.windows(view.bytes.len()).position(|bytes| bytes == view.bytes).unwrap();
        (name.to_owned(), start, view.stored.to_string())
    };
    let bad: &[u8] = match dtype.as_str() {
        "F32" => &f32::NAN.to_le_bytes(),
        "F16" => &0x7c00u16.to_le_bytes(),
        _ => &0xff80u16.to_le_bytes(),
    };
    let mut bytes = fs::read(file).unwrap();
    bytes[offset..][..bad.len()].copy_from_slice(bad);
    fs::write(file, bytes).unwrap();
    name
}

/// A number that is not finite, wherever it stands, gives no loss and no model.
#[test]
fn weights_that_are_not_finite_are_refused() {
    if support::gpu().is_none() {
        return;
    }
    for name in ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"] {
        let place = Place::new();
        spoil(&place.path("model/model.safetensors"), |of| of == name);
        fs::write(place.path("ids.json"), "[1, 2, 3, 4, 5]").unwrap();
        let [model, ids, out, gguf] = ["model", "ids.json", "out", "out.gguf"].map(|name| place.text(name));
        for words in [
            vec!["evaluate", "--model", &model, "--input-ids", &ids],
            vec!["quantize", &model, "--output", &out],
            vec!["quantize", &model, "--output", &gguf],
        ] {
            let done = fourbit(&words);
            let message = format!("tensor {name} has a number that is not finite, in row ");
            assert!(done.error().contains(&message), "{words:?}: {}", done.stderr);
        }
        assert!(!place.path("out").exists() && !place.path("out.gguf").exists());
    }
}

/// Scales of weights that are stored quantized too.
#[test]
fn scales_that_are_not_finite_are_refused() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ids.json"), "[1, 2, 3, 4, 5]").unwrap();
    let (model, ids, rows) = (place.text("model"), place.text("ids.json"), place.text("rows.jsonl"));
    let calibration = ["--calibration", rows.as_str(), "--calibration-samples", "4", "--calibration-length", "12"];
    for (words, part) in [
        (["rtn", "--scheme", "nf4"].as_slice(), "absmax"),
        (&["rtn", "--scheme", "int4-g16"], "scale"),
        (&["hqq", "--group-size", "16"], ""),
        (&["awq", "--group-size", "16"], "scales"),
        (&["llm-int8"], "SCB"),
        (&["quip"], "Wscale"),
    ] {
        let out = place.text(words[0]);
        let quantize = [&["quantize", &model, "--output", &out, "--method"], words, &calibration].concat();
        let made = fourbit(&quantize);
        assert_eq!(made.code, 0, "{}", made.stderr);
        fs::remove_file(place.path(words[0]).join(fourbit::format::manifest::MANIFEST)).unwrap();
        let such = |name: &str| name.contains("layers.1.mlp.up_proj") && name.contains(part);
        let name = spoil(&place.path(words[0]).join("model.safetensors"), such);
        let done = fourbit(&["evaluate", "--model", &out, "--input-ids", &ids]);
        let message = format!("tensor {name} has a number that is not finite, in row ");
        assert!(done.error().contains(&message), "{words:?}: {}", done.stderr);
        fs::remove_dir_all(place.path(words[0])).unwrap();
    }
    let out = place.text("out.gguf");
    assert_eq!(fourbit(&["quantize", &model, "--output", &out, "--scheme", "q8_0"]).code, 0);
    let start = {
        let file = Gguf::open(&out).unwrap();
        let block = file.get("blk.1.attn_q.weight").unwrap().bytes.to_vec();
        fs::read(&out).unwrap().windows(block.len()).position(|bytes| bytes == block).unwrap()
    };
    let mut bytes = fs::read(&out).unwrap();
    bytes[start + 34..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    fs::write(&out, bytes).unwrap();
    let done = fourbit(&["evaluate", "--model", &out, "--input-ids", &ids]);
    let message = "tensor blk.1.attn_q.weight has a number that is not finite, in row 0, column 32";
    assert!(done.error().contains(message), "{}", done.stderr);
}
