//! Replay: submits cut by measured rates, and timings a kernel.

use super::{Dispatch, Graph, PARAM_BYTES, Value};
use crate::{
    DType, Error, Result,
    gpu::{BindGroup, Buffer, DeviceKind, Gpu, Pipeline, Tensor},
};
use std::{collections::HashMap, sync::Arc};

/// A submit is cut before its estimated time passes this; systems with a display kill submits of about two seconds.
const SUBMIT_NS: f64 = 100e6;
/// One dispatch estimated above this is run as several.
const DISPATCH_NS: f64 = 100e6;

/// One call to the device: a dispatch, or a part of one.
struct Step {
    dispatch: usize,
    pipeline: Arc<Pipeline>,
    bind_group: BindGroup,
    counts: [u32; 2],
    work: f64,
}

/// The time one kernel took over a run.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// The kernel's label.
    pub kernel: String,
    /// How often it ran.
    pub calls: usize,
    /// Seconds in all.
    pub seconds: f64,
    /// Floating point operations in all, as its host code counts them.
    pub work: f64,
}

/// A planned recording with everything made that a run needs.
pub struct Program {
    gpu: Gpu,
    dispatches: Vec<Dispatch>,
    tensors: Vec<Option<Tensor>>,
    steps: Vec<Step>,
    params: Option<Arc<Buffer>>,
    runs: usize,
}

impl Program {
    pub(super) fn new(graph: Graph, tensors: Vec<Option<Tensor>>) -> Result<Program> {
        let mut program =
            Program { gpu: graph.gpu, dispatches: graph.dispatches, tensors, steps: Vec::new(), params: None, runs: 0 };
        program.prepare()?;
        Ok(program)
    }

    /// Splits long dispatches, writes all parameters and binds all memory.
    fn prepare(&mut self) -> Result<()> {
        let gpu = self.gpu.clone();
        let stride = gpu.caps().offset_alignment.max(PARAM_BYTES as u64);
        if gpu.is_dry() {
            self.params = Some(gpu.buffer("parameters", stride * self.dispatches.len() as u64)?);
            return Ok(());
        }
        let mut pieces = Vec::new();
        for (index, dispatch) in self.dispatches.iter().enumerate() {
            let pipeline = gpu.pipeline(&dispatch.kernel)?;
            check(dispatch, &pipeline)?;
            let rate = pipeline.rate().unwrap_or_else(|| default_rate(&gpu));
            let parts = ((dispatch.work * rate / DISPATCH_NS).ceil() as u32).clamp(1, dispatch.groups);
            let size = dispatch.groups.div_ceil(parts);
            for base in (0..dispatch.groups).step_by(size as usize) {
                pieces.push((index, pipeline.clone(), base, dispatch.groups.min(base.saturating_add(size))));
            }
        }
        let mut bytes = vec![0u8; stride as usize * pieces.len()];
        for ((index, _, base, end), slot) in pieces.iter().zip(bytes.chunks_exact_mut(stride as usize)) {
            let params = &self.dispatches[*index].params;
            slot[..4].copy_from_slice(&base.to_le_bytes());
            slot[4..8].copy_from_slice(&end.to_le_bytes());
            slot[8..8 + params.len()].copy_from_slice(params);
        }
        let params = gpu.buffer("parameters", bytes.len() as u64)?;
        Tensor::view(params.clone(), 0, [bytes.len()].into(), DType::U8).write(&bytes)?;
        self.steps.clear();
        for (slot, (index, pipeline, base, end)) in pieces.into_iter().enumerate() {
            let dispatch = &self.dispatches[index];
            let args = dispatch.args.iter().map(|v| self.tensor(v)).collect::<Result<Vec<_>>>()?;
            let bind_group = gpu.bind(&pipeline, (&params, slot as u64 * stride, PARAM_BYTES as u64), &args)?;
            let groups = end - base;
            let x = groups.min(gpu.caps().max_groups);
            let work = dispatch.work * f64::from(groups) / f64::from(dispatch.groups);
            self.steps.push(Step { dispatch: index, pipeline, bind_group, counts: [x, groups.div_ceil(x)], work });
        }
        self.params = Some(params);
        Ok(())
    }

    /// Runs the recording once; returns when everything is submitted. The first two runs are timed kernel by kernel and set
    /// the rates by which later submits are cut. Errors: Device, DeviceLost.
    pub fn run(&mut self) -> Result<()> {
        if self.runs < 2 && self.gpu.caps().timestamps {
            self.profile()?;
        } else {
            self.submit();
        }
        self.runs += 1;
        self.gpu.check()
    }

    fn submit(&self) {
        let unknown = default_rate(&self.gpu);
        let mut start = 0;
        let mut spent = 0.0;
        for (i, step) in self.steps.iter().enumerate() {
            let cost = step.work * step.pipeline.rate().unwrap_or(unknown);
            if spent + cost > SUBMIT_NS && i > start {
                self.submit_range(start..i);
                (start, spent) = (i, 0.0);
            }
            spent += cost;
        }
        self.submit_range(start..self.steps.len());
    }

