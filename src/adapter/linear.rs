//! A frozen linear layer with a trainable low-rank update, or one that is trained through rounding.

use super::Latent;
use crate::{
    Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{dense, dropout, elementwise},
    nn::{Linear, linear::LowRank},
};

/// The trainable pair of one layer (Hu et al. 2021) and where its gradients go.
#[derive(Clone)]
pub struct Lora {
    /// [r, in]
    pub a: Tensor,
    /// [out, r]
    pub b: Tensor,
    /// Gradients of a and b; none in inference.
    pub grads: Option<(Tensor, Tensor)>,
    /// alpha / r or alpha / sqrt(r).
    pub scale: f32,
    /// Chance that an input element of the update is dropped.
    pub dropout: f32,
    /// The layer's number: part of the key of its dropout mask.
    pub layer: u32,
}

/// y = x · Wᵀ + bias + scale · (drop(x) · Aᵀ) · Bᵀ
///
/// x: [tokens, in]; y: [tokens, out].
pub struct AdaptedLinear {
    /// PEFT's module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The frozen layer.
    pub base: Linear,
    /// The update; none where the layer is not targeted.
    pub lora: Option<Lora>,
    /// The float weight that the layer's own is the rounding of, in quantization-aware training. It holds the update
    /// already, which is then not added again.
    pub latent: Option<Latent>,
}

/// What [`AdaptedLinear::backward`] needs.
pub struct Saved {
    /// The layer's input; shared with whatever else saved it. [tokens, in]
    x: Value,
    /// drop(x) · Aᵀ [tokens, r]
    xa: Option<Value>,
}

impl Saved {
    /// The layer's input. [tokens, in]
    pub fn input(&self) -> &Value {
        &self.x
    }
}

/// What a training step tells its layers, in device memory because it changes every step.
pub struct StepValues {
    /// Seed and step, the key of all dropout masks. [2] u32
    pub seed: Value,
    /// 0 in the first micro-batch of an optimizer step, 1 in the others: old gradients are multiplied by it. [1] f32
    pub accumulate: Value,
}

impl AdaptedLinear {
    /// A layer that nothing is trained of.
    pub fn new(name: impl Into<String>, base: Linear) -> AdaptedLinear {
        AdaptedLinear { name: name.into(), base, lora: None, latent: None }
    }

    /// The name of its weight, as files and messages have it.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// `step` is given in training: it switches dropout on. Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, step: Option<&StepValues>) -> Result<(Value, Saved)> {
        let Some(pair) = self.lora.as_ref().filter(|_| self.latent.is_none()) else {
            return Ok((self.base.forward(g, x, None)?, Saved { x: x.clone(), xa: None }));
        };
        let (a, b) = (g.import(&pair.a), g.import(&pair.b));
        let dropped = pair.drop(g, x, step)?;
        let xa = dense::x_wt(g, dropped.as_ref().unwrap_or(x), &a)?;
        let update = LowRank { xa: &xa, factor: &b, scale: pair.scale };
        let y = self.base.forward(g, x, Some(update))?;
        Ok((y, Saved { x: x.clone(), xa: Some(xa) }))
    }

    /// Writes the gradients of A and B, and returns dx (plus `add`) unless `need_dx` is false.
    ///
    /// dxa = scale · dy · B; dB = scale · dyᵀ · xa; dA = dxaᵀ · drop(x); dx = dy · W + drop(dxa · A). Through rounding:
    /// [`Latent::backward`]. Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        saved: &Saved,
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
        need_dx: bool,
    ) -> Result<Option<Value>> {
        if let Some(latent) = &self.latent {
            return latent.backward(g, &self.base, &saved.x, dy, add, &step.accumulate, need_dx);
        }
        let (Some(pair), Some(xa)) = (&self.lora, &saved.xa) else {
            return if need_dx { self.base.backward(g, dy, None, add).map(Some) } else { Ok(None) };
        };
        let (a, b) = (g.import(&pair.a), g.import(&pair.b));
        let dxa = dense::x_w(g, dy, &b, pair.scale)?;
        if let Some((grad_a, grad_b)) = &pair.grads {
            let (grad_a, grad_b) = (g.import(grad_a), g.import(grad_b));
            dense::xt_w_into(g, dy, xa, pair.scale, &grad_b, &step.accumulate)?;
            let dropped = pair.drop(g, &saved.x, Some(step))?;
            dense::xt_w_into(g, &dxa, dropped.as_ref().unwrap_or(&saved.x), 1.0, &grad_a, &step.accumulate)?;
        }
        if !need_dx {
            return Ok(None);
        }
        if pair.dropout == 0.0 {
            let update = LowRank { xa: &dxa, factor: &a, scale: 1.0 };
            return self.base.backward(g, dy, Some(update), add).map(Some);
        }
        let dx = self.base.backward(g, dy, None, add)?;
        let through = dense::x_w(g, &dxa, &a, 1.0)?;
        let through = dropout::dropout(g, &through, &step.seed, pair.layer, pair.dropout)?;
        elementwise::accumulate(g, &dx, &through, 1.0)?;
        Ok(Some(dx))
    }
}

impl Lora {
    /// drop(x), or `None` where nothing is dropped.
    fn drop(&self, g: &mut Graph, x: &Value, step: Option<&StepValues>) -> Result<Option<Value>> {
        match step {
            Some(step) if self.dropout > 0.0 => dropout::dropout(g, x, &step.seed, self.layer, self.dropout).map(Some),
            _ => Ok(None),
        }
    }
}
