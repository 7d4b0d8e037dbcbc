//! Files: round trips, what transformers and bitsandbytes wrote, and files that lie.

use fourbit::format::safetensors::{TensorSpec, Writer, write_file};
use fourbit::format::{Kind, Safetensors, Stored, Weights, bitsandbytes, peft};
use fourbit::quant::{Packed, Scheme};
use fourbit::{DType, Error};
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(name)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn message<T>(result: fourbit::Result<T>) -> String {
    result.err().expect("this input is broken").to_string()
}

/// A safetensors file with this header and this much data.
fn raw_safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn open_bytes(bytes: &[u8]) -> fourbit::Result<Weights> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    Weights::open(&path)
}

#[test]
fn a_model_of_bitsandbytes_decodes_to_its_own_values() {
    let quantized = Weights::open(golden("bnb-nf4-dq")).unwrap();
    let model = Weights::open(golden("model")).unwrap();
    assert_eq!(quantized.kind(), Kind::Folder);
    let mut four_bit = 0;
    for name in model.names() {
        let expected = model.get(name).unwrap();
        let (packed, dtype) = quantized.packed(name).unwrap();
        assert_eq!(dtype, DType::F32);
        // The golden's weights are what bitsandbytes dequantizes: every bit must agree.
        assert_eq!(bits(&packed.dequantize()), bits(&expected.to_f32().unwrap()), "{name}");
        if bitsandbytes::is_quantized(&quantized, name) {
            assert_eq!(packed.scheme, Scheme::Nf4 { block_size: 64, double_quant: true });
            assert_eq!(expected.shape, packed.shape);
            four_bit += 1;
        }
    }
    assert_eq!(four_bit, 14);
    let own: Vec<_> = quantized.names().filter(|n| !bitsandbytes::is_part(n)).collect();
    assert_eq!(own, model.names().collect::<Vec<_>>());
}

