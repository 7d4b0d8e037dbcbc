//! A model on disk to a model on the device, tensor by tensor.

use super::{Block, Config, Model, Source};
use crate::{
    DType, Error, Result,
    adapter::AdaptedLinear,
    format::checkpoint::{Basis, Rounding},
    gpu::{Gpu, Tensor},
    kernels::{
        QuantizedTensor,
        hadamard::{Factors, Hadamard},
        quantize,
    },
    nn::{Activations, Linear, Permutation, RmsNorm, Transform},
    quant::{Packed, Scheme},
};
use std::path::Path;

/// In which scheme the blocks' linear layers are held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Quantization {
    /// As stored.
    #[default]
    AsStored,
    /// In this scheme ([`Scheme::fitting`] where GGUF's blocks do not divide the rows). Weights that are stored in it already are
    /// taken as they are.
    To(Scheme),
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The linear layers' scheme; embedding, head and norms stay as stored.
    pub quantization: Quantization,
}

/// Elements that are converted on the host at once.
const PIECE: usize = 4 << 20;

impl Model {
    /// Loads a Hugging Face folder, also a quantized one, or a GGUF file. Streams: the host holds one tensor at a time.
    /// Errors: Io, Format, MissingTensor, Shape, Unsupported, OutOfMemory.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>, options: &LoadOptions) -> Result<Model> {
        Model::from_source(gpu, &Source::open(path)?, options)
    }

    /// Loads from an opened source.
    pub fn from_source(gpu: &Gpu, source: &Source, options: &LoadOptions) -> Result<Model> {
        let mut model = Model::without_blocks(gpu, source)?;
        let loader = Loader::new(gpu, source, options.quantization);
        let layers = 0..source.config.layers;
        model.blocks = layers.map(|layer| loader.block(&source.config, layer)).collect::<Result<_>>()?;
        Ok(model)
    }

    /// Embedding, head and final norm as stored, and no block yet: what works through the blocks one by one begins with it.
    /// Errors: as [`Model::load`].
    pub fn without_blocks(gpu: &Gpu, source: &Source) -> Result<Model> {
        let loader = Loader::new(gpu, source, Quantization::AsStored);
        let c = &source.config;
        let table = [c.vocab_size, c.hidden_size];
        let embedding = loader.table("model.embed_tokens.weight", table)?;
        let head = match c.tie_embeddings {
            true => None,
            false => Some(loader.table("lm_head.weight", table)?),
        };
        let norm = loader.norm("model.norm.weight")?;
        Ok(Model {
            config: c.clone(),
            embedding,
            blocks: Vec::new(),
            norm,
            head,
            adapter: None,
            qat: None,
            gpu: gpu.clone(),
        })
    }

    /// Block number `layer` alone. Errors: as [`Model::load`].
    pub fn load_block(gpu: &Gpu, source: &Source, layer: usize, options: &LoadOptions) -> Result<Block> {
        Loader::new(gpu, source, options.quantization).block(&source.config, layer)
    }
}

struct Loader<'a> {
    gpu: &'a Gpu,
    source: &'a Source,
    quantization: Quantization,
    factors: Factors,
}

