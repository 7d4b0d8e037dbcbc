//! Products with a weight in any scheme, and the products of low-rank updates, which ride along.
//!
//! One shader serves them all: it is specialised by how the weight is stored, by whether rows begin at whole words, and by
//! the device. `tiled` needs nothing beyond WebGPU's limits; `subgroup` is for drivers that
//! run on the processor, where workgroup memory and barriers cost more than they save.

use super::{QuantizedTensor, Shard, gemv, matmul_subgroup};
use crate::{
    DType, Error, Result,
    gpu::{Caps, DeviceKind, Kernel},
    graph::{Graph, Value},
    quant::{ScaleType, Scheme, gcd},
};

/// A low-rank term of a product: `scale · xa · factor`.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rows, rank]`: x·Aᵀ forward, dy·B backward.
    pub xa: &'a Value,
    /// B `[out, rank]` forward, A `[rank, in]` backward.
    pub factor: &'a Value,
    /// alpha / rank
    pub scale: f32,
}

/// y = x · Wᵀ + scale · xa · Bᵀ + bias
///
/// x: [.., in]; w: [out, in]; bias: [out]; y: [.., out], f32. Errors: Shape. LoRA, Hu et al. 2021; QLoRA, Dettmers et al.
/// 2023.
pub fn matmul(
    g: &mut Graph,
    x: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    bias: Option<&Value>,
) -> Result<Value> {
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(w.rows());
    let y = g.value(shape, DType::F32)?;
    matmul_into(g, x, w, update, bias, &y)?;
    Ok(y)
}

/// [`matmul`] into `y`: [.., out], which may be rows of a larger value.
pub fn matmul_into(
    g: &mut Graph,
    x: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    bias: Option<&Value>,
    y: &Value,
) -> Result<()> {
    let (rows, depth) = x.rows_cols();
    let cols = w.rows();
    let op = "matmul";
    expect(op, "x", x, [rows, w.cols()])?;
    expect(op, "y", y, [rows, cols])?;
    if let Some(bias) = bias {
        expect(op, "bias", bias, [1, cols])?;
    }
    let low = update.map(|u| Low::new(op, u, rows, |rank| [cols, rank])).transpose()?;
    for shard in w.shards() {
        let product = Product {
            entry: Entry::Forward,
            x,
            stride: depth,
            first: 0,
            weight: Weight::shard(g, w, &shard),
            rows,
            cols: shard.rows,
            depth,
            low: low.as_ref(),
            bias,
            base: Base::None,
            scale: 1.0,
            y,
            out_stride: cols,
            out_first: shard.row0,
        };
        match gemv::choose(g.gpu().caps(), &product) {
            Some(choice) => gemv::record(g, &product, choice)?,
            None => product.record(g)?,
        }
    }
    Ok(())
}

/// dx = dy · W + scale · xa · A + add
///
/// dy: [.., out]; w: [out, in]; xa: [.., rank], here dy·B; add, dx: [.., in], f32. Errors: Shape. The gradient of
/// [`matmul`] with respect to x, out of the same packed weight.
pub fn matmul_dx(
    g: &mut Graph,
    dy: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    add: Option<&Value>,
) -> Result<Value> {
    let mut shape = dy.shape().to_vec();
    shape.pop();
    shape.push(w.cols());
    let dx = g.value(shape, DType::F32)?;
    matmul_dx_into(g, dy, w, update, add, &dx)?;
    Ok(dx)
}

