//! GGUF files built by hand: what is read, and what is refused.

use fourbit::Error;
use fourbit::format::{Gguf, Kind, Stored, Weights};
use fourbit::quant::{Packed, Scheme, ggml};
use std::fs;

/// A GGUF file in the making.
#[derive(Default, Clone)]
struct Builder {
    metadata: Vec<u8>,
    entries: u64,
    infos: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
    alignment: usize,
}

fn text(bytes: &str) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes.as_bytes()].concat()
}

fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

impl Builder {
    fn new() -> Builder {
        Builder { alignment: 32, ..Builder::default() }
    }

    fn meta(mut self, key: &str, kind: u32, value: &[u8]) -> Builder {
        self.metadata.extend([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self.entries += 1;
        self
    }

    fn info(mut self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Builder {
        self.infos.extend(text(name));
        self.infos.extend((extents.len() as u32).to_le_bytes());
        extents.iter().for_each(|e| self.infos.extend(e.to_le_bytes()));
        self.infos.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        self.tensors += 1;
        self
    }

    /// extents: innermost first, as the file has them.
    fn tensor(mut self, name: &str, extents: &[u64], kind: u32, bytes: &[u8]) -> Builder {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self.data.resize(offset, 0);
        self.data.extend(bytes);
        self.info(name, extents, kind, offset as u64)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        bytes.extend([self.tensors.to_le_bytes(), self.entries.to_le_bytes()].concat());
        bytes.extend(&self.metadata);
        bytes.extend(&self.infos);
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }
}

fn open(bytes: &[u8]) -> fourbit::Result<Gguf> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(path)
}

fn message<T>(result: fourbit::Result<T>) -> String {
    result.err().expect("this input is broken").to_string()
}

fn sample() -> Builder {
    let x: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
    let blocks = |scheme| ggml::pack_blocks(&Packed::quantize(scheme, [2, 64], &x).unwrap()).unwrap();
    let tokens = [text("<s>"), text("näh"), text("")].concat();
    Builder::new()
        .meta("general.architecture", 8, &text("llama"))
        .meta("llama.block_count", 4, &30u32.to_le_bytes())
        .meta("small.u8", 0, &[200])
        .meta("small.i8", 1, &[0xff])
        .meta("small.u16", 2, &[1, 2])
        .meta("small.i16", 3, &[0, 0x80])
        .meta("signed", 5, &7i32.to_le_bytes())
        .meta("llama.rope.freq_base", 6, &10000f32.to_le_bytes())
        .meta("tokenizer.ggml.add_bos_token", 7, &[1])
        .meta("big", 10, &u64::MAX.to_le_bytes())
        .meta("long", 11, &(-5i64).to_le_bytes())
        .meta("double", 12, &0.25f64.to_le_bytes())
        .meta("tokenizer.ggml.tokens", 9, &array(8, 3, &tokens))
        .meta("tokenizer.ggml.scores", 9, &array(6, 2, &[1f32.to_le_bytes(), (-2f32).to_le_bytes()].concat()))
        .meta("tokenizer.ggml.token_type", 9, &array(5, 2, &[3i32.to_le_bytes(), 1i32.to_le_bytes()].concat()))
        .meta("nested", 9, &array(9, 1, &array(0, 3, &[1, 2, 3])))
        .meta("empty", 9, &array(8, 0, &[]))
        .tensor("f32", &[3, 2], 0, bytemuck::cast_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]))
        .tensor("f16", &[2], 1, &[0, 0x3c, 0, 0xc0])
        .tensor("bf16", &[2], 30, &[0x80, 0x3f, 0, 0xc0])
        .tensor("q4_0", &[64, 2], 2, &blocks(Scheme::Q4_0))
        .tensor("q4_1", &[64, 2], 3, &blocks(Scheme::Q4_1))
        .tensor("q8_0", &[64, 2], 8, &blocks(Scheme::Q8_0))
        .tensor("iq2_xxs", &[256, 1], 16, &[7; 66])
}

