//! Random numbers, the same for the same seed on every device.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        seed: u32,
        first: u32,
        spread: f32,
    }
}

const PER_GROUP: usize = 1024;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("random", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("floats"), kernel("halves")]
}

/// Writes numbers that are evenly distributed in [−spread, spread), by Philox4x32-10: number i has counter (start + i) / 4.
///
/// words: all bits of y, u32; dtype: of the numbers that lie there, f32 or bf16; start: how many numbers of the same seed lie
/// before, a multiple of four. Errors: Shape.
pub fn uniform(g: &mut Graph, words: &Value, dtype: DType, seed: u32, start: usize, spread: f32) -> Result<()> {
    let fits = matches!(dtype, DType::F32 | DType::BF16) && words.dtype() == DType::U32 && start % 4 == 0;
    if !fits {
        let got = format!("{dtype} in {} {} from number {start} on", words.dtype(), words.shape());
        return Err(Error::shape("random", "F32 or BF16 in words of U32, from a multiple of four on", got));
    }
    let entry = if dtype == DType::F32 { "floats" } else { "halves" };
    let len = words.shape().len() * DType::U32.size() / dtype.size();
    let params = Params { len: len as u32, seed, first: (start / 4) as u32, spread };
    g.dispatch(kernel(entry), &params, &[words], len.div_ceil(PER_GROUP), 100.0 * len as f64)
}
