//! What is on its way to the device: submits, uploads and waiting. Neither may pile up: a queue that runs far ahead of the
//! device, or that is never asked whether something is done, holds memory for all of it.

use super::{Gpu, faults::Held};
use crate::{Error, Result};
use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Submits that may wait for the device before the host waits for the oldest. Each has up to 100 ms of work, so the device
/// never runs dry.
const SUBMITS_AHEAD: usize = 32;
/// Bytes that lie in staging memory at once, on their way up or down: it is the host's, and scarce and easily fragmented where
/// cards map all of their memory. wgpu stages every write until the next submit, also the many small ones of a model that is
/// loaded.
pub(super) const STAGING: u64 = 16 << 20;

/// What was handed over and may not be done yet.
#[derive(Default)]
pub(super) struct Ahead {
    submits: Mutex<VecDeque<wgpu::SubmissionIndex>>,
    uploaded: AtomicU64,
}

impl Gpu {
    /// Waits until everything submitted has run. Errors: Device, DeviceLost.
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())?;
        self.inner.ahead.submits.lock().expect("no thread panics while it holds the submits").clear();
        Ok(())
    }

    fn poll(&self, until: wgpu::PollType) -> Result<()> {
        self.attempt("waiting for the device", || self.device().poll(until))?
            .map(|_| ())
            .map_err(|e| Error::Device { op: "waiting for the device".to_owned(), message: e.to_string() })
    }

    /// Hands commands and all uploads so far to the device, and waits where it is far behind. wgpu looks for what is done in
    /// every submit. Errors: OutOfMemory, Device, DeviceLost.
    pub(super) fn submit(&self, op: &str, encoder: Option<Held<wgpu::CommandEncoder>>) -> Result<()> {
        let index = self.attempt(op, || self.queue().submit(encoder.map(|encoder| encoder.take().finish())))?;
        self.inner.ahead.uploaded.store(0, Ordering::Relaxed);
        let oldest = {
            let mut submits = self.inner.ahead.submits.lock().expect("no thread panics while it holds the submits");
            submits.push_back(index);
            if submits.len() > SUBMITS_AHEAD { submits.pop_front() } else { None }
        };
        match oldest {
            Some(oldest) => self.poll(wgpu::PollType::Wait { submission_index: Some(oldest), timeout: None }),
            None => Ok(()),
        }
    }

    /// Puts bytes on their way into `buffer`. Errors: OutOfMemory, Device, DeviceLost, Interrupted.
    pub(super) fn upload(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.cancel().check()?;
        self.attempt("an upload", || self.queue().write_buffer(buffer, offset, bytes))?;
        let waiting = self.inner.ahead.uploaded.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        if waiting >= STAGING {
            self.submit("an upload", None)?;
            self.wait()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    #[test]
    fn neither_submits_nor_uploads_pile_up() {
        let gpu = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
        let buffer = gpu.buffer("x", STAGING).unwrap();
        let raw = buffer.raw.as_ref().unwrap();
        let part = vec![0; STAGING as usize / 4];
        for round in 0..9 {
            gpu.upload(raw, 0, &part).unwrap();
            let waiting = gpu.inner.ahead.uploaded.load(Ordering::Relaxed);
            assert_eq!(waiting, (round + 1) % 4 * part.len() as u64, "round {round}");
        }
        for _ in 0..3 * SUBMITS_AHEAD {
            gpu.commands().unwrap().submit().unwrap();
            assert!(gpu.inner.ahead.submits.lock().unwrap().len() <= SUBMITS_AHEAD);
        }
        gpu.wait().unwrap();
        assert!(gpu.inner.ahead.submits.lock().unwrap().is_empty());
    }
}
