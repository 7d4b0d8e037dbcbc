//! What a product is: its operands, its sizes, and what a shader is specialised for. Every design starts here.

use super::LowRank;
use crate::{
    Result,
    gpu::Kernel,
    graph::{Graph, Value},
    kernels::{
        QuantizedTensor, Shard,
        decode::{Encoding, Lookup, Unit, decode},
        expect,
    },
    quant::{Scheme, gcd},
};

/// Which of the three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// x · Wᵀ
    Forward,
    /// x · W
    Backward,
    /// xᵀ · W
    Gradient,
}

impl Entry {
    /// All of them.
    pub(crate) const ALL: [Entry; 3] = [Entry::Forward, Entry::Backward, Entry::Gradient];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Entry::Forward => "forward",
            Entry::Backward => "backward",
            Entry::Gradient => "gradient",
        }
    }
}

/// What the result is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base<V> {
    None,
    /// What was there.
    Itself,
    /// Another matrix.
    Value(V),
    /// What was there, times this number in memory.
    Gate(V),
}

impl Base<()> {
    fn snippet(self) -> &'static str {
        match self {
            Base::None => "base_none",
            Base::Itself => "base_self",
            Base::Value(()) => "base_value",
            Base::Gate(()) => "base_gate",
        }
    }
}

/// The matrix that is decoded on the fly.
#[derive(Clone)]
pub(crate) struct Weight {
    encoding: Encoding,
    args: Vec<Value>,
    /// Whether it is a value of the recording, such as a factor of an adapter, and not a weight of the model.
    pub dense: bool,
    rows: usize,
    /// Row length.
    pub width: usize,
    first_block: u32,
}

impl Weight {
    pub(crate) fn shard(g: &mut Graph, w: &QuantizedTensor, shard: &Shard) -> Weight {
        let (args, first_block) = (shard.args(g), shard.first_block);
        Weight { encoding: Encoding::of(w), args, dense: false, rows: shard.rows, width: w.cols(), first_block }
    }

    /// A plain f32 matrix.
    pub(crate) fn dense(value: &Value) -> Weight {
        let (rows, width) = value.rows_cols();
        let encoding = Encoding::new(Scheme::F32, [rows, width]);
        Weight { encoding, args: vec![value.clone()], dense: true, rows, width, first_block: 0 }
    }
}

/// A low-rank term whose shapes are checked.
pub(crate) struct Low<'a> {
    update: LowRank<'a>,
    rank: usize,
}

impl<'a> Low<'a> {
    pub(crate) fn new(
        op: &str,
        update: LowRank<'a>,
        rows: usize,
        factor: impl Fn(usize) -> [usize; 2],
    ) -> Result<Low<'a>> {
        let rank = update.xa.rows_cols().1;
        expect(op, "xa", update.xa, [rows, rank])?;
        expect(op, "factor", update.factor, factor(rank))?;
        Ok(Low { update, rank })
    }
}

/// One product of a matrix with a shard of a weight.
#[derive(Clone)]
pub(crate) struct Product<'a> {
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
    pub base: Base<&'a Value>,
    pub scale: f32,
    pub y: &'a Value,
    /// From one row of y to the next.
    pub out_stride: usize,
    /// First column of y.
    pub out_first: usize,
}