/// [`matmul_dx`] into `dx`: [.., in], which may be rows of a larger value.
pub fn matmul_dx_into(
    g: &mut Graph,
    dy: &Value,
    w: &QuantizedTensor,
    update: Option<LowRank>,
    add: Option<&Value>,
    dx: &Value,
) -> Result<()> {
    let op = "matmul_dx";
    let (rows, depth) = dy.rows_cols();
    let cols = w.cols();
    expect(op, "dy", dy, [rows, w.rows()])?;
    expect(op, "dx", dx, [rows, cols])?;
    if let Some(add) = add {
        expect(op, "add", add, [rows, cols])?;
    }
    let low = update.map(|u| Low::new(op, u, rows, |rank| [rank, cols])).transpose()?;
    for (i, shard) in w.shards().enumerate() {
        Product {
            entry: Entry::Backward,
            x: dy,
            stride: depth,
            first: shard.row0,
            weight: Weight::shard(g, w, &shard),
            rows,
            cols,
            depth: shard.rows,
            low: low.as_ref().filter(|_| i == 0),
            bias: None,
            base: match add {
                _ if i > 0 => Base::Itself,
                Some(add) => Base::Value(add),
                None => Base::None,
            },
            scale: 1.0,
            y: dx,
            out_stride: cols,
            out_first: 0,
        }
        .record(g)?;
    }
    Ok(())
}

/// Errors: Shape, where `value` is not an f32 matrix of this shape (leading extents folded).
pub(super) fn expect(op: &str, what: &str, value: &Value, shape: [usize; 2]) -> Result<()> {
    let (rows, cols) = value.rows_cols();
    if [rows, cols] == shape && value.dtype() == DType::F32 {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} {shape:?} {}", DType::F32), format!("{} {}", value.shape(), value.dtype())))
}

/// Which of the three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// x · Wᵀ
    Forward,
    /// x · W
    Backward,
    /// xᵀ · W
    Gradient,
}

/// What the result is added to.
#[derive(Clone, Copy)]
pub(super) enum Base<'a> {
    None,
    /// What was there.
    Itself,
    /// Another matrix.
    Value(&'a Value),
    /// What was there, times this number in memory.
    Gate(&'a Value),
}

/// The matrix that is decoded on the fly.
pub(super) struct Weight {
    pub scheme: Scheme,
    pub args: Vec<Value>,
    /// Row length.
    pub width: usize,
    pub first_block: u32,
}

impl Weight {
    fn shard(g: &mut Graph, w: &QuantizedTensor, shard: &Shard) -> Weight {
        Weight { scheme: w.scheme(), args: shard.args(g), width: w.cols(), first_block: shard.first_block }
    }

    /// A plain f32 matrix.
    pub fn dense(value: &Value) -> Weight {
        let width = value.rows_cols().1;
        Weight { scheme: Scheme::F32, args: vec![value.clone()], width, first_block: 0 }
    }
}

/// A low-rank term whose shapes are checked.
pub(super) struct Low<'a> {
    pub update: LowRank<'a>,
    pub rank: usize,
}

impl<'a> Low<'a> {
    fn new(op: &str, update: LowRank<'a>, rows: usize, factor: impl Fn(usize) -> [usize; 2]) -> Result<Low<'a>> {
        let rank = update.xa.rows_cols().1;
        expect(op, "xa", update.xa, [rows, rank])?;
        expect(op, "factor", update.factor, factor(rank))?;
        Ok(Low { update, rank })
    }
}

/// One product of a matrix with a shard of a weight.
pub(super) struct Product<'a> {
    pub entry: Entry,
    pub x: &'a Value,
    /// From one row of x to the next.
    pub stride: usize,
    /// First column of x.
    pub first: usize,
    pub weight: Weight,
    /// Of the result.
    pub rows: usize,
    /// Of the result.
    pub cols: usize,
    /// Terms of each sum.
    pub depth: usize,
    pub low: Option<&'a Low<'a>>,
    pub bias: Option<&'a Value>,
    pub base: Base<'a>,
    pub scale: f32,
    pub y: &'a Value,
    /// From one row of y to the next.
    pub out_stride: usize,
    /// First column of y.
    pub out_first: usize,
}

