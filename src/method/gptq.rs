//! GPTQ: columns are rounded one after the other, and what each one loses is made up for by those after it.

use super::{
    Layer, LayerMethod, Needs, Observer, linalg,
    of_hessian::{self, OfHessian},
};
use crate::{
    DType, Error, Result,
    gpu::{Cancel, Gpu, Tensor},
    graph::Graph,
    kernels::{
        QuantizedTensor, Shard, elementwise,
        gptq::{self, BLOCK, BlockRange, Grid},
        permute,
    },
    nn::{Linear, Permutation, Transform},
    ops::quantize,
    quant::Scheme,
};
use std::sync::Arc;

/// How [`Gptq`] chooses numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqOptions {
    /// How they are stored: [`Scheme::Int`], or NF4, FP4, NF3 and NF2 with plain scales, in groups that divide a row.
    pub scheme: Scheme,
    /// What is added to the Hessian's diagonal, in parts of its mean. The paper's 0.01.
    pub damping: f64,
    /// Columns with large inputs first (`desc_act`).
    pub act_order: bool,
    /// With `act_order`: scales are found for groups of neighbouring columns before anything is rounded, so that the storage
    /// needs no order. Without it groups are of columns that follow each other in the new order, and the layer permutes its
    /// input.
    pub static_groups: bool,
    /// How the range of each group is chosen ([`Observer::of_blocks`]).
    pub observer: Observer,
}

impl GptqOptions {
    /// 1 % damping, columns with large inputs first, in static groups: nothing of the order is stored.
    pub fn new(scheme: Scheme) -> GptqOptions {
        GptqOptions { scheme, damping: 0.01, act_order: true, static_groups: true, observer: Observer::MinMax }
    }
}

/// GPTQ, Frantar et al. 2023: minimises tr(Δ · H · Δᵀ), Δ = Ŵ - W, greedily by columns.
///
/// With U upper triangular and H⁻¹ = Uᵀ · U, rounding column i of a row to q costs e = (w_i - q) / U_ii, and
/// w_j -= e · U_ij for the columns j > i. U comes from the host in f64; all that touches the weight runs on the device.
#[derive(Debug)]
pub struct Gptq {
    options: GptqOptions,
    range: BlockRange,
    factor: OfHessian<Factor>,
}

/// The factor of a Hessian, and the order in which columns are rounded.
#[derive(Debug)]
struct Factor {
    /// U, its rows and columns in the order of `order`. [in, in]
    u: Vec<f32>,
    /// The columns in the order they are rounded.
    order: Vec<u32>,
    /// 0 for channels that were 0 in all tokens, whose weights mean nothing; 1 for the others. `None` where all are 1.
    alive: Option<Vec<f32>>,
}

impl Gptq {
    /// Errors: Config, Unsupported for options that cannot work.
    pub fn new(options: GptqOptions) -> Result<Gptq> {
        options.scheme.expect("scheme for gptq", Grid::serves)?;
        of_hessian::damping(options.damping)?;
        Ok(Gptq { options, range: options.observer.of_blocks()?, factor: OfHessian::default() })
    }

    /// The factor of a layer's Hessian. Errors: Shape, Config where the activations were not finite.
    fn factor(&self, layer: &Layer<'_>) -> Result<Arc<Factor>> {
        let h = layer.stats.hessian.as_ref().ok_or_else(|| Error::config(layer.name, "gptq needs the Hessian"))?;
        let cols = layer.shape()[1];
        self.factor.get(layer.name, h, cols, |h, cancel| self.solve(layer.name, h, cols, cancel))
    }

