//! Several adapters as one, as PEFT's `add_weighted_adapter` makes it.

use super::initial::{add, dot, eigen, orthonormal};
use crate::{
    Error, Result,
    format::peft::{self, Adapter, AdapterConfig, Initial, Kind, Numbers, TargetModules, Targets},
};
use std::collections::BTreeSet;

/// How the updates of several adapters become one. wᵢ: an adapter's weight; sᵢ: its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// Σ wᵢ sᵢ Bᵢ Aᵢ, exactly: the ranks are added up.
    Cat,
    /// (Σ √|wᵢ sᵢ| Bᵢ) (Σ ± √|wᵢ sᵢ| Aᵢ), of adapters of one rank: not the sum of the updates, each B meets each A.
    Linear,
    /// What of the sum the largest singular values hold; `None`: as many as the largest rank.
    Svd(Option<usize>),
}

/// An update of one layer: A [r, in] and B [out, r], in f64, with the scale in A.
struct Pair {
    a: Vec<Vec<f64>>,
    /// Its columns.
    b: Vec<Vec<f64>>,
}

/// The configuration and the tensors of the weighted sum of low-rank updates, for [`peft::save`]. What it computes needs no scale:
/// `lora_alpha` is the rank. Errors: Config without adapters, or for ranks that differ where they must not; Unsupported for other
/// kinds of adapters, and for those that are relative to a part of the base (PiSSA, OLoRA); Io, MissingTensor, Shape.
pub fn combine_adapters(
    adapters: &[(Adapter, f64)],
    combination: Combination,
) -> Result<(AdapterConfig, Vec<Numbers>)> {
    let Some((first, _)) = adapters.first() else { return Err(Error::config("adapter", "there is none to combine")) };
    let mut ranks = Vec::new();
    for (adapter, weight) in adapters {
        let folder = adapter.folder().display();
        if !weight.is_finite() {
            return Err(Error::config("adapter", format!("the weight of {folder} is {weight}")));
        }
        let what = || format!("adapter to be combined: {folder}");
        let supported = "LoRA without DoRA's magnitudes, PiSSA and OLoRA";
        match &adapter.config.kind {
            Kind::Lora(lora) if lora.use_dora => return Err(Error::unsupported(what(), "DoRA", supported)),
            Kind::Lora(lora) if lora.initial != Initial::Plain => {
                return Err(Error::unsupported(what(), format!("{:?}", lora.initial), supported));
            }
            Kind::Lora(_) => {}
            Kind::AdaLora(_) => return Err(Error::unsupported(what(), "AdaLoRA", supported)),
            Kind::Ia3(_) => return Err(Error::unsupported(what(), "IA3", supported)),
            Kind::PromptTuning(_) => return Err(Error::unsupported(what(), "prompt tuning", supported)),
        }
        let of_modules = adapter.modules().iter().map(|module| adapter.config.rank(module));
        ranks.push(of_modules.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0));
    }
    let largest = ranks.iter().copied().max().unwrap_or(0);
    let rank = match combination {
        Combination::Cat => ranks.iter().sum(),
        Combination::Linear if ranks.iter().any(|&rank| rank != largest) => {
            let message = format!("linear needs adapters of one rank, these have {ranks:?}; cat and svd take them");
            return Err(Error::config("combination", message));
        }
        Combination::Linear | Combination::Svd(None) => largest,
        Combination::Svd(Some(0)) => return Err(Error::config("svd_rank", "expected at least 1, got 0")),
        Combination::Svd(Some(rank)) => rank,
    };
    let modules: BTreeSet<&String> = adapters.iter().flat_map(|(adapter, _)| adapter.modules()).collect();
    let mut tensors = Vec::new();
    for module in &modules {
        let mut pairs = Vec::new();
        for (adapter, weight) in adapters.iter().filter(|(adapter, _)| adapter.modules().contains(*module)) {
            pairs.push((Pair::of(adapter, module)?, weight * scale(adapter, module)?));
        }
        let sizes = |(pair, _): &(Pair, f64)| [pair.b[0].len(), pair.a[0].len()];
        if let Some(other) = pairs.iter().map(sizes).find(|&size| size != sizes(&pairs[0])) {
            return Err(Error::shape(
                module.as_str(),
                format!("{:?} as another adapter has it", sizes(&pairs[0])),
                format!("{other:?}"),
            ));
        }
        let [rows, cols] = sizes(&pairs[0]);
        let Pair { mut a, mut b } = match combination {
            Combination::Cat => cat(pairs),
            Combination::Linear => linear(pairs, rank)?,
            Combination::Svd(_) => cat(pairs).largest(rank),
        };
        // Layers that not all adapters change have fewer ranks: zeros, as PEFT has them.
        a.resize(rank, vec![0.0; cols]);
        b.resize(rank, vec![0.0; rows]);
        let a: Vec<f32> = a.concat().into_iter().map(|v| v as f32).collect();
        let b: Vec<f32> = (0..rows).flat_map(|row| b.iter().map(move |col| col[row] as f32)).collect();
        let numbers = |part: &str, shape: [usize; 2], values| Numbers {
            name: format!("{module}.{part}.weight"),
            shape: shape.into(),
            values,
        };
        tensors.extend([numbers("lora_A", [rank, cols], a), numbers("lora_B", [rows, rank], b)]);
    }
    let config = AdapterConfig {
        kind: Kind::Lora(peft::Lora {
            r: rank,
            lora_alpha: rank as f64,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            initial: Initial::Plain,
        }),
        targets: Targets::of(TargetModules::Names(modules.into_iter().cloned().collect()), [], []),
        base_model_name_or_path: first.config.base_model_name_or_path.clone(),
    };
    Ok((config, tensors))
}