/// `Params` of the shaders after the engine's two words.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
pub(super) struct Params {
    rows: u32,
    cols: u32,
    depth: u32,
    stride: u32,
    width: u32,
    first: u32,
    out_stride: u32,
    run: u32,
    block: u32,
    first_block: u32,
    rank: u32,
    alpha: f32,
    scale: f32,
    out_first: u32,
}

/// What a pipeline is specialised for, sizes aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub entry: Entry,
    pub scheme: Scheme,
    /// Whether rows of the weight may begin inside a word.
    pub ragged: bool,
    /// Whether rows of x may begin inside a vec4.
    pub ragged_x: bool,
    /// Whether rows of the result may begin inside a vec4.
    pub ragged_y: bool,
    /// `none`, or whether the low-rank term's rows may begin inside a vec4.
    pub low: Option<bool>,
    pub bias: bool,
    /// The snippet `base_*`.
    pub base: &'static str,
}

impl Product<'_> {
    pub(super) fn spec(&self) -> Spec {
        let ragged_low = |low: &Low| low.rank % 4 != 0 || (self.entry == Entry::Backward && self.cols % 8 != 0);
        let run = if self.entry == Entry::Gradient { self.rows } else { self.depth };
        Spec {
            entry: self.entry,
            scheme: self.weight.scheme,
            ragged: self.weight.width % 8 != 0,
            ragged_x: run % 4 != 0 || self.stride % 4 != 0 || self.first % 4 != 0,
            ragged_y: self.cols % 4 != 0 || self.out_stride % 4 != 0 || self.out_first % 4 != 0,
            low: self.low.map(ragged_low),
            bias: self.bias.is_some(),
            base: match self.base {
                Base::None => "base_none",
                Base::Itself => "base_self",
                Base::Value(_) => "base_value",
                Base::Gate(_) => "base_gate",
            },
        }
    }

    pub(super) fn params(&self) -> Params {
        let block = self.weight.scheme.block_size();
        let words = self.depth.div_ceil(8);
        let scaled = block > 0 && self.weight.width % 8 == 0;
        Params {
            rows: self.rows as u32,
            cols: self.cols as u32,
            depth: self.depth as u32,
            stride: self.stride as u32,
            width: self.weight.width as u32,
            first: self.first as u32,
            out_stride: self.out_stride as u32,
            run: if scaled { gcd(self.weight.width, block) / 8 } else { words } as u32,
            block: if block.is_power_of_two() { block.trailing_zeros() } else { block.max(1) as u32 },
            first_block: self.weight.first_block,
            rank: self.low.map_or(0, |l| l.rank) as u32,
            alpha: self.low.map_or(0.0, |l| l.update.scale),
            scale: self.scale,
            out_first: self.out_first as u32,
        }
    }

    /// The buffers, in binding order.
    pub(super) fn args(&self) -> Vec<&Value> {
        let mut args: Vec<&Value> = self.weight.args.iter().collect();
        args.push(self.x);
        if let Some(low) = self.low {
            args.extend([low.update.xa, low.update.factor]);
        }
        args.extend(self.bias);
        if let Base::Value(value) | Base::Gate(value) = self.base {
            args.push(value);
        }
        args.push(self.y);
        args
    }

    /// Floating point operations.
    pub(super) fn work(&self) -> f64 {
        let rank = self.low.map_or(0, |l| l.rank);
        2.0 * self.rows as f64 * self.cols as f64 * (self.depth + rank) as f64
    }

    /// Records the product in the variant that suits the device.
    pub(super) fn record(&self, g: &mut Graph) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        let spec = self.spec();
        let (kernel, groups) = match matmul_subgroup::choose(g.gpu().caps(), self) {
            Some(tile) => (tile.kernel(&spec), tile.groups(self)),
            None => (tiled(&spec), self.rows.div_ceil(TILE) * self.cols.div_ceil(TILE)),
        };
        g.dispatch(kernel, &self.params(), &self.args(), groups, self.work())
    }
}