#[test]
fn rewriting_a_file_gives_the_same_bytes() {
    // Every tensor goes through Packed and back; the sizes being known, the whole file is equal.
    let quantized = Weights::open(golden("bnb-nf4-dq")).unwrap();
    let source = Safetensors::open(golden("bnb-nf4-dq/model.safetensors")).unwrap();
    let mut parts: Vec<(TensorSpec, Vec<u8>)> = Vec::new();
    for name in quantized.names().filter(|n| !bitsandbytes::is_part(n)) {
        let (packed, dtype) = quantized.packed(name).unwrap();
        if bitsandbytes::is_quantized(&quantized, name) {
            for (name, bytes) in bitsandbytes::tensors(name, &packed, dtype).unwrap() {
                let view = source.get(&name).unwrap();
                let Stored::Plain(dtype) = view.stored else { panic!() };
                assert_eq!(view.bytes, &bytes[..], "{name}");
                parts.push((TensorSpec::new(name, dtype, view.shape), bytes.into_owned()));
            }
        } else {
            let view = source.get(name).unwrap();
            parts.push((TensorSpec::new(name, dtype, view.shape), view.bytes.to_vec()));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.safetensors");
    let borrowed: Vec<_> = parts.iter().map(|(spec, bytes)| (spec.clone(), &bytes[..])).collect();
    write_file(&path, &borrowed).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(source.path()).unwrap());
}

#[test]
fn quantizing_anew_gives_the_bytes_of_bitsandbytes() {
    // orig.safetensors holds the weights before bitsandbytes quantized them.
    let original = Weights::open(golden("orig.safetensors")).unwrap();
    let quantized = Weights::open(golden("bnb-nf4-dq")).unwrap();
    assert_eq!(original.kind(), Kind::Safetensors);
    for name in original.names().filter(|n| bitsandbytes::is_quantized(&quantized, n)) {
        let view = original.get(name).unwrap();
        let shape: [usize; 2] = view.shape.try_into().unwrap();
        let (theirs, _) = quantized.packed(name).unwrap();
        let x = view.to_f32().unwrap();
        let ours = Packed::quantize(theirs.scheme, shape, &x).unwrap();
        assert!(ours.codes == theirs.codes, "{name}: codes");
        // The offset is a mean, and depends on the order of summation.
        for (a, b) in ours.nested.iter().zip(&theirs.nested) {
            assert!((a - b).abs() <= 1e-6 * ours.nested[0], "{name}: {a} {b}");
        }
        let plain = Packed::quantize(Scheme::Nf4 { block_size: 64, double_quant: false }, shape, &x).unwrap();
        let absmax: Vec<f32> = (0..x.len() / 64).map(|b| plain.absmax(b)).collect();
        check_nested_codes(name, &absmax, &ours, &theirs);
    }
}

/// Nested codes are equal but where the scaled value lies within a step of the 65536-entry table, through which
/// bitsandbytes looks codes up on a CPU, of the midpoint between the two codes.
fn check_nested_codes(name: &str, absmax: &[f32], ours: &Packed, theirs: &Packed) {
    let map = fourbit::quant::dynamic8_map();
    for (b, &absmax) in absmax.iter().enumerate() {
        let [a, c] = [ours, theirs].map(|p| (p.scales[b / 4] >> (8 * (b % 4)) & 0xff) as usize);
        let scaled = (absmax - ours.nested[0]) / ours.nested[257 + b / 256];
        let near_a_tie = a.abs_diff(c) == 1 && (scaled - (map[a] + map[c]) / 2.0).abs() <= 1.0 / 65535.0;
        assert!(a == c || near_a_tie, "{name}: block {b}: {a}, bitsandbytes {c}");
    }
}

#[test]
fn streamed_weights_return_whatever_the_scheme_and_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut weights = Vec::new();
    for (i, double_quant) in [false, true].into_iter().enumerate() {
        for (j, shape) in [[4, 64], [3, 63], [1, 1], [300, 64]].into_iter().enumerate() {
            let x: Vec<f32> = (0..shape[0] * shape[1]).map(|k| ((k * 31 % 97) as f32 - 48.0) * 1e-3).collect();
            for scheme in [Scheme::Nf4 { block_size: 64, double_quant }, Scheme::Fp4 { block_size: 32, double_quant }] {
                let name = format!("m{i}{j}.{}.weight", scheme.name());
                weights.push((name, Packed::quantize(scheme, shape, &x).unwrap()));
            }
        }
    }
    let mut specs = vec![TensorSpec::new("norm.weight", DType::BF16, [3])];
    for (name, packed) in &weights {
        specs.extend(bitsandbytes::specs(name, packed.scheme, packed.shape).unwrap());
    }
    let mut writer = Writer::create(&path, specs).unwrap();
    for (name, packed) in weights.iter().rev() {
        bitsandbytes::write(&mut writer, name, packed, DType::BF16).unwrap();
    }
    writer.write("norm.weight", &[0x80, 0x3f, 0, 0, 0x80, 0xbf]).unwrap();
    assert!(!path.exists());
    writer.finish().unwrap();

    // The reference reader takes the file as well, and aligned tensors stay aligned.
    let bytes = fs::read(&path).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.tensor("norm.weight").unwrap().dtype(), safetensors::Dtype::BF16);
    for (name, view) in reference.iter() {
        let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset * 8 % view.dtype().bitsize(), 0, "{name}");
    }

    let file = Weights::open(folder.path()).unwrap();
    for (name, packed) in &weights {
        let (back, dtype) = file.packed(name).unwrap();
        assert_eq!((&back, dtype), (packed, DType::BF16), "{name}");
    }
    assert_eq!(file.get("norm.weight").unwrap().to_f32().unwrap(), [1.0, 0.0, -1.0]);
}

