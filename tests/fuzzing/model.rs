//! Model folders: config.json, and weights in every layout of quantized weights.

use super::{
    folder,
    input::Input,
    load,
    tensors::{self, Tensor},
    used,
};
use fourbit::{
    DType,
    arch::Architecture,
    format::checkpoint::{Basis, Bitsandbytes, Checkpoint, Quip},
    quant::{Packed, Scheme, lattice},
};
use serde_json::Value;
use std::{path::Path, sync::OnceLock};

macro_rules! golden {
    ($($name:literal)*) => {
        [$((
            include_bytes!(concat!("../golden/checkpoints/", $name, "/config.json")),
            include_bytes!(concat!("../golden/checkpoints/", $name, "/model.safetensors")),
        )),*]
    };
}

/// What other tools made: configuration and tensors.
const GOLDEN: [(&[u8], &[u8]); 12] = golden!(
    "aqlm" "awq" "ct-int4" "ct-int4-act" "ct-int8" "gptq-2-v2" "gptq-3-act" "gptq-4-act" "gptq-4-sym" "gptq-8-channel" "hqq"
    "llm-int8"
);

/// A good folder.
#[derive(Clone)]
struct Model {
    config: Value,
    tensors: Vec<Tensor>,
}

fn models() -> &'static [Model] {
    static MODELS: OnceLock<Vec<Model>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let open = |(config, file): &(&[u8], &[u8])| Model {
            config: serde_json::from_slice(config).expect("a good configuration"),
            tensors: tensors::parse(file),
        };
        let mut models: Vec<Model> = GOLDEN.iter().map(open).collect();
        let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
        let fp4 = Scheme::Fp4 { block_size: 64, double_quant: true };
        for (scheme, layout) in [
            (nf4, &Bitsandbytes::new(nf4).expect("a layout of its own") as &dyn Checkpoint),
            (fp4, &Bitsandbytes::new(fp4).expect("a layout of its own")),
            (Scheme::E8p, &Quip),
        ] {
            models.push(written(&models[1], scheme, layout));
        }
        let mut plain = models[12].clone();
        plain.config.as_object_mut().expect("an object").remove("quantization_config");
        plain.tensors.retain(|tensor| !tensor.name.contains("proj"));
        plain
            .tensors
            .extend(linears().map(|(name, shape)| Tensor::new(&name, "F32", &shape, vec![0; 4 * shape[0] * shape[1]])));
        models.push(plain);
        models
    })
}

/// The linear layers of the golden models' only block.
fn linears() -> impl Iterator<Item = (String, [usize; 2])> {
    let all = [
        ("self_attn.q_proj", [64, 64]),
        ("self_attn.k_proj", [32, 64]),
        ("self_attn.v_proj", [32, 64]),
        ("self_attn.o_proj", [64, 64]),
        ("mlp.gate_proj", [96, 64]),
        ("mlp.up_proj", [96, 64]),
        ("mlp.down_proj", [64, 96]),
    ];
    all.into_iter().map(|(name, shape)| (format!("model.layers.0.{name}.weight"), shape))
}

/// The model with its linear layers in another layout.
fn written(like: &Model, scheme: Scheme, layout: &dyn Checkpoint) -> Model {
    let mut model = like.clone();
    model.config["quantization_config"] = layout.config(DType::F16).expect("a configuration");
    model.tensors.retain(|tensor| !tensor.name.contains("proj"));
    for (name, shape) in linears() {
        let len = shape[0] * shape[1];
        let (packed, basis) = match scheme {
            Scheme::E8p => {
                let words = scheme.words(shape);
                let codes = (0..words[0] as u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
                let scales = vec![1.0f32.to_bits(); words[1]];
                let packed = Packed::new(scheme, shape, codes, scales, lattice::patterns().concat());
                (packed, Some(Basis::Hadamard { input: vec![1.0; shape[1]], output: vec![1.0; shape[0]] }))
            }
            _ => {
                let values: Vec<f32> = (0..len).map(|i| (i % 17) as f32 - 8.0).collect();
                (Packed::quantize(scheme, shape, &values), None)
            }
        };
        let packed = packed.expect("a weight");
        let specs = layout.specs(&name, shape).expect("tensors");
        for (name, bytes) in layout.tensors(&name, &packed, basis.as_ref(), DType::F16).expect("tensors") {
            let spec = specs.iter().find(|spec| spec.name == name).expect("each is announced");
            // Of a text the extent is what it has at most.
            let shape = if name.contains("quant_state") { vec![bytes.len()] } else { spec.shape.clone() };
            model.tensors.push(Tensor::new(&name, spec.dtype.name(), &shape, bytes.into_owned()));
        }
    }
    model
}

/// A folder in one layout: the first byte says which, the others change configuration, tensors and the file of these.
pub fn layouts(data: &[u8]) {
    let mut input = Input::new(data);
    let models = models();
    let Model { mut config, mut tensors } = models[input.below(models.len())].clone();
    let mut patches = Vec::new();
    input.changes(|input| match input.byte() {
        0..96 if config["quantization_config"].is_object() => input.edit(&mut config["quantization_config"]),
        96..128 => input.edit(&mut config),
        128..240 => tensors::change(&mut tensors, input),
        _ => patches.push(input.take(8)),
    });
    let mut file = tensors::serialized(&tensors);
    patches.into_iter().for_each(|patch| Input::new(patch).patch(&mut file));
    let folder = folder(&[("config.json", config.to_string().as_bytes()), ("model.safetensors", &file)]);
    used(load(folder.path()).is_ok());
}

/// config.json: as it is, or a good one changed.
pub fn config(data: &[u8]) {
    let json = match data.first() {
        Some(b'{' | b'[') => match serde_json::from_slice(data) {
            Ok(json) => json,
            Err(_) => return,
        },
        _ => {
            let mut input = Input::new(data);
            let mut json = models()[input.below(2)].config.clone();
            input.changes(|input| input.edit(&mut json));
            json
        }
    };
    match Architecture::from_json(json, Path::new("config.json")) {
        Ok(arch) => {
            used(arch.linear_layers().take(1000).count());
            used((arch.linear_count(), arch.attention_dropout(), format!("{:?}", arch.ropes)));
        }
        Err(error) => assert!(error.to_string().contains("config.json"), "{error}"),
    }
}