#[test]
fn metadata_of_every_type_is_read() {
    let file = open(&sample().bytes()).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.uint("llama.block_count").unwrap(), Some(30));
    assert_eq!(file.uint("small.u8").unwrap(), Some(200));
    assert_eq!(file.float("small.i8").unwrap(), Some(-1.0));
    assert_eq!(file.uint("small.u16").unwrap(), Some(0x201));
    assert_eq!(file.float("small.i16").unwrap(), Some(-32768.0));
    assert_eq!(file.uint("signed").unwrap(), Some(7));
    assert_eq!(file.float("llama.rope.freq_base").unwrap(), Some(10000.0));
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(file.uint("big").unwrap(), Some(u64::MAX));
    assert_eq!(file.float("double").unwrap(), Some(0.25));
    assert_eq!(file.texts("tokenizer.ggml.tokens").unwrap().unwrap(), ["<s>", "näh", ""]);
    assert_eq!(file.numbers("tokenizer.ggml.scores").unwrap().unwrap(), [1.0, -2.0]);
    assert_eq!(file.numbers("tokenizer.ggml.token_type").unwrap().unwrap(), [3.0, 1.0]);
    assert!(file.texts("empty").unwrap().unwrap().is_empty());
    assert_eq!(file.uint("absent").unwrap(), None);
    assert_eq!(file.keys().count(), 17);
    for wrong in [
        message(file.uint("long")),
        message(file.uint("general.architecture")),
        message(file.text("llama.block_count")),
        message(file.texts("tokenizer.ggml.scores")),
        message(file.numbers("tokenizer.ggml.tokens")),
        message(file.numbers("nested")),
        message(file.flag("double")),
        message(file.float("empty")),
    ] {
        assert!(wrong.contains("expected") && wrong.contains("model.gguf"), "{wrong}");
    }
}

#[test]
fn tensors_of_every_loadable_type_decode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any.name");
    fs::write(&path, sample().bytes()).unwrap();
    let file = Weights::open(&path).unwrap();
    assert_eq!(file.kind(), Kind::Gguf);
    assert!(file.gguf().is_some());
    let x: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
    let view = file.get("f32").unwrap();
    assert_eq!((view.shape, view.to_f32().unwrap()), (&[2, 3][..], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    assert_eq!(file.get("f16").unwrap().to_f32().unwrap(), [1.0, -2.0]);
    assert_eq!(file.get("bf16").unwrap().to_f32().unwrap(), [1.0, -2.0]);
    for (name, scheme) in [("q4_0", Scheme::Q4_0), ("q4_1", Scheme::Q4_1), ("q8_0", Scheme::Q8_0)] {
        let expected = Packed::quantize(scheme, [2, 64], &x).unwrap();
        let view = file.get(name).unwrap();
        assert_eq!((view.stored, view.shape), (Stored::Ggml(scheme), &[2, 64][..]));
        assert_eq!(file.packed(name).unwrap().0, expected);
        assert_eq!(view.to_f32().unwrap(), expected.dequantize());
        let mut part = vec![0.0; 64];
        view.read_f32(32, &mut part).unwrap();
        assert_eq!(part, expected.dequantize()[32..96]);
        assert!(view.read_f32(16, &mut part).is_err());
    }
    let error = file.get("iq2_xxs").unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("iq2_xxs") && error.to_string().contains("IQ2_XXS"), "{error}");
    assert!(matches!(file.get("output.weight"), Err(Error::MissingTensor { .. })));
}

#[test]
fn another_alignment_is_honoured() {
    let builder = Builder { alignment: 128, ..Builder::new() };
    let file = builder
        .meta("general.alignment", 4, &128u32.to_le_bytes())
        .tensor("a", &[1], 0, &1f32.to_le_bytes())
        .tensor("b", &[1], 0, &2f32.to_le_bytes());
    let file = open(&file.bytes()).unwrap();
    assert_eq!(file.get("b").unwrap().to_f32().unwrap(), [2.0]);
}

