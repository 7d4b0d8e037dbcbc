//! Rounding a tensor to the numbers of a scheme, on the device.

use super::{QuantizedTensor, Shard, double_quantize};
use crate::{
    DType, Error, Result,
    gpu::{DeviceKind, Gpu, Kernel, Tensor},
    graph::{Graph, Value},
    quant::{BlockSize, ScaleType, Scheme, gcd},
};

crate::graph::params! {
    struct Params {
        len: u32,
        block: u32,
        blocks: u32,
        first_block: u32,
        first: u32,
    }
}

/// Threads that may share a block while its range is found.
const LANES: [u32; 3] = [1, 8, 64];

fn kernel(entry: &'static str, source: DType, scheme: Scheme, lanes: u32) -> Kernel {
    let kernel = Kernel::new("quantize", entry).with("LANES", lanes).with("RAGGED", u32::from(is_ragged(scheme)));
    let kernel = match source {
        DType::F16 => kernel.import("source", "source_half").import("widen", "widen_f16"),
        DType::BF16 => kernel.import("source", "source_half").import("widen", "widen_bf16"),
        DType::F32 => kernel.import("source", "source_f32"),
        DType::F64 | DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U32 | DType::U8 | DType::Bool => {
            unreachable!("`check_source` takes floats of 16 and 32 bits")
        }
    };
    let kernel = match scheme {
        Scheme::F16 => kernel.import("encoding", "encode_float").import("narrow", "half_bits"),
        Scheme::BF16 => kernel.import("encoding", "encode_float").import("narrow", "narrow_bf16"),
        Scheme::Nf4 { .. } => kernel.import("encoding", "encode_absmax").import("encode", "encode_nf4"),
        Scheme::Fp4 { .. } => kernel.import("encoding", "encode_absmax").import("encode", "encode_fp4"),
        Scheme::Nf3 { .. } => kernel.import("encoding", "encode_absmax").import("encode", "encode_nf3"),
        Scheme::Nf2 { .. } => kernel.import("encoding", "encode_absmax").import("encode", "encode_nf2"),
        Scheme::Int { bits, symmetric, scale, .. } => {
            let pair = if scale == ScaleType::F16 { "pair_f16" } else { "pair_f32" };
            let kernel = kernel.import("encoding", "encode_affine").import("pair", pair);
            kernel.with("BITS", bits.into()).with("SYMMETRIC", u32::from(symmetric))
        }
        Scheme::Mxfp4 => kernel.import("encoding", "encode_mxfp4"),
        Scheme::F32 => kernel.import("encoding", "encode_float").import("narrow", "narrow_f32"),
        Scheme::Nvfp4 | Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => {
            unreachable!("`rounds` holds for what is rounded here")
        }
    };
    match (scheme, scheme.code_bits()) {
        (_, 32) => kernel.import("pack", "pack_eight").import("store8", "store_words"),
        (_, 16) => kernel.import("pack", "pack_eight").import("store8", "store_half"),
        (_, 4) => kernel.import("pack", "pack_eight").import("store8", "store_nibbles"),
        (_, 8) => kernel.import("pack", "pack_eight").import("store8", "store_bytes"),
        (Scheme::Int { .. }, _) => kernel.import("pack", "pack_stream"),
        (_, bits) => kernel.import("pack", "pack_stream").with("BITS", bits as u32),
    }
}

/// Whether eight elements may belong to several blocks.
fn is_ragged(scheme: Scheme) -> bool {
    matches!(scheme.block(), Some(BlockSize::Elements(size)) if size % 8 != 0)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let (block_size, double_quant) = (64, false);
    let mut scaled = vec![
        Scheme::Nf4 { block_size, double_quant },
        Scheme::Fp4 { block_size, double_quant },
        Scheme::Nf3 { block_size },
        Scheme::Nf2 { block_size },
        Scheme::Mxfp4,
    ];
    for bits in 2..=8 {
        for (symmetric, scale) in [(false, ScaleType::F32), (true, ScaleType::F16)] {
            scaled.extend([64, 63].map(|size| Scheme::Int {
                bits,
                block: BlockSize::Elements(size),
                symmetric,
                scale,
            }));
        }
    }
    let mut all = Vec::new();
    for source in [DType::F32, DType::F16, DType::BF16] {
        for &scheme in &scaled {
            all.extend(LANES.map(|lanes| kernel("block_scales", source, scheme, lanes)));
            all.push(kernel("encode", source, scheme, 1));
        }
        all.extend([Scheme::F32, Scheme::F16, Scheme::BF16].map(|scheme| kernel("encode", source, scheme, 1)));
    }
    all
}