impl<'a> Product<'a> {
    /// The product of all of x with all of `weight`, written over the first columns of y.
    pub(crate) fn new(entry: Entry, x: &'a Value, weight: Weight, y: &'a Value) -> Product<'a> {
        let ((x_rows, stride), (_, out_stride)) = (x.rows_cols(), y.rows_cols());
        let (rows, cols, depth) = match entry {
            Entry::Forward => (x_rows, weight.rows, stride),
            Entry::Backward => (x_rows, weight.width, weight.rows),
            Entry::Gradient => (stride, weight.width, x_rows),
        };
        let (low, bias, base, scale) = (None, None, Base::None, 1.0);
        Product {
            entry,
            x,
            stride,
            first: 0,
            weight,
            rows,
            cols,
            depth,
            low,
            bias,
            base,
            scale,
            y,
            out_stride,
            out_first: 0,
        }
    }

    /// The same with a plain f32 matrix.
    pub(crate) fn dense(entry: Entry, x: &'a Value, w: &Value, y: &'a Value) -> Product<'a> {
        Product::new(entry, x, Weight::dense(w), y)
    }

    pub(crate) fn spec(&self) -> Spec {
        let run = if self.entry == Entry::Gradient { self.rows } else { self.depth };
        Spec {
            entry: self.entry,
            encoding: self.weight.encoding,
            ragged: self.weight.width % 8 != 0,
            operand: match run % 4 != 0 || self.stride % 4 != 0 || self.first % 4 != 0 {
                true => Operand::Scalar,
                false => Operand::Vec4,
            },
            store: match self.cols % 4 != 0 || self.out_stride % 4 != 0 || self.out_first % 4 != 0 {
                true => Store::Scalar,
                false => Store::Vec4,
            },
            low: match self.low.map(|low| low.rank) {
                None => LowRows::None,
                Some(rank) if rank % 4 != 0 => LowRows::Ragged,
                Some(_) if self.entry == Entry::Backward && self.cols % 8 != 0 => LowRows::Ragged,
                Some(_) => LowRows::Aligned,
            },
            bias: self.bias.is_some(),
            base: match self.base {
                Base::None => Base::None,
                Base::Itself => Base::Itself,
                Base::Value(_) => Base::Value(()),
                Base::Gate(_) => Base::Gate(()),
            },
        }
    }

    pub(crate) fn params(&self) -> Params {
        let words = self.depth.div_ceil(8);
        let block = self.weight.encoding.block.filter(|_| self.weight.width % 8 == 0);
        Params {
            rows: self.rows as u32,
            cols: self.cols as u32,
            depth: self.depth as u32,
            stride: self.stride as u32,
            width: self.weight.width as u32,
            first: self.first as u32,
            out_stride: self.out_stride as u32,
            run: block.map_or(words, |size| gcd(self.weight.width, size) / 8) as u32,
            block: self.weight.encoding.block(),
            first_block: self.weight.first_block,
            rank: self.low.map_or(0, |l| l.rank) as u32,
            alpha: self.low.map_or(0.0, |l| l.update.scale),
            scale: self.scale,
            out_first: self.out_first as u32,
        }
    }

    /// The buffers, in binding order.
    pub(crate) fn args(&self) -> Vec<&Value> {
        let mut args: Vec<&Value> = self.weight.args.iter().collect();
        args.push(self.x);
        if let Some(low) = self.low {
            args.extend([low.update.xa, low.update.factor]);
        }
        args.extend(self.end_args());
        args
    }

    /// Those of what becomes of the sums.
    pub(crate) fn end_args(&self) -> Vec<&Value> {
        let mut args: Vec<&Value> = self.bias.into_iter().collect();
        if let Base::Value(value) | Base::Gate(value) = self.base {
            args.push(value);
        }
        args.push(self.y);
        args
    }

    /// Records one dispatch of `kernel`, which computes the product.
    pub(crate) fn dispatch(&self, g: &mut Graph, kernel: Kernel, groups: usize) -> Result<()> {
        g.dispatch(kernel, &self.params(), &self.args(), groups, self.work())
    }

    /// Floating point operations.
    pub(crate) fn work(&self) -> f64 {
        let rank = self.low.map_or(0, |l| l.rank);
        2.0 * self.rows as f64 * self.cols as f64 * (self.depth + rank) as f64
    }
}

crate::graph::params! {
    /// `Params` of the shaders after the engine's two words.
    pub(crate) struct Params {
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
}

/// How the rows of a low-rank term lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LowRows {
    /// There is none.
    None,
    /// They begin at a vec4.
    Aligned,
    /// They may begin inside a vec4.
    Ragged,
}

/// How x is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    /// Element by element: rows may begin inside a vec4.
    Scalar,
    /// By vec4.
    Vec4,
    /// By pairs of integers of 64 bits, as large as a vec4.
    Long,
}

/// How the result is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Element by element: rows may begin inside a vec4.
    Scalar,
    /// By vec4.
    Vec4,
    /// By vec4, one of several parts of every sum.
    Part,
}

impl Store {
    fn snippet(self) -> &'static str {
        match self {
            Store::Scalar => "store_scalar",
            Store::Vec4 => "store_vec4",
            Store::Part => "store_part",
        }
    }
}

/// Numbers from one row of a part to the next, where sums are stored in parts: whole vec4.
pub(crate) fn part_stride(cols: usize) -> usize {
    cols.next_multiple_of(4)
}