/// Whether the subgroup variants suit the device: they do where lanes are those of a processor's vector unit.
pub(super) fn prefers_subgroups(caps: &Caps) -> bool {
    let (low, high) = caps.subgroup_size;
    caps.subgroups && caps.kind == DeviceKind::Cpu && low.is_power_of_two() && (4..=64).contains(&low) && high <= 128
}

/// Rows and columns of the tile of one workgroup.
const TILE: usize = 64;

/// The variant through workgroup memory.
fn tiled(spec: &Spec) -> Kernel {
    import(Kernel::new("matmul", spec.entry.name()), spec, "decode_table")
}

impl Entry {
    pub(super) fn name(self) -> &'static str {
        match self {
            Entry::Forward => "forward",
            Entry::Backward => "backward",
            Entry::Gradient => "gradient",
        }
    }
}

/// One scheme for every way of decoding.
pub(super) const SCHEMES: [Scheme; 29] = [
    Scheme::F32,
    Scheme::F16,
    Scheme::BF16,
    Scheme::Nf4 { block_size: 64, double_quant: false },
    Scheme::Fp4 { block_size: 64, double_quant: true },
    Scheme::Nf3 { block_size: 64 },
    Scheme::Nf2 { block_size: 64 },
    Scheme::Int { bits: 8, block_size: 24, symmetric: false, scale: ScaleType::F32 },
    Scheme::Int { bits: 4, block_size: 64, symmetric: false, scale: ScaleType::F32 },
    Scheme::int(4, 64),
    Scheme::int(2, 64),
    Scheme::int(3, 64),
    Scheme::Int { bits: 6, block_size: 24, symmetric: false, scale: ScaleType::F32 },
    Scheme::Mxfp4,
    Scheme::Nvfp4,
    Scheme::Q4_0,
    Scheme::Q4_1,
    Scheme::Q5_0,
    Scheme::Q5_1,
    Scheme::Q8_0,
    Scheme::Q2K,
    Scheme::Q3K,
    Scheme::Q4K,
    Scheme::Q5K,
    Scheme::Q6K,
    Scheme::Iq4Nl,
    Scheme::Iq4Xs,
    Scheme::E8p,
    Scheme::Aqlm { block_size: 64 },
];

/// What the products are specialised for, sizes and blocks aside.
pub(super) fn specs() -> Vec<Spec> {
    let mut all = Vec::new();
    for (scheme, ragged) in SCHEMES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let mut push = |entry, low: Option<bool>, base| {
            let bias = entry == Entry::Forward && low.is_some();
            all.push(Spec { entry, scheme, ragged, ragged_x: ragged, ragged_y: ragged, low, bias, base });
        };
        push(Entry::Forward, None, "base_none");
        push(Entry::Forward, Some(ragged), "base_none");
        push(Entry::Backward, Some(ragged), "base_value");
        push(Entry::Backward, None, "base_self");
        if scheme == Scheme::F32 {
            push(Entry::Gradient, None, "base_gate");
            push(Entry::Gradient, None, "base_none");
            push(Entry::Forward, None, "base_gate");
        }
    }
    all
}

/// Every specialisation of the variant through workgroup memory.
pub fn variants() -> Vec<Kernel> {
    specs().iter().map(tiled).collect()
}

