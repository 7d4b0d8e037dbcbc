//! Encoding and submitting: bind groups, passes, timestamps.

use super::{Buffer, Gpu, Pipeline, Tensor, faults::Held};
use crate::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, atomic::Ordering};

/// The memory one dispatch works on, bound once and replayed.
pub struct BindGroup(Held<wgpu::BindGroup>);

impl Gpu {
    /// Binds `params` (a slot of a uniform buffer) and `args` to the bindings of `pipeline`, in their order.
    /// Errors: Shape where the number of arguments differs or one exceeds the binding limit.
    pub fn bind(&self, pipeline: &Pipeline, params: (&Arc<Buffer>, u64, u64), args: &[Tensor]) -> Result<BindGroup> {
        let wanted = pipeline.bindings.len();
        if args.len() + 1 != wanted {
            return Err(Error::shape(&pipeline.label, format!("{} buffers", wanted - 1), format!("{}", args.len())));
        }
        let limit = self.caps().max_binding;
        if let Some(large) = args.iter().find(|t| t.bytes() > limit) {
            let expected = format!("bindings of at most {limit} bytes");
            return Err(Error::shape(&pipeline.label, expected, format!("{large:?}, {} bytes", large.bytes())));
        }
        let raw = |buffer: &'_ Arc<Buffer>| {
            buffer.raw.as_deref().cloned().map(Held::new).ok_or_else(|| Error::Device {
                op: pipeline.label.clone(),
                message: "this device only counts memory; nothing can run on it".to_owned(),
            })
        };
        let mut buffers = vec![(raw(params.0)?, params.1, params.2)];
        for tensor in args {
            buffers.push((raw(&tensor.buffer)?, tensor.offset, tensor.bytes().next_multiple_of(4)));
        }
        let entries: Vec<_> = pipeline
            .bindings
            .iter()
            .zip(&buffers)
            .map(|(binding, (buffer, offset, size))| wgpu::BindGroupEntry {
                binding: binding.index,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset: *offset,
                    size: std::num::NonZeroU64::new(*size),
                }),
            })
            .collect();
        self.inner.counters.bind_groups.fetch_add(1, Ordering::Relaxed);
        let desc =
            wgpu::BindGroupDescriptor { label: Some(&pipeline.label), layout: &pipeline.layout, entries: &entries };
        self.attempt(&pipeline.label, || BindGroup(Held::new(self.device().create_bind_group(&desc))))
    }
}

/// Passes that one [`Timings`] holds: a query set has room for 4096 stamps.
const TIMED_PASSES: u32 = 2048;

/// Room for the timestamps of one submit.
pub struct Timings {
    set: Held<wgpu::QuerySet>,
    resolve: Held<wgpu::Buffer>,
    staging: Held<wgpu::Buffer>,
    used: u32,
}

/// What the device's clock said: the begin and the end of each timed pass in turns, as they came. They may be zero, equal,
/// run backwards or be plainly wrong: that depends on the driver.
#[derive(Clone, Debug, Default)]
pub struct Stamps {
    /// Ticks, two a pass.
    pub ticks: Vec<u64>,
    /// Nanoseconds a tick.
    pub period: f64,
}

impl Gpu {
    /// The device's room for timestamps, empty, or `None` where it has none. There is one per device, made at the first call and
    /// kept: Metal has 32 counter buffers in all. Whoever has it keeps others waiting. Errors: OutOfMemory, Device, DeviceLost.
    pub fn timings(&self) -> Result<Option<MutexGuard<'_, Timings>>> {
        if !self.caps().timestamps || self.is_dry() {
            return Ok(None);
        }
        let shared = match self.inner.timings.get() {
            Some(shared) => shared,
            None => {
                let made = self.attempt("room for timestamps", || self.create_timings())?;
                self.inner.timings.get_or_init(|| Mutex::new(made))
            }
        };
        let mut timings = shared.lock().expect("no thread panics while it holds the timings");
        // What failed before it was read leaves its stamps behind.
        timings.used = 0;
        Ok(Some(timings))
    }

    fn create_timings(&self) -> Timings {
        let size = u64::from(2 * TIMED_PASSES) * 8;
        let buffer = |label, usage| {
            let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            Held::new(self.device().create_buffer(&desc))
        };
        let set = wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * TIMED_PASSES,
        };
        Timings {
            set: Held::new(self.device().create_query_set(&set)),
            resolve: buffer("timestamps", wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer("timestamps read", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            used: 0,
        }
    }
}

