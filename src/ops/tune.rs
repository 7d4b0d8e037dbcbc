//! Which way to compute a product is the fastest on this device, measured when the product is first recorded.

use crate::{
    DType, Error, QuantizedTensor, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Pool, Value},
    kernels::{
        dense,
        product::{self, Class, Entry},
    },
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How much less time a way must take than the one that would serve unmeasured: clocks are not exact.
const WORTH: f64 = 0.95;
/// Runs of a way that are timed, the shortest of which counts.
const RUNS: usize = 4;
/// A way is not run again once its runs took this long.
const LONG: Duration = Duration::from_millis(200);
/// Weights of products with few rows are read out of memory, not out of a cache that holds the one weight: as many as take these bytes
/// are read by turns, but not more than [`MOST_COPIES`].
const BEYOND_CACHE: u64 = 96 << 20;
const MOST_COPIES: usize = 16;
/// Rows up to which that is so.
const FEW_ROWS: usize = 8;

/// What `record` gives, with the fastest way of each product where products are to be measured
/// ([`Choices::measure_for`](crate::gpu::Choices::measure_for)) and time is left. Errors: those of `record`, Device, DeviceLost,
/// Interrupted.
pub fn tuned<T>(gpu: &Gpu, record: impl Fn() -> Result<T>) -> Result<T> {
    let untuned = record()?;
    let open = gpu.choices().take_open();
    if open.is_empty() || gpu.is_dry() || gpu.is_noop() {
        return Ok(untuned);
    }
    drop(untuned);
    measure(gpu, open)?;
    let tuned = record();
    gpu.choices().take_open();
    tuned
}

fn measure(gpu: &Gpu, open: BTreeMap<String, Vec<String>>) -> Result<()> {
    let choices = gpu.choices();
    let (start, left) = (Instant::now(), choices.time_left());
    let many = open.len();
    let mut measured = 0;
    for (what, ways) in open {
        let spent = start.elapsed();
        if spent >= left {
            break;
        }
        match fastest(gpu, &what, &ways, left - spent) {
            Ok(way) => choices.choose(&what, Some(&way)),
            // There is no room beside the model.
            Err(Error::OutOfMemory { .. }) => choices.choose(&what, None),
            Err(error) => {
                choices.choose(&what, None);
                return Err(error);
            }
        }
        measured += 1;
    }
    choices.measure_for(left.saturating_sub(start.elapsed()));
    log::info!("{measured} of {many} products measured in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The way that takes least time; the first where no other is worth it.
fn fastest(gpu: &Gpu, what: &str, ways: &[String], left: Duration) -> Result<String> {
    let start = Instant::now();
    let class: Class = what.parse()?;
    let operands = Operands::new(gpu, &class)?;
    let mut best: Option<(f64, &String)> = None;
    for way in ways {
        if best.is_some() && start.elapsed() >= left {
            break;
        }
        gpu.choices().choose(what, Some(way));
        let seconds = match operands.time(gpu, &class) {
            Ok(seconds) => seconds,
            // A driver may refuse what another compiles.
            Err(error @ Error::Device { .. }) if best.is_some() => {
                log::warn!("{what} by {way} is left out: {error}");
                continue;
            }
            Err(error) => return Err(error),
        };
        log::debug!("{what} by {way}: {:.1} us", seconds * 1e6);
        let worth = if best.is_some_and(|(_, first)| *first == ways[0]) { WORTH } else { 1.0 };
        if best.is_none_or(|(least, _)| seconds < worth * least) {
            best = Some((seconds, way));
        }
    }
    Ok(best.map_or(&ways[0], |(_, way)| way).clone())
}

/// What products of a class are measured with.
struct Operands {
    x: Tensor,
    /// One or several, which are multiplied by turns.
    factors: Vec<Factor>,
}

enum Factor {
    Weight(QuantizedTensor),
    /// A value of a recording.
    Values(Tensor),
}

impl Operands {
    fn new(gpu: &Gpu, class: &Class) -> Result<Operands> {
        let [rows, cols] = class.operand();
        let x = random_values(gpu, [rows, cols])?;
        let Some(scheme) = class.scheme else {
            return Ok(Operands { x, factors: vec![Factor::Values(random_values(gpu, class.weight())?)] });
        };
        let weight = |seed: usize| {
            QuantizedTensor::random(gpu, "weight to measure with", scheme, class.weight(), 1.0, seed as u32)
        };
        let mut weights = vec![weight(0)?];
        if rows <= FEW_ROWS {
            let copies = (BEYOND_CACHE / weights[0].bytes().max(1)) as usize;
            for seed in 1..copies.min(MOST_COPIES) {
                weights.push(weight(seed)?);
            }
        }
        Ok(Operands { x, factors: weights.into_iter().map(Factor::Weight).collect() })
    }

    /// Seconds of one product, by the way that is chosen for its class.
    fn time(&self, gpu: &Gpu, class: &Class) -> Result<f64> {
        let mut g = Graph::new(gpu);
        let x = g.import(&self.x);
        for factor in &self.factors {
            factor.record(&mut g, class.entry, &x)?;
        }
        let mut program = g.plan().build(&mut Pool::default())?;
        // The first run may compile.
        program.profile()?;
        let (start, mut least) = (Instant::now(), f64::INFINITY);
        for _ in 0..RUNS {
            let run = Instant::now();
            let kernels = program.profile()?;
            let by_device = kernels.iter().map(|kernel| kernel.seconds).sum::<Option<f64>>();
            least = least.min(by_device.unwrap_or_else(|| run.elapsed().as_secs_f64()));
            if start.elapsed() > LONG {
                break;
            }
        }
        Ok(least / self.factors.len() as f64)
    }
}

impl Factor {
    fn record(&self, g: &mut Graph, entry: Entry, x: &Value) -> Result<Value> {
        match (self, entry) {
            (Factor::Weight(w), Entry::Forward) => product::matmul(g, x, w, None, None, None),
            (Factor::Weight(w), _) => product::matmul_dx(g, x, w, None, None),
            (Factor::Values(values), _) => {
                let w = g.import(values);
                match entry {
                    Entry::Forward => dense::x_wt(g, x, &w),
                    Entry::Backward => dense::x_w(g, x, &w, 1.0),
                    Entry::Gradient => dense::xt_w(g, x, &w),
                }
            }
        }
    }
}

fn random_values(gpu: &Gpu, shape: [usize; 2]) -> Result<Tensor> {
    let values = gpu.zeros("numbers to measure with", shape, DType::F32)?;
    super::random::fill(&values, 1, 1.0)?;
    Ok(values)
}
