//! One transformer block: attention and feed-forward, each behind a norm and around a residual.

use super::{Config, KvCache};
use crate::{
    Result,
    adapter::{AdaptedLinear, Saved as SavedLinear, StepValues},
    graph::{Graph, Value},
    kernels::{
        activation,
        attention::{self, Attention},
        elementwise, kv_cache, rope,
    },
    nn::{RmsNorm, norm::Saved as SavedNorm},
};

/// x1 = x + o(attention(rope(q(n)), rope(k(n)), v(n))), n = norm(x);  y = x1 + down(silu(gate(m)) * up(m)), m = norm(x1)
///
/// x, y: [tokens, hidden].
pub struct Block {
    /// Before the attention.
    pub input_norm: RmsNorm,
    /// Before the feed-forward layers.
    pub post_norm: RmsNorm,
    /// [heads * head_dim, hidden]
    pub q: AdaptedLinear,
    /// [kv_heads * head_dim, hidden]
    pub k: AdaptedLinear,
    /// [kv_heads * head_dim, hidden]
    pub v: AdaptedLinear,
    /// [hidden, heads * head_dim]
    pub o: AdaptedLinear,
    /// [intermediate, hidden]
    pub gate: AdaptedLinear,
    /// [intermediate, hidden]
    pub up: AdaptedLinear,
    /// [hidden, intermediate]
    pub down: AdaptedLinear,
    /// Keys further back than this are not seen; `None`: all are.
    pub window: Option<usize>,
}

/// What all blocks share in one recording.
pub struct Context {
    /// Shape of the attention, without the blocks' windows.
    pub attention: Attention,
    /// Position of each token. [tokens] u32
    pub positions: Value,
    /// Which tokens see each other: equal and not 0. [batch, seq] u32
    pub segments: Value,
    /// Cosines and sines. [positions, head_dim]
    pub rope: Value,
    /// Training's values; `None` in inference.
    pub step: Option<StepValues>,
}

/// What [`Block::backward`] needs.
pub struct Saved {
    input_norm: SavedNorm,
    qkv: [SavedLinear; 3],
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
    o: SavedLinear,
    post_norm: SavedNorm,
    gate_up: [SavedLinear; 2],
    /// [tokens, intermediate]
    gate: Value,
    /// [tokens, intermediate]
    up: Value,
    down: SavedLinear,
}

/// The four inputs that the seven linear layers of a block share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The first norm's output: q, k and v.
    Qkv,
    /// What the attention gives: o.
    O,
    /// The second norm's output: gate and up.
    GateUp,
    /// silu(gate) * up: down.
    Down,
}

impl Site {
    /// In the order of the block.
    pub const ALL: [Site; 4] = [Site::Qkv, Site::O, Site::GateUp, Site::Down];

    /// The linear layers that read it, as numbers into [`Block::linears`].
    pub fn linears(self) -> std::ops::Range<usize> {
        match self {
            Site::Qkv => 0..3,
            Site::O => 3..4,
            Site::GateUp => 4..6,
            Site::Down => 6..7,
        }
    }

    /// Width of the input.
    pub fn width(self, config: &Config) -> usize {
        match self {
            Site::Qkv | Site::GateUp => config.hidden_size,
            Site::O => config.heads * config.head_dim,
            Site::Down => config.intermediate_size,
        }
    }
}

impl Saved {
    /// The inputs of the linear layers, in the order of [`Block::linears`]; q, k and v share one, and gate and up do.
    pub fn linear_inputs(&self) -> [&Value; 7] {
        let ([q, k, v], [gate, up]) = (&self.qkv, &self.gate_up);
        [q, k, v, &self.o, gate, up, &self.down].map(SavedLinear::input)
    }
}

/// Is shown where the gradients of a block's own weights come from, as the backward pass reaches them.
pub trait WeightGradients {
    /// dW = dyᵀ · x of layer `index` of [`Block::linears`]. x: [tokens, in]; dy: [tokens, out]. Errors: Shape.
    fn linear(&mut self, g: &mut Graph, index: usize, x: &Value, dy: &Value) -> Result<()>;

