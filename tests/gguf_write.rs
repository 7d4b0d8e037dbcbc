//! GGUF files that fourbit writes, as it reads them again: all kinds of metadata, and models in every scheme.
#![cfg(feature = "tokenizer")]

mod support;

use fourbit::export::{GgufFile, ModelWriter, Summary};
use fourbit::format::gguf::{ALIGNMENT, MetaValue, TensorSpec, Writer};
use fourbit::format::{Gguf, Stored};
use fourbit::method::{Awq, AwqOptions, PipelineOptions, Rtn, quantize_model};
use fourbit::model::{LoadOptions, Model, Quantization, Source};
use fourbit::quant::{
    Packed, Scheme,
    ggml::{self, BlockType},
};
use fourbit::tokenizer::Tokenizer;
use fourbit::{DType, Error};
use std::path::Path;
use support::{embedded, folder::Size, gpu};

fn spec(name: &str, stored: Stored, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), stored, shape: shape.into() }
}

const F32: Stored = Stored::Plain(DType::F32);

#[test]
fn metadata_and_tensors_return() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let metadata = [
        ("general.architecture", MetaValue::Text("llama".into())),
        ("a.count", MetaValue::U32(7)),
        ("a.share", MetaValue::F32(0.5)),
        ("a.flag", MetaValue::Bool(true)),
        ("a.words", MetaValue::Texts(vec!["näh".into(), String::new()])),
        ("a.types", MetaValue::Integers(vec![-1, 3])),
        ("a.scores", MetaValue::Floats(vec![0.25, -2.0])),
        ("a.raw", MetaValue::Raw(10, u64::MAX.to_le_bytes().to_vec())),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let blocks = BlockType::Q4K.encode(&vec![0.5; 512]).unwrap();
    let specs = [
        spec("odd", Stored::Plain(DType::F16), &[3]),
        spec("blocks", Stored::Ggml(Scheme::Q4_K), &[2, 256]),
        spec("last", F32, &[1, 2]),
        spec("none", F32, &[0]),
    ];
    let mut writer = Writer::create(&path, &metadata, &specs).unwrap();
    writer.write("last", bytemuck::cast_slice(&[1f32, 2.0])).unwrap();
    writer.write("blocks", &blocks[..100]).unwrap();
    writer.write("odd", &[0, 0x3c, 0, 0xc0, 0, 0]).unwrap();
    writer.write("blocks", &blocks[100..]).unwrap();
    assert!(!path.exists());
    writer.finish().unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.uint("a.count").unwrap(), Some(7));
    assert_eq!(file.float("a.share").unwrap(), Some(0.5));
    assert_eq!(file.flag("a.flag").unwrap(), Some(true));
    assert_eq!(file.texts("a.words").unwrap().unwrap(), ["näh", ""]);
    assert_eq!(file.numbers("a.types").unwrap().unwrap(), [-1.0, 3.0]);
    assert_eq!(file.numbers("a.scores").unwrap().unwrap(), [0.25, -2.0]);
    assert_eq!(file.uint("a.raw").unwrap(), Some(u64::MAX));
    assert_eq!(file.raw("a.count"), Some(MetaValue::Raw(4, 7u32.to_le_bytes().to_vec())));
    assert_eq!(file.get("odd").unwrap().to_f32().unwrap(), [1.0, -2.0, 0.0]);
    assert_eq!(file.get("blocks").unwrap().bytes, blocks);
    assert_eq!((file.get("last").unwrap().shape, file.get("last").unwrap().bytes[7]), (&[1, 2][..], 0x40));
    assert!(file.get("none").unwrap().is_empty());
    assert_eq!(std::fs::metadata(&path).unwrap().len() % ALIGNMENT as u64, 0);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let create = |metadata: &[(String, MetaValue)], specs: &[TensorSpec]| Writer::create(&path, metadata, specs);
    let one = [spec("x", F32, &[2])];
    let key = |key: &str| (key.to_owned(), MetaValue::U32(1));
    for (metadata, specs, expected) in [
        (vec![key("k"), key("k")], vec![], "metadata key k"),
        (vec![], vec![one[0].clone(), one[0].clone()], "tensor x: it is given twice"),
        (vec![], vec![spec("x", Stored::Ggml(Scheme::Q4_K), &[2, 128])], "tensor x: q4_k needs rows"),
        (vec![], vec![spec("x", Stored::Ggml(Scheme::Mxfp4), &[2, 32])], "tensor x: GGUF has no type"),
        (vec![], vec![spec("x", Stored::Plain(DType::U8), &[2])], "tensor x: GGUF has no type"),
        (vec![], vec![spec("x", F32, &[usize::MAX, 2])], "tensor x"),
        (vec![], vec![spec("x", F32, &[usize::MAX / 8])], "tensor x"),
    ] {
        let error = create(&metadata, &specs).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let mut writer = create(&[], &one).unwrap();
    assert!(matches!(writer.write("y", &[]), Err(Error::Format { .. })));
    writer.write("x", &[0; 4]).unwrap();
    assert!(matches!(writer.write("x", &[0; 5]), Err(Error::Shape { .. })));
    assert!(matches!(writer.finish(), Err(Error::MissingTensor { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Two blocks whose down projections have rows of 288.
fn model(folder: &Path) {
    Size { hidden: 256, intermediate: 288, layers: 2, heads: 4, kv_heads: 2, vocab: 48 }.write(folder);
}

fn values(source: &Source, name: &str) -> Vec<f32> {
    let mut all = vec![];
    let shape = source.shape(name).unwrap();
    source
        .for_each_piece(name, shape, 4096, |_, values| {
            all.extend_from_slice(values);
            Ok(())
        })
        .unwrap();
    all
}

/// Files of GGUF are rounded on the host.
fn no_device() -> fourbit::Result<fourbit::Gpu> {
    panic!("no device is needed")
}

fn write(input: &Path, scheme: Scheme, output: &Path) -> Summary {
    let file = GgufFile::open(input, scheme, output).unwrap();
    let mut count = 0;
    let mut on_tensor = |_: &str| {
        count += 1;
        Ok(())
    };
    let summary = file.round(&no_device, &mut on_tensor).unwrap().summary;
    assert_eq!(count, file.tensors());
    assert_eq!(summary.quantized + summary.fallbacks + summary.others, file.tensors());
    summary
}

#[test]
fn floats_are_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let path = folder.path().join("f32.gguf");
    write(folder.path(), Scheme::F32, &path);
    let (before, after) = (Source::open(folder.path()).unwrap(), Source::open(&path).unwrap());
    assert_eq!(before.names(), after.names());
    for name in before.names() {
        assert_eq!(values(&before, &name), values(&after, &name), "{name}");
    }
    let mut arch = before.arch().clone();
    arch.json = after.arch().json.clone();
    assert_eq!(arch, *after.arch());
}

#[test]
fn every_scheme_is_written_with_its_fallbacks() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let before = Source::open(folder.path()).unwrap();
    for ty in BlockType::ALL {
        let path = folder.path().join(format!("{}.gguf", ty.name()));
        let summary = write(folder.path(), Scheme::Ggml(ty), &path);
        assert_eq!(summary.fallbacks, if ty.block_size() == 256 { 2 } else { 0 });
        let after = Source::open(&path).unwrap();
        for name in before.names() {
            let shape = before.shape(&name).unwrap();
            let expected = match name.as_str() {
                _ if name.ends_with("norm.weight") => Scheme::F32,
                "model.embed_tokens.weight" if ty == BlockType::Q8_0 => Scheme::Q8_0,
                "model.embed_tokens.weight" => Scheme::Q6_K,
                _ if name.contains("down_proj") => Scheme::Ggml(ty.fallback()),
                _ => Scheme::Ggml(ty),
            };
            assert_eq!(after.scheme(&name).unwrap(), expected, "{name}");
            let packed = Packed::quantize(expected, shape, &values(&before, &name)).unwrap();
            assert_eq!(after.packed(&name, shape).unwrap(), packed, "{ty:?} {name}");
        }
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.uint("general.quantization_version").unwrap(), Some(2));
        assert_eq!(gguf.uint("llama.rope.dimension_count").unwrap(), Some(64));
    }
}

#[test]
fn a_gguf_file_is_carried_over() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let (first, second, third) = (folder.path().join("1"), folder.path().join("2"), folder.path().join("3"));
    let more = ("tokenizer.ggml.model".to_owned(), MetaValue::Text("none".into()));
    let file = GgufFile::open(folder.path(), Scheme::Q4_K, &first).unwrap().with_metadata([more]);
    file.round(&no_device, &mut |_| Ok(())).unwrap();
    // In the same type all bytes are the same.
    write(&first, Scheme::Q4_K, &second);
    let (a, b) = (Gguf::open(&first).unwrap(), Gguf::open(&second).unwrap());
    assert!(a.keys().eq(b.keys()) && a.keys().all(|key| a.raw(key) == b.raw(key)));
    assert!(a.names().eq(b.names()));
    for name in a.names() {
        assert_eq!(a.get(name).unwrap().bytes, b.get(name).unwrap().bytes, "{name}");
    }
    // In another, weights are rounded again, in the right order, and the embedding stays.
    write(&first, Scheme::Q8_0, &third);
    let (a, c) = (Source::open(&first).unwrap(), Source::open(&third).unwrap());
    assert_eq!(c.weights().gguf().unwrap().text("tokenizer.ggml.model").unwrap(), Some("none"));
    assert_eq!(c.scheme("model.embed_tokens.weight").unwrap(), Scheme::Q6_K);
    for name in ["model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"] {
        let shape = a.shape(name).unwrap();
        let packed = Packed::quantize(Scheme::Q8_0, shape, &values(&a, name)).unwrap();
        assert_eq!(c.packed(name, shape).unwrap(), packed, "{name}");
    }
}

#[test]
fn chosen_numbers_are_written() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let path = folder.path().join("a.gguf");
    let file = GgufFile::open(folder.path(), Scheme::Q4_0, &path).unwrap();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let mut asked = vec![];
    let chosen = Packed::quantize(Scheme::Q4_0, [256, 256], &vec![0.25; 65536]).unwrap();
    let choose = |asked: &str, _| Ok((asked == name).then(|| chosen.clone()));
    let ask = |n: &str, shape| {
        asked.push(n.to_owned());
        choose(n, shape)
    };
    file.write_with(ask, |_| Ok(None), &mut |_| Ok(())).unwrap();
    assert_eq!(Source::open(&path).unwrap().packed(name, [256, 256]).unwrap(), chosen);
    assert_eq!(asked.len(), 1 + 2 * 7);
    let other = Packed::quantize(Scheme::Q4_1, [256, 256], &vec![0.25; 65536]).unwrap();
    let result = file.write_with(|n, _| Ok((n == name).then(|| other.clone())), |_| Ok(None), &mut |_| Ok(()));
    assert!(matches!(result, Err(Error::Shape { .. })));
    // An error of the caller leaves the old file as it is.
    let stop = file.round(&no_device, &mut |_| Err(Error::Interrupted("nothing was written".to_owned())));
    assert!(stop.is_err() && Source::open(&path).is_ok());
    assert!(GgufFile::open(folder.path(), Scheme::Mxfp4, &path).is_err());
    assert!(GgufFile::open(&path, Scheme::Q4_0, &path).is_err());
}

