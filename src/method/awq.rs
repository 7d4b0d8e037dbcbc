//! AWQ: channels whose activations are large get finer steps, by scales that are folded into what comes before.

use super::{BlockStats, InputStats, Layer, LayerMethod, Needs, Rtn, Site, float_tensor, fold};
use crate::{
    DType, Error, Result,
    arch::LinearId,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{
        awq::{self, LONGEST},
        gptq::Grid,
    },
    model::Block,
    nn::Linear,
    quant::Scheme,
};
use std::sync::Once;

/// How [`Awq`] chooses numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AwqOptions {
    /// How they are stored: [`Scheme::Int`] in groups that divide a row.
    pub scheme: Scheme,
    /// Exponents that are tried, 0 to 1. The paper's 20.
    pub ratios: usize,
    /// Rows of the largest layer at an input whose error is looked at in the search for the exponent, at most; they are
    /// evenly spaced, and of the other layers as many in proportion.
    pub rows: usize,
    /// Also search for the range that each group of each row is cut to; q and k are left as they are, as are groups of more
    /// than 256 columns.
    pub clip: bool,
}

impl AwqOptions {
    /// 20 exponents by the errors of 256 rows, with clipping.
    pub fn new(scheme: Scheme) -> AwqOptions {
        AwqOptions { scheme, ratios: 20, rows: 256, clip: true }
    }
}

/// AWQ, Lin et al. 2024: channel c of each input is divided, and column c of the weights that read it multiplied, by
/// s_c = m_c^ratio, m_c being the mean magnitude of the channel. The ratio is the one for which rounding the layers that share
/// the input costs their outputs least.
///
/// The cost is tr(Δ · H · Δᵀ), the squared error of the layers' outputs over all calibration tokens, where the paper's code
/// looks at the attention's or feed-forward part's output over a sample of them. All searches run on the device.
#[derive(Clone, Copy, Debug)]
pub struct Awq {
    options: AwqOptions,
}

impl Awq {
    /// Errors: Config, Unsupported for options that cannot work.
    pub fn new(options: AwqOptions) -> Result<Awq> {
        options.scheme.expect("scheme for awq", Scheme::is_int)?;
        if !(1..=1000).contains(&options.ratios) {
            return Err(Error::config("ratios", format!("expected 1 to 1000, got {}", options.ratios)));
        }
        Ok(Awq { options })
    }

    /// The best scales of the input of these layers. [in]
    fn factors(&self, gpu: &Gpu, block: &Block, stats: &BlockStats, site: Site) -> Result<Vec<f32>> {
        let linears: Vec<_> = block.readers(site).collect();
        let (h, means) = inputs(&linears[0].name, stats.site(site))?;
        let tried: Vec<Vec<f32>> =
            (0..self.options.ratios).map(|i| scales(&means, i as f32 / self.options.ratios as f32)).collect();
        // The same for all, so that each layer counts by its size.
        let most = linears.iter().map(|l| l.base.outputs()).max().unwrap_or(1);
        let step = most.div_ceil(self.options.rows.max(1));
        let rows: usize = linears.iter().map(|l| l.base.outputs()).sum();
        let sums = gpu.zeros("errors of scaled weights", [tried.len(), rows], DType::F32)?;
        let flat = Tensor::view(sums.buffer.clone(), sums.offset, [tried.len() * rows].into(), DType::F32);
        for (index, factors) in tried.iter().enumerate() {
            let mut g = Graph::new(gpu);
            let out = g.import(&flat);
            let factors = g.import(&gpu.tensor("scales of channels", [factors.len()], DType::F32, factors)?);
            let mut at = index * rows;
            for linear in &linears {
                let weight = float_tensor(&linear.name, &linear.base.weight)?;
                let [rows, cols] = linear.base.weight.shape();
                let grid = Grid::of(&linear.name, self.options.scheme, [rows, cols])?;
                for (start, count) in fold::row_ranges(gpu, rows, cols) {
                    let part = g.import(&weight.slice(start * cols, [count, cols])?);
                    at += awq::scaled_error(&mut g, &grid, &part, &factors, &h, &out, at, step)?;
                }
            }
            g.run()?;
        }
        let sums = sums.read::<f32>()?;
        let costs: Vec<f64> = sums.chunks_exact(rows).map(|s| s.iter().map(|v| f64::from(*v)).sum()).collect();
        let best = (0..costs.len()).filter(|&i| costs[i].is_finite()).min_by(|&a, &b| costs[a].total_cmp(&costs[b]));
        match best {
            Some(best) => Ok(tried.into_iter().nth(best).expect("one of the tried")),
            None => Err(Error::config(&linears[0].name, "no scale of its input gives a finite error")),
        }
    }
}

