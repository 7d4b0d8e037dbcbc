//! The bytes of an input as choices, and how they change a good file.

use serde_json::{Map, Number, Value};

/// Choices that a fuzzer makes; all zeros where they end.
pub struct Input<'a>(&'a [u8]);

/// Words that mean something in one file or another.
const WORDS: [&str; 44] = [
    "llama",
    "mistral",
    "qwen2",
    "model_type",
    "quant_method",
    "bits",
    "group_size",
    "gptq",
    "awq",
    "hqq",
    "aqlm",
    "quip",
    "compressed-tensors",
    "bitsandbytes",
    "pack-quantized",
    "int-quantized",
    "group",
    "channel",
    "tensor",
    "token",
    "nf4",
    "fp4",
    "float16",
    "bfloat16",
    "float32",
    "torch.float16",
    "sym",
    "desc_act",
    "marlin",
    "gemm",
    "gptq_v2",
    "E8P",
    "longrope",
    "llama3",
    "linear",
    "pissa",
    "olora",
    "all-linear",
    "q_proj",
    "(.*)+$",
    "weight_map",
    "content",
    "<s>",
    "\u{2581}\u{1f600}",
];

/// Numbers at which code turns.
const NUMBERS: [u64; 20] =
    [0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 65535, 1 << 24, 1 << 31, u32::MAX as u64, u64::MAX];

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, as many as there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `count`, 0 where that is 0.
    pub fn below(&mut self, count: usize) -> usize {
        let bytes = if count <= 256 { 1 } else { 3 };
        let number = self.take(bytes).iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
        number.checked_rem(count).unwrap_or(0)
    }

    pub fn choose<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn number(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..128 => NUMBERS[usize::from(byte) % NUMBERS.len()],
            128..192 => self.byte().into(),
            192..224 => self.take(3).iter().fold(0, |n, &byte| n << 8 | u64::from(byte)),
            _ => self.take(8).iter().fold(0, |n, &byte| n << 8 | u64::from(byte)),
        }
    }

    pub fn text(&mut self) -> String {
        match self.byte() {
            byte @ 0..128 => WORDS[usize::from(byte) % WORDS.len()].to_owned(),
            byte => String::from_utf8_lossy(self.take(usize::from(byte) - 127)).into_owned(),
        }
    }

    pub fn value(&mut self) -> Value {
        match self.below(13) {
            0 => Value::Null,
            1 => true.into(),
            2 => false.into(),
            3 => self.number().into(),
            4 => (self.number() as i64).into(),
            5 => Number::from_f64(f64::from_bits(self.number())).map_or(Value::Null, Value::Number),
            6 => Number::from_f64(self.number() as f64 / 256.0).map_or(Value::Null, Value::Number),
            7 => "".into(),
            8 | 9 => self.text().into(),
            10 => Value::Array((0..self.below(5)).map(|_| self.number().into()).collect()),
            11 => Value::Object([(self.text(), self.number().into())].into_iter().collect()),
            _ => (0..self.below(100)).fold(Value::Null, |inner, _| Value::Array(vec![inner])),
        }
    }

    /// As many changes as are left, or a few.
    pub fn changes(&mut self, mut change: impl FnMut(&mut Input<'a>)) {
        for _ in 0..16 {
            if self.is_empty() {
                break;
            }
            change(self);
        }
    }

    /// One change of a JSON file.
    pub fn edit(&mut self, json: &mut Value) {
        let place = self.below(count(json));
        let copied = {
            let mut other = self.byte().into();
            node(json, &mut other).cloned()
        };
        let Some(found) = node(json, &mut { place }) else { return };
        match (self.below(8), found) {
            (0, Value::Object(map)) => {
                let at = self.below(map.len());
                *map = std::mem::take(map).into_iter().enumerate().filter(|(i, _)| *i != at).map(|(_, e)| e).collect();
            }
            (1, Value::Object(map)) => {
                map.insert(self.text(), self.value());
            }
            (2, Value::Object(map)) => rename(map, self.byte().into(), self.text()),
            (0, Value::Array(list)) if !list.is_empty() => {
                list.remove(self.below(list.len()));
            }
            (1 | 2, Value::Array(list)) => list.push(self.value()),
            (3, found) => *found = copied.unwrap_or_default(),
            (_, found) => *found = self.value(),
        }
    }

    /// One change of a file's bytes, most often near its beginning.
    pub fn patch(&mut self, bytes: &mut Vec<u8>) {
        let near = if self.byte() < 192 { bytes.len().min(2048) } else { bytes.len() };
        let at = self.below(near.max(1)).min(bytes.len());
        let put = |bytes: &mut Vec<u8>, with: &[u8]| {
            bytes[at..].iter_mut().zip(with).for_each(|(byte, new)| *byte = *new);
        };
        match self.below(8) {
            0 | 1 => put(bytes, &[self.byte()]),
            2 => put(bytes, &(self.number() as u32).to_le_bytes()),
            3 => put(bytes, &self.number().to_le_bytes()),
            4 => bytes.truncate(at),
            5 => {
                let count = 1 + self.below(16);
                let with = self.take(count).to_vec();
                bytes.splice(at..at, with);
            }
            6 => {
                let end = (at + 1 + self.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let count = 1 + self.below(16);
                let with = self.take(count).to_vec();
                put(bytes, &with);
            }
        }
    }
}

fn rename(map: &mut Map<String, Value>, at: usize, name: String) {
    let at = at % map.len().max(1);
    let entries = std::mem::take(map).into_iter().enumerate();
    *map = entries.map(|(i, (key, value))| if i == at { (name.clone(), value) } else { (key, value) }).collect();
}

/// Values in a value, itself among them.
fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value of this number, in the order of the file.
fn node<'v>(json: &'v mut Value, at: &mut usize) -> Option<&'v mut Value> {
    if *at == 0 {
        return Some(json);
    }
    *at -= 1;
    match json {
        Value::Array(list) => list.iter_mut().find_map(|inner| node(inner, at)),
        Value::Object(map) => map.values_mut().find_map(|inner| node(inner, at)),
        _ => None,
    }
}
