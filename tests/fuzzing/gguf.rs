//! GGUF files: as they are, or a good one changed value by value; in one part or two.

use super::{folder, input::Input, load, used};
use fourbit::{
    arch::Architecture,
    format::{Gguf, gguf::MetaValue},
    tokenizer::{GgufVocab, Tokenizer},
};

/// A file in the making. Metadata: the type's number and the value.
#[derive(Clone)]
struct File {
    metadata: Vec<(String, Vec<u8>)>,
    tensors: Vec<Info>,
}

#[derive(Clone)]
struct Info {
    name: String,
    /// Innermost extent first, as in the file.
    shape: Vec<u64>,
    kind: u32,
    bytes: Vec<u8>,
}

/// A type's number, and how many elements take how many bytes.
const KINDS: [(u32, usize, usize); 18] = [
    (0, 1, 4),
    (1, 1, 2),
    (30, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (20, 32, 18),
    (23, 256, 136),
    (24, 1, 1),
    (26, 1, 4),
    (99, 1, 1),
];

fn sized(kind: u32, shape: &[u64]) -> Option<usize> {
    let (_, elements, bytes) = KINDS.into_iter().find(|row| row.0 == kind)?;
    let len = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(usize::try_from(extent).ok()?))?;
    (len / elements).checked_mul(bytes).filter(|&bytes| bytes <= 1 << 20)
}

fn value(value: &MetaValue) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let array =
        |kind: u32, len: usize| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(len as u64).to_le_bytes()].concat();
    match value {
        MetaValue::U32(v) => [4u32.to_le_bytes(), v.to_le_bytes()].concat(),
        MetaValue::F32(v) => [6u32.to_le_bytes(), v.to_le_bytes()].concat(),
        MetaValue::Bool(v) => [&7u32.to_le_bytes()[..], &[u8::from(*v)]].concat(),
        MetaValue::Raw(kind, bytes) => [&kind.to_le_bytes()[..], bytes].concat(),
        MetaValue::Text(v) => {
            let mut out = 8u32.to_le_bytes().to_vec();
            text(&mut out, v);
            out
        }
        MetaValue::Texts(all) => {
            let mut out = array(8, all.len());
            all.iter().for_each(|v| text(&mut out, v));
            out
        }
        MetaValue::Integers(all) => {
            let mut out = array(5, all.len());
            all.iter().for_each(|v| out.extend(v.to_le_bytes()));
            out
        }
        MetaValue::Floats(all) => {
            let mut out = array(6, all.len());
            all.iter().for_each(|v| out.extend(v.to_le_bytes()));
            out
        }
    }
}

/// A model of one block with a tokenizer of this kind.
fn good(tokenizer: &str) -> File {
    let number = |name: &str, n: u32| (format!("llama.{name}"), value(&MetaValue::U32(n)));
    let mut metadata = vec![
        ("general.architecture".to_owned(), value(&MetaValue::Text("llama".to_owned()))),
        number("context_length", 64),
        number("embedding_length", 32),
        number("block_count", 1),
        number("feed_forward_length", 64),
        number("attention.head_count", 2),
        number("attention.head_count_kv", 1),
        number("rope.dimension_count", 16),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), value(&MetaValue::F32(1e-5))),
        ("llama.rope.freq_base".to_owned(), value(&MetaValue::F32(10000.0))),
    ];
    let words = ["<unk>", "<s>", "</s>", "a", "b", "ab", "c", "\u{2581}", "\u{2581}a", "\u{0120}", "<0x0A>", "<0x41>"];
    let vocab = GgufVocab {
        model: tokenizer.to_owned(),
        pre: (tokenizer == "gpt2").then(|| "smollm".to_owned()),
        tokens: words.map(str::to_owned).to_vec(),
        token_types: vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 6, 6],
        merges: if tokenizer == "gpt2" { vec!["a b".to_owned()] } else { vec![] },
        scores: if tokenizer == "llama" { (0..12).map(|i| -(i as f32)).collect() } else { vec![] },
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        chat_templates: vec![("default".to_owned(), "{% for m in messages %}{{ m.content }}{% endfor %}".to_owned())],
        ..GgufVocab::default()
    };
    metadata.extend(vocab.metadata().iter().map(|(key, entry)| (key.clone(), value(entry))));
    let tensors = [
        ("token_embd.weight", vec![32, 12], 8),
        ("output_norm.weight", vec![32], 0),
        ("output.weight", vec![32, 12], 1),
        ("blk.0.attn_norm.weight", vec![32], 0),
        ("blk.0.ffn_norm.weight", vec![32], 0),
        ("blk.0.attn_q.weight", vec![32, 32], 2),
        ("blk.0.attn_k.weight", vec![32, 16], 8),
        ("blk.0.attn_v.weight", vec![32, 16], 3),
        ("blk.0.attn_output.weight", vec![32, 32], 6),
        ("blk.0.ffn_gate.weight", vec![32, 64], 7),
        ("blk.0.ffn_up.weight", vec![32, 64], 30),
        ("blk.0.ffn_down.weight", vec![64, 32], 20),
    ];
    let info = |(name, shape, kind): (&str, Vec<u64>, u32)| {
        let bytes = vec![0; sized(kind, &shape).expect("a small tensor")];
        Info { name: name.to_owned(), shape, kind, bytes }
    };
    File { metadata, tensors: tensors.into_iter().map(info).collect() }
}

