//! One transformer block: attention and feed-forward, each with norms before or behind it and around a residual.

use crate::{
    Result,
    arch::{LinearId, NormId, Site},
    graph::{Graph, Value},
    kernels::elementwise,
    nn::{
        Adapted, Attention, Context, FeedForward, Keys, RmsNorm, attention::Saved as SavedAttention,
        feed_forward::Saved as SavedFeedForward, norm::Saved as SavedNorm,
    },
};

/// x1 = x + s · after(attention(before(x)));  y = x1 + s · after(feed_forward(before(x1)))
///
/// x, y: [tokens, hidden]. `before` and `after` are norms; a family has one of them, or both.
pub struct Block {
    /// Before the attention.
    pub attention_norm: Option<RmsNorm>,
    /// Tokens look at each other.
    pub attention: Attention,
    /// Of what the attention gives.
    pub after_attention_norm: Option<RmsNorm>,
    /// Before the feed-forward part.
    pub feed_forward_norm: Option<RmsNorm>,
    /// Each token for itself.
    pub feed_forward: FeedForward,
    /// Of what the feed-forward part gives.
    pub after_feed_forward_norm: Option<RmsNorm>,
    /// s: of what is added to the residual stream.
    pub residual_factor: f32,
}

/// What [`Block::backward`] needs.
pub struct Saved {
    attention_norm: Option<SavedNorm>,
    attention: SavedAttention,
    after_attention_norm: Option<SavedNorm>,
    feed_forward_norm: Option<SavedNorm>,
    feed_forward: SavedFeedForward,
    after_feed_forward_norm: Option<SavedNorm>,
}

impl Saved {
    /// The input that linear layers share at this site. [tokens, in]
    pub fn input(&self, site: Site) -> &Value {
        match site {
            Site::Qkv => self.attention.input(),
            Site::O => self.attention.attended(),
            Site::GateUp => self.feed_forward.input(),
            Site::Down => self.feed_forward.gated(),
        }
    }
}

impl Block {
    /// The linear layer in this place, where there is one.
    pub fn linear(&self, id: LinearId) -> Option<&Adapted> {
        let Block { attention: Attention { qkv, o, .. }, feed_forward: FeedForward { gate_up, down, .. }, .. } = self;
        match id {
            LinearId::Q => qkv.part(0),
            LinearId::K => qkv.part(1),
            LinearId::V => qkv.part(2),
            LinearId::Qkv => qkv.whole(),
            LinearId::O => Some(o),
            LinearId::Gate => gate_up.part(0),
            LinearId::Up => gate_up.part(1),
            LinearId::GateUp => gate_up.whole(),
            LinearId::Down => Some(down),
        }
    }

    /// The same, to be changed.
    pub fn linear_mut(&mut self, id: LinearId) -> Option<&mut Adapted> {
        let Block { attention: Attention { qkv, o, .. }, feed_forward: FeedForward { gate_up, down, .. }, .. } = self;
        match id {
            LinearId::Q => qkv.part_mut(0),
            LinearId::K => qkv.part_mut(1),
            LinearId::V => qkv.part_mut(2),
            LinearId::Qkv => qkv.whole_mut(),
            LinearId::O => Some(o),
            LinearId::Gate => gate_up.part_mut(0),
            LinearId::Up => gate_up.part_mut(1),
            LinearId::GateUp => gate_up.whole_mut(),
            LinearId::Down => Some(down),
        }
    }

    /// The layer that has the rows of a place, alone or among others: with the first of them, and how many there are.
    pub fn rows(&self, id: LinearId) -> Option<(&Adapted, usize, usize)> {
        match (id, self.linear(id)) {
            (_, Some(linear)) => Some((linear, 0, linear.base.outputs())),
            (LinearId::Q, None) => Some(self.attention.qkv.rows(0)),
            (LinearId::K, None) => Some(self.attention.qkv.rows(1)),
            (LinearId::V, None) => Some(self.attention.qkv.rows(2)),
            (LinearId::Gate, None) => Some(self.feed_forward.gate_up.rows(0)),
            (LinearId::Up, None) => Some(self.feed_forward.gate_up.rows(1)),
            (LinearId::Qkv | LinearId::O | LinearId::GateUp | LinearId::Down, None) => None,
        }
    }

    /// The linear layers, in the order of [`LinearId::ALL`].
    pub fn linears(&self) -> impl Iterator<Item = (LinearId, &Adapted)> {
        LinearId::ALL.iter().filter_map(|&id| Some((id, self.linear(id)?)))
    }

    /// Those that read this input.
    pub fn readers(&self, site: Site) -> impl Iterator<Item = &Adapted> {
        site.linears().iter().filter_map(|&id| self.linear(id))
    }

    /// Calls `f` for each linear layer, in the order of [`LinearId::ALL`]. Errors: those of `f`.
    pub fn for_each_linear(&mut self, mut f: impl FnMut(LinearId, &mut Adapted) -> Result<()>) -> Result<()> {
        LinearId::ALL.iter().try_for_each(|&id| self.linear_mut(id).map_or(Ok(()), |linear| f(id, linear)))
    }

    /// The norm in this place, where there is one.
    pub fn norm(&self, id: NormId) -> Option<&RmsNorm> {
        match id {
            NormId::Attention => self.attention_norm.as_ref(),
            NormId::AfterAttention => self.after_attention_norm.as_ref(),
            NormId::FeedForward => self.feed_forward_norm.as_ref(),
            NormId::AfterFeedForward => self.after_feed_forward_norm.as_ref(),
            NormId::Query => self.attention.q_norm.as_ref(),
            NormId::Key => self.attention.k_norm.as_ref(),
        }
    }