/// The Hessian and mean magnitudes of an input. Errors: Config where they are not finite.
fn inputs(name: &str, stats: &InputStats) -> Result<(Tensor, Vec<f32>)> {
    let (Some(h), Some(channels)) = (&stats.hessian, &stats.channels) else {
        return Err(Error::config(name, "awq needs the Hessian and the channels' magnitudes"));
    };
    let total = fold::finite(name, channels.total.read::<f32>()?)?;
    Ok((h.clone(), total.into_iter().map(|v| v / stats.tokens.max(1) as f32).collect()))
}

/// means^ratio, at least 1e-4, about 1 in the geometric middle of the extremes.
fn scales(means: &[f32], ratio: f32) -> Vec<f32> {
    let raw: Vec<f32> = means.iter().map(|m| m.powf(ratio).max(1e-4)).collect();
    let high = raw.iter().copied().fold(0.0, f32::max);
    let low = raw.iter().copied().fold(f32::INFINITY, f32::min);
    let middle = (high * low).sqrt();
    raw.into_iter().map(|v| v / middle).collect()
}

/// Whether it was reported that groups are too long to be cut: once, not for every layer.
static WARNED: Once = Once::new();

impl LayerMethod for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, channels: true, ..Needs::default() }
    }

    fn folds(&self) -> bool {
        true
    }

    fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
        for site in Site::ALL {
            if fold::can_fold(block, site) {
                let factors = self.factors(gpu, block, stats, site)?;
                fold::into_maker(gpu, block, stats, site, &factors)?;
            }
        }
        Ok(())
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let [rows, cols] = layer.shape();
        let grid = Grid::of(layer.name, self.options.scheme, [rows, cols])?;
        // The product of q and k decides where attention goes; the paper leaves their ranges alone.
        let attends = matches!(layer.id, LinearId::Q | LinearId::K);
        if self.options.clip && !attends && grid.group > LONGEST {
            WARNED.call_once(|| {
                log::warn!("awq cuts no ranges in groups of more than {LONGEST} columns, such as {}'s", layer.name);
            });
        } else if self.options.clip && !attends {
            let h = layer.stats.hessian.as_ref();
            let h = h.ok_or_else(|| Error::config(layer.name, "awq needs the Hessian"))?;
            let mut g = Graph::new(gpu);
            for (start, count) in fold::row_ranges(gpu, rows, cols) {
                let part = g.import(&layer.weight.slice(start * cols, [count, cols])?);
                awq::clip(&mut g, &grid, &part, h)?;
            }
            g.run()?;
        }
        Rtn { scheme: self.options.scheme }.quantize(gpu, layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_lie_around_one() {
        assert_eq!(scales(&[0.5, 3.0, 0.0], 0.0), [1.0, 1.0, 1.0]);
        let s = scales(&[4.0, 1.0, 0.25], 0.5);
        assert!(s.iter().zip([2.0, 1.0, 0.5]).all(|(a, b)| (a - b).abs() < 1e-6), "{s:?}");
        // A channel without any activation.
        assert!(scales(&[0.0, 1.0], 0.5).iter().all(|v| v.is_finite() && *v > 0.0));
    }
}