/// The snippets and constants by which a product's shader is specialised. `table`: the snippet that looks codes up.
pub(super) fn import(kernel: Kernel, spec: &Spec, table: &'static str) -> Kernel {
    let vec4 = |name: [&'static str; 2], ragged: bool| name[usize::from(ragged)];
    let low = match spec.low {
        None => "low_rank_none",
        Some(ragged) => vec4(["low_rank_vec4", "low_rank_scalar"], ragged),
    };
    decode(kernel, spec.scheme, spec.ragged, table)
        .import("weights", vec4(["weight_rows", "weight_rows_ragged"], spec.ragged))
        .import("operand", vec4(["operand_vec4", "operand_scalar"], spec.ragged_x))
        .import("low_rank", low)
        .import("bias", if spec.bias { "bias_add" } else { "bias_none" })
        .import("base", spec.base)
        .import("store", vec4(["store_vec4", "store_scalar"], spec.ragged_y))
}

/// The snippets that decode `scheme`: `decode` (with `codebook` or `value`), `scale`, and their constants.
pub(super) fn decode(kernel: Kernel, scheme: Scheme, ragged: bool, table: &'static str) -> Kernel {
    let codebook = match scheme {
        Scheme::Nf4 { .. } => Some("codebook_nf4"),
        Scheme::Fp4 { .. } => Some("codebook_fp4"),
        Scheme::Nf3 { .. } => Some("codebook_nf3"),
        Scheme::Nf2 { .. } => Some("codebook_nf2"),
        Scheme::Mxfp4 | Scheme::Nvfp4 => Some("codebook_e2m1"),
        Scheme::Iq4Nl | Scheme::Iq4Xs => Some("codebook_iq4"),
        _ => None,
    };
    let (whole, single) = match (scheme, scheme.code_bits()) {
        (Scheme::F32, _) => ("decode_f32", "codes_f32"),
        (Scheme::F16, _) => ("decode_f16", "codes_f16"),
        (Scheme::BF16, _) => ("decode_bf16", "codes_bf16"),
        (Scheme::E8p, _) => ("decode_lattice", "decode_lattice"),
        (Scheme::Aqlm { .. }, _) => ("decode_codebooks", "decode_codebooks"),
        (_, 8) => ("decode_int8", "codes_int8"),
        (_, 4) if codebook.is_some() => (table, table),
        (_, 4) => ("decode_int4", "decode_int4"),
        _ => ("decode_stream", "decode_stream"),
    };
    // What GGUF's blocks subtract from a code.
    let zero = match scheme {
        Scheme::Q4_0 => Some(8),
        Scheme::Q5_0 => Some(16),
        Scheme::Q8_0 | Scheme::Iq4Nl => Some(0),
        Scheme::Q3K => Some(4),
        Scheme::Q6K => Some(32),
        _ => None,
    };
    let scale = match scheme {
        Scheme::Nf4 { .. } | Scheme::Fp4 { .. } if scheme.double_quant() => "scale_nested",
        Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => "scale_absmax",
        Scheme::E8p | Scheme::Aqlm { .. } => "scale_absmax",
        Scheme::Int { scale: ScaleType::F32, .. } => "scale_affine",
        Scheme::Int { scale: ScaleType::F16, .. } => "scale_affine_half",
        Scheme::Mxfp4 => "scale_e8m0",
        Scheme::Nvfp4 => "scale_e4m3",
        Scheme::Q4_0 | Scheme::Q5_0 | Scheme::Q8_0 | Scheme::Iq4Nl => "scale_half",
        Scheme::Q4_1 | Scheme::Q5_1 => "scale_half_min",
        Scheme::Q2K => "scale_q2_k",
        Scheme::Q3K => "scale_q3_k",
        Scheme::Q4K | Scheme::Q5K => "scale_q4_k",
        Scheme::Q6K => "scale_q6_k",
        Scheme::Iq4Xs => "scale_iq4_xs",
        _ => "scale_none",
    };
    let block = scheme.block_size();
    let mut kernel = kernel
        .with("POW2", u32::from(block == 0 || block.is_power_of_two()))
        .import("decode", if ragged { single } else { whole })
        .import("scale", scale);
    if whole == "decode_stream" {
        kernel = kernel.with("BITS", scheme.code_bits() as u32);
        kernel = kernel.import("value", if codebook.is_some() { "value_table" } else { "value_code" });
    }
    if let Some(codebook) = codebook {
        kernel = kernel.import("codebook", codebook);
    }
    if let Some(zero) = zero {
        kernel = kernel.with("ZERO", zero);
    }
    kernel
}