#[test]
fn what_a_method_chose_is_in_the_file_number_for_number() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let source = embedded::source();
    let sample: Vec<u32> = (0..48).map(|i| 3 + i * 7 % 500).collect();
    for block in [Scheme::Q4_0, Scheme::Q5_0, Scheme::Q8_0] {
        let scheme = ggml::integers(block).unwrap();
        // AWQ changes norms and the rows of some weights too.
        let method = Awq::new(AwqOptions { clip: false, ratios: 4, ..AwqOptions::new(scheme) }).unwrap();
        let samples = std::slice::from_ref(&sample);
        let model = quantize_model(&gpu, &source, &method, &PipelineOptions::default(), samples, |_| Ok(())).unwrap();
        let path = folder.path().join("a.gguf");
        let summary = GgufFile::open(embedded::FOLDER, block, &path)
            .unwrap()
            .write_model(&model, &mut |_| Ok(()))
            .unwrap()
            .summary;
        assert_eq!((summary.quantized, summary.fallbacks), (28, 0));
        let file = Source::open(&path).unwrap();
        for linear in model.linears() {
            let name = format!("{}.weight", linear.name);
            assert_eq!(file.scheme(&name).unwrap(), block);
            let (wrote, weight) = (values(&file, &name), linear.base.weight.download().unwrap());
            assert!(wrote == weight.dequantize(), "{name} in {block}");
        }
        for norm in ["model.layers.2.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"] {
            let width = source.arch().hidden_size;
            assert_eq!(file.vector(norm, width).unwrap(), model.vector(norm).unwrap().read::<f32>().unwrap());
            assert_ne!(file.vector(norm, width).unwrap(), source.vector(norm, width).unwrap());
        }
        // Written again from that file, nothing but the method's numbers is in it.
        let (again, twice) = (Source::open(&path).unwrap(), folder.path().join("b.gguf"));
        let rtn =
            quantize_model(&gpu, &again, &Rtn { scheme: Scheme::F32 }, &PipelineOptions::default(), &[], |_| Ok(()));
        let refused = GgufFile::open(&path, block, &twice).unwrap().write_model(&rtn.unwrap(), &mut |_| Ok(()));
        assert!(matches!(refused, Err(Error::Shape { .. })) && !twice.exists());
    }
    // Asymmetric integers have no block type.
    let scheme = Scheme::int(4, 32);
    let model = quantize_model(&gpu, &source, &Rtn { scheme }, &PipelineOptions::default(), &[], |_| Ok(())).unwrap();
    let file = GgufFile::open(embedded::FOLDER, Scheme::Q4_0, folder.path().join("c.gguf")).unwrap();
    let message = file.write_model(&model, &mut |_| Ok(())).err().unwrap().to_string();
    assert!(message.contains("int4-g32-sym"), "{message}");
}

