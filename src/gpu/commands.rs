//! Encoding and submitting: bind groups, passes, timestamps.

use super::{Buffer, Gpu, Pipeline, Tensor};
use crate::{Error, Result};
use std::sync::{Arc, atomic::Ordering};

/// The memory one dispatch works on, bound once and replayed.
pub struct BindGroup(wgpu::BindGroup);

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
            buffer.raw.clone().ok_or_else(|| Error::Device {
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
        Ok(BindGroup(self.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&pipeline.label),
            layout: &pipeline.layout,
            entries: &entries,
        })))
    }
}

/// Passes that one [`Timings`] holds: a query set has room for 4096 stamps.
const TIMED_PASSES: u32 = 2048;

/// Room for the timestamps of one submit.
pub struct Timings {
    set: wgpu::QuerySet,
    resolve: wgpu::Buffer,
    staging: wgpu::Buffer,
    used: u32,
}

impl Gpu {
    /// Room for timestamps, or `None` where the device has none.
    pub fn timings(&self) -> Option<Timings> {
        if !self.caps().timestamps || self.is_dry() {
            return None;
        }
        let size = u64::from(2 * TIMED_PASSES) * 8;
        let buffer = |label, usage| {
            let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            self.device().create_buffer(&desc)
        };
        Some(Timings {
            set: self.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * TIMED_PASSES,
            }),
            resolve: buffer("timestamps", wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer("timestamps read", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            used: 0,
        })
    }
}

impl Timings {
    /// Whether another pass still fits.
    pub fn has_room(&self) -> bool {
        self.used < TIMED_PASSES
    }

    /// Waits, and returns the nanoseconds of each timed pass since the last call, in order.
    pub fn take(&mut self, gpu: &Gpu) -> Result<Vec<f64>> {
        let count = 2 * self.used;
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = u64::from(count) * 8;
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.resolve_query_set(&self.set, 0..count, &self.resolve, 0);
        encoder.copy_buffer_to_buffer(&self.resolve, 0, &self.staging, 0, bytes);
        gpu.queue().submit([encoder.finish()]);
        self.staging.slice(..bytes).map_async(wgpu::MapMode::Read, |_| {});
        gpu.wait()?;
        let fail =
            |e: wgpu::MapRangeError| Error::Device { op: "reading timestamps".to_owned(), message: e.to_string() };
        let period = f64::from(gpu.queue().get_timestamp_period());
        let times = {
            let view = self.staging.slice(..bytes).get_mapped_range().map_err(fail)?;
            let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(&view[..]);
            stamps.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]) as f64 * period).collect()
        };
        self.staging.unmap();
        self.used = 0;
        Ok(times)
    }
}

/// Commands on their way to the device: one submit.
pub struct Commands<'a> {
    gpu: &'a Gpu,
    encoder: wgpu::CommandEncoder,
}

impl Gpu {
    /// An empty submit.
    pub fn commands(&self) -> Commands<'_> {
        let encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        Commands { gpu: self, encoder }
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
            pass.set_bind_group(0, &group.0, &[]);
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
        pass.set_bind_group(0, &group.0, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }

    /// Copies the whole of `from` over `to`, which has as many bytes.
    pub fn copy(&mut self, from: &Tensor, to: &Tensor) {
        if let (Some(source), Some(target)) = (&from.buffer.raw, &to.buffer.raw) {
            let bytes = from.bytes().next_multiple_of(4);
            self.encoder.copy_buffer_to_buffer(source, from.offset, target, to.offset, bytes);
        }
    }

    /// Hands the commands to the device.
    pub fn submit(self) {
        self.gpu.queue().submit([self.encoder.finish()]);
    }
}