    /// The same, to be changed.
    pub fn norm_mut(&mut self, id: NormId) -> Option<&mut RmsNorm> {
        match id {
            NormId::Attention => self.attention_norm.as_mut(),
            NormId::AfterAttention => self.after_attention_norm.as_mut(),
            NormId::FeedForward => self.feed_forward_norm.as_mut(),
            NormId::AfterFeedForward => self.after_feed_forward_norm.as_mut(),
            NormId::Query => self.attention.q_norm.as_mut(),
            NormId::Key => self.attention.k_norm.as_mut(),
        }
    }

    /// The norms that there are, with their places, in the order of [`NormId::ALL`].
    pub fn norms(&self) -> impl Iterator<Item = (NormId, &RmsNorm)> {
        NormId::ALL.into_iter().filter_map(|id| Some((id, self.norm(id)?)))
    }

    /// Over the tokens of `x`, whose queries see `keys`: their own, or those of a cache, which they are added to.
    /// Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, cx: &Context, keys: Keys<'_>) -> Result<(Value, Saved)> {
        let (n, attention_norm) = normed(g, self.attention_norm.as_ref(), x)?;
        let after = self.after_attention_norm.as_ref();
        let (y, attention) = self.attention.forward(g, &n, self.adds(after).then_some(x), cx, keys)?;
        let (x1, after_attention_norm) = self.past(g, after, x, y)?;
        let (m, feed_forward_norm) = normed(g, self.feed_forward_norm.as_ref(), &x1)?;
        let after = self.after_feed_forward_norm.as_ref();
        let (y, feed_forward) = self.feed_forward.forward(g, &m, self.adds(after).then_some(&x1), cx)?;
        let (x2, after_feed_forward_norm) = self.past(g, after, &x1, y)?;
        let saved = Saved {
            attention_norm,
            attention,
            after_attention_norm,
            feed_forward_norm,
            feed_forward,
            after_feed_forward_norm,
        };
        Ok((x2, saved))
    }

    /// Whether a part's last product adds the residual stream: where nothing is done to what the part gives.
    fn adds(&self, after: Option<&RmsNorm>) -> bool {
        after.is_none() && self.residual_factor == 1.0
    }

    /// The residual stream `x` behind a part that gave `y`.
    fn past(&self, g: &mut Graph, after: Option<&RmsNorm>, x: &Value, y: Value) -> Result<(Value, Option<SavedNorm>)> {
        if self.adds(after) {
            return Ok((y, None));
        }
        let (y, saved) = normed(g, after, &y)?;
        Ok((elementwise::add(g, x, &y, self.residual_factor)?, saved))
    }

    /// dx from dy, and the gradients of what is trained. Errors: Shape; Config for a forward pass over a cache, or in inference.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<Value> {
        let (dx1, da) = self.backward_to_attention(g, saved, dy, cx)?;
        let dn = self.attention.backward(g, &saved.attention, &da, cx)?;
        before(g, self.attention_norm.as_ref(), saved.attention_norm.as_ref(), &dn, &dx1, cx)
    }

    /// The gradients of what is trained alone: below the first block nothing asks for dx. Errors: as [`Block::backward`].
    pub fn gradients(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<()> {
        let (_, da) = self.backward_to_attention(g, saved, dy, cx)?;
        match (&self.attention_norm, &saved.attention_norm) {
            (Some(norm), Some(saved_norm)) if norm.weight.grads.is_some() => {
                let dn = self.attention.backward(g, &saved.attention, &da, cx)?;
                norm.gradients(g, saved_norm, &dn, cx)
            }
            _ => self.attention.gradients(g, &saved.attention, &da, cx),
        }
    }

    /// The gradients of x1, and of what the attention gave.
    fn backward_to_attention(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<(Value, Value)> {
        let (norm, saved_norm) = (self.after_feed_forward_norm.as_ref(), saved.after_feed_forward_norm.as_ref());
        let df = self.after(g, norm, saved_norm, dy, cx)?;
        let dm = self.feed_forward.backward(g, &saved.feed_forward, &df, cx)?;
        let dx1 = before(g, self.feed_forward_norm.as_ref(), saved.feed_forward_norm.as_ref(), &dm, dy, cx)?;
        let (norm, saved_norm) = (self.after_attention_norm.as_ref(), saved.after_attention_norm.as_ref());
        let da = self.after(g, norm, saved_norm, &dx1, cx)?;
        Ok((dx1, da))
    }

    /// The gradient of what a part gave, from that of the residual stream behind it.
    fn after(
        &self,
        g: &mut Graph,
        norm: Option<&RmsNorm>,
        saved: Option<&SavedNorm>,
        dy: &Value,
        cx: &Context,
    ) -> Result<Value> {
        let factored = match self.residual_factor {
            1.0 => dy.clone(),
            factor => elementwise::scaled(g, dy, factor)?,
        };
        match (norm, saved) {
            (Some(norm), Some(saved)) => norm.backward(g, saved, &factored, None, cx),
            _ => Ok(factored),
        }
    }
}

fn normed(g: &mut Graph, norm: Option<&RmsNorm>, x: &Value) -> Result<(Value, Option<SavedNorm>)> {
    let Some(norm) = norm else { return Ok((x.clone(), None)) };
    let (y, saved) = norm.forward(g, x)?;
    Ok((y, Some(saved)))
}

/// The gradient of the residual stream before a part: of the part's input `dn`, and `past`, which came past the part.
fn before(
    g: &mut Graph,
    norm: Option<&RmsNorm>,
    saved: Option<&SavedNorm>,
    dn: &Value,
    past: &Value,
    cx: &Context,
) -> Result<Value> {
    match (norm, saved) {
        (Some(norm), Some(saved)) => norm.backward(g, saved, dn, Some(past), cx),
        _ => elementwise::add(g, dn, past, 1.0),
    }
}