/// Whether the device rounds to the scheme; the codes of the others are searched for, which the host does.
pub fn rounds(scheme: Scheme) -> bool {
    match scheme {
        Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Int { .. } | Scheme::Mxfp4 => true,
        Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => true,
        Scheme::Nvfp4 | Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => false,
    }
}

/// Threads to a block that suit the device.
pub fn lanes(gpu: &Gpu, scheme: Scheme, shape: [usize; 2]) -> u32 {
    let on_processor = gpu.caps().kind == DeviceKind::Cpu;
    match scheme.block_size(shape) {
        None => 1,
        Some(..=4096) if on_processor => 1,
        Some(..=256) => 8,
        Some(_) => 64,
    }
}

/// Whether the device rounds with given scales to the scheme: one that has scales, as they were chosen.
pub fn encodes(scheme: Scheme) -> bool {
    rounds(scheme) && !scheme.is_float() && !scheme.double_quant() && scheme != Scheme::Mxfp4
}

/// Records what rounds `source` to the numbers of `target`, whose table of double quantization is written already.
///
/// source: \[rows * cols\] f32, f16 or bf16 in any shape, which may exceed a binding ([`check`]); lanes: threads to a block, 1,
/// 8 or 64, or none where `target` keeps its scales; status: of [`status`]. Errors: Config for other lanes; Shape where not
/// even a few blocks fit a binding; OutOfMemory.
pub fn record_tensor(
    g: &mut Graph,
    name: &str,
    source: &Tensor,
    target: &QuantizedTensor,
    lanes: Option<u32>,
    status: &Tensor,
) -> Result<()> {
    if let Some(lanes) = lanes.filter(|lanes| !LANES.contains(lanes)) {
        return Err(Error::config("lanes", format!("expected one of {LANES:?}, got {lanes}")));
    }
    // Where the scales are bytes, the absmax values lie aside until all of them are there.
    let scheme = target.scheme();
    let absmax = match target.block_size().filter(|_| scheme.double_quant()) {
        Some(block) => Some(g.gpu().zeros("absmax values", [target.len().div_ceil(block)], DType::F32)?),
        None => None,
    };
    for shard in target.shards() {
        let job = Job::new(Source::Tensor(source), target, status, &shard);
        let scales = absmax.as_ref().or(job.scales);
        Job { lanes: lanes.unwrap_or(0), scales, ..job }.record(g, name)?;
    }
    if let (Some(absmax), Some(nested), Some(scales)) = (&absmax, target.nested(), target.scales()) {
        let [absmax, status, nested, scales] = [absmax, status, nested, scales].map(|t| g.import(t));
        double_quantize::double_quantize(g, &absmax, &status, &nested, &scales)?;
    }
    Ok(())
}

