//! What training changes of a linear layer: nothing, or one of these. A new kind is one file and one line in each `match` here.

mod codebooks;
mod lora;
mod rounded;
mod signs;
mod weight;

pub use codebooks::Codebooks;
pub use lora::Lora;
pub use rounded::{Float, Latent, Merged};
pub use signs::Signs;

use super::{Linear, Parameter, Pass, StepValues, adapted::Saved};
use crate::{
    Error, Result,
    graph::{Graph, Value},
};

/// How a layer differs from its frozen base.
#[derive(Default)]
pub enum Change {
    /// Not at all.
    #[default]
    None,
    /// A low-rank update beside the base.
    Lora(Lora),
    /// The base's weight is the rounding of one in floats that is trained (quantization-aware training).
    Rounded(Latent),
    /// The base's weight, in f32, is trained itself. [out, in]
    Weight(Parameter),
    /// The code books and row scales of AQLM's weight are trained.
    Codebooks(Codebooks),
    /// The signs of a weight between two Hadamard transforms are trained as real numbers (QuIP#).
    Signs(Signs),
}

impl Change {
    /// The low-rank pair beside the base, where that is the change.
    pub fn lora(&self) -> Option<&Lora> {
        match self {
            Change::Lora(lora) => Some(lora),
            _ => None,
        }
    }

    /// What is trained through rounding, where that is the change.
    pub fn rounded(&self) -> Option<&Latent> {
        match self {
            Change::Rounded(latent) => Some(latent),
            _ => None,
        }
    }

    /// Whether the base is left as it was, so that a pass without the change has a meaning.
    fn leaves_base(&self) -> bool {
        matches!(self, Change::None | Change::Lora(_))
    }

    /// y, plus `add`, and what a low-rank update keeps for the backward pass. Errors: as [`super::Adapted::forward`].
    pub(super) fn forward(
        &self,
        g: &mut Graph,
        name: &str,
        base: &Linear,
        x: &Value,
        add: Option<&Value>,
        pass: &Pass,
    ) -> Result<(Value, Option<Value>)> {
        if pass.base_only && !self.leaves_base() {
            return Err(Error::config(name, "its own weight is trained, so that there is no base without the change"));
        }
        match self {
            Change::Lora(lora) if !pass.base_only => {
                let (y, xa) = lora.forward(g, base, x, add, pass.step.as_ref())?;
                Ok((y, Some(xa)))
            }
            _ => Ok((base.forward(g, x, None, add)?, None)),
        }
    }

    /// dx, plus `add`, and the gradients of what is trained. Errors: Shape.
    pub(super) fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        saved: &Saved,
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        match (self, &saved.xa) {
            (Change::Lora(lora), Some(xa)) => lora.backward(g, base, (&saved.x, xa), dy, add, step),
            (Change::Rounded(latent), _) => latent.backward(g, base, &saved.x, dy, add, &step.accumulate),
            _ => {
                self.gradients(g, base, saved, dy, step)?;
                base.backward(g, dy, None, add)
            }
        }
    }

    /// The gradients of what is trained. Errors: Shape.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        base: &Linear,
        saved: &Saved,
        dy: &Value,
        step: &StepValues,
    ) -> Result<()> {
        match (self, &saved.xa) {
            (Change::Lora(lora), Some(xa)) => lora.gradients(g, (&saved.x, xa), dy, step).map(|_| ()),
            (Change::None | Change::Lora(_), _) => Ok(()),
            (Change::Rounded(latent), _) => latent.gradients(g, base, &saved.x, dy, &step.accumulate),
            (Change::Weight(weight), _) => weight::gradients(g, weight, &saved.x, dy, &step.accumulate),
            (Change::Codebooks(books), _) => books.gradients(g, &saved.x, dy, &step.accumulate),
            (Change::Signs(signs), _) => signs.gradients(g, &saved.x, dy, &step.accumulate),
        }
    }
}
