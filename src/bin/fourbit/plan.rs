//! `fourbit plan`

use crate::adapter_args::AdapterArgs;
use crate::args::{DataArgs, Global, MAX_SEQ_LENGTH, QuantArgs, TrainArgs, max_seq_length};
use crate::output::bytes;
use crate::qat::QatArgs;
use crate::shape::{Chosen, ShapeArgs};
use fourbit::{
    Error, Result,
    gpu::{Gpu, GpuOptions},
    model::LoadOptions,
    train::{TrainConfig, Trainer},
};
use serde_json::json;

/// Report the device memory that fine-tuning takes, without allocating or running anything
///
/// Takes the options of finetune. Rows are taken to be as long as --max-seq-length, or with --data as the longest one there.
#[derive(clap::Args)]
pub struct Plan {
    #[command(flatten)]
    model: ShapeArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    quant: QuantArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    qat: QatArgs,
    #[command(flatten)]
    train: TrainArgs,
}

impl Plan {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let chosen = self.model.choose()?;
        let (data, showcase) = match &chosen {
            Chosen::Files(base, _) => (self.data.path(base), self.data.is_showcase(base)),
            Chosen::Shape(..) => (self.data.data.clone(), false),
        };
        let length = match data {
            Some(data) => {
                let (base, source) = chosen.files("--data")?;
                self.data.loader(global, &data, base, source, &self.train)?.longest().max(2)
            }
            None => max_seq_length(self.train.max_seq_length, MAX_SEQ_LENGTH, chosen.arch())?,
        };
        // How many steps there are changes no memory.
        let config = self.train.config(showcase, length, usize::MAX, self.qat.full)?;
        let options = chosen.options(&self.quant, Some(&self.qat))?;

        // What is more than the limit is counted without one, so that the answer is whole.
        let gpu_options = GpuOptions { dry: true, ..global.gpu_options()? };
        let counted = match self.count(&chosen, &options, &config, &gpu_options) {
            Err(Error::OutOfMemory { .. }) if gpu_options.memory_limit.is_some() => {
                let least = TrainConfig { gradient_checkpointing: true, ..config.clone() };
                self.count(&chosen, &options, &least, &GpuOptions { memory_limit: None, ..gpu_options.clone() })?
            }
            counted => counted?,
        };
        let Counted { device, weights, trained, activations, other, peak, trainable, checkpointed } = counted;
        let (batch_size, blocks) = (config.batch_size, chosen.arch().blocks.len());

        out.line(format_args!("device       {device}"));
        out.line(format_args!("model        {}", chosen.name()));
        out.line(format_args!("batch        {batch_size} x {length} tokens"));
        out.line(format_args!("weights      {:>12}", bytes(weights)));
        out.line(format_args!(
            "trained      {:>12}  {trainable} trained values with their gradients and moments",
            bytes(trained)
        ));
        out.line(format_args!("activations  {:>12}", bytes(activations)));
        out.line(format_args!("other        {:>12}  inputs, tables and parameters of kernels", bytes(other)));
        out.line(format_args!("peak         {:>12}", bytes(peak)));
        if let Some(limit) = gpu_options.memory_limit {
            let fits = if peak > limit { ", which is too little" } else { "" };
            out.line(format_args!("budget       {:>12}{fits}", bytes(limit)));
        }
        if checkpointed > 0 {
            out.line(format_args!(
                "{checkpointed} of {blocks} blocks keep only their inputs, and are computed again in the backward pass"
            ));
        }
        out.result(&json!({
            "device": device,
            "weights_bytes": weights,
            "adapter_bytes": trained,
            "activation_bytes": activations,
            "other_bytes": other,
            "peak_bytes": peak,
            "memory_budget_bytes": gpu_options.memory_limit,
            "checkpointed_blocks": checkpointed,
            "parameters": chosen.arch().parameters(),
            "trainable_parameters": trainable,
            "batch_size": batch_size,
            "max_seq_length": length,
        }));
        Ok(())
    }

    /// Counts as a run would allocate. Errors: OutOfMemory beyond the options' limit; those of loading.
    fn count(&self, chosen: &Chosen, options: &LoadOptions, config: &TrainConfig, on: &GpuOptions) -> Result<Counted> {
        let gpu = Gpu::open(on)?;
        let mut model = chosen.model(&gpu, options)?;
        self.qat.count(&mut model, &self.adapter, &self.model.model, config)?;
        let trained = model.store().bytes();
        // Reported last: training through rounding puts other weights in the place of those that were loaded.
        let weights = gpu.allocated_bytes() - trained;
        let trainable = model.store().parameters();
        let trainer = Trainer::new(model, config.clone())?;
        let activations = trainer.activation_bytes();
        Ok(Counted {
            device: gpu.caps().name.clone(),
            weights,
            trained,
            activations,
            other: gpu.allocated_bytes() - weights - trained - activations,
            peak: gpu.peak_bytes(),
            trainable,
            checkpointed: trainer.checkpointed_blocks(),
        })
    }
}

/// What a run takes, in bytes where it says nothing else.
struct Counted {
    device: String,
    weights: u64,
    trained: u64,
    activations: u64,
    other: u64,
    peak: u64,
    /// Values.
    trainable: usize,
    /// Blocks that keep only their inputs.
    checkpointed: usize,
}