#[test]
fn the_writer_refuses_what_does_not_fit_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let specs = || vec![TensorSpec::new("x", DType::F32, [2]), TensorSpec::new("y", DType::U8, [1])];
    let mut writer = Writer::create(&path, specs()).unwrap();
    assert!(message(writer.write("z", &[])).contains("z was not announced"));
    assert!(message(writer.write("x", &[0; 7])).contains("8 bytes, got 7"));
    writer.write("x", &[0; 8]).unwrap();
    assert!(message(writer.write("x", &[0; 8])).contains("twice"));
    assert!(message(writer.finish()).contains("no tensor named y"));
    let twice = vec![TensorSpec::new("x", DType::F32, [2]); 2];
    assert!(message(Writer::create(&path, twice)).contains("two tensors named x"));
    let huge = vec![TensorSpec::new("x", DType::F32, [usize::MAX, 2])];
    assert!(message(Writer::create(&path, huge)).contains("overflows"));
    assert!(message(Writer::create(folder.path().join("no/such/a"), specs())).contains("no/such/a"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn names_with_odd_characters_survive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let name = "a \"quoted\" \\ näme\n";
    write_file(&path, &[(TensorSpec::new(name, DType::I64, [1]), &7i64.to_le_bytes())]).unwrap();
    let file = Safetensors::open(&path).unwrap();
    assert_eq!(file.get(name).unwrap().to_i64().unwrap(), [7]);
    assert_eq!(file.metadata()["format"], "pt");
}

#[test]
fn lying_safetensors_headers_are_named() {
    let cases: &[(&str, usize, &str)] = &[
        (r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "tensor x: ends at byte 8"),
        (r#"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "tensor x: F32 [3] takes 12 bytes"),
        (r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "tensor x"),
        (r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 12, "the tensors end at byte 8"),
        (r#"{"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "tensor x"),
        (r#"{"x":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}}"#, 8, "tensor x"),
        (r#"{"x":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#, 8, "overflows"),
        (r#"{"x":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}"#, 4, "overflows"),
        (r#"{"x":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}"#, 4, "tensor x"),
        (
            r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
            3,
            "tensor y: overlaps",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#,
            5,
            "tensor y: leaves a gap",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
            2,
            "listed twice",
        ),
        (r#"{"x":{"dtype":"U8","shape":[2]}}"#, 2, "data_offsets"),
        (r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0]}}"#, 2, "tensor x"),
        (r#"{"x":7}"#, 0, "tensor x"),
        (r#"{"__metadata__":{"a":7}}"#, 0, "header"),
        (r#"[]"#, 0, "header"),
        (r#"{"x""#, 0, "header"),
        ("", 0, "header"),
    ];
    for (header, data, expected) in cases {
        let error = message(open_bytes(&raw_safetensors(header, *data)));
        assert!(error.contains(expected) && error.contains("model.safetensors"), "{header}: {error}");
    }
    let mut deep = "[".repeat(100_000);
    deep.insert_str(0, r#"{"x":"#);
    assert!(open_bytes(&raw_safetensors(&deep, 0)).is_err());
    assert!(message(open_bytes(&[])).contains("empty"));
    assert!(message(open_bytes(&[1, 2, 3])).contains("too few"));
    for len in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001, 17] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend([b'{'; 16]);
        assert!(message(open_bytes(&bytes)).contains("truncated"), "{len}");
    }
    let invalid = [&8u64.to_le_bytes()[..], b"{\"\xff\xfe\":1}"].concat();
    assert!(message(open_bytes(&invalid)).contains("header"));
    assert!(open_bytes(&raw_safetensors("{}", 0)).is_ok());
    // A dtype that is not known is reported where the tensor is wanted; its extents have no size to be checked against.
    let unknown = open_bytes(&raw_safetensors(r#"{"x":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}"#, 8)).unwrap();
    assert!(message(unknown.get("x")).contains("F9"));
    let scalar = r#"{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    assert_eq!(open_bytes(&raw_safetensors(scalar, 4)).unwrap().get("x").unwrap().to_f32().unwrap(), [0.0]);
}

#[test]
fn every_truncation_and_every_flipped_header_byte_is_handled() {
    let bytes = fs::read(golden("adapter_init/adapter_model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    fs::write(&path, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for len in [bytes.len() - 1].into_iter().chain((0..header + 64).rev()) {
        file.set_len(len as u64).unwrap();
        assert!(Safetensors::open(&path).is_err(), "cut at {len}");
    }
    for i in (0..8).chain((8..header).step_by(3)) {
        let mut broken = bytes[..header + 4096].to_vec();
        broken[i] ^= 1 << (i % 8);
        fs::write(&path, &broken).unwrap();
        assert!(Safetensors::open(&path).is_err(), "the data are cut, whatever byte {i} says");
    }
}

#[test]
fn views_refuse_wrong_shapes_types_and_ranges() {
    let file = Weights::open(golden("model")).unwrap();
    let view = file.get("lm_head.weight").unwrap();
    let error = message(view.expect_shape(&[64, 256]));
    assert!(error.contains("lm_head.weight") && error.contains("[64, 256]") && error.contains("[256, 64]"), "{error}");
    assert!(message(view.expect_dtype(DType::BF16)).contains("expected BF16, got F32"));
    assert!(view.to_i64().is_err());
    assert!(view.read_f32(view.len() - 1, &mut [0.0; 2]).is_err());
    assert!(view.read_f32(usize::MAX, &mut [0.0; 2]).is_err());
    let mut row = [0.0; 64];
    view.read_f32(64, &mut row).unwrap();
    assert_eq!(row, view.to_f32().unwrap()[64..128]);
    let error = message(file.get("layers.0.mlp.up_proj.weight"));
    assert!(error.contains("there is model.layers.0.mlp.up_proj.weight"), "{error}");
    let batch = Weights::open(golden("batch.safetensors")).unwrap();
    assert_eq!(batch.get("input_ids").unwrap().to_i64().unwrap().len(), 4 * 2 * 24);
    assert!(message(batch.get("input_ids").unwrap().to_f32()).contains("float"));
}

fn shard(folder: &Path, file: &str, tensors: &[&str]) {
    let specs: Vec<_> = tensors.iter().map(|n| (TensorSpec::new(*n, DType::U8, [1]), &[7u8][..])).collect();
    write_file(folder.join(file), &specs).unwrap();
}

fn index(folder: &Path, map: &str) {
    fs::write(folder.join("model.safetensors.index.json"), format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#))
        .unwrap();
}

#[test]
fn sharded_folders_agree_with_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    assert!(message(Weights::open(at)).contains("neither"));
    assert!(matches!(Weights::open(at.join("nowhere")), Err(Error::Io { .. })));
    shard(at, "1.safetensors", &["a", "b"]);
    shard(at, "2.safetensors", &["c"]);
    index(at, r#"{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}"#);
    let file = Weights::open(at).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(file.get("c").unwrap().bytes, [7]);
    assert!(matches!(file.get("d"), Err(Error::MissingTensor { .. })));
    for (map, promised) in
        [(r#"{"a":"1.safetensors","d":"1.safetensors"}"#, "d"), (r#"{"a":"1.safetensors","c":"1.safetensors"}"#, "c")]
    {
        index(at, map);
        // What is promised and not there is missed where it is needed.
        let error = message(Weights::open(at).unwrap().get(promised));
        assert!(
            error.contains(&format!("no tensor named {promised}")) && error.contains("says that it is there"),
            "{error}"
        );
    }
    let cases = [
        (r#"{"a":"3.safetensors"}"#, "3.safetensors"),
        (r#"{"a":"../1.safetensors"}"#, "plain file name"),
        (r#"{"a":""}"#, "plain file name"),
        (r#"{"a":".."}"#, "plain file name"),
        (r#"[]"#, "JSON"),
    ];
    for (map, expected) in cases {
        index(at, map);
        let error = message(Weights::open(at));
        assert!(error.contains(expected), "{map}: {error}");
    }
    shard(at, "2.safetensors", &["a", "c"]);
    index(at, r#"{"a":"1.safetensors","c":"2.safetensors"}"#);
    assert!(message(Weights::open(at)).contains("the tensor a is in"));
}

/// The golden folder's tensors with one of them replaced or removed.
fn tampered(change: impl Fn(&str, &mut TensorSpec, &mut Vec<u8>) -> bool) -> (tempfile::TempDir, Weights) {
    let source = Safetensors::open(golden("bnb-nf4-dq/model.safetensors")).unwrap();
    let mut parts = Vec::new();
    for name in source.names().filter(|n| n.starts_with("model.layers.0.mlp.up_proj")) {
        let view = source.get(name).unwrap();
        let Stored::Plain(dtype) = view.stored else { panic!() };
        let (mut spec, mut bytes) = (TensorSpec::new(name, dtype, view.shape), view.bytes.to_vec());
        if change(name.strip_prefix("model.layers.0.mlp.up_proj.weight").unwrap(), &mut spec, &mut bytes) {
            parts.push((spec, bytes));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let borrowed: Vec<_> = parts.iter().map(|(spec, bytes)| (spec.clone(), &bytes[..])).collect();
    write_file(folder.path().join("model.safetensors"), &borrowed).unwrap();
    let weights = Weights::open(folder.path()).unwrap();
    (folder, weights)
}

#[test]
fn four_bit_tensors_that_disagree_are_refused() {
    const X: &str = "model.layers.0.mlp.up_proj.weight";
    const STATE: &str = ".quant_state.bitsandbytes__nf4";
    let (_folder, whole) = tampered(|_, _, _| true);
    bitsandbytes::read(&whole, X).unwrap();
    for part in ["", ".absmax", ".quant_map", ".nested_quant_map"] {
        let (_folder, weights) = tampered(|name, _, _| name != part);
        let error = message(bitsandbytes::read(&weights, X));
        assert!(error.contains(&format!("no tensor named {X}{part}")), "{error}");
    }
    let states = [
        (r#""quant_type": "nf4""#, r#""quant_type": "fp4""#, "quant_type"),
        (r#""blocksize": 64"#, r#""blocksize": 48"#, "48"),
        (r#""blocksize": 64"#, r#""blocksize": 0"#, "0 is no power of two"),
        (r#""blocksize": 64"#, r#""blocksize": 128"#, "absmax"),
        (r#""blocksize": 64"#, r#""blocksize": -64"#, "JSON"),
        (r#"[176, 64]"#, r#"[176, 65]"#, "5720 bytes, got 5632"),
        (r#"[176, 64]"#, r#"[11264]"#, "two extents"),
        (r#"[176, 64]"#, r#"[4294967296, 4294967296]"#, "fits memory"),
        (r#""float32", "shape""#, r#""int3", "shape""#, "int3"),
        (r#""nested_blocksize": 256"#, r#""nested_blocksize": 128"#, "blocks of 256"),
        (r#""nested_offset": 0"#, r#""nested_offset": 1e400, "x": 0"#, "JSON"),
        (r#""nested_offset": "#, r#""nested": "#, "nested_offset"),
    ];
    for (from, to, expected) in states {
        let (_folder, weights) = tampered(|name, spec, bytes| {
            if name == STATE {
                let text = String::from_utf8(bytes.clone()).unwrap();
                assert!(text.contains(from), "{text}");
                *bytes = text.replace(from, to).into_bytes();
                spec.shape = vec![bytes.len()];
            }
            true
        });
        let error = message(bitsandbytes::read(&weights, X));
        assert!(error.contains(expected), "{to}: {error}");
    }
    for (part, at) in [(".quant_map", 4), (".nested_quant_map", 40), (".nested_absmax", 0)] {
        let (_folder, weights) = tampered(|name, _, bytes| {
            if name == part {
                bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            true
        });
        let error = message(bitsandbytes::read(&weights, X));
        assert!(error.contains(part), "{error}");
    }
    assert!(bitsandbytes::specs("x", Scheme::Q4_0, [1, 32]).is_err());
}

#[test]
fn the_quantization_config_is_that_of_transformers() {
    let config: serde_json::Value = fourbit::format::read_json(golden("bnb-nf4-dq/config.json")).unwrap();
    fourbit::format::checkpoint::open(&config["quantization_config"], "config.json".as_ref()).unwrap();
    let scheme = Scheme::Nf4 { block_size: 64, double_quant: true };
    assert_eq!(bitsandbytes::quantization_config(scheme, DType::F32).unwrap(), config["quantization_config"]);
}

#[test]
fn adapters_of_peft_are_read_and_written_alike() {
    let theirs = peft::Adapter::open(golden("adapter_final")).unwrap();
    let lora = theirs.config.lora().unwrap();
    assert_eq!((lora.r, lora.lora_alpha, theirs.modules().len()), (8, 16.0, 14));
    assert!(theirs.modules().iter().all(|m| theirs.config.targets.contain(m).unwrap()));
    let mut tensors = Vec::new();
    for module in theirs.modules() {
        for part in ["lora_A.weight", "lora_B.weight"] {
            let tensor = theirs.tensor(module, part).unwrap();
            tensors.push(peft::Numbers {
                name: format!("{module}.{part}"),
                shape: tensor.shape.into(),
                values: tensor.to_f32().unwrap(),
            });
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deep/adapter");
    peft::save(&out, &theirs.config, &tensors).unwrap();
    let ours = fs::read(out.join(peft::TENSORS)).unwrap();
    assert!(ours == fs::read(golden("adapter_final").join(peft::TENSORS)).unwrap());
    assert_eq!(peft::Adapter::open(&out).unwrap().config, theirs.config);
    let json: serde_json::Value = fourbit::format::read_json(golden("adapter_final/adapter_config.json")).unwrap();
    for (key, value) in theirs.config.to_json().as_object().unwrap() {
        assert_eq!(value, &json[key], "{key}");
    }
    tensors[0].values.pop();
    assert!(matches!(peft::save(&out, &theirs.config, &tensors), Err(Error::Shape { .. })));
}

#[test]
fn adapters_of_other_kinds_are_refused() {
    let json: serde_json::Value = fourbit::format::read_json(golden("adapter_init/adapter_config.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(peft::CONFIG);
    let cases = [
        ("peft_type", r#""LOHA""#),
        ("peft_type", "null"),
        ("kasa_config", "{}"),
        ("velora_config", "{}"),
        ("use_bdlora", "{}"),
        ("bias", r#""all""#),
        ("modules_to_save", r#"["lm_head"]"#),
        ("rank_pattern", r#"{"q_proj": 0}"#),
        ("alpha_pattern", r#"{"q_proj": "1"}"#),
        ("layers_to_transform", r#""0""#),
        ("layers_pattern", r#""layers""#),
        ("target_modules", r#""(?i).*_proj""#),
        ("use_rslora", r#""false""#),
        ("init_lora_weights", r#""pissa_niter_4""#),
        ("a_field_of_tomorrow", r#"{"x": 1}"#),
        ("target_modules", "null"),
        ("r", "0"),
        ("r", "-1"),
        ("r", "1e30"),
        ("lora_alpha", r#""much""#),
    ];
    for (key, value) in cases {
        let mut json = json.clone();
        json[key] = serde_json::from_str(value).unwrap();
        fs::write(&path, json.to_string()).unwrap();
        let error = message(peft::AdapterConfig::read(&path));
        assert!(error.contains(key) && error.contains(peft::CONFIG), "{key} {value}: {error}");
    }
    let mut tolerated = json.clone();
    tolerated["a_field_of_tomorrow"] = serde_json::Value::Null;
    tolerated["target_modules"] = "all-linear".into();
    tolerated["megatron_config"] = serde_json::json!({});
    tolerated["runtime_config"] = serde_json::json!({"ephemeral_gpu_offload": true});
    fs::write(&path, tolerated.to_string()).unwrap();
    assert_eq!(peft::AdapterConfig::read(&path).unwrap().targets.modules, peft::TargetModules::AllLinear);
    fs::write(&path, "[1]").unwrap();
    assert!(message(peft::AdapterConfig::read(&path)).contains("object"));

    fs::write(&path, json.to_string()).unwrap();
    let x = "base_model.model.q_proj";
    let write = |tensors: &[(&str, [usize; 2])]| {
        let zeros = [0u8; 4096];
        let parts: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| (TensorSpec::new(*name, DType::F32, *shape), &zeros[..4 * shape[0] * shape[1]]))
            .collect();
        write_file(folder.path().join(peft::TENSORS), &parts).unwrap();
        peft::Adapter::open(folder.path())
    };
    let (a, b) = (format!("{x}.lora_A.weight"), format!("{x}.lora_B.weight"));
    assert!(write(&[(&a, [8, 3]), (&b, [5, 8])]).is_ok());
    assert!(message(write(&[(&a, [8, 3])])).contains("lora_B"));
    assert!(message(write(&[(&a, [8, 3]), (&b, [5, 4])])).contains("[5, 8]"));
    assert!(message(write(&[(&a, [4, 3]), (&b, [5, 8])])).contains("[8, 3]"));
    assert!(message(write(&[(&format!("{x}.lora_magnitude_vector"), [1, 5])])).contains("lora_magnitude_vector"));
    assert!(message(write(&[])).contains("no tensors"));

    let magnitude = format!("{x}.lora_magnitude_vector");
    let mut dora = json.clone();
    dora["use_dora"] = true.into();
    fs::write(&path, dora.to_string()).unwrap();
    let lines = |tensors: &[(&str, &[usize])]| {
        let zeros = [0u8; 4096];
        let parts = tensors.iter().map(|(name, shape)| {
            (TensorSpec::new(*name, DType::F32, shape.to_vec()), &zeros[..4 * shape.iter().product::<usize>()])
        });
        write_file(folder.path().join(peft::TENSORS), &parts.collect::<Vec<_>>()).unwrap();
        peft::Adapter::open(folder.path())
    };
    assert!(lines(&[(&a, &[8, 3]), (&b, &[5, 8]), (&magnitude, &[5])]).is_ok());
    assert!(message(lines(&[(&a, &[8, 3]), (&b, &[5, 8])])).contains("lora_magnitude_vector"));
    assert!(message(lines(&[(&a, &[8, 3]), (&b, &[5, 8]), (&magnitude, &[4])])).contains("[5]"));
    dora["fan_in_fan_out"] = true.into();
    fs::write(&path, dora.to_string()).unwrap();
    assert!(message(peft::AdapterConfig::read(&path)).contains("fan_in_fan_out"));

    let ia3 = serde_json::json!({"peft_type": "IA3", "target_modules": ["q_proj", "down_proj"],
        "feedforward_modules": ["down_proj"], "init_ia3_weights": true, "fan_in_fan_out": false});
    let with = |key: &str, value: &str| {
        let mut json = ia3.clone();
        json[key] = serde_json::from_str(value).unwrap();
        fs::write(&path, json.to_string()).unwrap();
        peft::AdapterConfig::read(&path)
    };
    for (key, value) in [
        ("fan_in_fan_out", "true"),
        ("modules_to_save", r#"["lm_head"]"#),
        ("feedforward_modules", "null"),
        ("feedforward_modules", r#"["up_proj"]"#),
        ("target_modules", "null"),
        ("lora_alpha", "16"),
        ("task_type", r#""SEQ_CLS""#),
    ] {
        let error = message(with(key, value));
        assert!(error.contains(key) && error.contains(peft::CONFIG), "{key} {value}: {error}");
    }
    let pattern = with("feedforward_modules", r#"".*down_proj""#).unwrap();
    let peft::Kind::Ia3(scaled) = &pattern.kind else { panic!("{pattern:?}") };
    assert!(
        scaled.is_feedforward("model.layers.0.mlp.down_proj").unwrap() && !scaled.is_feedforward("q_proj").unwrap()
    );
    assert!(with("feedforward_modules", "[]").is_ok());
    fs::write(&path, ia3.to_string()).unwrap();
    let [q, down] = ["q_proj", "down_proj"].map(|name| format!("base_model.model.{name}.ia3_l"));
    assert!(lines(&[(&q, &[5, 1]), (&down, &[1, 3])]).is_ok());
    assert!(message(lines(&[(&q, &[1, 5])])).contains("[out, 1]"));
    assert!(message(lines(&[(&down, &[3, 1])])).contains("[1, in]"));
    assert!(message(lines(&[(&a, &[8, 3])])).contains("ia3_l"));

    let mut adalora = json.clone();
    for (key, value) in [("peft_type", "\"ADALORA\""), ("init_r", "3"), ("total_step", "10"), ("rank_pattern", "null")]
    {
        adalora[key] = serde_json::from_str(value).unwrap();
    }
    let with = |key: &str, value: &str| {
        let mut json = adalora.clone();
        json[key] = serde_json::from_str(value).unwrap();
        fs::write(&path, json.to_string()).unwrap();
        peft::AdapterConfig::read(&path)
    };
    for (key, value) in [
        ("total_step", "null"),
        ("init_r", "0"),
        ("use_dora", "true"),
        ("loftq_config", r#"{"loftq_bits": 4}"#),
        ("beta1", r#""much""#),
        ("rank_pattern", "[1]"),
        ("rank_pattern", r#"{"q_proj.lora_E": [true]}"#),
        ("rank_pattern", r#"{"q_proj": [true, false, true]}"#),
        ("rank_pattern", r#"{"q_proj.lora_E": [true, false, 1]}"#),
    ] {
        let error = message(with(key, value));
        assert!(error.contains(key) && error.contains(peft::CONFIG), "{key} {value}: {error}");
    }
    assert!(with("rank_pattern", r#"{"q_proj.lora_E": [true, false, true]}"#).is_ok());
    let [a, b, e] = ["lora_A", "lora_B", "lora_E"].map(|part| format!("{x}.{part}"));
    assert!(lines(&[(&a, &[2, 4]), (&b, &[5, 2]), (&e, &[2, 1])]).is_ok());
    assert!(message(lines(&[(&a, &[3, 4]), (&b, &[5, 3]), (&e, &[3, 1])])).contains("[2, 4]"));
    assert!(message(lines(&[(&a, &[2, 4]), (&b, &[5, 2])])).contains("lora_E"));
}