    /// Of the norm before the attention (0), or before the feed-forward layers (1): what
    /// [`RmsNorm::weight_gradient`] takes. dy: [tokens, hidden]. Errors: Shape.
    fn norm(&mut self, g: &mut Graph, index: usize, saved: &SavedNorm, dy: &Value) -> Result<()>;
}

/// Nobody looks: the weights are frozen.
impl WeightGradients for () {
    fn linear(&mut self, _: &mut Graph, _: usize, _: &Value, _: &Value) -> Result<()> {
        Ok(())
    }

    fn norm(&mut self, _: &mut Graph, _: usize, _: &SavedNorm, _: &Value) -> Result<()> {
        Ok(())
    }
}

/// What a backward pass is asked for.
struct Pass<'a> {
    step: &'a StepValues,
    /// The gradient of the first norm's output, without which there is none of its input.
    need_dn: bool,
    /// The gradient of the block's input.
    need_dx: bool,
    weights: &'a mut dyn WeightGradients,
}

impl Block {
    /// The block's linear layers, in the order of [`crate::adapter::LINEAR_MODULES`].
    pub fn linears(&self) -> [&AdaptedLinear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The same, to attach adapters.
    pub fn linears_mut(&mut self) -> [&mut AdaptedLinear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    fn attention(&self, cx: &Context) -> Attention {
        Attention { window: self.window, ..cx.attention }
    }

    /// Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, cx: &Context) -> Result<(Value, Saved)> {
        let step = cx.step.as_ref();
        let (n, input_norm) = self.input_norm.forward(g, x)?;
        let (q, saved_q) = self.q.forward(g, &n, step)?;
        let (k, saved_k) = self.k.forward(g, &n, step)?;
        let (v, saved_v) = self.v.forward(g, &n, step)?;
        let spec = self.attention(cx);
        let Attention { heads, kv_heads, head_dim, .. } = spec;
        rope::rope(g, &q, &cx.rope, &cx.positions, heads, head_dim, false)?;
        rope::rope(g, &k, &cx.rope, &cx.positions, kv_heads, head_dim, false)?;
        let (attended, lse) = attention::attention(g, &spec, &q, &k, &v, &cx.segments)?;
        let (y, saved_o) = self.o.forward(g, &attended, step)?;
        let x1 = elementwise::add(g, x, &y, 1.0)?;
        let (m, post_norm) = self.post_norm.forward(g, &x1)?;
        let (gate, saved_gate) = self.gate.forward(g, &m, step)?;
        let (up, saved_up) = self.up.forward(g, &m, step)?;
        let h = activation::swiglu(g, &gate, &up)?;
        let (y, saved_down) = self.down.forward(g, &h, step)?;
        let x2 = elementwise::add(g, &x1, &y, 1.0)?;
        let qkv = [saved_q, saved_k, saved_v];
        let gate_up = [saved_gate, saved_up];
        let saved = Saved {
            input_norm,
            qkv,
            q,
            k,
            v,
            attended,
            lse,
            o: saved_o,
            post_norm,
            gate_up,
            gate,
            up,
            down: saved_down,
        };
        Ok((x2, saved))
    }

    /// Writes the adapters' gradients, and returns dx unless `need_dx` is false: below the first block nothing is trained.
    /// Errors: Shape.
    pub fn backward(
        &self,
        g: &mut Graph,
        saved: &Saved,
        dy: &Value,
        cx: &Context,
        step: &StepValues,
        need_dx: bool,
    ) -> Result<Option<Value>> {
        self.walk_back(g, saved, dy, cx, Pass { step, need_dn: need_dx, need_dx, weights: &mut () })
    }

    /// [`Block::backward`] that shows `weights` what the gradients of the block's own weights come from, and returns no dx.
    /// Errors: Shape, those of `weights`.
    pub fn backward_weights(
        &self,
        g: &mut Graph,
        saved: &Saved,
        dy: &Value,
        cx: &Context,
        step: &StepValues,
        weights: &mut dyn WeightGradients,
    ) -> Result<()> {
        self.walk_back(g, saved, dy, cx, Pass { step, need_dn: true, need_dx: false, weights }).map(|_| ())
    }

    fn walk_back(
        &self,
        g: &mut Graph,
        saved: &Saved,
        dy: &Value,
        cx: &Context,
        pass: Pass<'_>,
    ) -> Result<Option<Value>> {
        let Pass { step, need_dn, need_dx, weights } = pass;
        let [of_qkv, of_o, of_gate_up, of_down] = [&saved.qkv[0], &saved.o, &saved.gate_up[0], &saved.down];
        weights.linear(g, 6, of_down.input(), dy)?;
        let dh = self.down.backward(g, &saved.down, dy, None, step, true)?.expect("dx was asked for");
        let (dgate, dup) = activation::swiglu_backward(g, &dh, &saved.gate, &saved.up)?;
        weights.linear(g, 4, of_gate_up.input(), &dgate)?;
        weights.linear(g, 5, of_gate_up.input(), &dup)?;
        let dm = self.gate.backward(g, &saved.gate_up[0], &dgate, None, step, true)?;
        let dm = self.up.backward(g, &saved.gate_up[1], &dup, dm.as_ref(), step, true)?.expect("dx was asked for");
        weights.norm(g, 1, &saved.post_norm, &dm)?;
        let dx1 = self.post_norm.backward(g, &saved.post_norm, &dm, Some(dy))?;
        weights.linear(g, 3, of_o.input(), &dx1)?;
        let d_attended = self.o.backward(g, &saved.o, &dx1, None, step, true)?.expect("dx was asked for");
        let Saved { q, k, v, attended, lse, .. } = saved;
        let spec = self.attention(cx);
        let (dq, dk, dv) = attention::attention_backward(g, &spec, &d_attended, q, k, v, attended, lse, &cx.segments)?;
        let Attention { heads, kv_heads, head_dim, .. } = spec;
        rope::rope(g, &dq, &cx.rope, &cx.positions, heads, head_dim, true)?;
        rope::rope(g, &dk, &cx.rope, &cx.positions, kv_heads, head_dim, true)?;
        for (index, dy) in [&dq, &dk, &dv].into_iter().enumerate() {
            weights.linear(g, index, of_qkv.input(), dy)?;
        }
        let dn = self.q.backward(g, &saved.qkv[0], &dq, None, step, need_dn)?;
        let dn = self.k.backward(g, &saved.qkv[1], &dk, dn.as_ref(), step, need_dn)?;
        let dn = self.v.backward(g, &saved.qkv[2], &dv, dn.as_ref(), step, need_dn)?;
        let Some(dn) = dn else { return Ok(None) };
        weights.norm(g, 0, &saved.input_norm, &dn)?;
        if !need_dx {
            return Ok(None);
        }
        self.input_norm.backward(g, &saved.input_norm, &dn, Some(&dx1)).map(Some)
    }

    /// The block over `tokens` new tokens of one sequence, whose keys and values are appended to `cache`.
    /// `position` holds the number of tokens before them. Errors: Shape.
    pub fn decode(&self, g: &mut Graph, x: &Value, cx: &Context, cache: &KvCache, position: &Value) -> Result<Value> {
        let (n, _) = self.input_norm.forward(g, x)?;
        let (q, _) = self.q.forward(g, &n, None)?;
        let (k, _) = self.k.forward(g, &n, None)?;
        let (v, _) = self.v.forward(g, &n, None)?;
        let spec = self.attention(cx);
        rope::rope(g, &q, &cx.rope, &cx.positions, spec.heads, spec.head_dim, false)?;
        rope::rope(g, &k, &cx.rope, &cx.positions, spec.kv_heads, spec.head_dim, false)?;
        let (keys, values) = (g.import(&cache.keys), g.import(&cache.values));
        kv_cache::cache_append(g, &k, &keys, position)?;
        kv_cache::cache_append(g, &v, &values, position)?;
        let attended = attention::attention_cached(g, &spec, &q, &keys, &values, position)?;
        let (y, _) = self.o.forward(g, &attended, None)?;
        let x1 = elementwise::add(g, x, &y, 1.0)?;
        let (m, _) = self.post_norm.forward(g, &x1)?;
        let (gate, _) = self.gate.forward(g, &m, None)?;
        let (up, _) = self.up.forward(g, &m, None)?;
        let h = activation::swiglu(g, &gate, &up)?;
        let (y, _) = self.down.forward(g, &h, None)?;
        elementwise::add(g, &x1, &y, 1.0)
    }
}
