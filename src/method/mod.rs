//! Methods: how the numbers of a quantized model are chosen. Schemes ([`crate::quant`]) say how they are stored.
//!
//! [`quantize_model`] walks through a model block by block, so that one block in floats and the calibration text's
//! activations are all that is held beside the result. What a method does is behind one trait, [`LayerMethod`]. Nothing here
//! touches files but through [`Source`](crate::model::Source), and nothing knows the command line.

mod aqlm;
mod awq;
mod finetune;
pub mod fold;
mod gptq;
mod hidden_states;
mod hqq;
mod keep_better;
pub mod linalg;
mod llm_int8;
mod merge;
mod observer;
mod of_hessian;
mod options;
mod pipeline;
mod quip;
mod recipe;
mod report;
mod rtn;
mod smoothquant;
mod stats;
mod stored;
mod tunable;
mod w8a8;

pub use crate::arch::Site;
pub use aqlm::Aqlm;
pub use awq::{Awq, AwqOptions};
pub use finetune::{FineTune, Tuned};
pub use gptq::{Gptq, GptqOptions};
pub use hqq::Hqq;
pub use keep_better::{Compared, KeepBetter};
pub use llm_int8::LlmInt8;
pub use merge::{Kept, Merge};
pub use observer::{BINS, Observed, Observer, Seen};
pub use options::MethodOptions;
pub use pipeline::{BlockRecord, DoneBlocks, LayerReport, PipelineOptions, quantize_model};
pub use quip::Quip;
pub use recipe::{Method, Recipe};
pub use report::{LayerFigures, TensorFigures};
pub use rtn::{Rtn, RtnObserved};
pub use smoothquant::{SmoothQuant, SmoothQuantOptions};
pub use stats::{BlockStats, ChannelStats, InputStats, Needs};
pub use stored::Stored;
pub use tunable::train_block;
pub use w8a8::{ActivationScales, W8A8};

use crate::{
    DType, Error, Result,
    arch::LinearId,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{QuantizedTensor, dequantize, elementwise, reduce},
    model::Block,
    nn::Linear,
    quant::Scheme,
};

/// One way to choose the numbers of a model's linear layers.
///
/// The pipeline calls [`prepare`](LayerMethod::prepare) and [`fold`](LayerMethod::fold) once per block and then [`quantize`](LayerMethod::quantize) for each of its
/// linear layers, in the order of [`LinearId::ALL`].
pub trait LayerMethod {
    /// The name used in flags and messages (`gptq`).
    fn name(&self) -> &'static str;

    /// The method that this one adds something to. What this one leaves out is asked of that one.
    fn wrapped(&self) -> Option<&dyn LayerMethod> {
        None
    }

    /// What must be known of each layer's input. Where nothing is, the calibration text is never run.
    fn needs(&self) -> Needs {
        self.wrapped().map(|method| method.needs()).unwrap_or_default()
    }

    /// Changes block `number`, of f32 weights, before anything is measured of it: what is then measured and kept is the changed block.
    /// Errors: the method's.
    fn prepare(&self, gpu: &Gpu, number: usize, block: &Block) -> Result<()> {
        self.wrapped().map_or(Ok(()), |method| method.prepare(gpu, number, block))
    }

    /// Whether [`fold`](LayerMethod::fold) changes weights.
    fn folds(&self) -> bool {
        self.wrapped().is_some_and(|method| method.folds())
    }

    /// Changes a block of f32 weights before its layers are quantized, such that its output stays what it was: scales that
    /// move from activations into weights, for example. Whoever scales an input must scale its statistics too
    /// ([`InputStats::scale`]). Errors: the method's.
    fn fold(&self, gpu: &Gpu, block: &mut Block, stats: &mut BlockStats) -> Result<()> {
        self.wrapped().map_or(Ok(()), |method| method.fold(gpu, block, stats))
    }

    /// How a block is fine-tuned once its layers are quantized, where it is; the method must need something of the
    /// calibration text ([`LayerMethod::needs`]).
    fn finetune(&self) -> Option<FineTune> {
        self.wrapped().and_then(|method| method.finetune())
    }

