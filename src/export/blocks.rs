//! Blocks that are done, kept on disk, so that a run that was stopped goes on behind them.
//!
//! | file | contents |
//! |---|---|
//! | `run.json` | what run it is |
//! | `block-N.safetensors` | block N as it lies on the device: nothing is rounded to a layout of other tools |

use crate::{
    DType, Error, Result,
    arch::{LinearId, NormId},
    format::{
        Stored, atomic, read_json,
        safetensors::{Safetensors, TensorSpec, Writer},
    },
    gpu::{Gpu, Tensor},
    kernels::{
        QuantizedTensor,
        hadamard::{Factors, Hadamard},
    },
    method::{BlockRecord, DoneBlocks, Recipe},
    model::{Block, Source},
    nn::{InputRounding, Linear, Permutation, Transform},
    quant::Packed,
    run,
};
use bytemuck::{cast_slice, pod_collect_to_vec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const RUN: &str = "run.json";
/// What a block's file says beside its tensors, as JSON.
const RECORD: &str = "record";
/// Bytes at each end of a tensor of the source by which another one is known.
const END: usize = 4096;

/// A folder of blocks that are done.
///
/// With what a run left there, [`quantize_model`](crate::method::quantize_model) runs the calibration text through those blocks as they are
/// and goes on behind them: on the same device and driver with the same bits.
pub struct BlockFolder {
    folder: PathBuf,
    factors: Factors,
}

/// What is known of a block beside its tensors.
#[derive(Serialize, Deserialize)]
struct Record {
    linears: Vec<LinearRecord>,
    block: BlockRecord,
}

#[derive(Serialize, Deserialize)]
struct LinearRecord {
    scheme: String,
    shape: [usize; 2],
    transform: Option<TransformKind>,
    rounding: Option<RoundingKind>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TransformKind {
    Permute,
    Hadamard,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RoundingKind {
    Dynamic,
    Static,
    LlmInt8 { threshold: f32 },
}

impl BlockFolder {
    /// The blocks of a run of `recipe` on `source`, in a folder that is made if need be. `resume`: whether those that are there are
    /// taken. Errors: Config for blocks that are there where `resume` is false, and for those of another run, naming the
    /// difference; Io, Format.
    pub fn open(
        folder: impl Into<PathBuf>,
        recipe: &Recipe,
        source: &Source,
        calibration: &[Vec<u32>],
        resume: bool,
    ) -> Result<BlockFolder> {
        let this = BlockFolder { folder: folder.into(), factors: Factors::default() };
        let run = identity(recipe, source, calibration)?;
        let (count, path) = (this.count(), this.folder.join(RUN));
        if count > 0 && !resume {
            let message = format!(
                "{} holds {count} of {} blocks of a run that was stopped: resume it (--resume), or remove that folder to begin anew",
                this.folder.display(),
                source.arch().blocks.len()
            );
            return Err(Error::config("output", message));
        }
        if count > 0 {
            run::check_same(&this.folder, &read_json(&path)?, &run, &[])?;
        } else {
            fs::create_dir_all(&this.folder).map_err(Error::io(&this.folder))?;
            atomic::write_json(path, &run)?;
        }
        Ok(this)
    }

    /// Bytes of the blocks that such a folder holds.
    pub fn bytes(folder: &Path) -> u64 {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Blocks that are done, from the first on.
    pub fn count(&self) -> usize {
        (0..).take_while(|&number| self.path(number).is_file()).count()
    }

    /// Removes the folder, once the model is written. Errors: Io.
    pub fn remove(&self) -> Result<()> {
        atomic::remove_folder(&self.folder)
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("block-{number}.safetensors"))
    }
}

impl DoneBlocks for BlockFolder {
    /// One tensor at a time. Errors: Io, Device.
    fn write(&self, number: usize, block: &Block, record: BlockRecord) -> Result<()> {
        let linears = block.linears().map(|(_, linear)| LinearRecord::of(&linear.base)).collect();
        let path = self.path(number);
        let record = serde_json::to_vec(&Record { linears, block: record });
        let record = record.map_err(|e| Error::format(&path, e.to_string()))?;
        let mut specs = vec![TensorSpec::new(RECORD, DType::U8, [record.len()])];
        let mut tensors = Vec::new();
        for (id, linear) in block.linears() {
            let weight = &linear.base.weight;
            let parts = PARTS.into_iter().zip(weight.scheme().words(weight.shape()));
            specs.extend(parts.map(|((part, dtype), words)| TensorSpec::new(part_name(id, part), dtype, [words])));
            tensors.extend(tensors_of(id, &linear.base));
        }
        tensors.extend(block.norms().map(|(id, norm)| (norm_name(id), norm.weight.values.clone())));
        let spec = |(name, tensor): &(String, Tensor)| TensorSpec::new(name, tensor.dtype(), tensor.shape().dims());
        specs.extend(tensors.iter().map(spec));
        let mut file = Writer::create(path, specs)?;
        file.write(RECORD, &record)?;
        for (id, linear) in block.linears() {
            let Packed { codes, scales, nested, .. } = linear.base.weight.download()?;
            let words: [&[u8]; 3] = [cast_slice(&codes), cast_slice(&scales), cast_slice(&nested)];
            for ((part, _), words) in PARTS.into_iter().zip(words) {
                file.write(&part_name(id, part), words)?;
            }
        }
        for (name, tensor) in &tensors {
            // Signs are bits until they are fine-tuned.
            match tensor.dtype() {
                DType::U32 => file.write(name, cast_slice(&tensor.read::<u32>()?))?,
                _ => file.write(name, cast_slice(&tensor.read::<f32>()?))?,
            }
        }
        file.finish()
    }

    /// Errors: Io, Format, MissingTensor, Shape, OutOfMemory, Device.
    fn read(&self, gpu: &Gpu, number: usize, block: &mut Block) -> Result<Option<BlockRecord>> {
        let path = self.path(number);
        if !path.is_file() {
            return Ok(None);
        }
        let file = Safetensors::open(&path)?;
        let record: Record =
            serde_json::from_slice(file.get(RECORD)?.bytes).map_err(|e| Error::format(&path, e.to_string()))?;
        let mut linears = record.linears.iter();
        block.for_each_linear(|id, linear| {
            let other = |message: String| Error::format(&path, format!("{}: {message}", linear.name));
            let kept = linears.next().ok_or_else(|| other("the file says nothing of it".into()))?;
            let shape = linear.base.weight.shape();
            if kept.shape != shape {
                return Err(other(format!("expected {shape:?}, got {:?}", kept.shape)));
            }
            linear.base = kept.restore(gpu, &file, id, &self.factors)?;
            Ok(())
        })?;
        for (id, norm) in block.norms() {
            norm.weight.values.write(file.get(&norm_name(id))?.bytes)?;
        }
        Ok(Some(record.block))
    }
}

fn norm_name(id: NormId) -> String {
    format!("{id:?}.norm")
}

impl LinearRecord {
    fn of(linear: &Linear) -> LinearRecord {
        LinearRecord {
            scheme: linear.weight.scheme().to_string(),
            shape: linear.weight.shape(),
            transform: linear.transform.as_ref().map(|transform| match transform {
                Transform::Permute(_) => TransformKind::Permute,
                Transform::Hadamard { .. } => TransformKind::Hadamard,
            }),
            rounding: linear.rounding.as_ref().map(|rounding| match *rounding {
                InputRounding::Dynamic => RoundingKind::Dynamic,
                InputRounding::Static { .. } => RoundingKind::Static,
                InputRounding::LlmInt8 { threshold } => RoundingKind::LlmInt8 { threshold },
            }),
        }
    }

    fn restore(&self, gpu: &Gpu, file: &Safetensors, id: LinearId, factors: &Factors) -> Result<Linear> {
        let view = |part: &str| file.get(&part_name(id, part));
        let words = |part: &str| Ok::<Vec<u32>, Error>(pod_collect_to_vec(view(part)?.bytes));
        let nested = pod_collect_to_vec(view("nested")?.bytes);
        let packed = Packed::new(self.scheme.parse()?, self.shape, words("codes")?, words("scales")?, nested)?;
        let tensor = |part: &str| -> Result<Tensor> {
            let (view, name) = (view(part)?, part_name(id, part));
            let dtype = if view.stored == Stored::Plain(DType::U32) { DType::U32 } else { DType::F32 };
            let tensor = gpu.zeros(&name, view.shape.to_vec(), dtype)?;
            tensor.write(view.bytes)?;
            Ok(tensor)
        };
        let [outputs, inputs] = self.shape;
        let map = |part: &str, cols: usize| Hadamard::around(gpu, cols, tensor(part)?, factors);
        Ok(Linear {
            weight: QuantizedTensor::upload(gpu, &part_name(id, "weight"), &packed)?,
            bias: file.contains(&part_name(id, "bias")).then(|| tensor("bias")).transpose()?,
            transform: match self.transform {
                None => None,
                Some(TransformKind::Permute) => {
                    let order = Permutation::upload(gpu, &part_name(id, "order"), &words("order")?)?;
                    Some(Transform::Permute(order))
                }
                Some(TransformKind::Hadamard) => {
                    let (input, output) = (map("signs_in", inputs)?, map("signs_out", outputs)?);
                    Some(Transform::Hadamard { input, output })
                }
            },
            rounding: match self.rounding {
                None => None,
                Some(RoundingKind::Dynamic) => Some(InputRounding::Dynamic),
                Some(RoundingKind::Static) => Some(InputRounding::Static { scale: tensor("input_scale")? }),
                Some(RoundingKind::LlmInt8 { threshold }) => Some(InputRounding::LlmInt8 { threshold }),
            },
        })
    }
}

/// The arrays of a weight ([`Packed`]), which may be empty.
const PARTS: [(&str, DType); 3] = [("codes", DType::U32), ("scales", DType::U32), ("nested", DType::F32)];

fn part_name(id: LinearId, part: &str) -> String {
    format!("{id:?}.{part}")
}

/// What a layer holds on the device beside its weight.
fn tensors_of(id: LinearId, linear: &Linear) -> impl Iterator<Item = (String, Tensor)> {
    let (order, signs_in, signs_out) = match &linear.transform {
        None => (None, None, None),
        Some(Transform::Permute(permutation)) => (Some(permutation.order()), None, None),
        Some(Transform::Hadamard { input, output }) => (None, Some(input.signs()), Some(output.signs())),
    };
    let input_scale = match &linear.rounding {
        None | Some(InputRounding::Dynamic | InputRounding::LlmInt8 { .. }) => None,
        Some(InputRounding::Static { scale }) => Some(scale),
    };
    let all = [
        ("bias", linear.bias.as_ref()),
        ("order", order),
        ("signs_in", signs_in),
        ("signs_out", signs_out),
        ("input_scale", input_scale),
    ];
    all.into_iter().filter_map(move |(part, tensor)| Some((part_name(id, part), tensor?.clone())))
}

/// All that decides what the blocks are.
fn identity(recipe: &Recipe, source: &Source, calibration: &[Vec<u32>]) -> Result<Value> {
    let mut samples = blake3::Hasher::new();
    for ids in calibration {
        samples.update(&(ids.len() as u64).to_le_bytes());
        samples.update(bytemuck::cast_slice(ids));
    }
    let weights = source.weights();
    let mut model = blake3::Hasher::new();
    model.update(source.arch().json.to_string().as_bytes());
    for name in weights.names() {
        let view = weights.get(name)?;
        model.update(format!("{name} {:?} {:?}", view.stored, view.shape).as_bytes());
        model.update(&view.bytes[..view.bytes.len().min(END)]);
        model.update(&view.bytes[view.bytes.len().saturating_sub(END)..]);
    }
    Ok(json!({
        "fourbit": env!("CARGO_PKG_VERSION"),
        "recipe": recipe.to_string(),
        "options": recipe.options,
        "calibration": samples.finalize().to_hex().as_str(),
        "model": model.finalize().to_hex().as_str(),
    }))
}
