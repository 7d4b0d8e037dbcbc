//! What attention is: its sizes, where its mask comes from, and what every design is specialised for.

use crate::{DType, Error, Result, gpu::Kernel, graph::Value};

/// The sizes of an attention layer over `batch` sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head: a multiple of 4, at most 256.
    pub head_dim: usize,
    /// Factor of the scores, 1/√head_dim as a rule.
    pub scale: f32,
    /// No score lies beyond it: cap · tanh(score / cap); `None`: scores are taken as they are.
    pub soft_cap: Option<f32>,
    /// How many keys a query sees, itself included; `None`: all before it.
    pub window: Option<usize>,
}

/// Lengths of a head that models have; other multiples of 4 work alike.
pub(super) const HEAD_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];

/// Lengths of a head whose scores have a soft cap in some model; others work alike.
const CAPPED_HEAD_DIMS: [usize; 2] = [128, 256];

/// Whether models with heads of this length have scores without a soft cap, and with one.
pub(super) fn caps_of(head_dim: usize) -> &'static [bool] {
    if CAPPED_HEAD_DIMS.contains(&head_dim) { &[false, true] } else { &[false] }
}

/// What decides which keys a query sees: a snippet of `shaders/lib`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// [batch, seq] segments.
    Segments,
    /// [1] position of the first query in a cache.
    Position,
}

/// What a kernel is specialised for beside the length of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scores {
    pub mask: Mask,
    /// Whether they have a soft cap.
    pub capped: bool,
}

impl Scores {
    /// Uncapped, over whole sequences.
    pub(super) const PLAIN: Scores = Scores { mask: Mask::Segments, capped: false };

    pub(super) fn apply(self, kernel: Kernel) -> Kernel {
        let kernel = match self.mask {
            Mask::Segments => kernel,
            Mask::Position => kernel.import("mask_segments", "mask_position"),
        };
        cap(kernel, self.capped)
    }

    /// Those that models with heads of this length have.
    pub(super) fn of(head_dim: usize) -> impl Iterator<Item = Scores> {
        let masks = |&capped| [Mask::Segments, Mask::Position].map(|mask| Scores { mask, capped });
        caps_of(head_dim).iter().flat_map(masks)
    }
}

/// A kernel whose scores have a soft cap, or have none.
pub(super) fn cap(kernel: Kernel, capped: bool) -> Kernel {
    if capped { kernel.import("score", "score_soft_cap") } else { kernel }
}

crate::graph::params! {
    pub(super) struct Params {
        seq: u32,
        capacity: u32,
        heads: u32,
        kv_heads: u32,
        window: u32,
        scale: f32,
        soft_cap: f32,
    }
}

impl Attention {
    /// Errors: Config where the sizes contradict each other.
    pub fn check(&self) -> Result<()> {
        let fail = |name: &str, message: String| Err(Error::config(name, message));
        if self.batch == 0 || self.seq == 0 {
            return fail("attention", format!("expected at least one token, got [{}, {}]", self.batch, self.seq));
        }
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("expected heads in a multiple of kv_heads, got {} and {}", self.heads, self.kv_heads);
            return fail("num_attention_heads", message);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(4) || self.head_dim > 256 {
            return fail("head_dim", format!("expected a multiple of 4 up to 256, got {}", self.head_dim));
        }
        if self.window == Some(0) {
            return fail("sliding_window", "expected at least 1, got 0".to_owned());
        }
        if !self.scale.is_finite() {
            return fail("attention scale", format!("expected a finite number, got {}", self.scale));
        }
        if let Some(cap) = self.soft_cap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
            return fail("soft cap of the scores", format!("expected a positive number, got {cap}"));
        }
        Ok(())
    }

    pub(super) fn params(&self, capacity: usize) -> Params {
        Params {
            seq: self.seq as u32,
            capacity: capacity as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            window: self.window_u32(),
            scale: self.scale,
            soft_cap: self.soft_cap_base_2(),
        }
    }

    /// Scores are kept in base 2.
    pub(super) fn soft_cap_base_2(&self) -> f32 {
        self.soft_cap.map_or(0.0, |cap| cap * std::f32::consts::LOG2_E)
    }

    pub(super) fn scores(&self, mask: Mask) -> Scores {
        Scores { mask, capped: self.soft_cap.is_some() }
    }

    pub(super) fn window_u32(&self) -> u32 {
        self.window.map_or(u32::MAX, |w| u32::try_from(w).unwrap_or(u32::MAX))
    }

    /// Pairs of a query and a key it may see, times the elements of a head, over all heads.
    pub fn products(&self, capacity: usize) -> f64 {
        let seen = self.window.unwrap_or(usize::MAX).min(capacity) as f64;
        let pairs =
            if capacity == self.seq { seen * (self.seq as f64 - (seen - 1.0) / 2.0) } else { self.seq as f64 * seen };
        pairs * (self.batch * self.heads * self.head_dim) as f64
    }

    pub(super) fn expect_queries(&self, op: &str, x: &Value) -> Result<()> {
        self.expect_rows(op, x, self.batch * self.seq, self.heads)
    }

    pub(super) fn expect_rows(&self, op: &str, x: &Value, rows: usize, heads: usize) -> Result<()> {
        expect(op, x, DType::F32, &[rows, heads * self.head_dim])
    }
}

/// Errors: Shape where type or extents differ.
pub(crate) fn expect(op: &str, x: &Value, dtype: DType, shape: &[usize]) -> Result<()> {
    match x.dtype() == dtype && **x.shape() == *shape {
        true => Ok(()),
        false => Err(Error::shape(op, format!("{dtype} {shape:?}"), format!("{} {}", x.dtype(), x.shape()))),
    }
}
