//! Gradients of rounding for training with quantized numbers: straight through, with trained steps (LSQ).
//!
//! The forward pass is rounding itself: weights by [`super::quantize`], inputs by [`super::quantize_rows`]. What training sees is
//! then what is stored, bit for bit.

use super::Shard;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::{ScaleType, Scheme, affine::stored_codes},
};

crate::graph::params! {
    struct Params {
        len: u32,
        block: u32,
        blocks: u32,
        parts: u32,
        min_code: f32,
        max_code: f32,
        factor: f32,
    }
}

/// Elements of a thread where each is by itself.
const EIGHT: usize = 8;
/// Sums over blocks up to this length are one invocation's.
const SHORT: usize = 128;
/// Elements of one workgroup's part of a longer block, at least.
const PART: usize = 4096;
/// Parts of a block at most: what one workgroup joins.
const PARTS: usize = 256;

fn kernel(entry: &'static str, pair: &'static str) -> Kernel {
    kernel_of(entry, pair, 16)
}

/// With workgroups of side² invocations, where the entry sums over them.
fn kernel_of(entry: &'static str, pair: &'static str, side: u32) -> Kernel {
    Kernel::new("fake_quantize", entry).with("LANES", side * side).with("SIDE", side).import("pair", pair)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let mut all = vec![kernel("join_steps", "pair_step"), kernel("clamp_steps", "pair_step")];
    for pair in ["pair_f32", "pair_f16", "pair_step"] {
        all.extend(["mask", "mask_into", "short_steps", "long_steps"].map(|entry| kernel(entry, pair)));
        all.push(kernel_of("long_steps", pair, 8));
    }
    for pair in ["pair_f32", "pair_f16"] {
        all.extend(["load_steps", "store_steps"].map(|entry| kernel(entry, pair)));
    }
    all
}

/// A grid of codes, one step and zero point per block: v(x) = x / step, code(x) = round(v) + zero point.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Steps and zero points as the scheme stores them, or steps alone.
    scales: Value,
    pair: &'static str,
    len: usize,
    block: usize,
    codes: (f32, f32),
    factor: f32,
}

impl Grid {
    /// The grid of a weight of integers. LSQ's factor of the steps' gradients is 1 / √(block · Qp), Qp = 2^(bits - 1) - 1.
    /// It is made for plain gradient descent: AdamW divides by the gradients' own size, so that there it weighs the steps
    /// only in the norm that clipping looks at.
    ///
    /// weight: its only shard. Errors: Unsupported for other schemes.
    pub fn of_weight(g: &mut Graph, scheme: Scheme, cols: usize, weight: &Shard) -> Result<Grid> {
        scheme.expect("scheme with a grid", Scheme::is_int)?;
        let (Scheme::Int { bits, scale, .. }, Some(scales)) = (scheme, &weight.scales) else {
            return Err(Error::shape("scales of a grid", scheme, "a shard without scales"));
        };
        let (low, high) = stored_codes(bits);
        let len = weight.rows * cols;
        let block = scheme.block_size([weight.rows, cols]).map_or(len, |block| block.min(len));
        let peak = ((1 << (bits - 1)) - 1) as f32;
        Ok(Grid {
            scales: g.import(scales),
            pair: if scale == ScaleType::F16 { "pair_f16" } else { "pair_f32" },
            len,
            block,
            codes: (low as f32, high as f32),
            factor: 1.0 / (block as f32 * peak).sqrt(),
        })
    }

    /// The grid of a layer's input, codes -127 to 127 and one step for all: that of [`super::quantize_rows::Scale::Given`].
    /// LSQ's factor is 1 / √(features · 127).
    ///
    /// step: [1]; x: [tokens, features]. Errors: Shape.
    pub fn of_input(step: &Value, x: &Value) -> Result<Grid> {
        step.expect("fake_quantize", &[1])?;
        let (len, features) = (x.shape().len(), x.rows_cols().1);
        let factor = 1.0 / (features as f32 * 127.0).sqrt();
        Ok(Grid { scales: step.clone(), pair: "pair_step", len, block: len, codes: (-127.0, 127.0), factor })
    }

    /// The same with other codes and another factor of the steps' gradients.
    pub fn with(self, codes: (i32, i32), factor: f32) -> Grid {
        Grid { codes: (codes.0 as f32, codes.1 as f32), factor, ..self }
    }

    /// Blocks, and so steps.
    pub fn blocks(&self) -> usize {
        self.len.div_ceil(self.block.max(1))
    }

    /// Few long blocks are shared, so that the device is busy.
    fn parts(&self) -> usize {
        if self.blocks() < 64 { self.block.div_ceil(PART).min(PARTS) } else { 1 }
    }

    fn params(&self) -> Params {
        Params {
            len: self.len as u32,
            block: self.block as u32,
            blocks: self.blocks() as u32,
            parts: self.parts() as u32,
            min_code: self.codes.0,
            max_code: self.codes.1,
            factor: self.factor,
        }
    }

    fn expect(&self, op: &str, values: &[&Value]) -> Result<()> {
        match values.iter().find(|v| v.shape().len() != self.len || v.dtype() != DType::F32) {
            None => Ok(()),
            Some(v) => {
                Err(Error::shape(op, format!("{} elements of F32", self.len), format!("{} {}", v.dtype(), v.shape())))
            }
        }
    }

