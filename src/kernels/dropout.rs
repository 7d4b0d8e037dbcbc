//! Dropout with a mask that is computed, never stored.
//!
//! The mask is a function of (seed, draw, layer, element), so a recomputed forward pass, the backward pass and a resumed run
//! see the same one. Other kernels import `rng` and call `dropout_scale` with [`mask`]'s words.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        layer: u32,
        threshold: u32,
        scale: f32,
    }
}

const PER_GROUP: usize = 1024;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("dropout", entry)
}

/// Every specialisation. `by_element` is the form that other kernels import, by itself; the tests compare both.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("dropout"), kernel("by_element")]
}

/// (threshold, scale) of the shader's `dropout_scale`: p · 2³² and 1 / (1 − p). Errors: Config where p is not in [0, 1).
pub fn mask(p: f32) -> Result<(u32, f32)> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::config("lora_dropout", format!("expected at least 0 and below 1, got {p}")));
    }
    Ok(((f64::from(p) * 4_294_967_296.0) as u32, (1.0 / (1.0 - f64::from(p))) as f32))
}

/// y\[i\] = x\[i\] / (1 − p) where kept, 0 with probability p
///
/// x, y: any shape, f32; seed: [2] u32 in storage: the run's seed, and the draw, a number that every micro-batch has to
/// itself; `layer`: a number of this use within the pass. dx is this function of dy. Errors: Shape, Config. Mask: Philox4x32-10, Salmon et al. 2011.
pub fn dropout(g: &mut Graph, x: &Value, seed: &Value, layer: u32, p: f32) -> Result<Value> {
    let (threshold, scale) = mask(p)?;
    seed.expect("dropout", &[2])?;
    if seed.dtype() != DType::U32 {
        return Err(Error::shape("dropout", "a seed of U32", seed.dtype()));
    }
    let y = g.value(x.shape().clone(), DType::F32)?;
    let len = x.shape().len();
    let params = Params { len: len as u32, layer, threshold, scale };
    g.dispatch(kernel("dropout"), &params, &[x, seed, &y], len.div_ceil(PER_GROUP), 80.0 * len as f64)?;
    Ok(y)
}
