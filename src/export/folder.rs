//! A model on disk to a folder in the layout of another tool, tensor by tensor.

use super::{ModelWriter, OnTensor, Summary, Written, floats::narrow};
use crate::{
    DType, Error, Result,
    arch::{Architecture, Role},
    format::{
        Checkpoint, Kind, Stored, Weights,
        atomic::{self, AtomicFolder},
        checkpoint::{Basis, Rounding},
        is_same,
        manifest::Set,
        resolved,
        safetensors::{TensorSpec, Writer},
    },
    gpu::{Gpu, GpuOptions, Tensor},
    model::{LoadOptions, Model, PIECE, Source},
    nn::{InputRounding, Transform},
    ops::{hadamard::read_signs, quantize},
    quant::{Packed, Scheme},
};
use half::bf16;
use std::path::{Path, PathBuf};

/// A model, or a file of tensors, that is to be written with quantized weights.
///
/// Of a model the linear layers of the blocks are quantized; all else stays as stored, or bf16 where GGUF blocks have no
/// counterpart. Of a single safetensors file every matrix of floats is quantized under its own name.
pub struct QuantizedFolder {
    input: Input,
    scheme: Scheme,
    layout: Box<dyn Checkpoint>,
    output: PathBuf,
    items: Vec<Item>,
}

enum Input {
    Model(Box<Source>),
    Tensors(Weights),
}

struct Item {
    name: String,
    action: Action,
}

enum Action {
    /// (out, in), and the dtype that the weight had, as the file says.
    Quantize([usize; 2], DType),
    Copy(TensorSpec),
}

/// A weight to be written.
struct Weight {
    packed: Packed,
    /// That its columns, and perhaps rows, are in.
    basis: Option<Basis>,
    /// How the layer rounds its input with a scale of its own.
    rounding: Option<Rounding>,
}