    fn expect_steps(&self, op: &str, steps: &Value) -> Result<()> {
        steps.expect(op, &[self.blocks()])
    }

    fn by_element(&self, g: &mut Graph, entry: &'static str, args: &[&Value]) -> Result<()> {
        let groups = self.len.div_ceil(EIGHT * 256);
        g.dispatch(kernel(entry, self.pair), &self.params(), args, groups, 8.0 * self.len as f64)
    }

    fn by_block(&self, g: &mut Graph, entry: &'static str, pair: &'static str, args: &[&Value]) -> Result<()> {
        let blocks = self.blocks();
        g.dispatch(kernel(entry, pair), &self.params(), args, blocks.div_ceil(64), 4.0 * blocks as f64)
    }
}

/// dx ← dx where min_code <= code(x) <= max_code, else 0: the gradient of rounding, straight through (Bengio et al. 2013)
/// with torch's rule for what is clamped.
///
/// x: the numbers before rounding; dx: of one length, f32, overwritten. Errors: Shape.
pub fn mask(g: &mut Graph, grid: &Grid, x: &Value, dx: &Value) -> Result<()> {
    grid.expect("fake_quantize::mask", &[x, dx])?;
    grid.by_element(g, "mask", &[x, &grid.scales, dx])
}

/// dx ← accumulate · dx + (dy as [`mask`] leaves it)
///
/// x, dy, dx: of one length; accumulate: [1], f32. Where `accumulate` is 0, dx may hold anything. Errors: Shape.
pub fn mask_into(g: &mut Graph, grid: &Grid, x: &Value, dy: &Value, dx: &Value, accumulate: &Value) -> Result<()> {
    let op = "fake_quantize::mask_into";
    grid.expect(op, &[x, dy, dx])?;
    accumulate.expect(op, &[1])?;
    // In the order of their bindings.
    grid.by_element(g, "mask_into", &[x, &grid.scales, dy, accumulate, dx])
}

/// dsteps\[b\] ← accumulate · dsteps\[b\] + factor · Σ dy · slope over block b, slope = round(v) - v inside the grid and the
/// end's distance from the zero point outside
///
/// x, dy: of one length; dsteps: [blocks]; accumulate: [1], f32. In a fixed order. Errors: Shape. LSQ, Esser et al. 2020;
/// with a factor of 1 torch's `_fake_quantize_learnable_per_channel_affine`.
pub fn step_gradients(
    g: &mut Graph,
    grid: &Grid,
    x: &Value,
    dy: &Value,
    dsteps: &Value,
    accumulate: &Value,
) -> Result<()> {
    let op = "fake_quantize::step_gradients";
    grid.expect(op, &[x, dy])?;
    grid.expect_steps(op, dsteps)?;
    accumulate.expect(op, &[1])?;
    let (params, blocks, parts, work) = (grid.params(), grid.blocks(), grid.parts(), 8.0 * grid.len as f64);
    if grid.block <= SHORT {
        let args = [x, &grid.scales, dy, accumulate, dsteps];
        return g.dispatch(kernel("short_steps", grid.pair), &params, &args, blocks.div_ceil(64), work);
    }
    let sums = if parts == 1 { dsteps.clone() } else { g.value([blocks * parts], DType::F32)? };
    let long = kernel_of("long_steps", grid.pair, if grid.block <= 2048 { 8 } else { 16 });
    g.dispatch(long, &params, &[x, &grid.scales, dy, accumulate, &sums], blocks * parts, work)?;
    if parts > 1 {
        let work = 8.0 * (blocks * PARTS) as f64;
        g.dispatch(kernel("join_steps", "pair_step"), &params, &[accumulate, &sums, dsteps], blocks, work)?;
    }
    Ok(())
}

/// steps\[b\] = the step that the grid holds for block b.
///
/// steps: [blocks] f32. Errors: Shape.
pub fn load_steps(g: &mut Graph, grid: &Grid, steps: &Value) -> Result<()> {
    grid.expect_steps("fake_quantize::load_steps", steps)?;
    grid.by_block(g, "load_steps", grid.pair, &[&grid.scales, steps])
}

/// Puts steps into the grid, rounded as scales are held, beside the zero points that are there.
///
/// steps: [blocks] f32, positive: see [`clamp_steps`]. Errors: Shape.
pub fn store_steps(g: &mut Graph, grid: &Grid, steps: &Value) -> Result<()> {
    grid.expect_steps("fake_quantize::store_steps", steps)?;
    grid.by_block(g, "store_steps", grid.pair, &[&grid.scales, steps])
}

/// steps ← clamp(steps, 2^-23, 65504): an optimizer may have made them negative. The limits are the least step of rounding to
/// nearest, and the largest half.
///
/// steps: f32. Errors: none.
pub fn clamp_steps(g: &mut Graph, steps: &Value) -> Result<()> {
    let blocks = steps.shape().len();
    let params =
        Params { len: 0, block: 1, blocks: blocks as u32, parts: 1, min_code: 0.0, max_code: 0.0, factor: 1.0 };
    g.dispatch(kernel("clamp_steps", "pair_step"), &params, &[steps], blocks.div_ceil(64), 2.0 * blocks as f64)
}