impl File {
    fn serialized(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key.as_bytes());
            out.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend((tensor.name.len() as u64).to_le_bytes());
            out.extend(tensor.name.as_bytes());
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        [out, data].concat()
    }

    fn change(&mut self, input: &mut Input) {
        let (entry, tensor) = (input.below(self.metadata.len()), input.below(self.tensors.len()));
        let kind = input.below(10);
        if kind < 5
            && let Some((key, old)) = self.metadata.get_mut(entry)
        {
            match kind {
                0 => drop(self.metadata.remove(entry)),
                1 => *key = input.text(),
                2 => input.patch(old),
                3 => {
                    let prefix = key.split('.').next().unwrap_or_default();
                    let added = (format!("{prefix}.{}", input.text()), meta(input));
                    self.metadata.push(added);
                }
                _ => *old = meta(input),
            }
        } else if let Some(info) = self.tensors.get_mut(tensor) {
            let (mut shape, mut kind_of) = (info.shape.clone(), info.kind);
            match kind {
                5 => drop(self.tensors.remove(tensor)),
                6 => info.name = input.text(),
                7 => input.patch(&mut info.bytes),
                _ => {
                    match input.below(4) {
                        0 => kind_of = input.choose(&KINDS).0,
                        1 => shape.push(input.number()),
                        2 => drop(shape.pop()),
                        _ => {
                            let at = input.below(shape.len());
                            shape.get_mut(at).into_iter().for_each(|extent| *extent = input.number());
                        }
                    }
                    if let Some(bytes) = sized(kind_of, &shape) {
                        info.bytes.resize(bytes, 0);
                        (info.shape, info.kind) = (shape, kind_of);
                    }
                }
            }
        }
    }
}

fn meta(input: &mut Input) -> Vec<u8> {
    value(&match input.below(9) {
        0 => MetaValue::U32(input.number() as u32),
        1 => MetaValue::F32(f32::from_bits(input.number() as u32)),
        2 => MetaValue::Bool(input.byte() > 127),
        3 => MetaValue::Text(input.text()),
        4 => MetaValue::Texts((0..input.below(20)).map(|_| input.text()).collect()),
        5 => MetaValue::Integers((0..input.below(20)).map(|_| input.number() as i32).collect()),
        6 => MetaValue::Floats((0..input.below(20)).map(|_| input.number() as f32).collect()),
        7 => MetaValue::Raw(10, input.number().to_le_bytes().to_vec()),
        _ => MetaValue::Raw(input.byte().into(), input.take(12).to_vec()),
    })
}

fn read(file: &Gguf) {
    for name in file.names() {
        let Ok(view) = file.get(name) else { continue };
        used((view.to_f32().is_ok(), view.to_i64().is_ok()));
        if let Ok(packed) = view.packed() {
            used(packed.dequantize());
        }
    }
    for key in file.keys() {
        used((file.uint(key).is_ok(), file.float(key).is_ok(), file.flag(key).is_ok(), file.text(key).is_ok()));
        used((file.texts(key).is_ok(), file.numbers(key).is_ok(), file.raw(key).is_some()));
    }
    used(file.fields("").is_ok());
    used(Architecture::from_gguf(file).is_ok());
    used(GgufVocab::read(file).is_ok());
}

pub fn gguf(data: &[u8]) {
    let mut parts = Vec::new();
    if data.starts_with(b"GGUF") {
        parts.push(data.to_vec());
    } else {
        let mut input = Input::new(data);
        let choice = input.byte();
        let mut file = good(if choice & 1 == 0 { "llama" } else { "gpt2" });
        let mut patches = Vec::new();
        input.changes(|input| match input.byte() {
            0..200 => file.change(input),
            _ => patches.push(input.take(8)),
        });
        let mut files = vec![file];
        if choice & 2 == 2 {
            let half = |n: u16| [&2u32.to_le_bytes()[..], &n.to_le_bytes()].concat();
            let count = files[0].tensors.len() as i32;
            let rest = files[0].tensors.split_off(count as usize / 2);
            files.push(File { metadata: vec![], tensors: rest });
            for (no, part) in files.iter_mut().enumerate() {
                part.metadata.push(("split.no".to_owned(), half(no as u16)));
                part.metadata.push(("split.count".to_owned(), half(2)));
                let total = [5u32.to_le_bytes(), count.to_le_bytes()].concat();
                part.metadata.push(("split.tensors.count".to_owned(), total));
            }
        }
        parts.extend(files.iter().map(File::serialized));
        patches.into_iter().enumerate().for_each(|(i, patch)| {
            let at = i % parts.len();
            Input::new(patch).patch(&mut parts[at]);
        });
    }
    let name = |no: usize| match parts.len() {
        1 => "model.gguf".to_owned(),
        _ => format!("model-{:05}-of-00002.gguf", no + 1),
    };
    let names: Vec<String> = (0..parts.len()).map(name).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(parts.iter().map(Vec::as_slice)).collect();
    let folder = folder(&files);
    let path = folder.path().join(&names[0]);
    match Gguf::open(&path) {
        Ok(file) => read(&file),
        Err(error) => assert!(error.to_string().contains(".gguf"), "{error}"),
    }
    used(load(&path).is_ok());
    if let Ok(Some(tokenizer)) = Tokenizer::open(&path) {
        used(tokenizer.encode("ab \u{e9}\n<s>", true).is_ok());
        used(tokenizer.decode(&[0, 1, 5, 10, 11, u32::MAX], false).is_ok());
    }
}
