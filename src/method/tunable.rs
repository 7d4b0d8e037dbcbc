//! What a quantized block can learn: real numbers that are stored beside its codes; and Adam's steps on them.

use super::float_tensor;
use crate::{
    DType, Result,
    adapter::{Optimizer, Store},
    arch::NormId,
    gpu::{Gpu, Tensor},
    graph::{Graph, Pool, Program},
    kernels::{elementwise, optimizer::AdamW},
    model::Block,
    nn::{
        Adapted, Change, Parameter, Transform,
        change::{Codebooks, Signs, Weight},
    },
    ops::{codebook, hadamard},
    quant::Scheme,
};

/// Weights in floats move by this part of the learning rate: they are many, and each was trained well before.
const OF_FLOATS: f64 = 0.2;

/// Begins the training of what is real of a block, and returns it: of each linear layer, in the order of a block, the weight
/// (`NAME.weight`), or code books [2 * 256 * 8] and scales [out] of AQLM (`NAME.codebooks`, `NAME.scales`), or the signs of its
/// output [out] and of its input [in] of QuIP# (`NAME.signs_out`, `NAME.signs_in`), which become real numbers; then the norms'
/// weights (of `attention_norm`, `after_attention_norm`, `feed_forward_norm`, `after_feed_forward_norm`, `query_norm` and `key_norm`
/// those that there are). `floats`: whether weights in floats learn.
///
/// Learning rates are in parts of each tensor's root mean square: code books, scales and norms differ by orders.
/// Errors: Shape for layers that do not fit a binding, OutOfMemory, Device.
pub fn train_block(gpu: &Gpu, block: &mut Block, floats: bool) -> Result<Store> {
    let mut store = Store::default();
    block.for_each_linear(|_, linear| {
        linear.change = change(gpu, linear, floats, &mut store)?;
        Ok(())
    })?;
    for id in NormId::ALL {
        let name = match id {
            NormId::Attention => "attention_norm",
            NormId::AfterAttention => "after_attention_norm",
            NormId::FeedForward => "feed_forward_norm",
            NormId::AfterFeedForward => "after_feed_forward_norm",
            NormId::Query => "query_norm",
            NormId::Key => "key_norm",
        };
        if let Some(norm) = block.norm_mut(id) {
            norm.weight = learn(&mut store, name.to_owned(), &norm.weight.values, 1.0)?;
        }
    }
    Ok(store)
}

/// Ends it: the block keeps the values that it has. Errors: none but those of the block.
pub(super) fn freeze_block(block: &mut Block) -> Result<()> {
    for id in NormId::ALL {
        if let Some(norm) = block.norm_mut(id) {
            norm.weight.grads = None;
        }
    }
    block.for_each_linear(|_, linear| {
        linear.change = Change::None;
        Ok(())
    })
}

fn change(gpu: &Gpu, linear: &mut Adapted, floats: bool, store: &mut Store) -> Result<Change> {
    if linear.base.weight.is_empty() {
        return Ok(Change::None);
    }
    let name = linear.name.clone();
    match (&linear.base.transform, linear.base.weight.scheme()) {
        (Some(Transform::Hadamard { input, output }), _) => {
            let inner = hadamard::unsigned(gpu, &linear.base.weight, input, output)?;
            let (input, right) = hadamard::with_numbers(gpu, input)?;
            let (output, left) = hadamard::with_numbers(gpu, output)?;
            linear.base.transform = Some(Transform::Hadamard { input, output });
            let left = learn(store, format!("{name}.signs_out"), &left, 1.0)?;
            let right = learn(store, format!("{name}.signs_in"), &right, 1.0)?;
            Ok(Change::Signs(Signs::new(inner, left, right)))
        }
        (None, Scheme::Aqlm) => {
            let mut codebooks = Codebooks::of(&linear.base.weight, codebook::sort(gpu, &linear.base.weight)?)?;
            codebooks.books = learn(store, format!("{name}.codebooks"), &codebooks.books.values, 1.0)?;
            codebooks.scales = learn(store, format!("{name}.scales"), &codebooks.scales.values, 1.0)?;
            Ok(Change::Codebooks(codebooks))
        }
        (None, Scheme::F32) if floats => {
            let weight = float_tensor(&name, &linear.base.weight)?;
            let weight = learn(store, linear.weight_name(), &weight, OF_FLOATS)?;
            Ok(Change::Weight(Weight { weight, bias: None }))
        }
        _ => Ok(Change::None),
    }
}

/// Takes a tensor into the store, at `rate` times its root mean square.
fn learn(store: &mut Store, name: String, values: &Tensor, rate: f64) -> Result<Parameter> {
    store.adopt(name, values, rate * size(values)?)
}

/// Root mean square, or 1 for zeros.
fn size(values: &Tensor) -> Result<f64> {
    let values = values.read::<f32>()?;
    let square: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    let rms = (square / values.len().max(1) as f64).sqrt();
    Ok(if rms > 0.0 && rms.is_finite() { rms } else { 1.0 })
}

/// Of Adam, as the papers' code sets them.
const BETAS: (f64, f64) = (0.9, 0.95);

/// Adam's steps on all tensors of a block, and the best values so far.
pub(super) struct Steps {
    optimizer: Optimizer,
    step: Program,
    keep: Program,
    restore: Program,
    adam: AdamW,
    learning_rate: f64,
    taken: u64,
}

impl Steps {
    /// Errors: OutOfMemory, Device.
    pub(super) fn new(gpu: &Gpu, store: &Store, learning_rate: f64) -> Result<Steps> {
        let optimizer = Optimizer::new(gpu, store)?;
        let [mut step, mut keep, mut restore] = [(); 3].map(|()| Graph::new(gpu));
        // No clipping: Adam's steps do not grow with the gradients. What is no number makes the error none, and is not kept.
        let norm = step.import(&gpu.tensor("gradient norm", [3], DType::F32, &[0.0f32, 1.0, 1.0])?);
        optimizer.record(&mut step, store, &norm)?;
        for (_, parameter) in store.iter() {
            let best = gpu.zeros("best values", parameter.values.shape().clone(), DType::F32)?;
            let [value, kept] = [&parameter.values, &best].map(|t| keep.import(t));
            elementwise::assign(&mut keep, &kept, &value, 1.0)?;
            let [value, kept] = [&parameter.values, &best].map(|t| restore.import(t));
            elementwise::assign(&mut restore, &value, &kept, 1.0)?;
        }
        let mut pool = Pool::default();
        let mut build = |g: Graph| g.plan().build(&mut pool);
        let (step, keep, restore) = (build(step)?, build(keep)?, build(restore)?);
        let adam = AdamW { betas: BETAS, eps: 1e-10, weight_decay: 0.0, max_grad_norm: 0.0 };
        let mut steps = Steps { optimizer, step, keep, restore, adam, learning_rate, taken: 0 };
        steps.keep()?;
        Ok(steps)
    }

    /// One step by the gradients that are there. Errors: Device.
    pub(super) fn step(&mut self) -> Result<()> {
        self.taken += 1;
        self.optimizer.set(&self.adam, self.learning_rate, self.taken)?;
        self.step.run()
    }

    /// Takes the values for the best so far. Errors: Device.
    pub(super) fn keep(&mut self) -> Result<()> {
        self.keep.run()
    }

    /// Brings the best values back. Errors: Device.
    pub(super) fn restore(&mut self) -> Result<()> {
        self.restore.run()
    }
}