impl QuantizedFolder {
    /// Opens a Hugging Face folder, a GGUF file or a safetensors file, and checks that it is whole. `layout` is one for
    /// writing weights of `scheme`. Errors: Io, Format, MissingTensor, Shape, Unsupported, Config.
    pub fn open(
        input: impl AsRef<Path>,
        scheme: Scheme,
        layout: Box<dyn Checkpoint>,
        output: impl Into<PathBuf>,
    ) -> Result<QuantizedFolder> {
        let (input, output) = (input.as_ref(), output.into());
        check_output(input, &output)?;
        let weights = Weights::open(input)?;
        let (input, items) = if weights.kind() == Kind::Safetensors {
            let items = weights.names().map(|name| tensor_item(&weights, name)).collect::<Result<Vec<_>>>()?;
            (Input::Tensors(weights), items)
        } else {
            let source = Source::open(input)?;
            if biases(&source.arch) != biases(&Architecture::from_json(source.arch.json.clone(), input)?) {
                let what = format!("biases of {}", input.display());
                let supported = "those of q, k, v and o together, which config.json can tell, or a GGUF file";
                return Err(Error::unsupported(what, "some of q, k, v and o", supported));
            }
            // A device that only counts reads every header and shape, so that nothing is begun with a part missing.
            let counting = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() })?;
            Model::from_source(&counting, &source, &LoadOptions::default())?;
            let items = source.names().iter().map(|name| model_item(&source, name)).collect::<Result<Vec<_>>>()?;
            (Input::Model(Box::new(source)), items)
        };
        let this = QuantizedFolder { input, scheme, layout, output, items };
        // Checks the scheme.
        this.specs()?;
        Ok(this)
    }

    /// The folder or file that is read.
    pub fn input(&self) -> &Path {
        self.weights().path()
    }

    fn absent(&self, name: &str) -> Error {
        Error::MissingTensor { path: self.input().to_owned(), name: name.to_owned(), hint: None }
    }

    /// weight: a quantized weight with what its layer does to the input; vector: a norm's weight, a bias, an embedding or head where it is
    /// not the source's.
    fn write_with(
        &self,
        mut weight: impl FnMut(&str, [usize; 2]) -> Result<Weight>,
        mut vector: impl FnMut(&str) -> Result<Option<Vec<f32>>>,
        on_tensor: OnTensor<'_>,
    ) -> Result<Written> {
        let folder = AtomicFolder::create(&self.output, Set::Model)?;
        let path = folder.folder().join(crate::format::SINGLE);
        let mut writer = Writer::create(&path, self.specs()?)?;
        let mut summary = Summary::default();
        for item in &self.items {
            match &item.action {
                Action::Quantize(shape, dtype) => {
                    let Weight { packed, basis, rounding } = weight(&item.name, *shape)?;
                    let parts = self.layout.tensors(&item.name, &packed, basis.as_ref(), *dtype)?;
                    for (name, bytes) in parts.into_iter().chain(self.layout.input_tensors(&item.name, rounding)?) {
                        writer.write(&name, &bytes)?;
                    }
                    summary.quantized += 1;
                }
                Action::Copy(spec) => {
                    match vector(&item.name)? {
                        Some(values) => writer.write(&spec.name, &narrow(&values, &spec.name, spec.dtype)?)?,
                        None => self.copy(&mut writer, spec)?,
                    }
                    summary.others += 1;
                }
            }
            on_tensor(&item.name)?;
        }
        writer.finish()?;
        if let Input::Model(source) = &self.input {
            self.write_config(source, folder.folder())?;
        }
        let summary = summary.measured(self.weights(), &path)?;
        Ok(Written { summary, folder: Some(folder) })
    }

    fn weights(&self) -> &Weights {
        match &self.input {
            Input::Model(source) => source.weights(),
            Input::Tensors(weights) => weights,
        }
    }

    fn specs(&self) -> Result<Vec<TensorSpec>> {
        let mut specs = Vec::new();
        for item in &self.items {
            match &item.action {
                Action::Quantize(shape, _) => specs.extend(self.layout.specs(&item.name, *shape)?),
                Action::Copy(spec) => specs.push(spec.clone()),
            }
        }
        Ok(specs)
    }

    fn quantize(&self, gpu: &Gpu, name: &str, shape: [usize; 2]) -> Result<Packed> {
        let source = match &self.input {
            Input::Model(source) => source,
            Input::Tensors(weights) => {
                let view = weights.get(name)?;
                let (dtype, bytes) = match view.stored {
                    Stored::Plain(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => (dtype, view.bytes.into()),
                    _ => (DType::F32, std::borrow::Cow::Owned(bytemuck::cast_slice(&view.to_f32()?).to_vec())),
                };
                let floats = floats(gpu, shape, dtype)?;
                floats.write(&bytes)?;
                return quantize::quantize(gpu, name, &floats, shape, self.scheme)?.download();
            }
        };
        if source.scheme(name)? == self.scheme.resolve(shape) && source.basis(name)?.is_none() {
            return source.packed(name, shape);
        }
        source.quantize(gpu, name, shape, self.scheme)?.download()
    }

    fn copy(&self, writer: &mut Writer, spec: &TensorSpec) -> Result<()> {
        let source = match &self.input {
            Input::Tensors(weights) => return writer.write(&spec.name, weights.get(&spec.name)?.bytes),
            Input::Model(source) => source,
        };
        source.check_finite(&spec.name)?;
        if source.weights().kind() != Kind::Gguf {
            return writer.write(&spec.name, source.view(&spec.name)?.bytes);
        }
        let shape = source.shape(&spec.name)?;
        let mut halves: Vec<bf16> = Vec::with_capacity(shape[0] * shape[1]);
        source.for_each_piece(&spec.name, shape, PIECE, |_, values| {
            halves.extend(values.iter().map(|&v| bf16::from_f32(v)));
            Ok(())
        })?;
        writer.write(&spec.name, bytemuck::cast_slice(&halves))
    }

    fn write_config(&self, source: &Source, folder: &Path) -> Result<()> {
        let dtype = self.items.iter().find_map(|item| match &item.action {
            Action::Quantize(_, dtype) => Some(*dtype),
            Action::Copy(_) => None,
        });
        let mut json = source.arch.json.clone();
        let fields = json.as_object_mut().ok_or_else(|| Error::format(self.input(), "config.json is no object"))?;
        match self.layout.config(dtype.unwrap_or(DType::BF16))? {
            serde_json::Value::Null => {
                fields.remove("quantization_config");
                // transformers rounds what it loads to this dtype.
                let name = torch_name(self.widest()?);
                let known =
                    ["dtype", "torch_dtype"].into_iter().filter(|key| fields.contains_key(*key)).collect::<Vec<_>>();
                for key in if known.is_empty() { vec!["dtype"] } else { known } {
                    fields.insert(key.to_owned(), name.into());
                }
            }
            config => {
                fields.insert("quantization_config".to_owned(), config);
            }
        }
        atomic::write_json(folder.join("config.json"), &json)
    }

    /// The floats that hold every tensor of a folder of plain floats as it is stored.
    fn widest(&self) -> Result<DType> {
        let stored: Vec<DType> = self.specs()?.iter().map(|spec| spec.dtype).collect();
        let has = |dtype: &DType| stored.contains(dtype);
        let wide = [DType::F64, DType::F32].into_iter().find(has);
        Ok(wide.unwrap_or(match (has(&DType::F16), has(&DType::BF16)) {
            (true, false) => DType::F16,
            (false, true) => DType::BF16,
            _ => DType::F32,
        }))
    }
}

impl ModelWriter for QuantizedFolder {
    fn source(&self) -> Option<&Source> {
        match &self.input {
            Input::Model(source) => Some(source),
            Input::Tensors(_) => None,
        }
    }

