//! Activations in 8 bits, row by row, and the columns that are too large for them.

use super::expect;
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        words: u32,
        parts: u32,
        threshold: f32,
    }
}

/// Rows of which one part of the search for outliers knows.
const PART: usize = 128;

/// The snippets `row_scale` and `outliers`.
type Rule = [&'static str; 2];

const ROW: Rule = ["row_scale_absmax", "outliers_none"];
const WITHOUT_OUTLIERS: Rule = ["row_scale_absmax", "outliers_flagged"];
const GIVEN: Rule = ["row_scale_given", "outliers_none"];

/// Narrow rows take a small workgroup, so that few lanes idle.
fn kernel(entry: &'static str, rule: Rule, cols: usize) -> Kernel {
    let side: u32 = if cols <= 2048 { 8 } else { 16 };
    let kernel = Kernel::new("quantize_rows", entry).with("LANES", side * side).with("SIDE", side);
    kernel.import("row_scale", rule[0]).import("outliers", rule[1])
}

/// The entries that look for outliers, which know neither scales nor flags.
fn searching(entry: &'static str) -> Kernel {
    kernel(entry, ROW, 0)
}

/// Where the scales come from.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// Each row's largest magnitude / 127.
    Row,
    /// The same over the row's magnitudes below the threshold, those in columns with outliers too (bitsandbytes' rule); the codes
    /// of the columns with outliers are 0.
    WithoutOutliers(&'a Outliers),
    /// One scale for all. [1] f32
    Given(&'a Value),
}

impl<'a> Scale<'a> {
    fn rule(self) -> Rule {
        match self {
            Scale::Row => ROW,
            Scale::WithoutOutliers(_) => WITHOUT_OUTLIERS,
            Scale::Given(_) => GIVEN,
        }
    }

    fn arg(self) -> Option<&'a Value> {
        match self {
            Scale::Row => None,
            Scale::WithoutOutliers(outliers) => Some(&outliers.flags),
            Scale::Given(value) => Some(value),
        }
    }

    /// The magnitude from which on numbers are outliers; nothing reads it where there are none.
    fn threshold(self) -> f32 {
        match self {
            Scale::WithoutOutliers(outliers) => outliers.threshold,
            Scale::Row | Scale::Given(_) => 0.0,
        }
    }
}

/// A matrix in 8 bits: `x[r, c] = code[r, c] * scale[r]`.
#[derive(Clone, Debug)]
pub struct QuantizedRows {
    /// Codes -127 to 127, four to a word, little end first; every row is filled up with zeros to whole vec4 of words.
    /// \[rows, words\] u32
    pub codes: Value,
    /// [rows] f32
    pub scales: Value,
    /// Columns of the matrix.
    pub cols: usize,
}

/// The columns of a matrix that hold large numbers.
#[derive(Clone, Debug)]
pub struct Outliers {
    /// 1 where a column is one of them. [cols] u32
    pub flags: Value,
    /// How many there are, then their numbers in ascending order. [1 + cols] u32
    pub list: Value,
    /// The least of the magnitudes that are outliers.
    pub threshold: f32,
}

/// Words of a row of codes.
pub fn words(cols: usize) -> usize {
    cols.div_ceil(16) * 4
}

/// code\[r, c\] = clamp(round(x\[r, c\] · (127 / absmax\[r\])), -127, 127), scale\[r\] = absmax\[r\] / 127
///
/// x: [.., cols] f32. Rounding is half to even. With a scale that is given, x is multiplied by its reciprocal. A row whose
/// magnitudes lie below 2^-118 has codes and scale 0; one with a number that is not finite has a scale that is not, so that
/// a product tells. Errors: Shape.
pub fn quantize(g: &mut Graph, x: &Value, scale: Scale) -> Result<QuantizedRows> {
    let (rows, cols) = check("quantize_rows", x, scale)?;
    let codes = g.value([rows, words(cols)], DType::U32)?;
    let scales = g.value([rows], DType::F32)?;
    let args: Vec<&Value> = [x].into_iter().chain(scale.arg()).chain([&codes, &scales]).collect();
    let work = 12.0 * (rows * cols) as f64;
    g.dispatch(kernel("pack", scale.rule(), cols), &params(rows, cols, scale.threshold()), &args, rows, work)?;
    Ok(QuantizedRows { codes, scales, cols })
}

/// y\[r, c\] = code\[r, c\] · scale\[r\]: the numbers that the codes of [`quantize`] stand for. Outliers are rounded to halves,
/// but for those beyond what halves hold.
///
/// x, y: [.., cols] f32. Errors: Shape.
pub fn round(g: &mut Graph, x: &Value, scale: Scale) -> Result<Value> {
    let (rows, cols) = check("round_rows", x, scale)?;
    let y = g.value(x.shape().clone(), DType::F32)?;
    let args: Vec<&Value> = [x].into_iter().chain(scale.arg()).chain([&y]).collect();
    let work = 12.0 * (rows * cols) as f64;
    g.dispatch(kernel("round_rows", scale.rule(), cols), &params(rows, cols, scale.threshold()), &args, rows, work)?;
    Ok(y)
}

/// The columns with some |x\[r, c\]| >= threshold, or with a number that is not finite.
///
/// x: [.., cols] f32. Errors: Shape; Config for a threshold that is not positive.
pub fn outliers(g: &mut Graph, x: &Value, threshold: f32) -> Result<Outliers> {
    let (rows, cols) = check("outliers", x, Scale::Row)?;
    if threshold.is_nan() || threshold <= 0.0 {
        return Err(Error::config("threshold", format!("expected a positive number, got {threshold}")));
    }
    let parts = rows.div_ceil(PART);
    let found = g.value([parts, cols], DType::U32)?;
    let (flags, list) = (g.value([cols], DType::U32)?, g.value([1 + cols], DType::U32)?);
    let params = params(rows, cols, threshold);
    let work = 2.0 * (rows * cols) as f64;
    g.dispatch(searching("find_outliers"), &params, &[x, &found], parts * cols.div_ceil(64), work)?;
    let work = 8.0 * (parts * cols) as f64;
    g.dispatch(searching("list_outliers"), &params, &[&found, &flags, &list], 1, work)?;
    Ok(Outliers { flags, list, threshold })
}

fn params(rows: usize, cols: usize, threshold: f32) -> Params {
    let (words, parts) = (words(cols) as u32, rows.div_ceil(PART) as u32);
    Params { rows: rows as u32, cols: cols as u32, words, parts, threshold }
}

fn check(op: &str, x: &Value, scale: Scale) -> Result<(usize, usize)> {
    let (rows, cols) = x.rows_cols();
    expect(op, "x", x, [rows, cols])?;
    if rows == 0 || cols == 0 {
        return Err(Error::shape(op, "at least one element", x.shape()));
    }
    match scale {
        Scale::Row => {}
        Scale::WithoutOutliers(outliers) => outliers.flags.expect(op, &[cols])?,
        Scale::Given(scale) => scale.expect(op, &[1])?,
    }
    Ok((rows, cols))
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let mut all = vec![searching("find_outliers"), searching("list_outliers")];
    for rule in [ROW, WITHOUT_OUTLIERS, GIVEN] {
        for cols in [1, usize::MAX] {
            all.extend([kernel("pack", rule, cols), kernel("round_rows", rule, cols)]);
        }
    }
    all
}
