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
        atomic, read_json,
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
    quant::Scheme,
    run,
};
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
    /// The version that wrote it.
    fourbit: String,
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
        let fourbit = env!("CARGO_PKG_VERSION").to_owned();
        let record = serde_json::to_vec(&Record { fourbit, linears, block: record });
        let path = self.path(number);
        let record = record.map_err(|e| Error::format(&path, e.to_string()))?;
        let mut tensors = Vec::new();
        for (id, linear) in block.linears() {
            tensors.extend(tensors_of(id, &linear.base));
        }
        tensors.extend(block.norms().map(|(id, norm)| (norm_name(id), norm.weight.values.clone())));
        let spec = |(name, tensor): &(String, Tensor)| TensorSpec::new(name, DType::U8, [tensor.bytes() as usize]);
        let mut specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        specs.push(TensorSpec::new(RECORD, DType::U8, [record.len()]));
        let mut file = Writer::create(path, specs)?;
        for (name, tensor) in &tensors {
            file.write(name, &bytes_of(tensor)?)?;
        }
        file.write(RECORD, &record)?;
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
        let name = |part: &str| format!("{id:?}.{part}");
        let bytes = |part: &str| Ok::<&[u8], Error>(file.get(&name(part))?.bytes);
        let given = |part: &str| if file.contains(&name(part)) { bytes(part) } else { Ok(&[][..]) };
        let [outputs, inputs] = self.shape;
        let scheme: Scheme = self.scheme.parse()?;
        let [words, ..] = scheme.words(self.shape);
        let mut codes = Vec::new();
        for part in 0.. {
            match given(&codes_name(part))? {
                [] => break,
                part => codes.extend_from_slice(part),
            }
        }
        // Without what pads the last vec4.
        codes.truncate(4 * words);
        let nested: Vec<f32> = bytemuck::pod_collect_to_vec(given("nested")?);
        let mut linear = Linear::new(
            QuantizedTensor::from_bytes(gpu, &name("weight"), scheme, self.shape, &codes, given("scales")?, &nested)?,
            None,
        );
        let tensor = |part: &str, len: usize, dtype: DType| -> Result<Tensor> {
            let tensor = gpu.zeros(&name(part), [len], dtype)?;
            tensor.write(bytes(part)?)?;
            Ok(tensor)
        };
        if file.contains(&name("bias")) {
            linear.bias = Some(tensor("bias", outputs, DType::F32)?);
        }
        let map = |part: &str, cols: usize| -> Result<Hadamard> {
            // Signs are bits until they are fine-tuned.
            let (real, words) = (4 * cols, cols.div_ceil(32));
            let signs = match bytes(part)?.len() == real && real > 4 * words {
                true => tensor(part, cols, DType::F32)?,
                false => tensor(part, words, DType::U32)?,
            };
            Hadamard::around(gpu, cols, signs, factors)
        };
        linear.transform = match self.transform {
            None => None,
            Some(TransformKind::Permute) => {
                let order: Vec<u32> = bytemuck::pod_collect_to_vec(bytes("order")?);
                Some(Transform::Permute(Permutation::upload(gpu, &name("order"), &order)?))
            }
            Some(TransformKind::Hadamard) => {
                let (input, output) = (map("signs_in", inputs)?, map("signs_out", outputs)?);
                Some(Transform::Hadamard { input, output })
            }
        };
        linear.rounding = match self.rounding {
            None => None,
            Some(RoundingKind::Dynamic) => Some(InputRounding::Dynamic),
            Some(RoundingKind::Static) => Some(InputRounding::Static { scale: tensor("input_scale", 1, DType::F32)? }),
            Some(RoundingKind::LlmInt8 { threshold }) => Some(InputRounding::LlmInt8 { threshold }),
        };
        Ok(linear)
    }
}

fn codes_name(part: usize) -> String {
    format!("codes.{part}")
}

/// All that a layer holds on the device.
fn tensors_of(id: LinearId, linear: &Linear) -> Vec<(String, Tensor)> {
    let Linear { weight, bias, transform, rounding } = linear;
    let mut tensors: Vec<(String, Option<&Tensor>)> = Vec::new();
    tensors.extend(weight.parts().iter().enumerate().map(|(part, codes)| (codes_name(part), Some(codes))));
    tensors.push(("scales".into(), weight.scales()));
    tensors.push(("nested".into(), weight.nested()));
    tensors.push(("bias".into(), bias.as_ref()));
    match transform {
        None => {}
        Some(Transform::Permute(permutation)) => tensors.push(("order".into(), Some(permutation.order()))),
        Some(Transform::Hadamard { input, output }) => {
            tensors.push(("signs_in".into(), Some(input.signs())));
            tensors.push(("signs_out".into(), Some(output.signs())));
        }
    }
    match rounding {
        None | Some(InputRounding::Dynamic | InputRounding::LlmInt8 { .. }) => {}
        Some(InputRounding::Static { scale }) => tensors.push(("input_scale".into(), Some(scale))),
    }
    let named = |(part, tensor): (String, Option<&Tensor>)| Some((format!("{id:?}.{part}"), tensor?.clone()));
    tensors.into_iter().filter_map(named).collect()
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let bytes = tensor.bytes() as usize;
    let raw = Tensor::view(tensor.buffer.clone(), tensor.offset, [bytes].into(), DType::U8);
    raw.read::<u8>()
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
        "recipe": recipe.to_string(),
        "options": recipe.options,
        "calibration": samples.finalize().to_hex().as_str(),
        "model": model.finalize().to_hex().as_str(),
    }))
}