    fn tensors(&self) -> usize {
        self.items.len()
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.specs()?.iter().map(|spec| spec.bytes().unwrap_or(0) as u64).sum())
    }

    fn round(&self, gpu: &dyn Fn() -> Result<Gpu>, on_tensor: OnTensor<'_>) -> Result<Written> {
        let gpu = gpu()?;
        let weight =
            |name: &str, shape| Ok(Weight { packed: self.quantize(&gpu, name, shape)?, basis: None, rounding: None });
        self.write_with(weight, |_| Ok(None), on_tensor)
    }

    fn write_model(&self, model: &Model, on_tensor: OnTensor<'_>) -> Result<Written> {
        let weight = |name: &str, _| {
            let linear = model.linear(name.strip_suffix(".weight").unwrap_or(name)).ok_or_else(|| self.absent(name))?;
            let basis = linear.base.transform.as_ref().map(basis).transpose()?;
            let rounding = match &linear.base.rounding {
                Some(InputRounding::Static { scale }) => Some(Rounding::Static(scale.read::<f32>()?[0])),
                _ => None,
            };
            let packed = linear.base.weight.download()?;
            // Floats that were trained, or that some layers alone were stored in.
            let packed = match self.scheme.is_float() && packed.scheme != self.scheme {
                true => Packed::quantize_named(name, self.scheme, packed.shape, &packed.dequantize())?,
                false => packed,
            };
            Ok(Weight { packed, basis, rounding })
        };
        let learned = |name: &str| model.vector(name).or_else(|| model.trained_table(name));
        self.write_with(weight, |name| learned(name).map(Tensor::read::<f32>).transpose(), on_tensor)
    }
}

/// What torch calls a float dtype.
fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "float64",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The basis that a transform puts a weight into. Waits for the device.
fn basis(transform: &Transform) -> Result<Basis> {
    Ok(match transform {
        Transform::Permute(permutation) => Basis::Order(permutation.order().read()?),
        Transform::Hadamard { input, output } => {
            Basis::Hadamard { input: read_signs(input)?, output: read_signs(output)? }
        }
    })
}

fn floats(gpu: &Gpu, shape: [usize; 2], dtype: DType) -> Result<Tensor> {
    gpu.zeros("a weight to be quantized", shape, dtype)
}

/// The folder's files replace those of the same names; what would then be a mixture of two models is refused.
fn check_output(input: &Path, output: &Path) -> Result<()> {
    if is_same(input, output) || resolved(input).parent().is_some_and(|above| is_same(above, output)) {
        return Err(Error::config("output", "is where the model is read from; choose another folder"));
    }
    if output.join(crate::format::INDEX).exists() {
        let message = format!("{} holds a model in several files; choose another folder", output.display());
        return Err(Error::config("output", message));
    }
    Ok(())
}

/// Which linear layers have a bias.
fn biases(arch: &Architecture) -> Vec<bool> {
    arch.linears.iter().map(|linear| linear.bias).collect()
}

fn tensor_item(weights: &Weights, name: &str) -> Result<Item> {
    let view = weights.get(name)?;
    let Stored::Plain(dtype) = view.stored else {
        return Err(Error::unsupported(format!("tensor {name}"), view.stored, "plain floats"));
    };
    let float = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    let action = match *view.shape {
        [rows, cols] if float && rows > 0 && cols > 0 => {
            Action::Quantize([rows, cols], if dtype == DType::F64 { DType::F32 } else { dtype })
        }
        _ => Action::Copy(TensorSpec::new(name, dtype, view.shape)),
    };
    Ok(Item { name: name.to_owned(), action })
}

fn model_item(source: &Source, name: &str) -> Result<Item> {
    let role = source.arch.role(name);
    let gguf = source.weights().kind() == Kind::Gguf;
    let action = if role.is_some_and(Role::is_linear) {
        let dtype = if gguf { DType::BF16 } else { stored_dtype(source, name)? };
        Action::Quantize(source.shape(name)?, dtype)
    } else if gguf {
        let [rows, cols] = source.shape(name)?;
        let vector = role.is_some_and(Role::is_vector);
        Action::Copy(TensorSpec::new(name, DType::BF16, if vector { vec![cols] } else { vec![rows, cols] }))
    } else {
        let view = source.view(name)?;
        let Stored::Plain(dtype) = view.stored else {
            return Err(Error::unsupported(format!("tensor {name}"), view.stored, "plain floats"));
        };
        Action::Copy(TensorSpec::new(name, dtype, view.shape))
    };
    Ok(Item { name: name.to_owned(), action })
}

/// The dtype of a weight in a folder; of a quantized one that it had before.
fn stored_dtype(source: &Source, name: &str) -> Result<DType> {
    Ok(match source.dtype(name)? {
        DType::F64 => DType::F32,
        dtype => dtype,
    })
}
