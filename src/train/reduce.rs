//! What a step needs of other processes that train the same adapter on other rows.

use crate::{Result, gpu::Tensor};

/// Sums over all processes of a run, in which each calls the same functions in the same order.
///
/// A step is accumulate, reduce, apply: gradients of all micro-batches are summed in a few flat arrays, the arrays of all processes are
/// summed, and each process takes the same optimizer step.
pub trait Reduce {
    /// The sum of what each process counts: the tokens that the step predicts. Errors: those of the connection.
    fn count(&mut self, own: usize) -> Result<usize>;

    /// Replaces gradients by the sum of all processes', in an order that is always the same. f32. Errors: those of the connection,
    /// Device.
    fn gradients(&mut self, arrays: &[&Tensor]) -> Result<()>;

    /// Replaces the sums of losses, of tokens predicted right and of tokens predicted by those of all processes. Errors: those of the
    /// connection.
    fn metrics(&mut self, sums: &mut [f32]) -> Result<()>;
}

/// A run of one process: nothing is to be summed.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneProcess;

impl Reduce for OneProcess {
    fn count(&mut self, own: usize) -> Result<usize> {
        Ok(own)
    }

    fn gradients(&mut self, _: &[&Tensor]) -> Result<()> {
        Ok(())
    }

    fn metrics(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }
}