/// What a pipeline is specialised for, sizes aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub entry: Entry,
    pub encoding: Encoding,
    /// Whether rows of the weight may begin inside a word.
    pub ragged: bool,
    pub operand: Operand,
    pub store: Store,
    pub low: LowRows,
    pub bias: bool,
    pub base: Base<()>,
}

impl Spec {
    /// Every specialisation, sizes and blocks aside.
    pub(crate) fn all() -> Vec<Spec> {
        let mut all = Vec::new();
        for (encoding, ragged) in Encoding::all().flat_map(|e| [(e, false), (e, true)]) {
            let some = if ragged { LowRows::Ragged } else { LowRows::Aligned };
            let mut push = |entry, low, base| {
                let bias = entry == Entry::Forward && low != LowRows::None && base == Base::None;
                let operand = if ragged { Operand::Scalar } else { Operand::Vec4 };
                let store = if ragged { Store::Scalar } else { Store::Vec4 };
                all.push(Spec { entry, encoding, ragged, operand, store, low, bias, base });
            };
            push(Entry::Forward, LowRows::None, Base::None);
            push(Entry::Forward, some, Base::None);
            push(Entry::Forward, some, Base::Value(()));
            push(Entry::Backward, some, Base::Value(()));
            push(Entry::Backward, LowRows::None, Base::Itself);
            if encoding.scheme == Scheme::F32 {
                push(Entry::Gradient, LowRows::None, Base::Gate(()));
                push(Entry::Gradient, LowRows::None, Base::None);
                push(Entry::Forward, LowRows::None, Base::Gate(()));
            }
        }
        all
    }

    /// Whether lanes may each take a part of a sum. Forward, a lane has one scale per row for its run of words, which parts
    /// would not share.
    pub(crate) fn may_split(&self) -> bool {
        let one_scale = self.entry == Entry::Forward && self.encoding.block.is_some() && !self.ragged;
        self.low == LowRows::None && !one_scale
    }

    /// Whether four lanes may load the scales of four rows of `width` for all of them.
    pub(crate) fn may_share_scales(&self, width: usize) -> bool {
        self.encoding.block.is_some_and(|block| block % 32 == 0) && width % 32 == 0 && !self.ragged
    }

    /// The same for a device that may load integers of 64 bits. The gradient keeps to vec4: measured on lavapipe.
    pub(crate) fn long(&self) -> Spec {
        let gains = self.operand == Operand::Vec4 && self.entry != Entry::Gradient;
        let operand = if gains { Operand::Long } else { self.operand };
        Spec { operand, ..*self }
    }

    /// For results that lie apart by a row of the weight: they are stored one by one.
    pub(crate) fn one_by_one(&self) -> Spec {
        Spec { store: Store::Scalar, ..*self }
    }

    /// For one of several parts of the sums, to which nothing is added yet.
    pub(crate) fn part(&self) -> Spec {
        Spec { store: Store::Part, bias: false, base: Base::None, ..*self }
    }

    /// Specialises `kernel` by what becomes of the sums.
    pub(crate) fn import_end(&self, kernel: Kernel) -> Kernel {
        kernel
            .import("bias", if self.bias { "bias_add" } else { "bias_none" })
            .import("base", self.base.snippet())
            .import("store", self.store.snippet())
    }

    /// Specialises `kernel`.
    pub(crate) fn import(&self, kernel: Kernel, lookup: Lookup) -> Kernel {
        let unit = match self.operand {
            _ if self.ragged => Unit::One,
            Operand::Long => Unit::EightLong,
            Operand::Scalar | Operand::Vec4 => Unit::Eight,
        };
        self.import_by(kernel, unit, lookup)
    }

    /// [`Spec::import`] for a design that decodes so much at a time.
    pub(crate) fn import_by(&self, kernel: Kernel, unit: Unit, lookup: Lookup) -> Kernel {
        let low = match self.low {
            LowRows::None => "low_rank_none",
            LowRows::Aligned => "low_rank_vec4",
            LowRows::Ragged => "low_rank_scalar",
        };
        let operand = match self.operand {
            Operand::Scalar => "operand_scalar",
            Operand::Vec4 => "operand_vec4",
            Operand::Long => "operand_long",
        };
        let kernel = if self.operand == Operand::Long { kernel.long() } else { kernel };
        let kernel = decode(kernel, self.encoding, unit, lookup)
            .import("weights", if self.ragged { "weight_rows_ragged" } else { "weight_rows" })
            .import("operand", operand)
            .import("low_rank", low);
        self.import_end(kernel)
    }
}
