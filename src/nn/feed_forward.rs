//! The feed-forward part of a block.

use super::{Adapted, adapted::Saved as SavedLinear, context::Context};
use crate::{
    Result,
    graph::{Graph, Value},
    kernels::glu::{self, Activation},
};

/// y = down(activation(gate(x)) * up(x))
///
/// x, y: [tokens, hidden]. GLU variants, Shazeer 2020.
pub struct FeedForward {
    /// [intermediate, hidden]
    pub gate: Adapted,
    /// [intermediate, hidden]
    pub up: Adapted,
    /// [hidden, intermediate]
    pub down: Adapted,
    /// What opens the gate.
    pub activation: Activation,
}

/// What [`FeedForward::backward`] needs.
pub struct Saved {
    saved_gate: SavedLinear,
    saved_up: SavedLinear,
    /// [tokens, intermediate]
    gate: Value,
    /// [tokens, intermediate]
    up: Value,
    down: SavedLinear,
}

impl Saved {
    /// What gate and up read. [tokens, hidden]
    pub fn input(&self) -> &Value {
        self.saved_gate.input()
    }

    /// What down reads. [tokens, intermediate]
    pub fn gated(&self) -> &Value {
        self.down.input()
    }
}

impl FeedForward {
    /// Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, cx: &Context) -> Result<(Value, Saved)> {
        let (gate, saved_gate) = self.gate.forward(g, x, &cx.pass)?;
        let (up, saved_up) = self.up.forward(g, x, &cx.pass)?;
        let h = glu::glu(g, self.activation, &gate, &up)?;
        let (y, down) = self.down.forward(g, &h, &cx.pass)?;
        Ok((y, Saved { saved_gate, saved_up, gate, up, down }))
    }

    /// dx from dy, and the gradients of what is trained. Errors: Shape, Config in inference.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<Value> {
        let step = cx.pass.training_step()?;
        let dh = self.down.backward(g, &saved.down, dy, None, step)?;
        let (dgate, dup) = glu::glu_backward(g, self.activation, &dh, &saved.gate, &saved.up)?;
        let dx = self.gate.backward(g, &saved.saved_gate, &dgate, None, step)?;
        self.up.backward(g, &saved.saved_up, &dup, Some(&dx), step)
    }
}