/// Records what [`record_tensor`] does, in a program that may run many times: `target` gets the numbers of `source`. Where
/// `given`, it keeps its scales.
///
/// source: [rows, cols] f32; status: of [`status`], to be read now and then. Errors: Shape; Unsupported for
/// schemes whose codes are searched for, for double quantization, and for given scales of other schemes than integers.
pub fn record(
    g: &mut Graph,
    name: &str,
    source: &Value,
    target: &QuantizedTensor,
    given: bool,
    status: &Tensor,
) -> Result<()> {
    let (scheme, shape) = (target.scheme(), target.shape());
    records(scheme)?;
    if given {
        scheme.expect("scheme to encode with given scales again and again", Scheme::is_int)?;
    }
    if source.rows_cols() != (shape[0], shape[1]) || source.dtype() != DType::F32 {
        let got = format!("{} {}", source.dtype(), source.shape());
        return Err(Error::shape(format!("quantizing {name}"), format!("F32 {shape:?}"), got));
    }
    let lanes = if given { 0 } else { lanes(g.gpu(), scheme, shape) };
    for shard in target.shards() {
        Job { lanes, ..Job::new(Source::Value(source), target, status, &shard) }.record(g, name)?;
    }
    Ok(())
}

/// Whether [`record`] takes the scheme. Errors: Unsupported.
pub fn records(scheme: Scheme) -> Result<()> {
    scheme.expect("scheme to quantize to again and again", |scheme| rounds(scheme) && !scheme.double_quant())
}

/// Where kernels tell of numbers that cannot be stored: how many are not finite or too large, the complement of the first
/// one's number, and both for blocks whose range is beyond the scales. [4] u32
pub fn status(gpu: &Gpu) -> Result<Tensor> {
    gpu.zeros("quantization status", [4], DType::U32)
}

/// Errors: Config, where the [`status`], read back, tells of numbers that are not finite or of a range beyond the scheme's.
pub fn report(name: &str, scheme: Scheme, status: &[u32]) -> Result<()> {
    if status[0] > 0 {
        let what = if scheme.code_bits() == 16 { "not finite or too large" } else { "not finite" };
        let message = format!("element {} is {what} for {} ({} such)", !status[1], scheme.name(), status[0]);
        return Err(Error::config(name, format!("{message}; only finite numbers can be stored")));
    }
    if status[2] > 0 {
        let scale = if matches!(scheme, Scheme::Int { scale: ScaleType::F16, .. }) { "f16" } else { "f32" };
        return Err(Error::config(name, format!("the range of block {} is beyond {scale}", !status[2])));
    }
    Ok(())
}

/// Errors: Config, Shape, Unsupported, where `source` cannot be rounded to a weight of this scheme and shape.
pub fn check(name: &str, source: &Tensor, shape: [usize; 2], scheme: Scheme) -> Result<()> {
    scheme.validate_for(shape)?;
    scheme.expect("scheme to quantize to on the device", rounds)?;
    check_source(name, source, shape)
}

/// Errors: Shape, where `source` is not `shape` numbers in a dtype that can be quantized.
pub(super) fn check_source(name: &str, source: &Tensor, shape: [usize; 2]) -> Result<()> {
    if !matches!(source.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::shape(format!("quantizing {name}"), "f32, f16 or bf16 numbers", source.dtype()));
    }
    if shape[0].checked_mul(shape[1]) != source.shape().checked_len() {
        return Err(Error::shape(format!("quantizing {name}"), format!("{shape:?}"), source.shape()));
    }
    Ok(())
}

/// Where the numbers come from.
enum Source<'a> {
    /// [rows * cols], which may exceed a binding.
    Tensor(&'a Tensor),
    /// [rows, cols] f32 of the recording.
    Value(&'a Value),
}

impl Source<'_> {
    fn dtype(&self) -> DType {
        match self {
            Source::Tensor(tensor) => tensor.dtype(),
            Source::Value(value) => value.dtype(),
        }
    }

    /// Elements `from..from + len`.
    fn range(&self, g: &mut Graph, from: usize, len: usize) -> Result<Value> {
        match *self {
            Source::Tensor(t) => {
                let offset = t.offset + (from * t.dtype().size()) as u64;
                Ok(g.import(&Tensor::view(t.buffer.clone(), offset, [len].into(), t.dtype())))
            }
            Source::Value(value) => {
                let whole = value.shape().len();
                let flat = g.reshape(value, [whole, 1])?;
                if len == whole { Ok(flat) } else { g.rows(&flat, from, len) }
            }
        }
    }
}

