//! Attention: queries, keys and values, rotated, and what they give, back to the residual stream.

use super::{
    Adapted, Projections, RmsNorm,
    adapted::Saved as SavedLinear,
    context::{Context, Keys},
    norm::Saved as SavedNorm,
    projections::Saved as SavedProjections,
};
use crate::{
    Error, Result,
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{
        attention::{self, Attention as Sizes},
        kv_cache, rope,
    },
};

/// y = o(attention(rope(norm(q(x))), rope(norm(k(x))), v(x))); most families have no norm there
///
/// x, y: [tokens, hidden].
pub struct Attention {
    /// Queries [heads * head_dim, hidden], keys and values [kv_heads * head_dim, hidden].
    pub qkv: Projections<3>,
    /// [hidden, heads * head_dim]
    pub o: Adapted,
    /// Of each head's queries, or of all at once, by the width of its weight.
    pub q_norm: Option<RmsNorm>,
    /// Of the keys.
    pub k_norm: Option<RmsNorm>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// No score lies beyond it; `None`: there is no cap.
    pub soft_cap: Option<f32>,
    /// Keys further back than this are not seen; `None`: all are.
    pub window: Option<usize>,
    /// Its table in [`Context::ropes`]; `None`: nothing is rotated.
    pub rope: Option<usize>,
}

/// Keys and values of one block.
///
/// Of a block with a window position p lies in row p modulo the capacity, so that it holds little more than the window.
pub struct KvCache {
    /// [capacity, kv_heads * head_dim]
    pub(crate) keys: Tensor,
    /// [capacity, kv_heads * head_dim]
    pub(crate) values: Tensor,
}

impl KvCache {
    /// Tokens that it has room for.
    pub fn capacity(&self) -> usize {
        self.keys.shape()[0]
    }
}

/// What [`Attention::backward`] needs.
pub struct Saved {
    qkv: SavedProjections,
    o: SavedLinear,
    q_norm: Option<SavedNorm>,
    k_norm: Option<SavedNorm>,
    /// `None` where the keys were those of a cache, which have no gradient.
    own: Option<Own>,
}

struct Own {
    /// Rotated. [tokens, heads * head_dim]
    q: Value,
    /// Rotated. [tokens, kv_heads * head_dim]
    k: Value,
    /// [tokens, kv_heads * head_dim]
    v: Value,
    /// [tokens, heads * head_dim]
    attended: Value,
    /// Log of the sum of exponentials of each row of scores. [tokens, heads]
    lse: Value,
    /// [batch, seq] u32
    segments: Value,
}

impl Saved {
    /// What q, k and v read. [tokens, hidden]
    pub fn input(&self) -> &Value {
        self.qkv.input()
    }

    /// What o reads. [tokens, heads * head_dim]
    pub fn attended(&self) -> &Value {
        self.o.input()
    }
}

impl Attention {
    /// y, plus `add`. Errors: Shape.
    pub fn forward(
        &self,
        g: &mut Graph,
        x: &Value,
        add: Option<&Value>,
        cx: &Context,
        keys: Keys<'_>,
    ) -> Result<(Value, Saved)> {
        let ([q, k, v], qkv) = self.qkv.forward(g, x, &cx.pass)?;
        let (q, q_norm) = normed(g, self.q_norm.as_ref(), q)?;
        let (k, k_norm) = normed(g, self.k_norm.as_ref(), k)?;
        self.rotate(g, &q, &k, cx, false)?;
        let sizes = self.sizes(cx);
        let (attended, own) = match keys {
            Keys::Own(segments) => {
                let (attended, lse) = attention::attention(g, &sizes, &q, &k, &v, segments)?;
                let own = Own { q, k, v, attended: attended.clone(), lse, segments: segments.clone() };
                (attended, Some(own))
            }
            Keys::Cache { cache, position } => {
                let (keys, values) = (g.import(&cache.keys), g.import(&cache.values));
                kv_cache::cache_append(g, [&k, &v], [&keys, &values], position, self.window)?;
                (attention::attention_cached(g, &sizes, &q, &keys, &values, position)?, None)
            }
        };
        let (y, o) = self.o.forward(g, &attended, add, &cx.pass)?;
        Ok((y, Saved { qkv, o, q_norm, k_norm, own }))
    }

