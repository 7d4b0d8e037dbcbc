//! Replay: submits cut by measured rates, and timings per kernel.

use super::{
    Dispatch, Graph, PARAM_BYTES, Value,
    rates::{self, Time},
};
use crate::{
    DType, Error, Result,
    gpu::{BindGroup, Buffer, Gpu, Kernel, Pipeline, Stamps, Tensor, Timings},
};
use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ops::Range,
    sync::Arc,
    time::Instant,
};

/// A submit is cut before its estimated time passes this; systems with a display kill submits of about two seconds.
const SUBMIT_NS: f64 = 100e6;
/// One dispatch estimated above this is run as several.
const DISPATCH_NS: f64 = 100e6;

/// One call to the device: a dispatch, or a part of one.
struct Step {
    dispatch: usize,
    bind_group: BindGroup,
    counts: [u32; 2],
    work: f64,
    /// Nanoseconds, as last measured.
    took: Option<f64>,
}

/// The time one kernel took over a run.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// Its shader and entry point, whatever they are specialised for.
    pub kernel: String,
    /// How often it ran.
    pub calls: usize,
    /// Seconds in all by the device's clock; none where it has none, or said what cannot be.
    pub seconds: Option<f64>,
    /// Floating point operations in all, as its host code counts them.
    pub work: f64,
}

impl KernelTime {
    /// The times of each kernel together, longest first; what is not known of one call is not known of all.
    pub(crate) fn sum(times: impl IntoIterator<Item = KernelTime>) -> Vec<KernelTime> {
        let mut kernels: HashMap<String, KernelTime> = HashMap::new();
        for time in times {
            match kernels.entry(time.kernel.clone()) {
                Entry::Vacant(place) => {
                    place.insert(time);
                }
                Entry::Occupied(mut place) => {
                    let sum = place.get_mut();
                    sum.calls += time.calls;
                    sum.seconds = sum.seconds.zip(time.seconds).map(|(a, b)| a + b);
                    sum.work += time.work;
                }
            }
        }
        let mut kernels: Vec<KernelTime> = kernels.into_values().collect();
        let order = |a: &KernelTime, b: &KernelTime| {
            let seconds = b.seconds.unwrap_or(0.0).total_cmp(&a.seconds.unwrap_or(0.0));
            seconds.then_with(|| a.kernel.cmp(&b.kernel))
        };
        kernels.sort_by(order);
        kernels
    }
}

/// A planned recording with everything made that a run needs.
pub struct Program {
    gpu: Gpu,
    dispatches: Vec<Dispatch>,
    tensors: Vec<Option<Tensor>>,
    /// One for each dispatch; none on a dry device.
    pipelines: Vec<Arc<Pipeline>>,
    steps: Vec<Step>,
    params: Vec<Arc<Buffer>>,
    runs: usize,
}

impl Program {
    pub(super) fn new(graph: Graph, tensors: Vec<Option<Tensor>>) -> Result<Program> {
        let Graph { gpu, dispatches, .. } = graph;
        let (mut pipelines, mut params) = (Vec::new(), Vec::new());
        if gpu.is_dry() {
            params.push(gpu.buffer("parameters", stride(&gpu) * dispatches.len() as u64)?);
        } else {
            pipelines = gpu.pipelines(dispatches.iter().map(|dispatch| &dispatch.kernel))?;
            dispatches.iter().zip(&pipelines).try_for_each(|(dispatch, pipeline)| check(dispatch, pipeline))?;
        }
        Ok(Program { gpu, dispatches, tensors, pipelines, steps: Vec::new(), params, runs: 0 })
    }

    /// Splits the long ones of these dispatches by the rates that are known, writes their parameters and binds their memory, after
    /// the steps that are there.
    fn prepare(&mut self, dispatches: Range<usize>) -> Result<()> {
        let gpu = self.gpu.clone();
        let stride = stride(&gpu);
        let mut pieces = Vec::new();
        for index in dispatches {
            let (dispatch, pipeline) = (&self.dispatches[index], &self.pipelines[index]);
            let size = dispatch.groups.div_ceil(parts(&gpu, dispatch, pipeline));
            for base in (0..dispatch.groups).step_by(size as usize) {
                pieces.push((index, base, dispatch.groups.min(base.saturating_add(size))));
            }
        }
        let mut bytes = vec![0u8; stride as usize * pieces.len()];
        for ((index, base, end), slot) in pieces.iter().zip(bytes.chunks_exact_mut(stride as usize)) {
            let params = &self.dispatches[*index].params;
            slot[..4].copy_from_slice(&base.to_le_bytes());
            slot[4..8].copy_from_slice(&end.to_le_bytes());
            slot[8..8 + params.len()].copy_from_slice(params);
        }
        let params = gpu.buffer("parameters", bytes.len() as u64)?;
        Tensor::view(params.clone(), 0, [bytes.len()].into(), DType::U8).write(&bytes)?;
        for (slot, (index, base, end)) in pieces.into_iter().enumerate() {
            let dispatch = &self.dispatches[index];
            let args = dispatch.args.iter().map(|v| self.tensor(v)).collect::<Result<Vec<_>>>()?;
            let bind_group =
                gpu.bind(&self.pipelines[index], (&params, slot as u64 * stride, PARAM_BYTES as u64), &args)?;
            let groups = end - base;
            let x = groups.min(gpu.caps().max_groups);
            let work = dispatch.work * f64::from(groups) / f64::from(dispatch.groups);
            let counts = [x, groups.div_ceil(x)];
            self.steps.push(Step { dispatch: index, bind_group, counts, work, took: None });
        }
        self.params.push(params);
        Ok(())
    }

