//! The benchmark suite: every kernel family at shapes of real models, a training step, generation, and what the host takes, each beside
//! the device's own limits, which are measured in the same rounds.
//!
//! A case's result is checked before it is timed. Then, in each round, the device's peaks and the case are measured one after the other;
//! a share of a limit is that of one round, so that other work on the machine touches both sides alike. Where the device is the
//! processor (lavapipe, SwiftShader), speeds are told by processor time.

mod case;
pub mod clock;
mod compare;
pub mod families;
mod limits;
mod model;
mod result;

pub use case::Case;
use case::{Prepare, Work};
use clock::{Clock, Seconds};
pub use compare::{Change, Comparison, compare};
pub use limits::Meter;
pub use model::{KernelShare, ModelOptions, ModelResult, Rounds, measure as measure_model};
pub use result::{CaseResult, Device, Limits, Results, SCHEMA};

use crate::{
    Error, Result,
    arch::Architecture,
    gpu::{DeviceKind, Gpu, GpuOptions},
    graph::Program,
    ops::tune::tuned,
};
use limits::launch;

/// Launches of a case that are waited for together take at least this many seconds.
const ROUND_SECONDS: f64 = 0.03;
/// Launches that are waited for together, at most.
const MOST_LAUNCHES: usize = 1000;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Parts of names, `family/case`, of which one must match; all cases where there are none.
    pub filters: Vec<String>,
    /// Names of the shapes whose layers are measured ([`Architecture::shapes`]).
    pub shapes: Vec<String>,
    /// Rounds of which the median is told.
    pub rounds: usize,
}

impl Options {
    /// Layers of SmolLM2-135M where the device is the processor, else those of Llama 3.2 1B and Llama 2 7B too.
    pub fn shapes_for(kind: DeviceKind) -> Vec<String> {
        let all = ["smollm2-135m", "llama-3.2-1b", "llama-2-7b"];
        let some = if kind == DeviceKind::Cpu { &all[..1] } else { &all[..] };
        some.iter().map(|&name| name.to_owned()).collect()
    }

    /// Whether a case of this whole name is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    /// All cases that are asked for, each with its family's name. Errors: Unsupported for an unknown shape.
    pub fn cases(&self) -> Result<Vec<(&'static str, Case)>> {
        let shapes = self.shapes.iter().map(|name| Architecture::of_shape(name)).collect::<Result<Vec<_>>>()?;
        let mut all = Vec::new();
        for family in &families::FAMILIES {
            for case in (family.cases)(&shapes) {
                let name = format!("{}/{}", family.name, case.name);
                let known = all.iter().any(|(of, other): &(&str, Case)| *of == family.name && other.name == case.name);
                if self.wants(&name) && !known {
                    all.push((family.name, case));
                }
            }
        }
        Ok(all)
    }
}

/// Measures one family, as `cargo bench` asks for it: the arguments that are no options are filters, and a table is printed.
/// Errors: those of opening the device and of [`run`]; Device where a case failed.
pub fn cargo(family: &str) -> Result<()> {
    let gpu = Gpu::open(&GpuOptions::from_env()?)?;
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let filters = match words.is_empty() {
        true => vec![format!("{family}/")],
        false => words.iter().map(|word| format!("{family}/{word}")).collect(),
    };
    let options = Options { filters, shapes: Options::shapes_for(gpu.caps().kind), rounds: 5 };
    let mut meter = Meter::new(&gpu);
    println!("{}", meter.device());
    println!("{}", CaseResult::HEADER);
    let mut failed = Vec::new();
    run(&mut meter, &options, |case| {
        println!("{case}");
        failed.extend(case.error.as_ref().map(|error| format!("{}: {error}", case.name())));
        Ok(())
    })?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Device { op: "bench".to_owned(), message: failed.join("; ") }),
    }
}

enum Made {
    Program(Program),
    Calls(Prepare),
}

