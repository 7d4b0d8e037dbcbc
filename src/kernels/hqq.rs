//! Half-quadratic quantization on the device.

use super::{QuantizedTensor, Shard, quantize};
use crate::{
    DType, Error, Result,
    gpu::{Kernel, Tensor},
    graph::{Graph, Value},
    quant::{ScaleType, Scheme, gcd},
};

/// The solver's options; the default is what the hqq package does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfQuadratic {
    /// The p of the norm |w - w'|^p that is made small, in 0..=1.
    pub p: f32,
    /// How far the split error may be from the error: weight of the quadratic term.
    pub beta: f32,
    /// `beta` grows by this factor each step. The paper has 1.01; the package takes it, but keeps `beta` as it is.
    pub kappa: f32,
    /// Steps at most; fewer where the mean error of all blocks no longer falls.
    pub iterations: u32,
    /// Whether the first zero points are rounded; `None` for 4 bits alone, as the package does.
    pub round_zero: Option<bool>,
}

impl Default for HalfQuadratic {
    fn default() -> HalfQuadratic {
        HalfQuadratic { p: 0.7, beta: 10.0, kappa: 1.0, iterations: 20, round_zero: None }
    }
}

crate::graph::params! {
    struct Params {
        len: u32,
        block: u32,
        blocks: u32,
        first_block: u32,
        first_scale: u32,
        words: u32,
        p: f32,
        kappa: f32,
        round_zero: u32,
    }
}

fn kernel(entry: &'static str, source: DType, bits: u8, scale: ScaleType) -> Kernel {
    let snippet = match source {
        DType::F16 => "codes_f16",
        DType::BF16 => "codes_bf16",
        DType::F32 => "codes_f32",
        DType::F64 | DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U32 | DType::U8 | DType::Bool => {
            unreachable!("`check` takes floats of 16 and 32 bits")
        }
    };
    let kernel = Kernel::new("hqq", entry).import("source", snippet);
    kernel.with("BITS", bits.into()).with("HALF", u32::from(scale == ScaleType::F16))
}

/// Every specialisation, but that of the bits one odd, one even and the two that lie otherwise.
pub fn variants() -> Vec<Kernel> {
    let mut all = Vec::new();
    for (source, scale) in [(DType::F32, ScaleType::F32), (DType::F16, ScaleType::F16), (DType::BF16, ScaleType::F16)] {
        for bits in [2, 3, 4, 8] {
            all.extend(["initial", "improve", "decide", "finish", "encode"].map(|e| kernel(e, source, bits, scale)));
        }
    }
    all
}

/// Whether there is such a rounding to the scheme: integers with zero points.
pub const fn serves(scheme: Scheme) -> bool {
    matches!(scheme, Scheme::Int { symmetric: false, .. })
}

/// Records the affine codes of `target` whose zero points make |w - (code - zero) * scale|^p small.
///
/// source: [rows * cols] f32, f16 or bf16 in any shape, which may exceed a binding ([`check`]); target: asymmetric integers
/// ([`serves`]), not empty; status: as [`quantize::status`]. Errors: Shape where not even a few blocks fit a binding;
/// Unsupported; OutOfMemory.
pub fn record(
    g: &mut Graph,
    name: &str,
    source: &Tensor,
    target: &QuantizedTensor,
    options: &HalfQuadratic,
    status: &Tensor,
) -> Result<()> {
    target.scheme().expect("scheme for hqq", serves)?;
    let (Scheme::Int { bits, scale, .. }, Some(block)) = (target.scheme(), target.block_size()) else {
        unreachable!("`serves` holds for integers alone")
    };
    let blocks = target.len().div_ceil(block);
    let control = g.gpu().tensor("state of the solver", [3], DType::F32, &[options.beta, f32::MAX, 0.0])?;
    let state = g.value([blocks, 2], DType::F32)?;
    let errors = g.value([blocks], DType::F32)?;
    let (status_value, control) = (g.import(status), g.import(&control));
    let mut ranges = Vec::new();
    for shard in target.shards() {
        let job = Job { source, shard, cols: target.cols(), bits, block, options };
        job.ranges(g, name, &mut ranges)?;
    }
    let kernel = |entry| kernel(entry, source.dtype(), bits, scale);
    for r in &ranges {
        g.dispatch(kernel("initial"), &r.params, &[&r.source, &state, &status_value], r.groups(), r.work(4.0))?;
    }
    for _ in 0..options.iterations {
        for r in &ranges {
            g.dispatch(
                kernel("improve"),
                &r.params,
                &[&r.source, &state, &errors, &control],
                r.groups(),
                r.work(40.0),
            )?;
        }
        let all = Params { blocks: blocks as u32, ..ranges[0].params };
        g.dispatch(kernel("decide"), &all, &[&errors, &control], 1, blocks as f64)?;
    }
    for r in &ranges {
        g.dispatch(kernel("finish"), &r.params, &[&state, &r.scales], r.groups(), r.work(0.1))?;
        let groups = (r.params.len as usize).div_ceil(32 * 64);
        g.dispatch(kernel("encode"), &r.params, &[&r.source, &state, &r.packed], groups, r.work(20.0))?;
    }
    Ok(())
}