    /// The dispatches from `start` on that are prepared and run together in the first run. One whose kernel has no rate yet, and which
    /// would be cut small for that, waits until another of the same kernel has run: a model's step would be hundreds of thousands of
    /// pieces otherwise.
    fn window(&self, start: usize) -> Range<usize> {
        let mut seen = HashSet::new();
        let waits = |&index: &usize| {
            let (dispatch, pipeline) = (&self.dispatches[index], &self.pipelines[index]);
            let is_cut = pipeline.rate().is_none() && parts(&self.gpu, dispatch, pipeline) > 1;
            is_cut && !seen.insert(Arc::as_ptr(pipeline))
        };
        start..(start..self.dispatches.len()).find(waits).unwrap_or(self.dispatches.len())
    }

    /// Runs the recording once; returns when everything is submitted. The first two runs are timed, kernel by kernel where the
    /// device has a clock, and set the rates by which later submits are cut. Errors: Device, DeviceLost, OutOfMemory; Interrupted
    /// ([`Cancel`](crate::gpu::Cancel)), where what it writes is half written.
    pub fn run(&mut self) -> Result<()> {
        if self.runs < 2 && !self.gpu.is_dry() {
            self.profile()?;
        } else {
            self.submit()?;
            self.runs += 1;
        }
        self.gpu.check()
    }

    fn pipeline(&self, step: &Step) -> &Arc<Pipeline> {
        &self.pipelines[step.dispatch]
    }

    fn submit(&self) -> Result<()> {
        let mut start = 0;
        while start < self.steps.len() {
            self.gpu.cancel().check()?;
            let range = self.next_submit(start);
            start = range.end;
            self.submit_range(range)?;
        }
        Ok(())
    }

    /// Nanoseconds that a step is expected to take. One that was timed runs again as it did.
    fn estimate(&self, step: &Step) -> f64 {
        let kind = self.gpu.caps().kind;
        let unknown = || step.work * self.pipeline(step).rate().unwrap_or_else(|| rates::default_rate(kind));
        step.took.map_or_else(unknown, |ns| ns.max(step.work * rates::least_rate(kind)))
    }

    /// The steps from `start` on that go into one submit: at least one.
    fn next_submit(&self, start: usize) -> Range<usize> {
        let mut spent = 0.0;
        let fits = |step: &&Step| {
            spent += self.estimate(step);
            spent <= SUBMIT_NS
        };
        start..start + self.steps[start..].iter().take_while(fits).count().max(1)
    }

    fn submit_range(&self, range: Range<usize>) -> Result<()> {
        let mut commands = self.gpu.commands()?;
        commands.pass(self.steps[range].iter().map(|s| (&**self.pipeline(s), &s.bind_group, s.counts)));
        commands.submit()
    }

    /// Runs the recording once, waiting for each submit, with a timestamp around every dispatch where the device has them, and
    /// returns the time of each kernel, longest first. Errors: Device, DeviceLost, OutOfMemory.
    pub fn profile(&mut self) -> Result<Vec<KernelTime>> {
        if self.gpu.is_dry() {
            return Ok(Vec::new());
        }
        // The host's clock is for this run alone.
        self.gpu.wait()?;
        let (mut times, mut best) = (Vec::new(), HashMap::new());
        if self.runs > 0 {
            self.time_steps(&mut times, &mut best)?;
        } else {
            self.forget_steps();
            let mut window = 0..0;
            while window.end < self.dispatches.len() {
                window = self.window(window.end);
                self.prepare(window.clone())?;
                self.time_steps(&mut times, &mut best)?;
            }
        }
        let kernels = self.sum(&times);
        if self.runs == 0 && self.is_badly_cut() {
            self.forget_steps();
            self.prepare(0..self.dispatches.len())?;
        }
        self.runs += 1;
        Ok(kernels)
    }

    fn forget_steps(&mut self) {
        self.steps.clear();
        self.params.clear();
    }

    /// Runs the steps that have no time yet.
    fn time_steps(&mut self, times: &mut Vec<Time>, best: &mut HashMap<*const Pipeline, f64>) -> Result<()> {
        while times.len() < self.steps.len() {
            self.gpu.cancel().check()?;
            let mut range = self.next_submit(times.len());
            range.end = range.end.min(range.start + Timings::ROOM);
            let (stamps, wall) = self.time(range.clone())?;
            let estimates: Vec<f64> = self.steps[range.clone()].iter().map(|step| self.estimate(step)).collect();
            times.extend(rates::times(&stamps, wall, &estimates));
            self.calibrate(range, times, best);
        }
        Ok(())
    }

