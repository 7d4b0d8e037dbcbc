//! A model on disk to a model on the device, tensor by tensor.

use super::{Block, Model, PIECE, Source, parts::Parts};
use crate::{
    DType, Error, Result,
    arch::{Architecture, Role},
    format::checkpoint::{Basis, Rounding},
    gpu::{Gpu, Tensor},
    kernels::{
        QuantizedTensor,
        hadamard::{Factors, Hadamard},
    },
    nn::{InputRounding, Linear, Permutation, Transform},
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
        Loader::new(gpu, source, options.quantization).model()
    }

    /// Embedding, head and final norm as stored, and no block yet: what works through the blocks one by one begins with it.
    /// Errors: as [`Model::load`].
    pub fn without_blocks(gpu: &Gpu, source: &Source) -> Result<Model> {
        Loader::new(gpu, source, Quantization::AsStored).without_blocks()
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

impl Parts for Loader<'_> {
    fn gpu(&self) -> &Gpu {
        self.gpu
    }

    fn arch(&self) -> &Architecture {
        &self.source.arch
    }

    fn vector(&self, role: Role, len: usize) -> Result<Tensor> {
        let name = self.arch().name(role);
        self.gpu.tensor(&name, [len], DType::F32, &self.source.vector(&name, len)?)
    }

    /// A layer with its weight in the scheme asked for: as stored, with all that the file says is done to its input.
    fn linear(&self, role: Role, shape: [usize; 2], bias: Option<Tensor>) -> Result<Linear> {
        let name = &self.arch().name(role);
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

    /// Errors: Unsupported in another basis, which only a linear layer can undo.
    fn table(&self, role: Role, shape: [usize; 2]) -> Result<QuantizedTensor> {
        let name = &self.arch().name(role);
        match self.source.basis(name)? {
            None => self.stored(name, shape),
            Some(_) => {
                Err(Error::unsupported(format!("the basis of {name}"), "another order or transforms", "its own"))
            }
        }
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
