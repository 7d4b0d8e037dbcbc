//! Scales of input channels that move out of an activation into the weights that read it.

use super::{BlockStats, Site, float_tensor};
use crate::{
    DType, Error, Result,
    arch::Maker,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::elementwise,
    model::Block,
};

/// Ranges of rows (first, count) of an f32 matrix that can be bound.
pub(super) fn row_ranges(gpu: &Gpu, rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let most = (gpu.caps().max_binding as usize / (4 * cols.max(1)) / 64 * 64).max(64);
    (0..rows).step_by(most).map(move |start| (start, most.min(rows - start)))
}

/// Errors: Config, with the layer's name, where some number is not finite.
pub(super) fn finite(name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => {
            Err(Error::config(name, "the inputs of the calibration text are not finite, so nothing can be fitted"))
        }
    }
}

/// w\[:, c\] *= factors\[c\]
fn columns(gpu: &Gpu, w: &Tensor, factors: &Tensor) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let mut g = Graph::new(gpu);
    let f = g.import(factors);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        elementwise::scale_columns(&mut g, &part, &f)?;
    }
    g.run().map(|_| ())
}

/// w\[r, :\] *= factors\[r\]
fn rows(gpu: &Gpu, w: &Tensor, factors: &Tensor) -> Result<()> {
    let (rows, cols) = w.shape().rows_cols();
    let mut g = Graph::new(gpu);
    for (start, count) in row_ranges(gpu, rows, cols) {
        let part = g.import(&w.slice(start * cols, [count, cols])?);
        let f = g.import(&factors.slice(start, [count])?);
        elementwise::scale_rows(&mut g, &part, &f)?;
    }
    g.run().map(|_| ())
}

/// The factors and their inverses on the device.
fn upload(gpu: &Gpu, factors: &[f32]) -> Result<[Tensor; 2]> {
    let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
    let tensor = |values: &[f32]| gpu.tensor("scales of channels", [values.len()], DType::F32, values);
    Ok([tensor(factors)?, tensor(&inverse)?])
}

/// Multiplies the columns of the layers that read `site`, and scales what is known of their input.
fn into_readers(block: &Block, stats: &mut BlockStats, site: Site, [factors, inverse]: &[Tensor; 2]) -> Result<()> {
    for linear in block.readers(site) {
        columns(factors.gpu(), &float_tensor(&linear.name, &linear.base.weight)?, factors)?;
    }
    stats.site_mut(site).scale(inverse)
}

/// Channel c of an input is divided by `factors[c]` in what makes it, a norm's weight or the rows of a linear layer and its bias, and
/// column c of the layers that read it multiplied: what the block computes stays the same. factors: [in], above 0.
/// Errors: Shape where what makes the input is of another width, Device.
pub fn into_maker(gpu: &Gpu, block: &Block, stats: &mut BlockStats, site: Site, factors: &[f32]) -> Result<()> {
    match site.maker() {
        Maker::Norm(id) => {
            let norm = block.norm(id).ok_or_else(|| Error::shape("fold", "a norm that makes the input", "none"))?;
            let uploaded = upload(gpu, factors)?;
            columns(gpu, &norm.weight.values, &uploaded[1])?;
            if norm.offset != 0.0 {
                // (o + w) / f = o + w / f + o · (1 / f − 1)
                let moved: Vec<f32> = factors.iter().map(|f| norm.offset * (1.0 / f - 1.0)).collect();
                let moved = gpu.tensor("scales of channels", [moved.len()], DType::F32, &moved)?;
                let mut g = Graph::new(gpu);
                let (weight, moved) = (g.import(&norm.weight.values), g.import(&moved));
                elementwise::accumulate(&mut g, &weight, &moved, 1.0)?;
                g.run()?;
            }
            into_readers(block, stats, site, &uploaded)
        }
        Maker::Linear(id) => {
            let (maker, first, count) = block.rows(id).ok_or_else(|| Error::shape("fold", "a maker", "none"))?;
            if count != factors.len() {
                return Err(Error::shape(&maker.name, format!("{} rows", factors.len()), count));
            }
            let uploaded = upload(gpu, factors)?;
            // The other rows of a layer that has them among others stay as they are.
            let mut inverse = vec![1.0; maker.base.outputs()];
            inverse[first..first + count].iter_mut().zip(factors).for_each(|(inverse, f)| *inverse = 1.0 / f);
            let inverse = gpu.tensor("scales of rows", [inverse.len()], DType::F32, &inverse)?;
            rows(gpu, &float_tensor(&maker.name, &maker.base.weight)?, &inverse)?;
            if let Some(bias) = &maker.base.bias {
                columns(gpu, bias, &inverse)?;
            }
            into_readers(block, stats, site, &uploaded)
        }
    }
}

/// Whether factors of an input can move into what makes it: not where that is no norm but the residual stream, and with fewer heads of
/// values than of queries a row of values would need several at once.
pub fn can_fold(block: &Block, site: Site) -> bool {
    match site.maker() {
        Maker::Norm(id) => block.norm(id).is_some(),
        Maker::Linear(id) => {
            let made = block.rows(id).map(|(_, _, count)| count);
            block.readers(site).all(|reader| Some(reader.base.inputs()) == made)
        }
    }
}
