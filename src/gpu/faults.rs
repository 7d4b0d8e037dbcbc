//! What goes wrong on a device becomes an [`Error`]: every call into wgpu that a driver may refuse is made through
//! [`Gpu::attempt`], and every object of wgpu is dropped by [`Held`].
//!
//! wgpu 30 reports a fault in four ways: an error scope, the handler of uncaptured errors, the callback of a lost
//! device, and a panic. It panics where its own interface has no other way (`Device::poll` on a lost device, the first
//! command of an upload, a descriptor pool that is exhausted, dropping the queue of a device without memory), so those
//! panics are caught, here and nowhere else. Programs built with `panic = "abort"` cannot be helped: there such a fault
//! ends the process. Nothing here retries, and nothing holds a lock while wgpu runs.

use super::Gpu;
use crate::error::caught as caught_panic;
pub use crate::error::is_catching;
use crate::{Error, Result};
use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard},
};

/// Runs `f`, which calls wgpu before there is a device. Errors: Device, where wgpu panics.
pub(super) fn caught<T>(op: &str, f: impl FnOnce() -> T) -> Result<T> {
    caught_panic(f).map_err(|message| Error::Device { op: op.to_owned(), message })
}

/// An object of wgpu: a panic while it is dropped ends there. A device that fails while its memory is given back has
/// nothing left to say to anyone.
pub(super) struct Held<T>(Option<T>);

impl<T> Held<T> {
    pub(super) fn new(value: T) -> Held<T> {
        Held(Some(value))
    }

    /// The object itself, where wgpu wants to consume it.
    pub(super) fn take(mut self) -> T {
        self.0.take().expect("only taking and dropping empty it")
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only taking and dropping empty it")
    }
}

impl<T> std::ops::DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only taking and dropping empty it")
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if let Err(message) = caught_panic(|| drop(self.0.take())) {
            log::debug!("while dropping {}: {message}", std::any::type_name::<T>());
        }
    }
}

#[derive(Default)]
struct State {
    /// Why the device is lost. It stays so.
    lost: Option<String>,
    /// The first error that no call was there to take.
    pending: Option<Error>,
}

/// What a device has reported and no call has returned yet.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// Listens to `device`.
    pub(super) fn watch(device: &wgpu::Device) -> Faults {
        let faults = Faults::default();
        let slot = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let error = Faults::error("a submitted command", error);
            slot.state().pending.get_or_insert(error);
        }));
        let slot = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                slot.lose(&message);
            }
        });
        faults
    }

    /// Taken for a few instructions at a time, in which nothing of wgpu runs: its callbacks come here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no thread panics while it holds the state")
    }

    fn lose(&self, message: &str) {
        self.state().lost.get_or_insert_with(|| message.trim_end_matches('.').to_owned());
    }

    fn check(&self) -> Result<()> {
        let State { lost, pending } = &mut *self.state();
        match (pending.take(), lost) {
            (Some(error), _) => Err(error),
            (None, Some(message)) => Err(Error::DeviceLost(message.clone())),
            (None, None) => Ok(()),
        }
    }

    fn error(op: &str, error: wgpu::Error) -> Error {
        match error {
            wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory {
                what: op.to_owned(),
                needed: None,
                available: None,
                remedy: "close other programs that use the GPU, or use a smaller model, batch or sequence".to_owned(),
            },
            // A driver's compiler says why in an internal error.
            error @ (wgpu::Error::Validation { .. } | wgpu::Error::Internal { .. }) => {
                Error::Device { op: op.to_owned(), message: error.to_string() }
            }
        }
    }

    /// See [`Gpu::attempt`].
    fn attempt<T>(&self, device: &wgpu::Device, op: &str, f: impl FnOnce() -> T) -> Result<T> {
        self.check()?;
        let scopes = || {
            let filters = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
            let mut scopes = filters.map(|filter| Some(device.push_error_scope(filter)));
            let value = f();
            let mut errors = [const { None }; 3];
            for (scope, error) in scopes.iter_mut().zip(&mut errors).rev() {
                *error = scope.take().and_then(|scope| pollster::block_on(scope.pop()));
            }
            (value, errors.into_iter().flatten().next())
        };
        let (value, error) = match caught_panic(scopes) {
            Ok((value, error)) => (Some(value), error.map(|error| Faults::error(op, error))),
            Err(message) => {
                let known = self.state().lost.is_some();
                // What wgpu holds after a panic is unknown: no later call may reach it.
                self.lose(&format!("an earlier failure in {op}: {message}"));
                (None, (!known).then(|| Error::Device { op: op.to_owned(), message }))
            }
        };
        if let Some(error) = error {
            return Err(error);
        }
        match self.check() {
            Err(Error::DeviceLost(message)) => Err(Error::DeviceLost(format!("{message}, in {op}"))),
            Err(error) => Err(error),
            Ok(()) => Ok(value.expect("a panic loses the device")),
        }
    }
}

