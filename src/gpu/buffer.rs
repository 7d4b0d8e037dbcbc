//! Device memory: buffers that count themselves, and tensors that view them.

use super::{Gpu, faults::Held, queue::STAGING};
use crate::{DType, Error, Result, Shape};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// A buffer on the device. On a [dry](super::GpuOptions::dry) device it is only counted.
pub struct Buffer {
    pub(super) raw: Option<Held<wgpu::Buffer>>,
    size: u64,
    gpu: Gpu,
}

impl Buffer {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.inner.counters.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl Gpu {
    /// A buffer of at least `size` bytes, zeroed. Errors: OutOfMemory, with `what` and a remedy; Interrupted.
    pub fn buffer(&self, what: &str, size: u64) -> Result<Arc<Buffer>> {
        self.cancel().check()?;
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::UNIFORM
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        self.buffer_for(what, size, usage)
    }

    pub(super) fn buffer_for(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<Arc<Buffer>> {
        let size = size.max(4).next_multiple_of(4);
        let too_much = |available: u64, remedy: &str| {
            let (needed, available) = (Some(size), Some(available));
            Err(Error::OutOfMemory { what: what.to_owned(), needed, available, remedy: remedy.to_owned() })
        };
        if size > self.caps().max_buffer {
            return too_much(
                self.caps().max_buffer,
                "this device allows no larger buffer; use a smaller model, batch or sequence",
            );
        }
        let counters = &self.inner.counters;
        let used = counters.bytes.load(Ordering::Relaxed);
        if let Some(limit) = self.inner.memory_limit.filter(|&limit| used + size > limit) {
            return too_much(
                limit.saturating_sub(used),
                "raise the limit, lower `max_seq_length` or `batch_size`, or quantize to 4 bits",
            );
        }
        let raw = match self.inner.dry {
            true => None,
            false => Some(self.allocate(what, size, usage)?),
        };
        counters.buffers.fetch_add(1, Ordering::Relaxed);
        let now = counters.bytes.fetch_add(size, Ordering::Relaxed) + size;
        counters.peak.fetch_max(now, Ordering::Relaxed);
        Ok(Arc::new(Buffer { raw, size, gpu: self.clone() }))
    }

    fn allocate(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<Held<wgpu::Buffer>> {
        let desc = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        self.attempt(what, || Held::new(self.device().create_buffer(&desc))).map_err(|error| match error {
            Error::OutOfMemory { what, available, remedy, .. } => {
                Error::OutOfMemory { what, needed: Some(size), available, remedy }
            }
            other => other,
        })
    }

    /// A zeroed tensor.
    pub fn zeros(&self, what: &str, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = bytes_of(what, &shape, dtype)?;
        Ok(Tensor { buffer: self.buffer(what, bytes)?, offset: 0, shape, dtype })
    }

    /// A tensor with these values. `T` is `f32`, `u32`, `i32`, `half::f16` or a byte type that fits `dtype`.
    pub fn tensor<T: bytemuck::NoUninit>(
        &self,
        what: &str,
        shape: impl Into<Shape>,
        dtype: DType,
        values: &[T],
    ) -> Result<Tensor> {
        let tensor = self.zeros(what, shape, dtype)?;
        tensor.write(bytemuck::cast_slice(values))?;
        Ok(tensor)
    }
}

fn bytes_of(what: &str, shape: &Shape, dtype: DType) -> Result<u64> {
    shape
        .checked_len()
        .and_then(|n| n.checked_mul(dtype.size()))
        .map(|n| n as u64)
        .ok_or_else(|| Error::shape(what, "a length that fits the address space", shape))
}

/// A tensor in device memory: a view of a buffer. Cloning shares the memory.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) offset: u64,
    shape: Shape,
    dtype: DType,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {})", self.dtype, self.shape)
    }
}

impl Tensor {
    /// A view of `buffer` from `offset` bytes on.
    pub(crate) fn view(buffer: Arc<Buffer>, offset: u64, shape: Shape, dtype: DType) -> Tensor {
        debug_assert!(offset + (shape.len() * dtype.size()) as u64 <= buffer.size().next_multiple_of(4));
        Tensor { buffer, offset, shape, dtype }
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        (self.shape.len() * self.dtype.size()) as u64
    }

