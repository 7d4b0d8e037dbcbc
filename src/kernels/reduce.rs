//! Smallest, largest and absolutely largest elements of rows, blocks or whole tensors.

use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        len: u32,
        group: u32,
        parts: u32,
    }
}

/// Groups up to this length are one invocation's.
const SHORT: usize = 128;
/// Elements of one workgroup's part of a long group, at least.
const PART: usize = 16384;

fn kernel(entry: &'static str, side: u32, abs: bool) -> Kernel {
    let kernel = Kernel::new("reduce", entry).with("LANES", side * side).with("ABS", u32::from(abs));
    kernel.with("SIDE", side)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let mut all = vec![kernel("parts", 8, false)];
    for abs in [false, true] {
        all.extend([kernel("short", 8, abs), kernel("long", 8, abs), kernel("long", 16, abs)]);
    }
    all
}

/// What is known of every group of elements.
#[derive(Clone, Debug)]
pub struct Extremes {
    /// [groups] f32: the smallest finite element, 0 where there is none.
    pub low: Value,
    /// [groups] f32: the largest finite element, 0 where there is none.
    pub high: Value,
    /// [groups] u32: how many elements are NaN or infinite.
    pub non_finite: Value,
}

/// low\[i\] = min x, high\[i\] = max x over the elements i · group .. (i + 1) · group of the flat tensor
///
/// x: any shape, f32; `group`: the row length for rows, the block size for blocks (the last may be shorter), the length for
/// the whole. Errors: Shape.
pub fn min_max(g: &mut Graph, x: &Value, group: usize) -> Result<Extremes> {
    extremes(g, "min_max", x, group, false)
}

/// absmax\[i\] = max |x| over the elements i · group .. (i + 1) · group of the flat tensor
///
/// As [`min_max`]. Returns (absmax: [groups] f32, NaN or infinite elements: [groups] u32). Errors: Shape.
pub fn absmax(g: &mut Graph, x: &Value, group: usize) -> Result<(Value, Value)> {
    let extremes = extremes(g, "absmax", x, group, true)?;
    Ok((extremes.high, extremes.non_finite))
}

fn outputs(g: &mut Graph, len: usize) -> Result<Extremes> {
    let low = g.value([len], DType::F32)?;
    let high = g.value([len], DType::F32)?;
    Ok(Extremes { low, high, non_finite: g.value([len], DType::U32)? })
}

fn extremes(g: &mut Graph, op: &str, x: &Value, group: usize, abs: bool) -> Result<Extremes> {
    let len = x.shape().len();
    if len == 0 || group == 0 || x.dtype() != DType::F32 {
        let got = format!("{} {} in groups of {group}", x.dtype(), x.shape());
        return Err(Error::shape(op, "F32 with at least one element, in groups of at least one", got));
    }
    let group = group.min(len);
    let groups = len.div_ceil(group);
    let parts = if groups < 64 { group.div_ceil(PART).min(256) } else { 1 };
    let params = Params { len: len as u32, group: group as u32, parts: parts as u32 };
    let work = 12.0 * len as f64;
    let out = outputs(g, groups)?;
    if group <= SHORT {
        let args = [x, &out.low, &out.high, &out.non_finite];
        g.dispatch(kernel("short", 8, abs), &params, &args, groups.div_ceil(64), work)?;
        return Ok(out);
    }
    let side = if group <= 2048 { 8 } else { 16 };
    let part = if parts == 1 { out.clone() } else { outputs(g, groups * parts)? };
    let args = [x, &part.low, &part.high, &part.non_finite];
    g.dispatch(kernel("long", side, abs), &params, &args, groups * parts, work)?;
    if parts > 1 {
        let args = [&part.low, &part.high, &part.non_finite, &out.low, &out.high, &out.non_finite];
        let work = 12.0 * (groups * parts) as f64;
        g.dispatch(kernel("parts", 8, false), &params, &args, groups.div_ceil(64), work)?;
    }
    Ok(out)
}
