//! SmoothQuant: outliers move from activations into weights, where they are easier to round.

use super::{BlockStats, Layer, LayerMethod, Needs, Rtn, Site, float_tensor, fold};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::statistics,
    model::Block,
    nn::Linear,
    quant::Scheme,
};
use std::sync::Once;

/// How [`SmoothQuant`] folds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothQuantOptions {
    /// How the weights are stored.
    pub scheme: Scheme,
    /// How much of the difficulty moves into the weights: 0 none, 1 all. The paper's 0.5.
    pub alpha: f32,
}

impl Default for SmoothQuantOptions {
    fn default() -> Self {
        SmoothQuantOptions { scheme: Scheme::INT8_ROWS, alpha: 0.5 }
    }
}

/// SmoothQuant, Xiao et al. 2023: channel j of the input of q, k and v, and of gate and up, is divided by
/// s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), in the norm before it, and column j of those weights multiplied.
///
/// The weights are then rounded to nearest. The model that comes out has activations that can be rounded to 8 bits too, as
/// [`W8A8`](super::W8A8) does.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmoothQuant {
    options: SmoothQuantOptions,
}

impl SmoothQuant {
    /// Errors: Config for an alpha outside of 0 to 1.
    pub fn new(options: SmoothQuantOptions) -> Result<SmoothQuant> {
        match (0.0..=1.0).contains(&options.alpha) {
            true => Ok(SmoothQuant { options }),
            false => Err(Error::config("alpha", format!("expected a number from 0 to 1, got {}", options.alpha))),
        }
    }

    /// s of the input of these layers. [in]
    fn factors(&self, gpu: &Gpu, block: &Block, stats: &BlockStats, site: Site) -> Result<Vec<f32>> {
        let linears: Vec<_> = block.readers(site).collect();
        let name = &linears[0].name;
        let channels = stats.site(site).channels.as_ref();
        let channels = channels.ok_or_else(|| Error::config(name, "smoothquant needs the ranges of the channels"))?;
        let input = fold::finite(name, channels.absmax.read::<f32>()?)?;
        let absmax = gpu.zeros("ranges of columns", [input.len()], DType::F32)?;
        let total = gpu.zeros("sums of columns", [input.len()], DType::F32)?;
        for linear in linears {
            let weight = float_tensor(&linear.name, &linear.base.weight)?;
            column_absmax(gpu, &weight, &absmax, &total)?;
        }
        let alpha = self.options.alpha;
        // As in the paper's code, both ranges count as at least 1e-5.
        let s = |x: f32, w: f32| (x.max(1e-5).powf(alpha) / w.max(1e-5).powf(1.0 - alpha)).max(1e-5);
        Ok(input.into_iter().zip(absmax.read::<f32>()?).map(|(x, w)| s(x, w)).collect())
    }
}

/// absmax = max(absmax, the largest magnitude of each column of `weight`)
fn column_absmax(gpu: &Gpu, weight: &Tensor, absmax: &Tensor, total: &Tensor) -> Result<()> {
    let (rows, cols) = weight.shape().rows_cols();
    let mut g = Graph::new(gpu);
    let (absmax, total) = (g.import(absmax), g.import(total));
    for (start, count) in fold::row_ranges(gpu, rows, cols) {
        let part = g.import(&weight.slice(start * cols, [count, cols])?);
        statistics::channels(&mut g, &part, &absmax, &total)?;
    }
    g.run()?;
    Ok(())
}

/// Whether it was reported that a family has no norms to move scales into: once, not for every block.
static WARNED: Once = Once::new();

impl LayerMethod for SmoothQuant {
    fn name(&self) -> &'static str {
        "smoothquant"
    }

    fn needs(&self) -> Needs {
        Needs { channels: true, ..Needs::default() }
    }

    fn folds(&self) -> bool {
        true
    }

    fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
        for site in [Site::Qkv, Site::GateUp] {
            if fold::can_fold(block, site) {
                let factors = self.factors(gpu, block, stats, site)?;
                fold::into_maker(gpu, block, stats, site, &factors)?;
            } else {
                WARNED.call_once(|| {
                    log::warn!(
                        "smoothquant: no norm makes the inputs of {site:?}, so their outliers stay where they are"
                    );
                });
            }
        }
        Ok(())
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        Rtn { scheme: self.options.scheme }.quantize(gpu, layer)
    }
}