    fn solve(&self, name: &str, mut values: Vec<f64>, n: usize, cancel: &Cancel) -> Result<Factor> {
        let mut diagonal: Vec<f64> = (0..n).map(|i| values[i * n + i]).collect();
        let alive: Vec<f32> = diagonal.iter().map(|&d| if d == 0.0 { 0.0 } else { 1.0 }).collect();
        for (i, d) in diagonal.iter_mut().enumerate().filter(|(_, d)| **d == 0.0) {
            (*d, values[i * n + i]) = (1.0, 1.0);
        }
        let mut order: Vec<u32> = (0..n as u32).collect();
        if self.options.act_order {
            order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
        }
        let at = |i: usize, j: usize| values[order[i] as usize * n + order[j] as usize];
        let mut ordered: Vec<f64> = (0..n * n).map(|k| at(k / n, k % n)).collect();
        let mean = diagonal.iter().sum::<f64>() / n as f64;
        let mut damping = self.options.damping;
        loop {
            for i in 0..n {
                ordered[i * n + i] = at(i, i) + damping * mean;
            }
            match linalg::inverse_factor(&ordered, n, cancel)? {
                Ok(u) => {
                    let alive = alive.contains(&0.0).then_some(alive);
                    return Ok(Factor { u: u.into_iter().map(|v| v as f32).collect(), order, alive });
                }
                // f32 sums can leave a Hessian of few tokens slightly indefinite.
                Err(_) if damping < 1.0 => {
                    damping *= 10.0;
                    log::warn!("{name}: the Hessian is not positive definite; trying {damping} of its mean as damping");
                }
                Err(row) => {
                    return Err(Error::config(name, format!("the Hessian is not positive definite at row {row}")));
                }
            }
        }
    }
}

impl LayerMethod for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, ..Needs::default() }
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let (name, [rows, cols]) = (layer.weight_name(), layer.shape());
        let grid = Grid { range: self.range, ..Grid::of(&name, self.options.scheme, [rows, cols])? };
        let (scheme, group) = (grid.scheme, grid.group);
        let factor = self.factor(layer)?;
        // In the new order the columns of a group lie side by side, and so the weight is stored.
        let moved = self.options.act_order && !self.options.static_groups && group < cols;
        let target = QuantizedTensor::zeros(gpu, &name, scheme, [rows, cols])?;
        let run = Run {
            gpu,
            weight: &layer.weight,
            cols,
            order: if moved || !self.options.act_order { None } else { Some(&factor.order) },
            grid,
            scales_first: self.options.act_order && !moved,
            blocks: blocks(cols, group),
        };
        let parts = run.parts(&factor.u)?;
        // The weight has more bits than its codes, and both must fit a binding.
        let limit = gpu.caps().max_binding / 32 * scheme.code_bits() as u64;
        for shard in target.shards_within(limit) {
            run.prepare(&shard, factor.alive.as_deref(), moved.then_some(&factor.order))?;
            gptq::report(&name, shard.row0, &run.shard(&shard, &parts)?.read()?)?;
        }
        quantize::encode(gpu, &name, &layer.weight, &target)?;
        let input = moved.then(|| Permutation::upload(gpu, &name, &factor.order)).transpose()?;
        Ok(Linear { transform: input.map(Transform::Permute), ..layer.done(target) })
    }
}

/// Ranges of columns that are rounded at once: at most [`BLOCK`], and none crosses from one group into the next.
fn blocks(cols: usize, group: usize) -> Vec<(usize, usize)> {
    let groups = (0..cols).step_by(group).map(|start| (start, (start + group).min(cols)));
    groups.flat_map(|(start, end)| (start..end).step_by(BLOCK).map(move |s| (s, end.min(s + BLOCK)))).collect()
}

/// The rounding of one weight.
struct Run<'a> {
    gpu: &'a Gpu,
    /// [rows, cols]
    weight: &'a Tensor,
    cols: usize,
    /// Where columns are rounded in another order than they lie.
    order: Option<&'a [u32]>,
    grid: Grid,
    /// Whether all scales are found before anything is rounded.
    scales_first: bool,
    blocks: Vec<(usize, usize)>,
}

/// A block's part of U.
struct Part {
    /// [BLOCK, BLOCK]
    own: Tensor,
    /// Rows of U for the columns that come later, and the first of those columns; none after the last.
    rest: Option<(Tensor, usize)>,
}