    /// Runs some steps in one submit; the device's stamps, if it has any, and the nanoseconds that the host waited.
    fn time(&self, range: Range<usize>) -> Result<(Stamps, f64)> {
        let mut timings = self.gpu.timings()?;
        let start = Instant::now();
        let stamps = match timings.as_deref_mut() {
            None => {
                self.submit_range(range)?;
                self.gpu.wait()?;
                Stamps::default()
            }
            Some(timings) => {
                let mut commands = self.gpu.commands()?;
                for step in &self.steps[range] {
                    commands.timed(timings, self.pipeline(step), &step.bind_group, step.counts);
                }
                commands.submit()?;
                timings.take(&self.gpu)?
            }
        };
        Ok((stamps, start.elapsed().as_secs_f64() * 1e9))
    }

    /// Notes what the steps of one submit took, so that the next is cut by it, and sets each pipeline's rate to its fastest
    /// dispatch in this run (`best`): the first one may include compilation by the driver.
    fn calibrate(&mut self, range: Range<usize>, times: &[Time], best: &mut HashMap<*const Pipeline, f64>) {
        let kind = self.gpu.caps().kind;
        for (step, time) in self.steps[range.clone()].iter_mut().zip(&times[range]) {
            step.took = Some(time.ns);
            if let Some(rate) = rates::rate(*time, step.work, kind) {
                let pipeline = &self.pipelines[step.dispatch];
                let best = best.entry(Arc::as_ptr(pipeline)).or_insert(f64::INFINITY);
                *best = best.min(rate);
                pipeline.set_rate(*best);
            }
        }
    }

    /// Whether some dispatch is now known to be too long for one call, or was cut without need.
    fn is_badly_cut(&self) -> bool {
        let rate = |step: &Step| self.pipeline(step).rate().unwrap_or_default();
        let too_long = |step: &Step| step.work * rate(step) > 1.5 * DISPATCH_NS && step.counts != [1, 1];
        if self.steps.iter().any(too_long) {
            return true;
        }
        let mut last = None;
        let mut needed = 0;
        for step in &self.steps {
            if last.replace(step.dispatch) != Some(step.dispatch) {
                needed += parts(&self.gpu, &self.dispatches[step.dispatch], self.pipeline(step)) as usize;
            }
        }
        4 * self.steps.len() > 5 * needed
    }

    fn sum(&self, all: &[Time]) -> Vec<KernelTime> {
        let times = self.steps.iter().zip(all).map(|(step, time)| {
            let Kernel { shader, entry, .. } = self.dispatches[step.dispatch].kernel;
            let seconds = time.measured.then_some(time.ns * 1e-9);
            KernelTime { kernel: format!("{shader}.{entry}"), calls: 1, seconds, work: step.work }
        });
        KernelTime::sum(times)
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

    /// Dispatches of the recording, and calls to the device after long ones are split by the rates known so far.
    pub fn len(&self) -> (usize, usize) {
        let cut = |(dispatch, pipeline): (&Dispatch, &Arc<Pipeline>)| parts(&self.gpu, dispatch, pipeline) as usize;
        let calls = match self.steps.is_empty() {
            true => self.dispatches.iter().zip(&self.pipelines).map(cut).sum(),
            false => self.steps.len(),
        };
        (self.dispatches.len(), calls)
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// The kernels in the order they run, for messages and tests.
    pub fn labels(&self) -> impl Iterator<Item = String> + '_ {
        self.dispatches.iter().map(|dispatch| dispatch.kernel.label())
    }
}

/// The parameters must be those that the shader declares, and two bindings of one dispatch must not share memory where one of
/// them is written. Errors: Shape.
fn check(dispatch: &Dispatch, pipeline: &Pipeline) -> Result<()> {
    use crate::gpu::Access;
    let declared = &pipeline.params;
    let engine = ["group_base", "group_end"];
    let (names, bytes) = (engine.iter().chain(dispatch.names), 8 + dispatch.params.len());
    if !names.copied().eq(declared.names.iter().map(String::as_str)) || declared.bytes as usize != bytes {
        let expected = format!("parameters {:?} of {} bytes", declared.names, declared.bytes);
        return Err(Error::shape(&pipeline.label, expected, format!("{:?} and {bytes} bytes", dispatch.names)));
    }
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

/// Bytes between the parameters of two dispatches.
/// From the parameters of one dispatch to those of the next.
pub(super) fn stride(gpu: &Gpu) -> u64 {
    gpu.caps().offset_alignment.max(PARAM_BYTES as u64)
}

/// Calls in which a dispatch runs, so that none is too long.
fn parts(gpu: &Gpu, dispatch: &Dispatch, pipeline: &Pipeline) -> u32 {
    let rate = pipeline.rate().unwrap_or_else(|| rates::default_rate(gpu.caps().kind));
    ((dispatch.work * rate / DISPATCH_NS).ceil() as u32).clamp(1, dispatch.groups)
}
