//! The most that the device can do, measured: the line beside every other speed.

use crate::{
    DType, Result,
    gpu::Gpu,
    graph::{Graph, Value},
    kernels::roofline::{ROUND, copy, multiply_add},
};

/// Peak rates of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Multiply-adds in registers, two operations each, in GFLOP/s.
    pub gflops: f64,
    /// Bytes read and written by a copy, in GB/s.
    pub gb_per_second: f64,
}

/// Measures `gpu` for about `seconds`, and takes the best runs. Errors: OutOfMemory, Device.
pub fn measure(gpu: &Gpu, seconds: f64) -> Result<Roofline> {
    let invocations = 1 << 16;
    let flops = |rounds: u32| f64::from(rounds) * ROUND * invocations as f64;
    let multiply = |rounds: u32, seconds: f64| best(gpu, invocations, seconds, |g, _, y| multiply_add(g, y, rounds));
    // Rounds grow until one run is long beside the cost of a submit.
    let mut rounds = 4;
    while multiply(rounds, 0.0)? < 5e-3 && rounds < 1 << 20 {
        rounds *= 4;
    }
    let gflops = flops(rounds) / multiply(rounds, seconds / 2.0)? * 1e-9;
    let elements = (gpu.caps().max_binding as usize / 16).min(1 << 22) / 256 * 256;
    let copied = 2.0 * 16.0 * elements as f64;
    let gb_per_second = copied / best(gpu, elements, seconds / 2.0, copy)? * 1e-9;
    Ok(Roofline { gflops, gb_per_second })
}

/// The shortest of the runs of `record(g, x, y)` that fit `seconds`, at least two, in seconds. x, y: [invocations, 4]
fn best(
    gpu: &Gpu,
    invocations: usize,
    seconds: f64,
    record: impl Fn(&mut Graph, &Value, &Value) -> Result<()>,
) -> Result<f64> {
    let mut g = Graph::new(gpu);
    let y = g.value([invocations, 4], DType::F32)?;
    let x = g.import(&gpu.zeros("roofline", [invocations, 4], DType::F32)?);
    record(&mut g, &x, &y)?;
    let mut program = g.run()?;
    gpu.wait()?;
    let start = std::time::Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 2 || start.elapsed().as_secs_f64() < seconds {
        let run = std::time::Instant::now();
        program.run()?;
        gpu.wait()?;
        best = best.min(run.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}
