//! Rounding to books of vectors on the device: QuIP#'s lattice, and AQLM's sums of two code books.

use super::{
    QuantizedTensor, expect,
    product::{Base, Entry, Product},
};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
    quant::{Scheme, VECTOR},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        first: u32,
        panel: u32,
        scale: f32,
        inverse: f32,
    }
}

fn kernel(entry: &'static str, scheme: Scheme) -> Kernel {
    let lattice = scheme == Scheme::E8p;
    Kernel::new("lattice", entry).import("points", if lattice { "points_lattice" } else { "points_codebooks" })
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let schemes = [Scheme::E8p, Scheme::Aqlm];
    schemes.into_iter().flat_map(|s| ["round_nearest", "round_panel", "pack"].map(|entry| kernel(entry, s))).collect()
}

/// Columns that are rounded by one dispatch; what they lost reaches the others by one product.
const PANEL: usize = 64;

/// Records the codes of vectors near those of W, from the last eight columns to the first where `lower` tells how what is
/// lost is carried over, else each for itself
///
/// weight: [rows, cols] f32, finite; target: [rows, cols] in E8P or AQLM, not empty, whose table and scales are written;
/// lower: `[cols * cols]`, unit block-lower in blocks of 8; scale: of the points while rounding. Errors: Shape, also where
/// the codes do not fit one binding; OutOfMemory.
pub fn record(
    g: &mut Graph,
    name: &str,
    weight: &Value,
    target: &QuantizedTensor,
    lower: Option<&[f32]>,
    scale: f32,
) -> Result<()> {
    let ([rows, cols], scheme) = (target.shape(), target.scheme());
    let kernel = |entry| kernel(entry, scheme);
    expect("ldlq", "weight", weight, [rows, cols])?;
    let patterns = g.import(target.nested().expect("vector schemes have a table"));
    let codes = g.value([rows, cols / VECTOR], DType::U32)?;
    let params = Params {
        rows: rows as u32,
        cols: (cols / VECTOR) as u32,
        first: 0,
        panel: (cols / VECTOR) as u32,
        scale,
        inverse: 1.0 / scale,
    };
    match lower {
        None => {
            let work = search_work(rows * cols);
            let groups = (rows * cols / VECTOR).div_ceil(32);
            g.dispatch(kernel("round_nearest"), &params, &[weight, &patterns, &codes], groups, work)?;
        }
        Some(lower) => {
            let rounding = Rounding { scheme, weight, patterns: &patterns, codes: &codes, lower, params };
            rounding.record(g, [rows, cols])?;
        }
    }
    let shard = target.shards().next().expect("the weight is not empty");
    if shard.rows != rows {
        return Err(Error::shape(name, "a weight whose codes fit one binding", format!("{:?}", [rows, cols])));
    }
    let packed = g.import(&shard.codes);
    let words = (rows * cols / VECTOR).div_ceil(2);
    g.dispatch(kernel("pack"), &params, &[&codes, &packed], words.div_ceil(64), words as f64)
}

/// Two shifts and 256 patterns for each vector.
fn search_work(len: usize) -> f64 {
    len as f64 * 2.0 * 256.0 * 3.0
}

/// Rounding with feedback, a panel of columns after the other.
struct Rounding<'a> {
    scheme: Scheme,
    weight: &'a Value,
    patterns: &'a Value,
    codes: &'a Value,
    lower: &'a [f32],
    params: Params,
}

impl Rounding<'_> {
    fn record(&self, g: &mut Graph, [rows, cols]: [usize; 2]) -> Result<()> {
        let gpu = g.gpu().clone();
        // What is to be rounded: W, and what later columns carry over to it.
        let aim = super::elementwise::add(g, self.weight, self.weight, 0.0)?;
        for first in (0..cols).step_by(PANEL).rev() {
            let end = cols.min(first + PANEL);
            let panel: Vec<f32> =
                (first..end).flat_map(|row| self.lower[row * cols..row * cols + end].iter().copied()).collect();
            let lower = g.import(&gpu.tensor("rows of a factor", [end - first, end], DType::F32, &panel)?);
            let lost = g.value([rows, end - first], DType::F32)?;
            let params =
                Params { first: (first / VECTOR) as u32, panel: ((end - first) / VECTOR) as u32, ..self.params };
            let args = [self.weight, self.patterns, &aim, &lower, self.codes, &lost];
            let work = search_work(rows * (end - first));
            g.dispatch(kernel("round_panel", self.scheme), &params, &args, rows.div_ceil(32), work)?;
            if first == 0 {
                break;
            }
            let product = Product::dense(Entry::Backward, &lost, &lower, &aim);
            Product { cols: first, base: Base::Itself, ..product }.record(g)?;
        }
        Ok(())
    }
}