    /// Device and memory that this tensor lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.buffer.gpu
    }

    /// Whether `other` is a view of a part of this one's memory.
    pub(crate) fn contains(&self, other: &Tensor) -> bool {
        let end = |tensor: &Tensor| tensor.offset + tensor.bytes();
        Arc::ptr_eq(&self.buffer, &other.buffer) && self.offset <= other.offset && end(other) <= end(self)
    }

    /// The elements from `start` on, seen with another shape. The byte offset must be a multiple of the device's binding
    /// alignment (256 bytes suffice everywhere). Errors: Shape.
    pub fn slice(&self, start: usize, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let from = (start * self.dtype.size()) as u64;
        if from % self.gpu().caps().offset_alignment != 0 || start + shape.len() > self.shape.len() {
            let expected = format!("an aligned range inside {}", self.shape);
            return Err(Error::shape("slice", expected, format!("{shape} from element {start}")));
        }
        Ok(Tensor { buffer: self.buffer.clone(), offset: self.offset + from, shape, dtype: self.dtype })
    }

    /// Overwrites the contents, in device layout. Errors: Shape where the byte count differs.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != self.bytes() {
            return Err(Error::shape("write", format!("{} bytes", self.bytes()), format!("{} bytes", bytes.len())));
        }
        self.write_at(0, bytes)
    }

    /// Overwrites the elements from `start` on. The first byte must lie on a word. Errors: Shape where it does not, or
    /// where there are too many bytes.
    pub fn write_at(&self, start: usize, bytes: &[u8]) -> Result<()> {
        let from = (start * self.dtype.size()) as u64;
        if from % 4 != 0 || from + bytes.len() as u64 > self.bytes() {
            let expected = format!("bytes on a word within {}", self.bytes());
            return Err(Error::shape("write", expected, format!("{} from {from} on", bytes.len())));
        }
        let gpu = self.gpu();
        let Some(raw) = &self.buffer.raw else { return Ok(()) };
        let mut at = self.offset + from;
        for chunk in bytes.chunks(STAGING as usize) {
            if chunk.len() % 4 == 0 {
                gpu.upload(raw, at, chunk)?;
            } else {
                // Copies go in words; the buffer's size is a multiple of four, so the padding is ours.
                let mut padded = chunk.to_vec();
                padded.resize(chunk.len().next_multiple_of(4), 0);
                gpu.upload(raw, at, &padded)?;
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// The contents. Waits for the device. Errors: Device, DeviceLost.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Result<Vec<T>> {
        let bytes = self.bytes();
        let mut readback = self.gpu().readback(bytes.min(STAGING))?;
        if bytes <= STAGING {
            return readback.fetch(self);
        }
        let mut values = Vec::with_capacity(bytes as usize / size_of::<T>());
        let (len, piece) = (self.shape.len(), STAGING as usize / self.dtype.size());
        for start in (0..len).step_by(piece) {
            let offset = self.offset + (start * self.dtype.size()) as u64;
            let piece = Tensor::view(self.buffer.clone(), offset, [piece.min(len - start)].into(), self.dtype);
            values.append(&mut readback.fetch(&piece)?);
        }
        Ok(values)
    }
}

/// How long another thread may take to hand on an answer that it has; where none comes, nobody has it.
const ANSWER: Duration = Duration::from_secs(60);

/// A mappable buffer kept for reading small results every step without making anything new.
pub struct Readback {
    staging: Arc<Buffer>,
}

impl Gpu {
    /// Room to read back `bytes` bytes.
    pub fn readback(&self, bytes: u64) -> Result<Readback> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Ok(Readback { staging: self.buffer_for("a readback", bytes, usage)? })
    }
}

impl Readback {
    /// Copies `tensor` to the host. Waits for everything submitted so far. Errors: Device, DeviceLost, Shape.
    pub fn fetch<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&mut self, tensor: &Tensor) -> Result<Vec<T>> {
        let gpu = tensor.gpu();
        let bytes = tensor.bytes();
        let padded = bytes.next_multiple_of(4);
        if padded > self.staging.size() {
            return Err(Error::shape(
                "read",
                format!("at most {} bytes", self.staging.size()),
                format!("{bytes} bytes"),
            ));
        }
        let mut values = vec![T::zeroed(); bytes as usize / size_of::<T>()];
        let (Some(source), Some(staging)) = (&tensor.buffer.raw, &self.staging.raw) else { return Ok(values) };
        let op = "reading a tensor back";
        let mut commands = gpu.commands()?;
        commands.copy_bytes((source, tensor.offset), (staging, 0), padded);
        commands.submit()?;
        gpu.map(op, staging, padded, |view| {
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(&view[..bytes as usize]);
        })?;
        Ok(values)
    }
}

impl Gpu {
    /// Waits for everything submitted, and shows the first `bytes` bytes of `buffer` to `read`, which calls nothing of wgpu.
    /// Errors: Device with `op`, DeviceLost.
    pub(super) fn map(&self, op: &str, buffer: &wgpu::Buffer, bytes: u64, read: impl FnOnce(&[u8])) -> Result<()> {
        let fail = |message: String| Error::Device { op: op.to_owned(), message };
        let (sender, receiver) = std::sync::mpsc::channel();
        self.attempt(op, || {
            buffer.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
                let _ = sender.send(result);
            });
        })?;
        self.wait()?;
        // Waiting has answered, on this thread or on another one that waits for the same device and is about to.
        let answer = receiver.recv_timeout(ANSWER).map_err(|e| fail(e.to_string()))?;
        answer.map_err(|e| fail(e.to_string()))?;
        let view = self.attempt(op, || buffer.slice(..bytes).get_mapped_range())?.map_err(|e| fail(e.to_string()))?;
        let view = Held::new(view);
        read(&view);
        drop(view);
        self.attempt(op, || buffer.unmap())
    }
}