impl<'a> Loader<'a> {
    fn new(gpu: &'a Gpu, source: &'a Source, quantization: Quantization) -> Loader<'a> {
        Loader { gpu, source, quantization, factors: Factors::default() }
    }

    fn block(&self, c: &Config, layer: usize) -> Result<Block> {
        let name = |module: &str| format!("model.layers.{layer}.{module}");
        let [q, k, v, o, gate, up, down] = c.linears();
        let linear = |(module, shape): (&str, [usize; 2]), bias: bool| self.linear(name(module), shape, bias);
        Ok(Block {
            input_norm: self.norm(&name("input_layernorm.weight"))?,
            post_norm: self.norm(&name("post_attention_layernorm.weight"))?,
            q: linear(q, c.qkv_bias)?,
            k: linear(k, c.qkv_bias)?,
            v: linear(v, c.qkv_bias)?,
            o: linear(o, c.o_bias)?,
            gate: linear(gate, c.mlp_bias)?,
            up: linear(up, c.mlp_bias)?,
            down: linear(down, c.mlp_bias)?,
            window: c.windows[layer],
        })
    }

    fn norm(&self, name: &str) -> Result<RmsNorm> {
        let c = &self.source.config;
        Ok(RmsNorm { weight: self.vector(name, c.hidden_size)?, eps: c.rms_norm_eps })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.gpu.tensor(name, [len], DType::F32, &self.source.vector(name, len)?)
    }

    fn linear(&self, name: String, shape: [usize; 2], bias: bool) -> Result<AdaptedLinear> {
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), shape[0])?) } else { None };
        let base = self.frozen(&format!("{name}.weight"), shape, bias)?;
        Ok(AdaptedLinear::new(name, base))
    }

    /// A layer with its weight in the scheme asked for: as stored, with all that the file says is done to its input.
    fn frozen(&self, name: &str, shape: [usize; 2], bias: Option<Tensor>) -> Result<Linear> {
        match self.quantization {
            Quantization::To(scheme) if self.source.scheme(name)? != scheme.fitting(shape[1]) => {
                Ok(Linear::new(self.converted(name, shape, scheme.fitting(shape[1]))?, bias))
            }
            _ => {
                let weight = self.stored(name, shape)?;
                let input = self.source.basis(name)?.map(|basis| self.transform(name, &basis)).transpose()?;
                Ok(Linear { input, activation: self.activation(name)?, ..Linear::new(weight, bias) })
            }
        }
    }

    /// What a layer does around a weight in this basis.
    fn transform(&self, name: &str, basis: &Basis) -> Result<Transform> {
        let map = |signs: &[f32]| Hadamard::of_signs(self.gpu, signs, &self.factors);
        Ok(match basis {
            Basis::Order(order) => Transform::Permute(Permutation::upload(self.gpu, name, order)?),
            Basis::Hadamard { input, output } => Transform::Hadamard { input: map(input)?, output: map(output)? },
        })
    }

    /// How a stored layer rounds its input.
    fn activation(&self, name: &str) -> Result<Option<Activations>> {
        Ok(match self.source.rounding(name)? {
            None => None,
            Some(Rounding::Dynamic) => Some(Activations::Dynamic),
            Some(Rounding::LlmInt8 { threshold }) => Some(Activations::LlmInt8 { threshold }),
            Some(Rounding::Static(scale)) => {
                let scale = self.gpu.tensor(name, [1], DType::F32, &[scale])?;
                Some(Activations::Static { scale })
            }
        })
    }

    /// Embedding or head. Errors: Unsupported in another basis, which only a linear layer can undo.
    fn table(&self, name: &str, shape: [usize; 2]) -> Result<QuantizedTensor> {
        match self.source.basis(name)? {
            None => self.stored(name, shape),
            Some(_) => {
                Err(Error::unsupported(format!("the basis of {name}"), "another order or transforms", "its own"))
            }
        }
    }

    /// A weight in the scheme it is stored in.
    fn stored(&self, name: &str, shape: [usize; 2]) -> Result<QuantizedTensor> {
        let scheme = self.source.scheme(name)?;
        if self.gpu.is_dry() {
            self.check(name, shape)?;
            return QuantizedTensor::zeros(self.gpu, name, scheme, shape);
        }
        if let Some((_, bytes)) = self.source.plain(name)? {
            self.check(name, shape)?;
            return QuantizedTensor::from_bytes(self.gpu, name, scheme, shape, bytes, &[], &[]);
        }
        QuantizedTensor::upload(self.gpu, name, &self.source.packed(name, shape)?)
    }

    fn check(&self, name: &str, shape: [usize; 2]) -> Result<()> {
        let got = self.source.shape(name)?;
        match got == shape {
            true => Ok(()),
            false => {
                let op = format!("{}: tensor {name}", self.source.path().display());
                Err(Error::shape(op, format!("{shape:?}"), format!("{got:?}")))
            }
        }
    }

    /// A weight quantized from what is stored: on the device, but on the host where scales are searched for.
    fn converted(&self, name: &str, shape: [usize; 2], scheme: Scheme) -> Result<QuantizedTensor> {
        scheme.validate()?;
        self.check(name, shape)?;
        if !quantize::rounds(scheme) {
            if self.gpu.is_dry() {
                return QuantizedTensor::zeros(self.gpu, name, scheme, shape);
            }
            let mut values = Vec::with_capacity(shape[0] * shape[1]);
            self.source.for_each_piece(name, shape, PIECE, |_, piece| {
                values.extend_from_slice(piece);
                Ok(())
            })?;
            let packed = Packed::quantize_named(&format!("tensor {name}"), scheme, shape, &values)?;
            return QuantizedTensor::upload(self.gpu, name, &packed);
        }
        let plain = self.source.plain(name)?;
        let dtype = plain.map_or(DType::F32, |(dtype, _)| dtype);
        let floats = self.gpu.zeros("a weight to be quantized", shape, dtype)?;
        if self.gpu.is_dry() {
            return QuantizedTensor::zeros(self.gpu, name, scheme, shape);
        }
        match plain {
            Some((_, bytes)) => floats.write(bytes)?,
            None => self.source.for_each_piece(name, shape, PIECE, |start, values| {
                floats.write_at(start, bytemuck::cast_slice(values))
            })?,
        }
        quantize::quantize(self.gpu, name, &floats, shape, scheme)
    }
}
