//! One transformer block: attention and feed-forward, each behind a norm and around a residual.

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

/// x1 = x + attention(norm(x));  y = x1 + feed_forward(norm(x1))
///
/// x, y: [tokens, hidden].
pub struct Block {
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// Tokens look at each other.
    pub attention: Attention,
    /// Before the feed-forward part.
    pub feed_forward_norm: RmsNorm,
    /// Each token for itself.
    pub feed_forward: FeedForward,
}

/// What [`Block::backward`] needs.
pub struct Saved {
    attention_norm: SavedNorm,
    attention: SavedAttention,
    feed_forward_norm: SavedNorm,
    feed_forward: SavedFeedForward,
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
    /// The linear layer in this place.
    pub fn linear(&self, id: LinearId) -> &Adapted {
        let Block { attention, feed_forward, .. } = self;
        match id {
            LinearId::Q => &attention.q,
            LinearId::K => &attention.k,
            LinearId::V => &attention.v,
            LinearId::O => &attention.o,
            LinearId::Gate => &feed_forward.gate,
            LinearId::Up => &feed_forward.up,
            LinearId::Down => &feed_forward.down,
        }
    }

    /// The same, to be changed.
    pub fn linear_mut(&mut self, id: LinearId) -> &mut Adapted {
        let Block { attention, feed_forward, .. } = self;
        match id {
            LinearId::Q => &mut attention.q,
            LinearId::K => &mut attention.k,
            LinearId::V => &mut attention.v,
            LinearId::O => &mut attention.o,
            LinearId::Gate => &mut feed_forward.gate,
            LinearId::Up => &mut feed_forward.up,
            LinearId::Down => &mut feed_forward.down,
        }
    }

    /// The linear layers, in the order of [`LinearId::ALL`].
    pub fn linears(&self) -> impl Iterator<Item = (LinearId, &Adapted)> {
        LinearId::ALL.iter().map(|&id| (id, self.linear(id)))
    }

    /// Those that read this input.
    pub fn readers(&self, site: Site) -> impl Iterator<Item = &Adapted> {
        site.linears().iter().map(|&id| self.linear(id))
    }

    /// Calls `f` for each linear layer, in the order of [`LinearId::ALL`]. Errors: those of `f`.
    pub fn for_each_linear(&mut self, mut f: impl FnMut(LinearId, &mut Adapted) -> Result<()>) -> Result<()> {
        LinearId::ALL.iter().try_for_each(|&id| f(id, self.linear_mut(id)))
    }

    /// The norm in this place, where there is one.
    pub fn norm(&self, id: NormId) -> Option<&RmsNorm> {
        match id {
            NormId::Attention => Some(&self.attention_norm),
            NormId::FeedForward => Some(&self.feed_forward_norm),
            NormId::Query => self.attention.q_norm.as_ref(),
            NormId::Key => self.attention.k_norm.as_ref(),
        }
    }

    /// The same, to be changed.
    pub fn norm_mut(&mut self, id: NormId) -> Option<&mut RmsNorm> {
        match id {
            NormId::Attention => Some(&mut self.attention_norm),
            NormId::FeedForward => Some(&mut self.feed_forward_norm),
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
        let (n, attention_norm) = self.attention_norm.forward(g, x)?;
        let (y, attention) = self.attention.forward(g, &n, cx, keys)?;
        let x1 = elementwise::add(g, x, &y, 1.0)?;
        let (m, feed_forward_norm) = self.feed_forward_norm.forward(g, &x1)?;
        let (y, feed_forward) = self.feed_forward.forward(g, &m, cx)?;
        let x2 = elementwise::add(g, &x1, &y, 1.0)?;
        Ok((x2, Saved { attention_norm, attention, feed_forward_norm, feed_forward }))
    }

    /// dx from dy, and the gradients of what is trained. Errors: Shape; Config for a forward pass over a cache, or in inference.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<Value> {
        let dx1 = self.backward_to_attention(g, saved, dy, cx)?;
        let dn = self.attention.backward(g, &saved.attention, &dx1, cx)?;
        self.attention_norm.backward(g, &saved.attention_norm, &dn, Some(&dx1), cx)
    }

    /// The gradients of what is trained alone: below the first block nothing asks for dx. Errors: as [`Block::backward`].
    pub fn gradients(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<()> {
        let dx1 = self.backward_to_attention(g, saved, dy, cx)?;
        if self.attention_norm.weight.grads.is_none() {
            return self.attention.gradients(g, &saved.attention, &dx1, cx);
        }
        let dn = self.attention.backward(g, &saved.attention, &dx1, cx)?;
        self.attention_norm.gradients(g, &saved.attention_norm, &dn, cx)
    }

    fn backward_to_attention(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<Value> {
        let dm = self.feed_forward.backward(g, &saved.feed_forward, dy, cx)?;
        self.feed_forward_norm.backward(g, &saved.feed_forward_norm, &dm, Some(dy), cx)
    }
}
