//! Products of activations in 8 bits with weights in 8 bits, summed as integers: through workgroup memory, or by shuffles.

mod spec;
mod subgroup;
mod tiles;

use super::{
    QuantizedTensor, Shard, expect,
    product::prefers_subgroups,
    quantize_rows::{QuantizedRows, words},
};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::Scheme,
};
use spec::Spec;

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        depth: u32,
        words: u32,
        out_stride: u32,
        out_first: u32,
        first_block: u32,
        last_word: u32,
    }
}

/// Columns of x that go through the product in floats, as halves.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// [.., in] f32
    pub x: &'a Value,
    /// How many columns, then their numbers, as [`outliers`](super::quantize_rows::outliers) lists them; their codes must be
    /// 0. [1 + in] u32
    pub columns: &'a Value,
}

/// The longest row whose sums of products of bytes fit an i32.
const DEEPEST: usize = (1 << 31) / (128 * 128) - 1;

/// Whether a weight is one for this product: bytes, symmetric, with an f32 scale for each row.
pub fn serves(w: &QuantizedTensor) -> bool {
    w.scheme() == Scheme::INT8_ROWS.resolve(w.shape()) && w.cols() <= DEEPEST
}

/// y\[r, c\] = scale_x\[r\] · scale_w\[c\] · Σ_k code_x\[r, k\] · code_w\[c, k\] + bias\[c\], plus
/// scale_w\[c\] · Σ_k x\[r, k\] · code_w\[c, k\] over the columns that are kept
///
/// x: [rows, in] codes; w: [out, in], such as [`serves`] names; bias: [out]; y: [rows, out] f32. The sum of products of codes
/// is exact. Errors: Shape; Unsupported for other weights. LLM.int8(), Dettmers et al. 2022.
pub fn matmul(
    g: &mut Graph,
    x: &QuantizedRows,
    w: &QuantizedTensor,
    kept: Option<Kept>,
    bias: Option<&Value>,
) -> Result<Value> {
    let op = "matmul_int8";
    if !serves(w) {
        let ours = format!("symmetric int8 with an f32 scale for each row of at most {DEEPEST}");
        return Err(Error::unsupported("weight of a product of bytes", w.scheme().name(), ours));
    }
    let rows = x.scales.shape().len();
    if x.cols != w.cols() {
        return Err(Error::shape(op, format!("x of {} columns", w.cols()), x.cols));
    }
    x.codes.expect(op, &[rows, words(x.cols)])?;
    if let Some(kept) = kept {
        expect(op, "the columns kept", kept.x, [rows, w.cols()])?;
        kept.columns.expect(op, &[1 + w.cols()])?;
    }
    if let Some(bias) = bias {
        expect(op, "bias", bias, [1, w.rows()])?;
    }
    let y = g.value([rows, w.rows()], DType::F32)?;
    for shard in w.shards() {
        Product { x, w, kept, bias, y: &y, rows }.record(g, &shard)?;
    }
    Ok(y)
}

struct Product<'a> {
    x: &'a QuantizedRows,
    w: &'a QuantizedTensor,
    kept: Option<Kept<'a>>,
    bias: Option<&'a Value>,
    y: &'a Value,
    rows: usize,
}

impl Product<'_> {
    fn record(&self, g: &mut Graph, shard: &Shard) -> Result<()> {
        let depth = self.w.cols();
        let params = Params {
            rows: self.rows as u32,
            cols: shard.rows as u32,
            depth: depth as u32,
            words: words(depth) as u32,
            out_stride: self.w.rows() as u32,
            out_first: shard.row0 as u32,
            first_block: shard.first_block,
            last_word: shard.codes.shape().len() as u32 - 1,
        };
        let caps = g.gpu().caps();
        let spec = Spec {
            packed_dot: caps.packed_dot,
            ragged: depth % 4 != 0,
            kept: self.kept.is_some(),
            bias: self.bias.is_some(),
        };
        let (kernel, groups) = match prefers_subgroups(caps) {
            true => subgroup::choose(caps, spec, self.rows, shard.rows),
            false => tiles::choose(spec, self.rows, shard.rows),
        };
        let weight = shard.args(g);
        let mut args: Vec<&Value> = weight.iter().chain([&self.x.codes, &self.x.scales]).collect();
        if let Some(kept) = &self.kept {
            args.extend([kept.x, kept.columns]);
        }
        args.extend(self.bias);
        args.push(self.y);
        let work = 2.0 * self.rows as f64 * shard.rows as f64 * depth as f64;
        g.dispatch(kernel, &params, &args, groups, work)
    }
}

/// Every specialisation of both designs.
pub fn variants() -> Vec<Kernel> {
    let mut all = tiles::variants();
    all.extend(subgroup::variants());
    all
}
