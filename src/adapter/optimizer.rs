//! AdamW over all that a store holds, one dispatch per array.

use super::{Chunk, Store, chunk::Training};
use crate::{
    DType, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::optimizer::{self, AdamW, Stepped},
};

/// f32s from one rate's constants to the next: views must begin at offsets that can be bound.
const SLOT: usize = 64;

/// AdamW's constants on the device, for each learning rate that arrays of a store have.
pub struct Optimizer {
    rates: Vec<f64>,
    /// [`AdamW::hyper`] of each rate, [`SLOT`] apart. f32
    hyper: Tensor,
}

impl Optimizer {
    /// For the arrays of `store`. Errors: OutOfMemory.
    pub fn new(gpu: &Gpu, store: &Store) -> Result<Optimizer> {
        let mut rates: Vec<f64> = Vec::new();
        for chunk in store.chunks() {
            if !rates.contains(&chunk.rate) {
                rates.push(chunk.rate);
            }
        }
        let len = SLOT * rates.len().saturating_sub(1) + 8;
        Ok(Optimizer { rates, hyper: gpu.zeros("hyperparameters", [len], DType::F32)? })
    }

    /// Sets the constants of step `t`, from 1 on. Errors: Device.
    pub fn set(&self, adamw: &AdamW, learning_rate: f64, t: u64) -> Result<()> {
        let mut hyper = vec![0.0f32; self.hyper.shape().len()];
        for (rate, slot) in self.rates.iter().zip(hyper.chunks_mut(SLOT)) {
            slot[..8].copy_from_slice(&adamw.hyper(rate * learning_rate, t));
        }
        self.hyper.write(bytemuck::cast_slice(&hyper))
    }

    /// Records the norm of all gradients and the factor that clips them ([`optimizer::grad_norm`]). norm: [3] f32.
    /// Errors: Shape.
    pub fn record_norm(&self, g: &mut Graph, store: &Store, norm: &Value) -> Result<()> {
        let grads: Vec<_> = trained(store).map(|(_, training)| g.import(&training.grads)).collect();
        let hyper = g.import(&self.hyper.slice(0, [8])?);
        optimizer::grad_norm(g, &grads, &hyper, norm)
    }

    /// Records the step of all that is trained. norm: [3] f32. Errors: Shape.
    pub fn record(&self, g: &mut Graph, store: &Store, norm: &Value) -> Result<()> {
        for (chunk, training) in trained(store) {
            let slot = self.rates.iter().position(|rate| *rate == chunk.rate).unwrap_or(0);
            let hyper = g.import(&self.hyper.slice(SLOT * slot, [8])?);
            let grad = g.import(&training.grads);
            let (param, m, v) = (g.import(&chunk.params), g.import(&training.m), g.import(&training.v));
            let stepped = Stepped { param: &param, grad: &grad, m: &m, v: &v, decays: chunk.decays };
            optimizer::adamw(g, stepped, norm, &hyper)?;
        }
        Ok(())
    }
}

fn trained(store: &Store) -> impl Iterator<Item = (&Chunk, &Training)> {
    store.chunks().iter().filter_map(|chunk| chunk.training.as_ref().map(|training| (chunk, training)))
}