/// Errors: Shape; Config for options out of their ranges.
pub fn check(name: &str, source: &Tensor, shape: [usize; 2], options: &HalfQuadratic) -> Result<()> {
    quantize::check_source(name, source, shape)?;
    let HalfQuadratic { p, beta, kappa, .. } = *options;
    let positive = |v: f32| v > 0.0 && v.is_finite();
    if !(0.0..=1.0).contains(&p) || !positive(beta) || !positive(kappa) {
        let message = format!("expected p in 0..=1, beta and kappa above 0, got {p}, {beta}, {kappa}");
        return Err(Error::config("HQQ", message));
    }
    Ok(())
}

/// The quantization of one shard.
struct Job<'a> {
    source: &'a Tensor,
    shard: Shard,
    cols: usize,
    bits: u8,
    block: usize,
    options: &'a HalfQuadratic,
}

/// Whole blocks of a shard that one dispatch can bind.
struct Range {
    params: Params,
    source: Value,
    scales: Value,
    packed: Value,
}

impl Range {
    fn groups(&self) -> usize {
        self.params.blocks.div_ceil(64) as usize
    }

    fn work(&self, each: f64) -> f64 {
        each * f64::from(self.params.len)
    }
}

impl Job<'_> {
    /// Cuts the shard where the source exceeds a binding, at whole blocks, words and aligned offsets.
    fn ranges(&self, g: &mut Graph, name: &str, ranges: &mut Vec<Range>) -> Result<()> {
        let caps = g.gpu().caps();
        let (align, max_binding) = (caps.offset_alignment as usize, caps.max_binding);
        let size = self.source.dtype().size();
        let (start, len) = (self.shard.row0 * self.cols, self.shard.rows * self.cols);
        let most = max_binding as usize / size;
        let mut step = len;
        if len > most {
            let unit = 8 * align;
            let unit = (unit / gcd(unit, self.block)).saturating_mul(self.block);
            step = (most / unit).max(1).saturating_mul(unit);
        }
        if (step.min(len) * size) as u64 > max_binding || !(start * size).is_multiple_of(align) {
            let expected = format!("blocks of which some fit {max_binding} bytes");
            return Err(Error::shape(format!("quantizing {name}"), expected, format!("blocks of {}", self.block)));
        }
        for at in (0..len).step_by(step) {
            ranges.push(self.range(g, start, at, step.min(len - at)));
        }
        Ok(())
    }

    fn range(&self, g: &mut Graph, start: usize, at: usize, len: usize) -> Range {
        let view = |t: &Tensor, bytes: usize, len: usize| {
            Tensor::view(t.buffer.clone(), t.offset + bytes as u64, [len].into(), t.dtype())
        };
        let bits = usize::from(self.bits);
        let words = (len * bits).div_ceil(32);
        let params = Params {
            len: len as u32,
            block: self.block as u32,
            blocks: len.div_ceil(self.block) as u32,
            first_block: ((start + at) / self.block) as u32,
            first_scale: self.shard.first_block + (at / self.block) as u32,
            words: words as u32,
            p: self.options.p,
            kappa: self.options.kappa,
            round_zero: u32::from(self.options.round_zero.unwrap_or(bits == 4)),
        };
        let scales = self.shard.scales.as_ref().expect("affine integers have scales");
        Range {
            params,
            source: g.import(&view(self.source, (start + at) * self.source.dtype().size(), len)),
            scales: g.import(scales),
            packed: g.import(&view(&self.shard.codes, at * bits / 8, words)),
        }
    }
}