#[test]
fn lying_headers_are_named() {
    let one = || Builder::new().tensor("x", &[32], 0, &[0; 128]);
    let max = u64::MAX;
    let cases = [
        (Builder::new().info("x", &[64], 0, 0), "tensor x: ends at byte 256"),
        (one().info("y", &[1], 0, 128), "tensor y: ends at byte 132"),
        (one().info("y", &[1], 0, 3), "tensor y: its offset"),
        (one().info("y", &[1], 0, max - 31), "tensor y"),
        (one().info("y", &[max, 2], 0, 0), "tensor y: the shape"),
        (one().info("y", &[1 << 32, 1 << 32], 0, 0), "tensor y: the shape"),
        (one().info("y", &[1 << 62], 0, 0), "tensor y: the shape"),
        (one().info("y", &[1 << 62], 2, 0), "tensor y"),
        (one().info("y", &[16, 2], 2, 0), "tensor y: q4_0 needs rows"),
        (one().info("y", &[1, 1, 1, 1, 1], 0, 0), "tensor y: 5 extents"),
        (one().info("x", &[1], 0, 0), "tensor x is listed twice"),
        (one().meta("k", 13, &[0; 8]), "metadata k: unknown value type 13"),
        (one().meta("k", 0, &[1]).meta("k", 0, &[2]), "the metadata key k comes twice"),
        (one().meta("k", 8, &max.to_le_bytes()), "bytes of k"),
        (one().meta("k", 8, &(1u64 << 40).to_le_bytes()), "bytes of k"),
        (one().meta("k", 9, &array(8, max, &[])), "elements of k"),
        (one().meta("k", 9, &array(12, 1 << 61, &[])), "elements of k"),
        (one().meta("k", 9, &array(0, 1 << 40, &[])), "elements of k"),
        (one().meta("k", 9, &array(77, 1, &[0; 32])), "unknown value type 77"),
        (one().meta("general.alignment", 4, &0u32.to_le_bytes()), "general.alignment"),
        (one().meta("general.alignment", 4, &48u32.to_le_bytes()), "general.alignment"),
        (one().meta("general.alignment", 4, &(1u32 << 31).to_le_bytes()), "general.alignment"),
    ];
    for (builder, expected) in cases {
        let error = message(open(&builder.bytes()));
        assert!(error.contains(expected) && error.contains("model.gguf"), "{expected}: {error}");
    }
    let mut deep = array(0, 1, &[1]);
    for _ in 0..6 {
        deep = array(9, 1, &deep);
    }
    assert!(message(open(&one().meta("k", 9, &deep).bytes())).contains("nested"));
    for (at, value, expected) in [(4, 1, "version 1"), (4, 4, "version 4"), (4, 3 << 24, "big-endian")] {
        let mut bytes = one().bytes();
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        assert!(message(open(&bytes)).contains(expected));
    }
    for (at, what) in [(8, "tensors"), (16, "metadata entries")] {
        for count in [max, 1 << 40, 1000] {
            let mut bytes = one().bytes();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let error = message(open(&bytes));
            assert!(error.contains(what) || error.contains("truncated"), "{error}");
        }
    }
    let invalid = one().meta("k", 8, &[&2u64.to_le_bytes()[..], b"\xff\xfe"].concat());
    assert!(message(open(&invalid.bytes()).unwrap().text("k")).contains("UTF-8"));
}

#[test]
fn every_truncation_and_every_flipped_byte_is_handled() {
    let bytes = sample().bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    fs::write(&path, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // The last tensor is of a type that is not loaded: its 66 bytes are not asked for.
    for len in (0..bytes.len() - 66).rev() {
        file.set_len(len as u64).unwrap();
        assert!(Gguf::open(&path).is_err(), "cut at {len}");
    }
    // A flipped byte may well give a valid file: it must open or be refused, and all that opens must be readable.
    for i in 0..bytes.len() - 1056 {
        let mut broken = bytes.clone();
        broken[i] ^= 1 << (i % 8);
        fs::write(&path, &broken).unwrap();
        let Ok(file) = Gguf::open(&path) else { continue };
        for name in file.names() {
            if let Ok(view) = file.get(name) {
                let _ = (view.to_f32(), view.packed());
            }
        }
        for key in file.keys() {
            let _ =
                (file.uint(key), file.float(key), file.flag(key), file.text(key), file.texts(key), file.numbers(key));
        }
    }
}

#[test]
fn a_real_file_opens_where_one_is_given() {
    // FOURBIT_TEST_GGUF names a model to try; there is none in the repository.
    let Ok(path) = std::env::var("FOURBIT_TEST_GGUF") else { return };
    let file = Weights::open(path).unwrap();
    let gguf = file.gguf().unwrap();
    assert!(gguf.text("general.architecture").unwrap().is_some());
    assert!(gguf.texts("tokenizer.ggml.tokens").unwrap().is_some_and(|tokens| !tokens.is_empty()));
    for name in file.names() {
        let view = file.get(name).unwrap();
        let mut row = vec![0.0; *view.shape.last().unwrap()];
        view.read_f32(0, &mut row).unwrap();
        assert!(row.iter().all(|v| v.is_finite()), "{name}");
    }
}
