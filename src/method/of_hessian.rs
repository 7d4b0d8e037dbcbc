//! What methods make of a Hessian, kept for the layers that share their input.

use super::{fold, linalg};
use crate::{
    Error, Result,
    gpu::{Cancel, Tensor},
    ops::lattice,
};
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

/// The Hessian of a layer's input on the host. Errors: Config where it is not finite.
fn read(name: &str, hessian: &Tensor) -> Result<Vec<f64>> {
    Ok(fold::finite(name, hessian.read::<f32>()?)?.into_iter().map(f64::from).collect())
}

/// H ← H + d · 1, d = part · mean(diag(H))
///
/// h: [n, n]. d is 1 where the mean is 0: an input that is always zero has no say, and the identity rounds to nearest.
pub(super) fn damp(h: &mut [f64], n: usize, part: f64) {
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    let d = if mean > 0.0 { part * mean } else { 1.0 };
    (0..n).for_each(|i| h[i * n + i] += d);
}

/// L of H = L D Lᵀ in blocks of 8 ([`lattice::block_factor`]). h: [n, n]. Errors: Config where it is not positive definite,
/// Interrupted.
pub(super) fn block_lower(name: &str, mut h: Vec<f64>, n: usize, cancel: &Cancel) -> Result<Vec<f32>> {
    linalg::cholesky(&mut h, n, cancel)?.map_err(|row| {
        let message = format!("the Hessian of its input is not positive definite at row {row}: raise the damping");
        Error::config(name, message)
    })?;
    Ok(lattice::block_factor(&h, n))
}

impl<T> Default for OfHessian<T> {
    fn default() -> Self {
        OfHessian(Mutex::new(None))
    }
}

impl<T> OfHessian<T> {
    /// What was made of `hessian` [n, n] before, or what `make` makes of it now. Errors: Shape, Config where it is not finite, and
    /// those of `make`.
    pub(super) fn get(
        &self,
        name: &str,
        hessian: &Tensor,
        n: usize,
        make: impl FnOnce(Vec<f64>, &Cancel) -> Result<T>,
    ) -> Result<Arc<T>> {
        if hessian.shape().dims() != [n, n] {
            return Err(Error::shape(name, format!("a Hessian of [{n}, {n}]"), hessian.shape()));
        }
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = last.as_ref().filter(|(of, _)| Arc::ptr_eq(&of.buffer, &hessian.buffer)) {
            return Ok(made.clone());
        }
        let made = Arc::new(make(read(name, hessian)?, hessian.gpu().cancel())?);
        *last = Some((hessian.clone(), made.clone()));
        Ok(made)
    }
}
