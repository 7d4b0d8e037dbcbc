//! How an app asks work to stop, on a device and on the host.

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