#[test]
fn a_tokenizer_goes_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let tokenizer = embedded::tokenizer();
    let file = GgufFile::open(embedded::FOLDER, Scheme::Q8_0, &path).unwrap();
    let rows = file.input().arch().vocab_size;
    let file = file.with_metadata(tokenizer.gguf_vocab(rows).unwrap().metadata());
    file.round(&no_device, &mut |_| Ok(())).unwrap();
    let again = Tokenizer::open(&path).unwrap().unwrap();
    for text in ["Hello world 123", " a  b\n\nc", "näh 😀 <|im_start|>user\nx<|im_end|>"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(again.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(again.decode(&ids, false).unwrap(), tokenizer.decode(&ids, false).unwrap());
    }
    assert_eq!(
        (again.bos_id(), again.eos_id(), again.pad_id()),
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id())
    );
    assert_eq!(again.chat_template().source(), tokenizer.chat_template().source());
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), rows);
}

/// BPE with byte fallback, as Llama 2 has it: pieces of "low" and "lower", and the bytes.
#[test]
fn sentencepiece_merges_become_scores() {
    let folder = tempfile::tempdir().unwrap();
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    vocab.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend(["\u{2581}", "l", "o", "w", "e", "r", "er", "lo", "ow", "low", "\u{2581}low"].map(String::from));
    let ids: serde_json::Map<_, _> = vocab.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |id: usize| {
        serde_json::json!({
            "id": id, "content": vocab[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "pre_tokenizer": null, "decoder": null,
        // What begins a text is said here; transformers 5 reads no `add_bos_token` beside this file.
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": ids,
            "merges": [["e", "r"], ["l", "o"], ["o", "w"], ["lo", "w"], ["\u{2581}", "low"]]},
    });
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = r#"{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap().unwrap();
    let stored = tokenizer.gguf_vocab(vocab.len() + 2).unwrap();
    assert_eq!((stored.model.as_str(), stored.add_bos, stored.add_space_prefix), ("llama", Some(true), Some(true)));
    assert_eq!((stored.token_types[0], stored.token_types[1], stored.token_types[3]), (2, 3, 6));
    assert_eq!((stored.tokens.last().unwrap().as_str(), stored.token_types.last()), ("[PAD271]", Some(&5)));
    let score = |token: &str| stored.scores[vocab.iter().position(|t| t == token).unwrap()];
    assert!(score("er") > score("lo") && score("lo") > score("ow") && score("ow") > score("low"));
    let again = Tokenizer::from_gguf(&stored, folder.path()).unwrap();
    for text in ["lower low", "flow é"] {
        assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap(), "{text}");
    }
}

#[test]
fn loading_in_a_scheme_gives_the_weights_of_the_file() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let path = folder.path().join("a.gguf");
    write(folder.path(), Scheme::Q4_K, &path);
    let (plain, blocks) = (Source::open(folder.path()).unwrap(), Source::open(&path).unwrap());
    let stored = Model::from_source(&gpu, &blocks, &LoadOptions::default()).unwrap();
    let rounded =
        Model::from_source(&gpu, &plain, &LoadOptions { quantization: Quantization::To(Scheme::Q4_K) }).unwrap();
    let rtn = Rtn { scheme: Scheme::Q4_K };
    let method = quantize_model(&gpu, &plain, &rtn, &PipelineOptions::default(), &[], |_| Ok(())).unwrap();
    for ((a, b), c) in stored.linears().zip(rounded.linears()).zip(method.linears()) {
        let expected = if a.name.ends_with("down_proj") { Scheme::Q5_0 } else { Scheme::Q4_K };
        let packed = a.base.weight.download().unwrap();
        assert_eq!(packed.scheme, expected, "{}", a.name);
        assert_eq!(packed, b.base.weight.download().unwrap(), "{}", a.name);
        assert_eq!(packed, c.base.weight.download().unwrap(), "{}", a.name);
    }
}
