//! A frozen linear layer and what training changes of it.

use super::{Change, Linear, Pass, StepValues, change::Kept};
use crate::{
    Result,
    graph::{Graph, Value},
};

/// y = x · Wᵀ + bias, changed as its [`Change`] says
///
/// x: [tokens, in]; y: [tokens, out].
pub struct Adapted {
    /// PEFT's module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The frozen layer.
    pub base: Linear,
    /// What is added to it, or trained of it.
    pub change: Change,
}

/// What [`Adapted::backward`] needs.
pub struct Saved {
    /// The layer's input; shared with whatever else saved it. [tokens, in]
    pub(super) x: Value,
    /// What the change keeps beside it.
    pub(super) kept: Kept,
}

impl Saved {
    /// The layer's input. [tokens, in]
    pub fn input(&self) -> &Value {
        &self.x
    }
}

impl Adapted {
    /// A layer that nothing is trained of.
    pub fn new(name: impl Into<String>, base: Linear) -> Adapted {
        Adapted { name: name.into(), base, change: Change::None }
    }

    /// The name of its weight, as files and messages have it.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// y, plus `add`. Errors: Shape; Config for the base alone of a layer whose own weight is trained.
    pub fn forward(&self, g: &mut Graph, x: &Value, add: Option<&Value>, pass: &Pass) -> Result<(Value, Saved)> {
        let (y, kept) = self.change.forward(g, &self.name, &self.base, x, add, pass)?;
        Ok((y, Saved { x: x.clone(), kept }))
    }

    /// dx, plus `add`, and the gradients of what is trained. Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        saved: &Saved,
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        self.change.backward(g, &self.base, saved, dy, add, step)
    }

    /// The gradients of what is trained alone, where nobody asks for dx. Errors: Shape.
    pub fn gradients(&self, g: &mut Graph, saved: &Saved, dy: &Value, step: &StepValues) -> Result<()> {
        self.change.gradients(g, &self.base, saved, dy, step)
    }
}
