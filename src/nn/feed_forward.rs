//! The feed-forward part of a block.

use super::{
    Adapted, Projections, adapted::Saved as SavedLinear, context::Context, projections::Saved as SavedProjections,
};
use crate::{
    Result,
    graph::{Graph, Value},
    kernels::glu::{self, Activation},
};

/// y = down(activation(gate(x)) * up(x))
///
/// x, y: [tokens, hidden]. GLU variants, Shazeer 2020.
pub struct FeedForward {
    /// Gate and up, both [intermediate, hidden].
    pub gate_up: Projections<2>,
    /// [hidden, intermediate]
    pub down: Adapted,
    /// What opens the gate.
    pub activation: Activation,
}

/// What [`FeedForward::backward`] needs.
pub struct Saved {
    gate_up: SavedProjections,
    /// [tokens, intermediate]
    gate: Value,
    /// [tokens, intermediate]
    up: Value,
    down: SavedLinear,
}

impl Saved {
    /// What gate and up read. [tokens, hidden]
    pub fn input(&self) -> &Value {
        self.gate_up.input()
    }

    /// What down reads. [tokens, intermediate]
    pub fn gated(&self) -> &Value {
        self.down.input()
    }
}

impl FeedForward {
    /// y, plus `add`. Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, add: Option<&Value>, cx: &Context) -> Result<(Value, Saved)> {
        let ([gate, up], gate_up) = self.gate_up.forward(g, x, &cx.pass)?;
        let h = glu::glu(g, self.activation, &gate, &up)?;
        let (y, down) = self.down.forward(g, &h, add, &cx.pass)?;
        Ok((y, Saved { gate_up, gate, up, down }))
    }

    /// dx from dy, and the gradients of what is trained. Errors: Shape, Config in inference.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<Value> {
        let step = cx.pass.training_step()?;
        let dh = self.down.backward(g, &saved.down, dy, None, step)?;
        glu::glu_backward(g, self.activation, &dh, &saved.gate, &saved.up)?;
        self.gate_up.backward(g, &saved.gate_up, [saved.gate.clone(), saved.up.clone()], step)
    }
}
