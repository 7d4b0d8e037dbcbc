//! AdaLoRA beside the optimizer: its term of the loss, the scores of ranks, and which of them stay.

use crate::{
    DType, Error, Result,
    adapter::{AdaLoraConfig, Module, PeftConfig, Ranks, kept},
    gpu::{Readback, Tensor},
    graph::{Graph, Pool, Program},
    kernels::{
        diagonal, elementwise,
        importance::{self, Along},
    },
    model::Model,
    nn::AdaLora,
};

/// f32s from one layer's scores to the next are a multiple of this: views must begin at offsets that can be bound.
const SLOT: usize = 64;

/// The configuration and the layers of a model that learns so.
fn layers(model: &Model) -> Option<(&AdaLoraConfig, Vec<AdaLora>)> {
    let Some(PeftConfig::AdaLora(config)) = model.adapter() else { return None };
    let of = |(_, module)| if let Module::AdaLora(ada) = module { Some(ada) } else { None };
    Some((config, model.modules().filter_map(of).collect()))
}

/// Records what the orthogonality term adds to gradients, and its value: the mean over all A and B of ‖A · Aᵀ − I‖ and ‖Bᵀ · B − I‖,
/// times `orth_reg_weight`. Once for a step, whatever micro-batches it has. value: [1]. Errors: Shape, OutOfMemory.
pub(super) fn record_orthogonality(g: &mut Graph, model: &Model, value: &Tensor) -> Result<()> {
    let Some((config, layers)) = layers(model) else { return Ok(()) };
    let one = g.gpu().tensor("one", [1], DType::F32, &[1.0f32])?;
    let (one, total) = (g.import(&one), g.import(value));
    let weight = (config.orth_reg_weight / (2 * layers.len()) as f64) as f32;
    let mut add = false;
    for AdaLora { lora, .. } in &layers {
        for (factor, along) in [(&lora.a, Along::Rows), (&lora.b, Along::Columns)] {
            let Some(grads) = &factor.grads else { continue };
            let (values, grads) = (g.import(&factor.values), g.import(grads));
            importance::orthogonality(g, [&values, &grads], along, weight, (add, &total, &one))?;
            add = true;
        }
    }
    Ok(())
}

/// What happens to ranks after a step.
pub(super) struct Allocation {
    config: AdaLoraConfig,
    /// Smooths sensitivity and uncertainty of each number.
    smooth: Program,
    /// Adds up the scores of the ranks.
    score: Program,
    /// Sets the singular values of what is not kept to zero.
    mask: Program,
    /// A slot for each layer. f32
    scores: Tensor,
    /// Its way to the host, which the plan knows of.
    readback: Readback,
    /// Of each layer, 1 where a rank is kept. \[r\]
    masks: Vec<Tensor>,
}

impl Allocation {
    /// Of a model whose adapter is AdaLoRA's. norm: [3], as clipping leaves it. Errors: Shape, OutOfMemory.
    pub(super) fn new(model: &Model, norm: &Tensor, pool: &mut Pool) -> Result<Option<Allocation>> {
        let Some((config, layers)) = layers(model) else { return Ok(None) };
        let (gpu, r) = (model.gpu(), config.init_r);
        let slot = r.next_multiple_of(SLOT);
        let scores = gpu.zeros("scores of ranks", [slot * layers.len()], DType::F32)?;
        let mut smooth = Graph::new(gpu);
        let norm = smooth.import(norm);
        for chunk in model.store().chunks() {
            let Some(training) = &chunk.training else { continue };
            let Some([s, u]) = &training.importance else { continue };
            let [param, grad, s, u] = [&chunk.params, &training.grads, s, u].map(|t| smooth.import(t));
            let betas = (config.beta1, config.beta2);
            importance::smooth(&mut smooth, [&param, &grad], &norm, [&s, &u], betas)?;
        }
        let (mut score, mut mask) = (Graph::new(gpu), Graph::new(gpu));
        let gates = [0.0f32, 1.0].map(|gate| gpu.tensor("gate", [1], DType::F32, &[gate]));
        let [replace, more] = gates.map(|gate| Ok::<_, Error>(score.import(&gate?)));
        let (replace, more) = (replace?, more?);
        for (layer, AdaLora { lora, singular, mask: kept }) in layers.iter().enumerate() {
            let out = score.import(&scores.slice(slot * layer, [r])?);
            let parts = [(singular, Along::Rows), (&lora.a, Along::Rows), (&lora.b, Along::Columns)];
            for (index, (part, along)) in parts.into_iter().enumerate() {
                let missing = || Error::config("adapter", "AdaLoRA's adapter is not trainable");
                let importance = model.store().importance(&part.values)?.ok_or_else(missing)?;
                let [s, u] = importance.each_ref().map(|t| score.import(t));
                // The mean of what a rank's numbers matter, of each of the three parts (Zhang et al. 2023, equation 7).
                let (gate, (rows, cols)) = (if index > 0 { &more } else { &replace }, s.rows_cols());
                match along {
                    Along::Rows => diagonal::rows(&mut score, &s, &u, 1.0 / cols as f32, &out, gate)?,
                    Along::Columns => diagonal::columns(&mut score, &s, &u, 1.0 / rows as f32, &out, gate)?,
                }
            }
            let (e, kept) = (mask.import(&singular.values.slice(0, [r])?), mask.import(kept));
            elementwise::scale_columns(&mut mask, &e, &kept)?;
        }
        Ok(Some(Allocation {
            config: config.clone(),
            smooth: smooth.plan().build(pool)?,
            score: score.plan().build(pool)?,
            mask: mask.plan().build(pool)?,
            readback: gpu.readback(scores.bytes())?,
            scores,
            masks: layers.into_iter().map(|ada| ada.mask).collect(),
        }))
    }

    /// What follows step `step`, from 0 on. Errors: Device.
    pub(super) fn after(&mut self, step: usize, run: &mut impl FnMut(&mut Program) -> Result<()>) -> Result<()> {
        let allocated = self.config.after(step, self.masks.len());
        if allocated.scores {
            run(&mut self.smooth)?;
        }
        match allocated.ranks {
            Ranks::All => Ok(()),
            Ranks::AsBefore => run(&mut self.mask),
            Ranks::Budget(budget) => {
                run(&mut self.score)?;
                if !self.scores.gpu().is_noop() {
                    self.write_masks(budget)?;
                }
                run(&mut self.mask)
            }
        }
    }

    fn write_masks(&mut self, budget: usize) -> Result<()> {
        let (r, slot) = (self.config.init_r, self.config.init_r.next_multiple_of(SLOT));
        let scores: Vec<f32> = self.readback.fetch(&self.scores)?;
        let scores: Vec<f32> = scores.chunks(slot).flat_map(|layer| &layer[..r]).copied().collect();
        let kept = kept(&scores, budget);
        self.masks.iter().zip(kept.chunks(r)).try_for_each(|(mask, kept)| mask.write(bytemuck::cast_slice(kept)))
    }
}
