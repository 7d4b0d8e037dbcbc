//! safetensors files, their index, and tensors to be changed.

use super::{folder, input::Input, used};
use fourbit::format::{INDEX, Weights, bitsandbytes};
use serde_json::{Map, Value, json};

/// A tensor of a file in the making.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

const DTYPES: [(&str, usize); 13] = [
    ("F64", 8),
    ("F32", 4),
    ("F16", 2),
    ("BF16", 2),
    ("I64", 8),
    ("I32", 4),
    ("I16", 2),
    ("I8", 1),
    ("U32", 4),
    ("U8", 1),
    ("BOOL", 1),
    ("F8_E4M3", 1),
    ("U16", 2),
];

/// Ends of names.
const PARTS: [&str; 32] = [
    "weight",
    "bias",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "W_q",
    "scale",
    "zero",
    "shape",
    "nbits",
    "axis",
    "packing",
    "codes",
    "codebooks",
    "Qidxs",
    "SU",
    "SV",
    "Wscale",
    "SCB",
    "weight_format",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.quant_state.bitsandbytes__nf4",
    "lora_A.weight",
];

/// Bytes of a tensor that is made larger.
const LARGE: usize = 1 << 20;

impl Tensor {
    pub fn new(name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Tensor {
        Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), bytes }
    }

    /// Takes another dtype or shape, and as many bytes as that has; not where those are too many.
    fn reshape(&mut self, dtype: &str, shape: Vec<usize>) {
        let size = DTYPES.iter().find(|(name, _)| *name == dtype).map_or(1, |row| row.1);
        let bytes = shape.iter().try_fold(size, |n, &extent| n.checked_mul(extent)).filter(|&n| n <= LARGE);
        if let Some(bytes) = bytes {
            self.bytes.resize(bytes, 0);
            (self.dtype, self.shape) = (dtype.to_owned(), shape);
        }
    }
}

/// The tensors of a good file.
pub fn parse(file: &[u8]) -> Vec<Tensor> {
    let (len, rest) = file.split_first_chunk::<8>().expect("a good file");
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).expect("a good header");
    let tensor = |(name, entry): (&String, &Value)| {
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let shape: Vec<usize> = entry["shape"].as_array()?.iter().map(number).collect();
        let range = number(&entry["data_offsets"][0])..number(&entry["data_offsets"][1]);
        Some(Tensor::new(name, entry["dtype"].as_str()?, &shape, data[range].to_vec()))
    };
    header.iter().filter_map(tensor).collect()
}

/// A file of these tensors.
pub fn serialized(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// One change of a file's tensors.
pub fn change(tensors: &mut Vec<Tensor>, input: &mut Input) {
    if tensors.is_empty() {
        return;
    }
    let at = input.below(tensors.len());
    let tensor = &mut tensors[at];
    match input.below(9) {
        0 => {
            tensors.remove(at);
        }
        1 => {
            let base = tensor.name.rsplit_once('.').map_or("", |(base, _)| base);
            tensor.name = format!("{base}.{}", input.choose(&PARTS));
        }
        2 => tensor.name = input.text(),
        3 => tensor.reshape(input.choose(&DTYPES).0, tensor.shape.clone()),
        4 => {
            let mut shape = tensor.shape.clone();
            let extent = input.below(shape.len());
            if let Some(extent) = shape.get_mut(extent) {
                *extent = input.number() as usize;
            }
            tensor.reshape(&tensor.dtype.clone(), shape);
        }
        5 => {
            let mut shape = tensor.shape.clone();
            match input.below(4) {
                0 => shape.push(1),
                1 => shape.insert(0, 1),
                2 => drop(shape.pop()),
                _ => shape.reverse(),
            }
            tensor.reshape(&tensor.dtype.clone(), shape);
        }
        6 => {
            let mut copy = tensor.clone();
            let base = copy.name.rsplit_once('.').map_or("", |(base, _)| base);
            copy.name = format!("{base}.{}", input.choose(&PARTS));
            tensors.push(copy);
        }
        7 => {
            let with = input.byte();
            tensor.bytes.fill(with);
        }
        _ => {
            let begin = input.below(tensor.bytes.len());
            let with = match input.byte() {
                0..64 => f32::NAN.to_le_bytes(),
                64..96 => f32::INFINITY.to_le_bytes(),
                _ => (input.number() as u32).to_le_bytes(),
            };
            tensor.bytes[begin..].iter_mut().zip(with).for_each(|(byte, new)| *byte = new);
        }
    }
}

fn read(weights: &Weights) {
    for name in weights.names() {
        let Ok(view) = weights.get(name) else { continue };
        used((view.check_finite().is_ok(), view.to_f32().is_ok(), view.to_i64().is_ok()));
        if let Ok((packed, _)) = weights.packed(name) {
            used(packed.dequantize());
        }
        used(bitsandbytes::is_quantized(weights, name));
    }
}

fn small() -> Vec<Tensor> {
    vec![
        Tensor::new("a.weight", "F32", &[2, 3], vec![0; 24]),
        Tensor::new("b.weight", "BF16", &[4], vec![0; 8]),
        Tensor::new("c", "I64", &[], vec![1; 8]),
        Tensor::new("d", "U8", &[0, 3], vec![]),
    ]
}

/// A single file: as it is, a header of its true length with data behind a zero byte, or a good one changed.
pub fn safetensors(data: &[u8]) {
    let mut input = Input::new(data);
    let file = match input.byte() % 3 {
        0 => input.take(usize::MAX).to_vec(),
        1 => {
            let rest = input.take(usize::MAX);
            let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
            [&(end as u64).to_le_bytes()[..], &rest[..end], rest.get(end + 1..).unwrap_or_default()].concat()
        }
        _ => {
            let mut tensors = small();
            (0..input.below(8)).for_each(|_| change(&mut tensors, &mut input));
            let mut file = serialized(&tensors);
            input.changes(|input| input.patch(&mut file));
            file
        }
    };
    let folder = folder(&[("model.safetensors", &file)]);
    let path = folder.path().join("model.safetensors");
    // An error names the file.
    match Weights::open(&path) {
        Ok(weights) => read(&weights),
        Err(error) => assert!(error.to_string().contains("model.safetensors"), "{error}"),
    }
}

/// An index beside two files: as it is, or a good one changed.
pub fn index(data: &[u8]) {
    let tensors = small();
    let files = [serialized(&tensors[..2]), serialized(&tensors[2..])];
    let text = match data.first() {
        Some(b'{' | b'[') => data.to_vec(),
        _ => {
            let mut json = json!({"metadata": {"total_size": 40}, "weight_map": {
                "a.weight": "1.safetensors", "b.weight": "1.safetensors", "c": "2.safetensors", "d": "2.safetensors"}});
            Input::new(data).changes(|input| input.edit(&mut json));
            json.to_string().into_bytes()
        }
    };
    let folder = folder(&[(INDEX, &text), ("1.safetensors", &files[0]), ("2.safetensors", &files[1])]);
    if let Ok(weights) = Weights::open(folder.path()) {
        read(&weights);
        used(weights.get("a.weight").is_ok());
    }
}
