//! How an app asks work on a device to stop.

use super::Gpu;
use crate::{Error, Result};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Asks all work on the devices that were opened with it to stop: what next compiles a kernel, takes memory, uploads or runs a program
/// gets [`Error::Interrupted`], and a running program gets it after the submit that it is in, which is cut to a tenth of a second.
/// Reading back goes on. Cloning shares it.
///
/// ```
/// # use fourbit::gpu::{Cancel, GpuOptions};
/// let cancel = Cancel::default();
/// let options = GpuOptions { cancel: cancel.clone(), ..GpuOptions::default() };
/// // In another thread, or from the handler of a signal by way of `Cancel::of`:
/// cancel.request();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    requested: Arc<AtomicBool>,
    /// How many finish something that is not to be stopped.
    shields: Arc<AtomicUsize>,
}

impl Cancel {
    /// One that is asked by setting this flag.
    pub fn of(flag: Arc<AtomicBool>) -> Cancel {
        Cancel { requested: flag, ..Cancel::default() }
    }

    /// Asks to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// For long loops on the host. Errors: Interrupted, where it was asked to stop.
    pub fn check(&self) -> Result<()> {
        match self.is_requested() && self.shields.load(Ordering::Relaxed) == 0 {
            true => Err(Error::Interrupted("the work was asked to stop".to_owned())),
            false => Ok(()),
        }
    }

    /// Runs `f` to its end: saving, and what would be left half done.
    pub fn shield<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Shield<'a>(&'a AtomicUsize);
        impl Drop for Shield<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.shields.fetch_add(1, Ordering::Relaxed);
        let _shield = Shield(&self.shields);
        f()
    }
}

impl Gpu {
    /// What asks work on this device to stop ([`GpuOptions::cancel`](super::GpuOptions::cancel)).
    pub fn cancel(&self) -> &Cancel {
        &self.inner.cancel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, gpu::GpuOptions};

    #[test]
    fn nothing_more_is_handed_over_but_reading_back_and_what_is_shielded() {
        let options = GpuOptions { noop: true, ..GpuOptions::default() };
        let gpu = Gpu::open(&options).unwrap();
        let other = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
        let tensor = gpu.zeros("x", [4], DType::F32).unwrap();
        let mut readback = gpu.readback(16).unwrap();
        gpu.cancel().request();
        let interrupted = |result: Result<()>| assert!(matches!(result, Err(Error::Interrupted(_))));
        interrupted(tensor.write(&[0; 16]));
        interrupted(gpu.zeros("y", [4], DType::F32).map(|_| ()));
        interrupted(gpu.cancel().check());
        gpu.cancel().shield(|| {
            gpu.cancel().shield(|| ());
            tensor.write(&[0; 16]).unwrap();
        });
        interrupted(tensor.write(&[0; 16]));
        readback.fetch::<f32>(&tensor).unwrap();
        tensor.read::<f32>().unwrap();
        other.zeros("y", [4], DType::F32).unwrap().write(&[0; 16]).unwrap();
    }
}