/// The quantization of one shard.
struct Job<'a> {
    source: Source<'a>,
    scheme: Scheme,
    /// Threads to a block; 0 where the scales are given.
    lanes: u32,
    status: &'a Tensor,
    shard: &'a Shard,
    cols: usize,
    block: Option<usize>,
    scales: Option<&'a Tensor>,
}

impl<'a> Job<'a> {
    /// With the scales that are there.
    fn new(source: Source<'a>, target: &QuantizedTensor, status: &'a Tensor, shard: &'a Shard) -> Job<'a> {
        let (scheme, cols, block) = (target.scheme(), target.cols(), target.block_size());
        Job { source, scheme, lanes: 0, status, shard, cols, block, scales: shard.scales.as_ref() }
    }

    /// Cuts the shard where the source exceeds a binding, at whole blocks and aligned offsets.
    fn record(&self, g: &mut Graph, name: &str) -> Result<()> {
        let caps = g.gpu().caps();
        let size = self.source.dtype().size();
        let (start, len) = (self.shard.row0 * self.cols, self.shard.rows * self.cols);
        let bound = |elements: usize| (elements * size) as u64 <= caps.max_binding;
        let most = caps.max_binding as usize / size;
        let mut step = len;
        if len > most {
            let align = 8 * caps.offset_alignment as usize;
            let codes = align / gcd(align, self.scheme.code_bits());
            // Both are powers of two: the larger one serves codes and source.
            let align = codes.max(align / (8 * size));
            let block = self.block.unwrap_or(1);
            let unit = (align / gcd(align, block)).saturating_mul(block);
            step = (most / unit).max(1) * unit;
        }
        if !bound(step.min(len)) || !(start * size).is_multiple_of(caps.offset_alignment as usize) {
            let expected = format!("blocks of which some fit {} bytes", caps.max_binding);
            return Err(Error::shape(format!("quantizing {name}"), expected, format!("{:?}", self.scheme)));
        }
        (0..len).step_by(step).try_for_each(|at| self.range(g, start, at, step.min(len - at)))
    }

    /// Quantizes elements `at..at + len` of the shard, whose first is element `start` of the tensor.
    fn range(&self, g: &mut Graph, start: usize, at: usize, len: usize) -> Result<()> {
        let (scheme, dtype) = (self.scheme, self.source.dtype());
        let view = |t: &Tensor, bytes: usize, len: usize| {
            Tensor::view(t.buffer.clone(), t.offset + bytes as u64, [len].into(), t.dtype())
        };
        let source = self.source.range(g, start + at, len)?;
        let words = scheme.code_words(len).next_multiple_of(4);
        let codes = g.import(&view(&self.shard.codes, at * scheme.code_bits() / 8, words));
        let status = g.import(self.status);
        let eights = if matches!(scheme.code_bits(), 4 | 8 | 16 | 32) { 1 } else { 4 };
        let groups = len.div_ceil(8 * eights * 256);
        let params = Params { len: len as u32, block: 8, blocks: 1, first_block: 0, first: (start + at) as u32 };
        let (Some(scales), Some(block)) = (self.scales, self.block) else {
            let kernel = kernel("encode", dtype, scheme, 1);
            return g.dispatch(kernel, &params, &[&source, &status, &codes], groups, 8.0 * len as f64);
        };
        let scales = g.import(scales);
        let blocks = len.div_ceil(block);
        let params = Params {
            block: block.min(len) as u32,
            blocks: blocks as u32,
            first_block: self.shard.first_block + (at / block) as u32,
            ..params
        };
        if self.lanes > 0 {
            let ranges = kernel("block_scales", dtype, scheme, self.lanes);
            let ranges_groups = blocks.div_ceil(256 / self.lanes as usize);
            g.dispatch(ranges, &params, &[&source, &scales, &status], ranges_groups, 8.0 * len as f64)?;
        }
        let kernel = kernel("encode", dtype, scheme, 1);
        g.dispatch(kernel, &params, &[&source, &scales, &codes], groups, 40.0 * len as f64)
    }
}