    fn submit_range(&self, range: std::ops::Range<usize>) {
        let mut commands = self.gpu.commands();
        commands.pass(self.steps[range].iter().map(|s| (&*s.pipeline, &s.bind_group, s.counts)));
        commands.submit();
    }

    /// Runs the recording once with a timestamp around every dispatch, and returns the time of each kernel, longest first;
    /// empty where the device has no timestamps. Errors: Device, DeviceLost.
    pub fn profile(&mut self) -> Result<Vec<KernelTime>> {
        let Some(mut timings) = self.gpu.timings() else {
            self.submit();
            return Ok(Vec::new());
        };
        let mut seconds = Vec::with_capacity(self.steps.len());
        let mut at = 0;
        while at < self.steps.len() {
            let unknown = default_rate(&self.gpu);
            let mut commands = self.gpu.commands();
            let mut spent = 0.0;
            while at < self.steps.len() && timings.has_room() {
                let step = &self.steps[at];
                let cost = step.work * step.pipeline.rate().unwrap_or(unknown);
                if spent + cost > SUBMIT_NS && spent > 0.0 {
                    break;
                }
                commands.timed(&mut timings, &step.pipeline, &step.bind_group, step.counts);
                spent += cost;
                at += 1;
            }
            commands.submit();
            seconds.extend(timings.take(&self.gpu)?.into_iter().map(|ns| ns * 1e-9));
        }
        let too_long = self.calibrate(&seconds);
        let times = self.sum(&seconds);
        if too_long && self.runs == 0 {
            self.prepare()?;
        }
        Ok(times)
    }

    /// Sets each pipeline's rate to its fastest dispatch: the first one may include compilation by the driver.
    /// Returns whether some dispatch is now known to be too long.
    fn calibrate(&self, seconds: &[f64]) -> bool {
        let mut best: HashMap<*const Pipeline, (usize, f64)> = HashMap::new();
        for (i, (step, seconds)) in self.steps.iter().zip(seconds).enumerate() {
            if step.work > 0.0 && *seconds > 0.0 {
                let entry = best.entry(Arc::as_ptr(&step.pipeline)).or_insert((i, f64::INFINITY));
                entry.1 = entry.1.min(seconds * 1e9 / step.work);
            }
        }
        for (step, rate) in best.values() {
            self.steps[*step].pipeline.set_rate(*rate);
        }
        self.steps
            .iter()
            .any(|s| s.pipeline.rate().is_some_and(|r| s.work * r > 1.5 * DISPATCH_NS && s.counts != [1, 1]))
    }

    fn sum(&self, seconds: &[f64]) -> Vec<KernelTime> {
        let mut times: Vec<KernelTime> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        for (step, seconds) in self.steps.iter().zip(seconds) {
            let label = step.pipeline.label.as_str();
            let at = *index.entry(label).or_insert_with(|| {
                times.push(KernelTime { kernel: label.to_owned(), calls: 0, seconds: 0.0, work: 0.0 });
                times.len() - 1
            });
            times[at].calls += 1;
            times[at].seconds += seconds;
            times[at].work += step.work;
        }
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }

    /// The memory of a value that was [kept](Graph::keep) or imported. Errors: Shape where it was neither.
    pub fn tensor(&self, value: &Value) -> Result<Tensor> {
        let tensor = self.tensors[value.id].as_ref().ok_or_else(|| {
            Error::shape("reading a value", "one that some dispatch writes", format!("value {}", value.id))
        })?;
        let offset = tensor.offset + (value.start * value.dtype.size()) as u64;
        Ok(Tensor::view(tensor.buffer.clone(), offset, value.shape.clone(), value.dtype))
    }

    /// Reads a kept or imported value back. Waits.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, value: &Value) -> Result<Vec<T>> {
        self.tensor(value)?.read()
    }

    /// Dispatches of the recording, and calls to the device after long ones are split.
    pub fn len(&self) -> (usize, usize) {
        (self.dispatches.len(), self.steps.len())
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// The kernels in the order they run, for messages and tests.
    pub fn labels(&self) -> impl Iterator<Item = String> + '_ {
        self.steps.iter().map(|s| self.dispatches[s.dispatch].kernel.label())
    }
}

/// Two bindings of one dispatch must not share memory where one of them is written. Errors: Shape.
fn check(dispatch: &Dispatch, pipeline: &Pipeline) -> Result<()> {
    use crate::gpu::Access;
    for (i, a) in dispatch.args.iter().enumerate() {
        for (j, b) in dispatch.args.iter().enumerate().skip(i + 1) {
            let write = |n: usize| pipeline.bindings.get(n + 1).is_some_and(|b| b.access == Access::Write);
            if a.id == b.id && (write(i) || write(j)) {
                let got = format!("the same one at {i} and {j}");
                return Err(Error::shape(&pipeline.label, "different values for reads and writes", got));
            }
        }
    }
    Ok(())
}

/// Nanoseconds a floating point operation before anything was measured: pessimistic, so that the first submits are short.
fn default_rate(gpu: &Gpu) -> f64 {
    match gpu.caps().kind {
        DeviceKind::Cpu | DeviceKind::Other => 0.5,
        DeviceKind::Virtual => 0.05,
        DeviceKind::Integrated => 0.02,
        DeviceKind::Discrete => 0.002,
    }
}