    /// dx from dy, and the gradients of what is trained. Errors: Shape; Config for a forward pass over a cache, or in inference.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<Value> {
        let step = cx.pass.training_step()?;
        let dqkv = self.backward_to_qkv(g, saved, dy, cx)?;
        self.qkv.backward(g, &saved.qkv, dqkv, step)
    }

    /// The gradients of what is trained alone, where nobody asks for dx. Errors: as [`Attention::backward`].
    pub fn gradients(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<()> {
        let step = cx.pass.training_step()?;
        let dqkv = self.backward_to_qkv(g, saved, dy, cx)?;
        self.qkv.gradients(g, &saved.qkv, dqkv, step)
    }

    fn backward_to_qkv(&self, g: &mut Graph, saved: &Saved, dy: &Value, cx: &Context) -> Result<[Value; 3]> {
        let own = saved.own.as_ref();
        let own = own.ok_or_else(|| Error::config("backward", "the keys of a cache have no gradient"))?;
        let Own { q, k, v, attended, lse, segments } = own;
        let d_attended = self.o.backward(g, &saved.o, dy, None, cx.pass.training_step()?)?;
        let (dq, dk, dv) =
            attention::attention_backward(g, &self.sizes(cx), &d_attended, q, k, v, attended, lse, segments)?;
        self.rotate(g, &dq, &dk, cx, true)?;
        let dq = before_norm(g, self.q_norm.as_ref(), saved.q_norm.as_ref(), dq, cx)?;
        let dk = before_norm(g, self.k_norm.as_ref(), saved.k_norm.as_ref(), dk, cx)?;
        Ok([dq, dk, dv])
    }

    /// Rotates queries and keys in place, or back.
    fn rotate(&self, g: &mut Graph, q: &Value, k: &Value, cx: &Context, back: bool) -> Result<()> {
        let Some(table) = self.rope.map(|rope| &cx.ropes[rope]) else { return Ok(()) };
        rope::rope(g, [(q, self.heads), (k, self.kv_heads)], table, &cx.positions, self.head_dim, back)
    }

    fn sizes(&self, cx: &Context) -> Sizes {
        let Attention { heads, kv_heads, head_dim, scale, soft_cap, window, .. } = *self;
        Sizes { batch: cx.batch, seq: cx.seq, heads, kv_heads, head_dim, scale, soft_cap, window }
    }
}

/// The norm of each so many numbers of x, as its weight has. x: [tokens, width].
fn normed(g: &mut Graph, norm: Option<&RmsNorm>, x: Value) -> Result<(Value, Option<SavedNorm>)> {
    let Some(norm) = norm else { return Ok((x, None)) };
    let rows = heads(g, norm, &x)?;
    let (y, saved) = norm.forward(g, &rows)?;
    Ok((g.reshape(&y, x.shape().clone())?, Some(saved)))
}

/// The gradient of what [`normed`] was given from that of what it gave.
fn before_norm(
    g: &mut Graph,
    norm: Option<&RmsNorm>,
    saved: Option<&SavedNorm>,
    dy: Value,
    cx: &Context,
) -> Result<Value> {
    let (Some(norm), Some(saved)) = (norm, saved) else { return Ok(dy) };
    let rows = heads(g, norm, &dy)?;
    let dx = norm.backward(g, saved, &rows, None, cx)?;
    g.reshape(&dx, dy.shape().clone())
}

/// A row for each thing that is normalized.
fn heads(g: &mut Graph, norm: &RmsNorm, x: &Value) -> Result<Value> {
    let width = norm.weight.values.shape().len();
    g.reshape(x, [x.shape().len() / width.max(1), width])
}