impl Made {
    /// Seconds of one of `times` runs.
    fn run(&mut self, gpu: &Gpu, times: usize) -> Result<Seconds> {
        match self {
            Made::Program(program) => launch(gpu, program, times),
            Made::Calls(prepare) => {
                let calls = (0..times).map(|_| {
                    let call = prepare()?;
                    gpu.wait()?;
                    let clock = Clock::start();
                    call()?;
                    Ok(clock.seconds())
                });
                Ok(calls.collect::<Result<Vec<Seconds>>>()?.into_iter().sum::<Seconds>().of_one(times))
            }
        }
    }
}

/// Measures the cases that are asked for one by one and hands each result on. A case that fails is told with its error, and the next
/// one is measured. Errors: Unsupported for an unknown shape, Interrupted, DeviceLost, and what `each` gives back.
pub fn run(meter: &mut Meter, options: &Options, mut each: impl FnMut(CaseResult) -> Result<()>) -> Result<()> {
    for (family, case) in options.cases()? {
        meter.gpu().cancel().check()?;
        let result = match measure(meter, family, &case, options.rounds) {
            Err(error @ (Error::Interrupted(_) | Error::DeviceLost(_))) => return Err(error),
            Err(error) => CaseResult::failed(family, &case, &error),
            Ok(result) => result,
        };
        each(result)?;
    }
    Ok(())
}

fn measure(meter: &mut Meter, family: &str, case: &Case, rounds: usize) -> Result<CaseResult> {
    let gpu = &meter.gpu().clone();
    let (mut made, bytes) = match tuned(gpu, || (case.make)(gpu))? {
        Work::Launches(graph, check) => {
            let bytes = case.bytes.unwrap_or(graph.bytes() as f64);
            // Checked after one run: what accumulates has done so once.
            let mut program = graph.run()?;
            check(&program)?;
            program.run()?;
            (Made::Program(program), bytes)
        }
        Work::Calls(mut prepare) => {
            prepare()?()?;
            (Made::Calls(prepare), case.bytes.unwrap_or(0.0))
        }
    };
    let once = made.run(gpu, 1)?.wall;
    let launches = ((ROUND_SECONDS / once.max(1e-9)).ceil() as usize).clamp(1, MOST_LAUNCHES);
    let mut samples = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let peaks = meter.peaks()?;
        let seconds = made.run(gpu, launches)?;
        samples.push((peaks, seconds));
    }
    Ok(CaseResult::new(meter.device(), family, case, bytes, launches, &samples))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use std::collections::BTreeSet;

    /// Kernels that only whole methods run: `method/...` measures them with the host's part.
    const IN_METHODS: [&str; 4] = ["awq", "gptq", "hqq", "lattice"];

    /// Of each family of kernels the design that the device takes; the limits are cases of their own.
    #[test]
    fn every_kernel_is_measured() {
        let gpu = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
        let options = Options { filters: Vec::new(), shapes: vec!["smollm2-135m".to_owned()], rounds: 1 };
        let family = |shader: &'static str| shader.split('/').next().expect("a name");
        let mut seen = BTreeSet::from(IN_METHODS);
        seen.insert("roofline");
        for (_, case) in options.cases().unwrap() {
            if let Work::Launches(graph, _) = (case.make)(&gpu).unwrap() {
                seen.extend(graph.shaders().map(family));
            }
        }
        let all: BTreeSet<&str> = kernels::variants().iter().map(|kernel| family(kernel.shader)).collect();
        let missing: Vec<_> = all.difference(&seen).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn names_are_parts_that_filters_find() {
        let shapes = Options::shapes_for(DeviceKind::Cpu);
        let options = |filter: &str| Options { filters: vec![filter.to_owned()], shapes: shapes.clone(), rounds: 1 };
        let names = |filter: &str| options(filter).cases().unwrap().len();
        assert_eq!(names("product/dx/nf4-g64/256x576x1536"), 1);
        assert!(names("product/") > 100 && names("nothing of this name") == 0);
        let unknown = Options { shapes: vec!["gpt-2".to_owned()], ..options("") };
        assert!(unknown.cases().is_err());
        assert_eq!(Options::shapes_for(DeviceKind::Discrete).len(), 3);
    }
}
