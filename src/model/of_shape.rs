//! Models of a shape without files: random weights, made on the device.

use super::{Model, parts::Parts};
use crate::{
    DType, Result,
    arch::{Architecture, Role},
    gpu::{Gpu, Tensor},
    kernels::QuantizedTensor,
    nn::Linear,
    quant::Scheme,
    random::mix,
};

impl Model {
    /// A model of random weights: linear layers of the blocks in `scheme`, embedding and head in bf16, norms of 1, no biases but 0.
    /// It costs what a model with files costs, and says nothing. Errors: Config, Shape for a scheme that cannot hold the layers;
    /// OutOfMemory, Device.
    pub fn of_shape(gpu: &Gpu, arch: &Architecture, scheme: Scheme, seed: u64) -> Result<Model> {
        scheme.validate()?;
        OfShape { gpu, arch, scheme, seed }.model()
    }
}

struct OfShape<'a> {
    gpu: &'a Gpu,
    arch: &'a Architecture,
    scheme: Scheme,
    seed: u64,
}

impl OfShape<'_> {
    fn random(&self, role: Role, scheme: Scheme, shape: [usize; 2], spread: f64) -> Result<QuantizedTensor> {
        let name = self.arch.name(role);
        let seed = name.bytes().fold(self.seed, |seed, byte| mix(seed ^ u64::from(byte))) as u32;
        QuantizedTensor::random(self.gpu, &name, scheme, shape, spread as f32, seed)
    }
}

impl Parts for OfShape<'_> {
    fn gpu(&self) -> &Gpu {
        self.gpu
    }

    fn arch(&self) -> &Architecture {
        self.arch
    }

    fn vector(&self, role: Role, len: usize) -> Result<Tensor> {
        let value = match role {
            Role::Bias(..) => 0.0,
            _ => 1.0 - self.arch.norm_offset,
        };
        self.gpu.tensor(&self.arch.name(role), [len], DType::F32, &vec![value; len])
    }

    /// Outputs are as large as inputs.
    fn linear(&self, role: Role, shape: [usize; 2], bias: Option<Tensor>) -> Result<Linear> {
        let spread = (3.0 / shape[1] as f64).sqrt();
        Ok(Linear::new(self.random(role, self.scheme.fitting(shape[1]), shape, spread)?, bias))
    }

    fn table(&self, role: Role, shape: [usize; 2]) -> Result<QuantizedTensor> {
        self.random(role, Scheme::BF16, shape, (3.0 / shape[1] as f64).sqrt())
    }
}