/// alpha / r, or alpha / √r.
fn scale(adapter: &Adapter, module: &str) -> Result<f64> {
    let (r, alpha) = (adapter.config.rank(module)? as f64, adapter.config.alpha(module)?);
    let is_root = adapter.config.lora().is_some_and(|lora| lora.use_rslora);
    Ok(alpha / if is_root { r.sqrt() } else { r })
}

impl Pair {
    fn of(adapter: &Adapter, module: &str) -> Result<Pair> {
        let (a, b) = adapter.pair(module)?;
        let ([r, cols], rows) = ([a.shape[0], a.shape[1]], b.shape[0]);
        let [a, b] = [a.to_f32()?, b.to_f32()?];
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let b = (0..r).map(|rank| (0..rows).map(|row| f64::from(b[row * r + rank])).collect());
        Ok(Pair { a: a.chunks(cols).map(wide).collect(), b: b.collect() })
    }

    /// The r largest singular values with their vectors, of B · A: in the span of B, which is small.
    fn largest(&self, r: usize) -> Pair {
        let mut span: Vec<Vec<f64>> = Vec::new();
        for column in &self.b {
            let before = dot(column, column).sqrt();
            if let Some((u, length)) = orthonormal(column.clone(), &span)
                && length > 1e-10 * before
            {
                span.push(u);
            }
        }
        // M = Qᵀ · B · A, row by row, and M · Mᵀ.
        let cols = self.a[0].len();
        let rows: Vec<Vec<f64>> = span
            .iter()
            .map(|q| {
                let mut row = vec![0.0; cols];
                self.b.iter().zip(&self.a).for_each(|(b, a)| add(&mut row, dot(q, b), a));
                row
            })
            .collect();
        let n = rows.len();
        let (values, vectors) = eigen((0..n * n).map(|i| dot(&rows[i / n], &rows[i % n])).collect(), n);
        let combined = |of: &[Vec<f64>], v: usize, len: usize| {
            let mut x = vec![0.0; len];
            of.iter().enumerate().for_each(|(i, part)| add(&mut x, vectors[i * n + v], part));
            x
        };
        let most = values.first().map_or(0.0, |value| value.max(0.0).sqrt());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (v, value) in values.iter().enumerate().take(r) {
            let sigma = value.max(0.0).sqrt();
            if sigma <= 1e-7 * most {
                break;
            }
            // B = U · S, A = Vᵀ = S⁻¹ · Uᵀ · M
            b.push(combined(&span, v, self.b[0].len()).into_iter().map(|u| u * sigma).collect());
            a.push(combined(&rows, v, cols).into_iter().map(|x| x / sigma).collect());
        }
        Pair { a, b }
    }
}

fn cat(pairs: Vec<(Pair, f64)>) -> Pair {
    let mut all = Pair { a: Vec::new(), b: Vec::new() };
    for (pair, factor) in pairs {
        all.a.extend(pair.a.into_iter().map(|row| row.into_iter().map(|v| v * factor).collect::<Vec<f64>>()));
        all.b.extend(pair.b);
    }
    all
}

/// Errors: Config for a layer of another rank than the adapter.
fn linear(pairs: Vec<(Pair, f64)>, rank: usize) -> Result<Pair> {
    let zeros = |like: &[Vec<f64>]| vec![vec![0.0; like[0].len()]; rank];
    let mut sum = Pair { a: zeros(&pairs[0].0.a), b: zeros(&pairs[0].0.b) };
    for (pair, factor) in pairs {
        if pair.a.len() != rank {
            let message = format!(
                "linear needs layers of one rank, one has {} and not {rank}; cat and svd take it",
                pair.a.len()
            );
            return Err(Error::config("combination", message));
        }
        let root = factor.abs().sqrt();
        // The sign belongs to one side alone.
        sum.a.iter_mut().zip(&pair.a).for_each(|(sum, a)| add(sum, root * factor.signum(), a));
        sum.b.iter_mut().zip(&pair.b).for_each(|(sum, b)| add(sum, root, b));
    }
    Ok(sum)
}
