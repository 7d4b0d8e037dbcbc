//! What methods make of a Hessian, kept for the layers that share their input.

use crate::{Error, Result, gpu::Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The last Hessian and what was made of it. The Hessian is kept too, so that its memory cannot become another one's.
#[derive(Debug)]
pub(super) struct OfHessian<T>(Mutex<Option<(Tensor, Arc<T>)>>);

/// What is added to a Hessian's diagonal, in parts of its mean, if it can be. Errors: Config.
pub(super) fn damping(part: f64) -> Result<f64> {
    match part > 0.0 && part <= 1.0 {
        true => Ok(part),
        false => {
            let message = format!("expected a part of the mean above 0 and at most 1, got {part}");
            Err(Error::config("damping", message))
        }
    }
}

impl<T> Default for OfHessian<T> {
    fn default() -> Self {
        OfHessian(Mutex::new(None))
    }
}

impl<T> OfHessian<T> {
    /// What was made of `hessian` before, or what `make` makes of it now. Errors: those of `make`.
    pub(super) fn get(&self, hessian: &Tensor, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = last.as_ref().filter(|(of, _)| Arc::ptr_eq(&of.buffer, &hessian.buffer)) {
            return Ok(made.clone());
        }
        let made = Arc::new(make()?);
        *last = Some((hessian.clone(), made.clone()));
        Ok(made)
    }
}