impl Run<'_> {
    /// U in parts, on the device.
    fn parts(&self, u: &[f32]) -> Result<Vec<Part>> {
        let n = self.cols;
        let mut parts = Vec::with_capacity(self.blocks.len());
        for &(start, end) in &self.blocks {
            let mut own = vec![0.0f32; BLOCK * BLOCK];
            for (i, row) in (start..end).enumerate() {
                own[i * BLOCK..i * BLOCK + end - start].copy_from_slice(&u[row * n + start..row * n + end]);
            }
            let own = self.gpu.tensor("a block of a Hessian's factor", [BLOCK, BLOCK], DType::F32, &own)?;
            let (first, width) = if self.order.is_some() { (0, n) } else { (end, n - end) };
            let mut rest = vec![0.0f32; (end - start) * width];
            for (row, out) in (start..end).zip(rest.chunks_exact_mut(width.max(1))) {
                match self.order {
                    None => out.copy_from_slice(&u[row * n + end..(row + 1) * n]),
                    // Each number goes to where its column lies; columns that are done get nothing.
                    Some(order) => (end..n).for_each(|j| out[order[j] as usize] = u[row * n + j]),
                }
            }
            let rest = match end < n {
                true => {
                    let shape = [end - start, width];
                    Some((self.gpu.tensor("rows of a Hessian's factor", shape, DType::F32, &rest)?, first))
                }
                false => None,
            };
            parts.push(Part { own, rest });
        }
        Ok(parts)
    }

    fn rows(&self, shard: &Shard) -> Result<Tensor> {
        self.weight.slice(shard.row0 * self.cols, [shard.rows, self.cols])
    }

    /// Weights of dead channels become 0, and columns move to their new place.
    fn prepare(&self, shard: &Shard, alive: Option<&[f32]>, moved: Option<&Vec<u32>>) -> Result<()> {
        let mut g = Graph::new(self.gpu);
        let w = g.import(&self.rows(shard)?);
        if let Some(alive) = alive {
            let alive = g.import(&self.gpu.tensor("channels in use", [self.cols], DType::F32, alive)?);
            elementwise::scale_columns(&mut g, &w, &alive)?;
        }
        if let Some(order) = moved {
            let order = g.import(&self.gpu.tensor("an order of columns", [self.cols], DType::U32, order)?);
            let permuted = permute::permute(&mut g, &w, &order)?;
            elementwise::assign(&mut g, &w, &permuted, 1.0)?;
        }
        if !g.is_empty() {
            g.run()?;
        }
        Ok(())
    }

    /// Rounds the rows of one shard; the weight takes the values, and the target its scales. Returns the status of these.
    fn shard(&self, shard: &Shard, parts: &[Part]) -> Result<Tensor> {
        let grid = Grid { first_block: shard.first_block, ..self.grid };
        let identity: Vec<u32>;
        let order = match self.order {
            Some(order) => order,
            None => {
                identity = (0..self.cols as u32).collect();
                &identity
            }
        };
        let order = self.gpu.tensor("the order of columns", [self.cols], DType::U32, order)?;
        let status = gptq::status(self.gpu)?;
        let mut g = Graph::new(self.gpu);
        let [w, order, found] = [&self.rows(shard)?, &order, &status].map(|t| g.import(t));
        let scales = g.import(shard.scales.as_ref().expect("every grid has scales"));
        let errors = g.value([shard.rows, BLOCK], DType::F32)?;
        if self.scales_first {
            gptq::scales(&mut g, &grid, &w, &scales, &found, 0..self.cols / grid.group)?;
        }
        for (&(start, end), part) in self.blocks.iter().zip(parts) {
            if !self.scales_first && start % grid.group == 0 {
                let group = start / grid.group;
                gptq::scales(&mut g, &grid, &w, &scales, &found, group..group + 1)?;
            }
            let own = g.import(&part.own);
            gptq::columns(&mut g, &grid, &w, &scales, &own, &order, &errors, start..end)?;
            if let Some((rest, first)) = &part.rest {
                let rest = g.import(rest);
                gptq::pass_on(&mut g, &w, &errors, &rest, *first)?;
            }
        }
        g.run()?;
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_with_groups() {
        assert_eq!(blocks(80, 40), [(0, 32), (32, 40), (40, 72), (72, 80)]);
        assert_eq!(blocks(70, 70), [(0, 32), (32, 64), (64, 70)]);
        assert_eq!(blocks(16, 8), [(0, 8), (8, 16)]);
    }
}
