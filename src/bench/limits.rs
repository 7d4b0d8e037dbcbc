//! What the device can do at most, measured in the same rounds as what is set beside it.

use super::{
    Device, Limits,
    clock::{Clock, Seconds, median},
};
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
struct OneRound {
    /// Multiply-adds of f32 in registers, two operations each, in GFLOP/s.
    gflops: f64,
    /// Multiplications and additions of packed signed bytes, in billions a second.
    int8_gops: f64,
    /// Bytes read, in GB/s.
    read_gb: f64,
    /// Bytes read and written by a copy, in GB/s.
    copy_gb: f64,
    /// Seconds that one more small dispatch takes.
    dispatch: f64,
    /// Seconds from a submit of next to nothing to the end of waiting for it, by the wall.
    submit: f64,
}

/// Measures an open device's limits, whenever something is to be set beside them.
pub struct Meter {
    gpu: Gpu,
    device: Device,
    /// Made when they are first needed.
    programs: Option<Programs>,
}

/// What runs.
struct Programs {
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
    /// Of this device.
    pub fn new(gpu: &Gpu) -> Meter {
        Meter { gpu: gpu.clone(), device: Device::of(gpu), programs: None }
    }

    /// What is measured.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The device, and the programs, which are made where they are not.
    fn parts(&mut self) -> Result<(&Gpu, &Device, &mut Programs)> {
        let Meter { gpu, device, programs } = self;
        let programs = match programs {
            Some(programs) => programs,
            None => programs.insert(Programs::new(gpu)?),
        };
        Ok((gpu, device, programs))
    }

    /// Medians of `rounds` rounds, one at least. Errors: OutOfMemory, Device, DeviceLost.
    pub fn limits(&mut self, rounds: usize) -> Result<Limits> {
        let all = (0..rounds.max(1)).map(|_| self.all()).collect::<Result<Vec<OneRound>>>()?;
        let of = |field: fn(&OneRound) -> f64| median(all.iter().map(field));
        let meaning = match self.gpu.caps().kind {
            DeviceKind::Cpu => "a multiply and an add, two instructions: these drivers do not contract fma()",
            _ => "fma() of f32 in registers, counted as two operations; halves and cooperative matrices are not used",
        };
        Ok(Limits {
            gflops: of(|limits| limits.gflops),
            int8_gops: of(|limits| limits.int8_gops),
            read_gb_per_second: of(|limits| limits.read_gb),
            copy_gb_per_second: of(|limits| limits.copy_gb),
            dispatch_us: 1e6 * of(|limits| limits.dispatch),
            submit_us: 1e6 * of(|limits| limits.submit),
            meaning: meaning.to_owned(),
        })
    }

    /// All limits, once.
    fn all(&mut self) -> Result<OneRound> {
        let (gpu, device, programs) = self.parts()?;
        let many = launch(gpu, &mut programs.dispatches, 1)?;
        let one = launch(gpu, &mut programs.one, 1)?;
        let mut rate = |of: fn(&mut Programs) -> &mut (Program, f64)| rate(gpu, device, of(programs));
        Ok(OneRound {
            gflops: rate(|p| &mut p.multiply_add)?,
            int8_gops: rate(|p| &mut p.dot_bytes)?,
            read_gb: rate(|p| &mut p.read)?,
            copy_gb: rate(|p| &mut p.copy)?,
            dispatch: ((many.wall - one.wall) / (DISPATCHES - 1) as f64).max(0.0),
            submit: one.wall,
        })
    }

    /// The two that products and memory are set beside: GFLOP/s and GB/s, the larger of reading and copying.
    pub(super) fn peaks(&mut self) -> Result<[f64; 2]> {
        let (gpu, device, programs) = self.parts()?;
        let mut rate = |of: fn(&mut Programs) -> &mut (Program, f64)| rate(gpu, device, of(programs));
        Ok([rate(|p| &mut p.multiply_add)?, rate(|p| &mut p.read)?.max(rate(|p| &mut p.copy)?)])
    }
}

impl Programs {
    fn new(gpu: &Gpu) -> Result<Programs> {
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
        Ok(Programs {
            multiply_add: computing(roofline::multiply_add, roofline::ROUND)?,
            dot_bytes: computing(roofline::dot_bytes, roofline::DOT_ROUND)?,
            read: moving(roofline::read, 16)?,
            copy: moving(roofline::copy, 1)?,
            dispatches: small(DISPATCHES)?,
            one: small(1)?,
        })
    }
}

/// Billions of operations or bytes a second.
fn rate(gpu: &Gpu, device: &Device, (program, work): &mut (Program, f64)) -> Result<f64> {
    Ok(1e-9 * *work / device.counted(launch(gpu, program, 2)?))
}

/// Seconds of one of `launches` runs that are waited for together.
pub(super) fn launch(gpu: &Gpu, program: &mut Program, launches: usize) -> Result<Seconds> {
    gpu.wait()?;
    let clock = Clock::start();
    (0..launches).try_for_each(|_| program.run())?;
    gpu.wait()?;
    Ok(clock.seconds().of_one(launches))
}