    /// The layers so far, compared with rounding to nearest, where [`KeepBetter`] does.
    fn compared(&self) -> Vec<Compared> {
        self.wrapped().map(|method| method.compared()).unwrap_or_default()
    }

    /// Takes what was compared in the blocks of an earlier run that this one goes on with ([`DoneBlocks`]).
    fn go_on(&self, compared: Vec<Compared>) {
        if let Some(method) = self.wrapped() {
            method.go_on(compared);
        }
    }

    /// The layer in its storage scheme. [`Layer::done`] makes one without a transform of its input. Errors: the method's.
    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear>;
}

/// One linear layer that is to be quantized.
pub struct Layer<'a> {
    /// Its place there.
    pub id: LinearId,
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub name: &'a str,
    /// [out, in] f32, all finite. The method may overwrite it: nobody reads it afterwards.
    pub weight: Tensor,
    /// [out]
    pub bias: Option<Tensor>,
    /// What was asked for in [`LayerMethod::needs`].
    pub stats: &'a InputStats,
}

impl Layer<'_> {
    /// (out, in)
    pub fn shape(&self) -> [usize; 2] {
        [self.weight.shape()[0], self.weight.shape()[1]]
    }

    /// The quantized layer, whose input is as it was.
    pub fn done(&self, weight: QuantizedTensor) -> Linear {
        Linear::new(weight, self.bias.clone())
    }

    /// The weight's name, for messages.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }
}

/// The numbers of an f32 weight as one tensor [rows, cols], sharing its memory. Errors: Shape where the weight is in another
/// scheme or lies in several buffers.
pub fn float_tensor(name: &str, weight: &QuantizedTensor) -> Result<Tensor> {
    let refused = |got: String| Error::shape(name, "an f32 weight in one buffer", got);
    if weight.scheme() != Scheme::F32 {
        return Err(refused(weight.scheme().name().to_owned()));
    }
    let shards: Vec<_> = weight.shards().map(|shard| shard.codes).collect();
    let Some(first) = shards.first() else {
        return weight.gpu().zeros(name, weight.shape(), DType::F32);
    };
    if shards.iter().any(|shard| !std::sync::Arc::ptr_eq(&shard.buffer, &first.buffer)) {
        return Err(refused(format!("{:?} in several", weight.shape())));
    }
    Ok(Tensor::view(first.buffer.clone(), first.offset, weight.shape().into(), DType::F32))
}

/// The numbers of a weight in any scheme as one of f32. Errors: OutOfMemory, Device, Shape for weights that lie in several buffers
/// as f32.
fn to_floats(gpu: &Gpu, name: &str, weight: &QuantizedTensor) -> Result<QuantizedTensor> {
    let [rows, cols] = weight.shape();
    let floats = QuantizedTensor::zeros(gpu, name, Scheme::F32, [rows, cols])?;
    let target = float_tensor(name, &floats)?;
    for (start, count) in fold::row_ranges(gpu, rows, cols) {
        let mut g = Graph::new(gpu);
        let values = dequantize::dequantize_rows(&mut g, weight, start..start + count)?;
        let part = g.import(&target.slice(start * cols, [count, cols])?);
        elementwise::assign(&mut g, &part, &values, 1.0)?;
        g.run()?;
    }
    Ok(floats)
}

/// Errors: Config, with the weight's name, where some number is NaN or infinite.
fn check_finite(name: &str, weight: &Tensor) -> Result<()> {
    let gpu = weight.gpu();
    let (rows, cols) = weight.shape().rows_cols();
    if rows * cols == 0 || gpu.is_dry() {
        return Ok(());
    }
    for (start, count) in fold::row_ranges(gpu, rows, cols) {
        let mut g = Graph::new(gpu);
        let x = g.import(&weight.slice(start * cols, [count, cols])?);
        let (_, bad) = reduce::absmax(&mut g, &x, cols)?;
        g.keep(&bad);
        let bad = g.run()?.read::<u32>(&bad)?;
        if let Some(row) = bad.iter().position(|&n| n > 0) {
            let (count, row) = (bad[row], start + row);
            let message = format!("{count} numbers of row {row} are not finite; only finite ones can be quantized");
            return Err(Error::config(name, message));
        }
    }
    Ok(())
}
