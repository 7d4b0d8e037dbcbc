//! What the device can do at most, measured in the same rounds as what is set beside it.

use super::clock::{Clock, Seconds};
use crate::{
    DType, Result,
    gpu::{DeviceKind, Gpu},
    graph::{Graph, Program, Value},
    kernels::roofline,
};

/// Invocations of the kernels that compute.
const INVOCATIONS: usize = 1 << 16;
/// Dispatches that are timed together.
const DISPATCHES: usize = 256;

/// The device's own limits, of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OneRound {
    /// Multiply-adds of f32 in registers, two operations each, in GFLOP/s.
    pub(super) gflops: f64,
    /// Multiplications and additions of packed signed bytes, in billions a second.
    pub(super) int8_gops: f64,
    /// Bytes read, in GB/s.
    pub(super) read_gb: f64,
    /// Bytes read and written by a copy, in GB/s.
    pub(super) copy_gb: f64,
    /// Seconds that one more small dispatch takes.
    pub(super) dispatch: f64,
    /// Seconds from a submit of next to nothing to the end of waiting for it, by the wall.
    pub(super) submit: f64,
}

/// The programs that measure them.
pub(super) struct Meter {
    gpu: Gpu,
    multiply_add: (Program, f64),
    dot_bytes: (Program, f64),
    read: (Program, f64),
    copy: (Program, f64),
    dispatches: Program,
    one: Program,
}

/// A program that ran twice, so that the driver has compiled and submits are cut by measured rates.
pub(super) fn warm(graph: Graph) -> Result<Program> {
    let mut program = graph.run()?;
    program.run()?;
    Ok(program)
}

impl Meter {
    pub(super) fn new(gpu: &Gpu) -> Result<Meter> {
        let computing = |record: fn(&mut Graph, &Value, u32) -> Result<()>, round: f64| {
            // Rounds grow until a run is long beside the cost of a submit.
            let mut rounds = 4;
            loop {
                let mut g = Graph::new(gpu);
                let y = g.value([INVOCATIONS, 4], DType::F32)?;
                record(&mut g, &y, rounds)?;
                let mut program = warm(g)?;
                if launch(gpu, &mut program, 1)?.wall > 5e-3 || rounds >= 1 << 20 {
                    return Ok((program, f64::from(rounds) * round * INVOCATIONS as f64));
                }
                rounds *= 4;
            }
        };
        let moving = |record: fn(&mut Graph, &Value, &Value) -> Result<()>, shrinks: usize| {
            let rows = (gpu.caps().max_binding as usize / 16).min(1 << 22) / 4096 * 4096;
            let mut g = Graph::new(gpu);
            let y = g.value([rows / shrinks, 4], DType::F32)?;
            let x = gpu.zeros("roofline", [rows, 4], DType::F32)?;
            let x = g.import(&x);
            record(&mut g, &x, &y)?;
            Ok((warm(g)?, (16 * (rows + rows / shrinks)) as f64))
        };
        let small = |dispatches: usize| {
            let mut g = Graph::new(gpu);
            let y = g.value([256, 4], DType::F32)?;
            (0..dispatches).try_for_each(|number| roofline::nothing(&mut g, &y, number as u32))?;
            warm(g)
        };
        Ok(Meter {
            gpu: gpu.clone(),
            multiply_add: computing(roofline::multiply_add, roofline::ROUND)?,
            dot_bytes: computing(roofline::dot_bytes, roofline::DOT_ROUND)?,
            read: moving(roofline::read, 16)?,
            copy: moving(roofline::copy, 1)?,
            dispatches: small(DISPATCHES)?,
            one: small(1)?,
        })
    }

    /// All limits, once.
    pub(super) fn all(&mut self) -> Result<OneRound> {
        let gpu = &self.gpu;
        let (gflops, int8_gops) = (rate(gpu, &mut self.multiply_add)?, rate(gpu, &mut self.dot_bytes)?);
        let (read_gb, copy_gb) = (rate(gpu, &mut self.read)?, rate(gpu, &mut self.copy)?);
        let many = launch(gpu, &mut self.dispatches, 1)?;
        let one = launch(gpu, &mut self.one, 1)?;
        let dispatch = ((many.wall - one.wall) / (DISPATCHES - 1) as f64).max(0.0);
        Ok(OneRound { gflops, int8_gops, read_gb, copy_gb, dispatch, submit: one.wall })
    }

    /// The two that products and memory are set beside: GFLOP/s and GB/s, the larger of reading and copying.
    pub(super) fn peaks(&mut self) -> Result<[f64; 2]> {
        let gpu = &self.gpu;
        let gflops = rate(gpu, &mut self.multiply_add)?;
        Ok([gflops, rate(gpu, &mut self.read)?.max(rate(gpu, &mut self.copy)?)])
    }
}

/// Billions of operations or bytes a second.
fn rate(gpu: &Gpu, (program, work): &mut (Program, f64)) -> Result<f64> {
    Ok(1e-9 * *work / effective(gpu, launch(gpu, program, 2)?))
}

/// Seconds of one of `launches` runs that are waited for together.
pub(super) fn launch(gpu: &Gpu, program: &mut Program, launches: usize) -> Result<Seconds> {
    gpu.wait()?;
    let clock = Clock::start();
    for _ in 0..launches {
        program.run()?;
    }
    gpu.wait()?;
    let all = clock.seconds();
    let each = |seconds: f64| seconds / launches as f64;
    Ok(Seconds { wall: each(all.wall), processor: all.processor.map(each) })
}

/// Whether the device's work is processor time of this process.
pub fn is_by_processor(gpu: &Gpu) -> bool {
    gpu.caps().kind == DeviceKind::Cpu && Clock::start().seconds().processor.is_some()
}

/// The seconds by which speeds are told: those of the wall, but where the device is the processor its time, as if all cores had shared
/// it evenly, since the wall's counts what other programs take.
pub fn effective(gpu: &Gpu, seconds: Seconds) -> f64 {
    match seconds.processor {
        Some(processor) if is_by_processor(gpu) => processor / cores(),
        _ => seconds.wall,
    }
}

/// Cores that this process may use.
pub(super) fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1, usize::from) as f64
}