impl Gpu {
    /// Runs `f`, which calls wgpu and nothing else, and returns what went wrong in it, or on the device before it.
    /// A lost device is not asked again. Errors: OutOfMemory, Device with `op`, DeviceLost.
    pub(super) fn attempt<T>(&self, op: &str, f: impl FnOnce() -> T) -> Result<T> {
        self.inner.faults.attempt(self.device(), op, f)
    }

    /// The first error the device reported since the last check. Errors: Device, DeviceLost, OutOfMemory.
    pub fn check(&self) -> Result<()> {
        self.inner.faults.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    fn noop() -> Gpu {
        Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap()
    }

    fn internal() -> wgpu::Error {
        wgpu::Error::Internal { source: "x".into(), description: "X3511: unable to unroll".to_owned() }
    }

    #[test]
    fn a_lost_device_stays_lost_and_says_why_each_time() {
        let gpu = noop();
        gpu.inner.faults.lose("driver reset.");
        for _ in 0..3 {
            let error = gpu.check().unwrap_err();
            assert!(matches!(&error, Error::DeviceLost(m) if m == "driver reset"), "{error}");
        }
        let error = gpu.attempt("an upload", || panic!("a lost device was asked")).unwrap_err();
        assert!(matches!(error, Error::DeviceLost(_)), "{error}");
        assert!(matches!(gpu.buffer("x", 4), Err(Error::DeviceLost(_))));
        assert!(matches!(gpu.wait(), Err(Error::DeviceLost(_))));
    }

    #[test]
    fn a_loss_during_a_call_names_the_call() {
        let gpu = noop();
        let faults = gpu.inner.faults.clone();
        let error = gpu.attempt("a submit", || faults.lose("Parent device is lost")).unwrap_err();
        assert_eq!(error.to_string(), "the GPU was lost: Parent device is lost, in a submit");
    }

    #[test]
    fn a_panic_is_an_error_and_the_device_is_not_asked_again() {
        let gpu = noop();
        assert!(!is_catching());
        let error = gpu.attempt("a submit", || -> u32 { std::panic::resume_unwind(Box::new("slot 3")) }).unwrap_err();
        assert!(matches!(&error, Error::Device { op, message } if op == "a submit" && message == "slot 3"), "{error}");
        let again = gpu.attempt("a submit", || 1).unwrap_err();
        assert!(matches!(&again, Error::DeviceLost(m) if m.contains("slot 3")), "{again}");
        assert!(!is_catching());
    }

    #[test]
    fn hooks_are_told_while_wgpu_runs() {
        assert!(noop().attempt("asking", is_catching).unwrap());
        assert!(!is_catching());
    }

    #[test]
    fn errors_of_all_kinds_are_told_apart() {
        assert!(matches!(Faults::error("norm.forward", internal()),
            Error::Device { op, message } if op == "norm.forward" && message.contains("X3511")));
        let memory = wgpu::Error::OutOfMemory { source: "x".into() };
        let error = Faults::error("a bind group", memory);
        assert!(matches!(&error, Error::OutOfMemory { needed: None, .. }), "{error}");
        assert!(error.to_string().starts_with("a bind group: "), "{error}");
    }

    #[test]
    fn an_error_that_no_call_took_is_told_once() {
        let gpu = noop();
        gpu.inner.faults.state().pending = Some(Faults::error("a submitted command", internal()));
        assert!(matches!(gpu.check(), Err(Error::Device { .. })));
        assert!(gpu.check().is_ok());
        // In a scope it belongs to the call that made it.
        let error = gpu.attempt("a buffer", || {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::STORAGE;
            let desc = wgpu::BufferDescriptor { label: None, size: 4, usage, mapped_at_creation: false };
            Held::new(gpu.device().create_buffer(&desc))
        });
        assert!(matches!(error, Err(Error::Device { op, .. }) if op == "a buffer"));
        assert!(gpu.check().is_ok());
    }

    #[test]
    fn what_panics_while_it_is_dropped_ends_there() {
        struct Sore;
        impl Drop for Sore {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new("sore"));
            }
        }
        drop(Held::new(Sore));
        // Also while another panic unwinds, where a second one would end the process.
        let outer = std::panic::catch_unwind(|| {
            let _sore = Held::new(Sore);
            std::panic::resume_unwind(Box::new("outer"));
        });
        assert_eq!(outer.unwrap_err().downcast_ref::<&str>(), Some(&"outer"));
        assert!(!is_catching());
    }
}
