//! A model on disk to a model on the device, tensor by tensor.

use super::{Block, Model, PIECE, Source};
use crate::{
    DType, Error, Result,
    adapter::Store,
    arch::{Architecture, AttentionSpec, EMBEDDING, HEAD, LinearId, NormId, Role},
    format::checkpoint::{Basis, Rounding},
    gpu::{Gpu, Tensor},
    kernels::{
        QuantizedTensor,
        hadamard::{Factors, Hadamard},
    },
    nn::{
        Adapted, Attention, FeedForward, InputRounding, Linear, Parameter, Permutation, Projections, RmsNorm, Transform,
    },
    ops::quantize,
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
        let blocks = 0..source.arch.blocks.len();
        model.blocks = blocks.map(|block| loader.block(block)).collect::<Result<_>>()?;
        Ok(model)
    }

    /// Embedding, head and final norm as stored, and no block yet: what works through the blocks one by one begins with it.
    /// Errors: as [`Model::load`].
    pub fn without_blocks(gpu: &Gpu, source: &Source) -> Result<Model> {
        let loader = Loader::new(gpu, source, Quantization::AsStored);
        let arch = &source.arch;
        let table = [arch.vocab_size, arch.hidden_size];
        let embedding = loader.table(EMBEDDING, table)?;
        let head = match arch.tie_embeddings {
            true => None,
            false => Some(loader.table(HEAD, table)?),
        };
        let norm = loader.norm(Role::FinalNorm, arch.hidden_size)?;
        Ok(Model {
            arch: arch.clone(),
            embedding,
            blocks: Vec::new(),
            norm,
            head,
            adapter: None,
            qat: None,
            store: Store::default(),
            gpu: gpu.clone(),
        })
    }

    /// Block number `layer` alone. Errors: as [`Model::load`].
    pub fn load_block(gpu: &Gpu, source: &Source, layer: usize, options: &LoadOptions) -> Result<Block> {
        Loader::new(gpu, source, options.quantization).block(layer)
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

    fn arch(&self) -> &Architecture {
        &self.source.arch
    }

    fn block(&self, number: usize) -> Result<Block> {
        let spec = self.arch().blocks[number];
        let AttentionSpec { heads, kv_heads, head_dim, scale, soft_cap } = self.arch().attention;
        let norm = |id| self.arch().norm(id).map(|spec| self.norm(Role::Norm(number, id), spec.width)).transpose();
        let linear = |id| self.linear(number, id);
        let (width, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv = match self.arch().linear(LinearId::Qkv) {
            Some(_) => Projections::fused(linear(LinearId::Qkv)?, [width, kv, kv]),
            None => Projections::apart([linear(LinearId::Q)?, linear(LinearId::K)?, linear(LinearId::V)?]),
        };
        let attention = Attention {
            qkv,
            o: linear(LinearId::O)?,
            q_norm: norm(NormId::Query)?,
            k_norm: norm(NormId::Key)?,
            heads,
            kv_heads,
            head_dim,
            scale,
            soft_cap,
            window: spec.window,
            rope: spec.rope,
        };
        let gate_up = match self.arch().linear(LinearId::GateUp) {
            Some(_) => Projections::fused(linear(LinearId::GateUp)?, [self.arch().intermediate_size; 2]),
            None => Projections::apart([linear(LinearId::Gate)?, linear(LinearId::Up)?]),
        };
        let feed_forward = FeedForward { gate_up, down: linear(LinearId::Down)?, activation: self.arch().activation };
        Ok(Block {
            attention_norm: norm(NormId::Attention)?,
            attention,
            after_attention_norm: norm(NormId::AfterAttention)?,
            feed_forward_norm: norm(NormId::FeedForward)?,
            feed_forward,
            after_feed_forward_norm: norm(NormId::AfterFeedForward)?,
            residual_factor: self.arch().residual_factor,
        })
    }

    fn norm(&self, role: Role, width: usize) -> Result<RmsNorm> {
        let weight = self.vector(&self.arch().name(role), width)?;
        Ok(RmsNorm { weight: Parameter::frozen(weight), offset: self.arch().norm_offset, eps: self.arch().norm_eps })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.gpu.tensor(name, [len], DType::F32, &self.source.vector(name, len)?)
    }

    fn linear(&self, block: usize, id: LinearId) -> Result<Adapted> {
        let arch = self.arch();
        let spec = arch.linear(id).expect("ids are those of the family");
        let bias = match spec.bias {
            true => Some(self.vector(&arch.name(Role::Bias(block, id)), spec.shape[0])?),
            false => None,
        };
        let base = self.frozen(&arch.name(Role::Weight(block, id)), spec.shape, bias)?;
        Ok(Adapted::new(arch.module(block, id), base))
    }

    /// A layer with its weight in the scheme asked for: as stored, with all that the file says is done to its input.
    fn frozen(&self, name: &str, shape: [usize; 2], bias: Option<Tensor>) -> Result<Linear> {
        match self.quantization {
            Quantization::To(scheme) if self.source.scheme(name)? != scheme.fitting(shape[1]) => {
                Ok(Linear::new(self.source.quantize(self.gpu, name, shape, scheme.fitting(shape[1]))?, bias))
            }
            _ => {
                let weight = self.stored(name, shape)?;
                let transform = self.source.basis(name)?.map(|basis| self.transform(name, &basis)).transpose()?;
                Ok(Linear { transform, rounding: self.rounding(name)?, ..Linear::new(weight, bias) })
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
    fn rounding(&self, name: &str) -> Result<Option<InputRounding>> {
        Ok(match self.source.rounding(name)? {
            None => None,
            Some(Rounding::Dynamic) => Some(InputRounding::Dynamic),
            Some(Rounding::LlmInt8 { threshold }) => Some(InputRounding::LlmInt8 { threshold }),
            Some(Rounding::Static(scale)) => {
                let scale = self.gpu.tensor(name, [1], DType::F32, &[scale])?;
                Some(InputRounding::Static { scale })
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
            self.source.expect(name, shape)?;
            return QuantizedTensor::zeros(self.gpu, name, scheme, shape);
        }
        self.source.check_finite(name)?;
        if let Some((_, bytes)) = self.source.plain(name)? {
            self.source.expect(name, shape)?;
            return QuantizedTensor::from_bytes(self.gpu, name, scheme, shape, bytes, &[], &[]);
        }
        QuantizedTensor::upload(self.gpu, name, &self.source.packed(name, shape)?)
    }
}

impl Source {
    /// A weight quantized from what is stored: on the device, but on the host where scales are searched for. Errors: MissingTensor,
    /// Format, Shape, Config for numbers that cannot be held, OutOfMemory, Device.
    pub(crate) fn quantize(&self, gpu: &Gpu, name: &str, shape: [usize; 2], scheme: Scheme) -> Result<QuantizedTensor> {
        scheme.validate()?;
        self.expect(name, shape)?;
        if !quantize::rounds(scheme) {
            if gpu.is_dry() {
                return QuantizedTensor::zeros(gpu, name, scheme, shape);
            }
            let mut values = Vec::with_capacity(shape[0] * shape[1]);
            self.for_each_piece(name, shape, PIECE, |_, piece| {
                values.extend_from_slice(piece);
                Ok(())
            })?;
            let packed = Packed::quantize_named(&format!("tensor {name}"), scheme, shape, &values)?;
            return QuantizedTensor::upload(gpu, name, &packed);
        }
        let plain = self.plain(name)?;
        let dtype = plain.map_or(DType::F32, |(dtype, _)| dtype);
        let floats = gpu.zeros("a weight to be quantized", shape, dtype)?;
        if gpu.is_dry() {
            return QuantizedTensor::zeros(gpu, name, scheme, shape);
        }
        match plain {
            Some((_, bytes)) => floats.write(bytes)?,
            None => self.for_each_piece(name, shape, PIECE, |start, values| {
                floats.write_at(start, bytemuck::cast_slice(values))
            })?,
        }
        quantize::quantize(gpu, name, &floats, shape, scheme)
    }
}