impl Timings {
    /// Passes that can be timed before they are [taken](Timings::take).
    pub const ROOM: usize = TIMED_PASSES as usize;

    /// Waits, and returns the stamps of the passes since the last call, in order. Errors: Device, DeviceLost, OutOfMemory.
    pub fn take(&mut self, gpu: &Gpu) -> Result<Stamps> {
        let count = 2 * std::mem::take(&mut self.used);
        if count == 0 {
            return Ok(Stamps::default());
        }
        let bytes = u64::from(count) * 8;
        let mut commands = gpu.commands()?;
        commands.encoder.resolve_query_set(&self.set, 0..count, &self.resolve, 0);
        commands.copy_bytes((&self.resolve, 0), (&self.staging, 0), bytes);
        commands.submit()?;
        let mut ticks = Vec::new();
        gpu.map("reading timestamps", &self.staging, bytes, |view| ticks = bytemuck::pod_collect_to_vec(view))?;
        Ok(Stamps { ticks, period: f64::from(gpu.queue().get_timestamp_period()) })
    }
}

/// Commands on their way to the device: one submit.
pub struct Commands<'a> {
    gpu: &'a Gpu,
    encoder: Held<wgpu::CommandEncoder>,
}

impl Gpu {
    /// An empty submit. wgpu records what is put into it without a word to the driver, and says all that is wrong with it when
    /// it is submitted. Errors: OutOfMemory, Device, DeviceLost.
    pub fn commands(&self) -> Result<Commands<'_>> {
        let desc = wgpu::CommandEncoderDescriptor { label: Some("step") };
        let encoder = self.attempt("a command encoder", || Held::new(self.device().create_command_encoder(&desc)))?;
        Ok(Commands { gpu: self, encoder })
    }
}

impl Commands<'_> {
    /// Encodes dispatches in one pass. Each item: pipeline, memory, workgroups along x and y.
    pub fn pass<'b>(&mut self, items: impl IntoIterator<Item = (&'b Pipeline, &'b BindGroup, [u32; 2])>) {
        let mut pass = self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let mut last: *const Pipeline = std::ptr::null();
        for (pipeline, group, [x, y]) in items {
            if !std::ptr::eq(last, pipeline) {
                pass.set_pipeline(&pipeline.raw);
                last = pipeline;
            }
            pass.set_bind_group(0, &*group.0, &[]);
            pass.dispatch_workgroups(x, y, 1);
        }
    }

    /// Encodes one dispatch in a pass of its own between two timestamps.
    pub fn timed(&mut self, timings: &mut Timings, pipeline: &Pipeline, group: &BindGroup, [x, y]: [u32; 2]) {
        let first = 2 * timings.used;
        timings.used += 1;
        let mut pass = self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(&pipeline.label),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &timings.set,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }),
        });
        pass.set_pipeline(&pipeline.raw);
        pass.set_bind_group(0, &*group.0, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }

    /// Copies the whole of `from` over `to`, which has as many bytes.
    pub fn copy(&mut self, from: &Tensor, to: &Tensor) {
        if let (Some(source), Some(target)) = (&from.buffer.raw, &to.buffer.raw) {
            self.copy_bytes((source, from.offset), (target, to.offset), from.bytes().next_multiple_of(4));
        }
    }

    pub(super) fn copy_bytes(&mut self, from: (&wgpu::Buffer, u64), to: (&wgpu::Buffer, u64), bytes: u64) {
        self.encoder.copy_buffer_to_buffer(from.0, from.1, to.0, to.1, bytes);
    }

    /// Hands the commands to the device. Errors: OutOfMemory, Device, DeviceLost.
    pub fn submit(self) -> Result<()> {
        self.gpu.submit("a submit", Some(self.encoder))
    }
}
