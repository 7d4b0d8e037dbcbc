//! `fourbit plan`

use crate::args::{DataArgs, Global, LoraArgs, MAX_SEQ_LENGTH, QuantArgs, TrainArgs, max_seq_length};
use crate::output::bytes;
use crate::qat::QatArgs;
use crate::shape::{Chosen, ShapeArgs};
use fourbit::{
    Result,
    gpu::{Gpu, GpuOptions},
    train::Trainer,
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
    lora: LoraArgs,
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
        let config = self.train.config(showcase, length, 1, self.qat.full)?;
        let options = chosen.options(&self.quant, Some(&self.qat))?;

        // Everything is counted as a run would allocate it; the limit is not applied, so that the answer is whole.
        let gpu = Gpu::open(&GpuOptions { dry: true, memory_limit: None, ..global.gpu_options()? })?;
        let mut model = chosen.model(&gpu, &options)?;
        self.qat.count(&mut model, &self.lora, &self.model.model, config.seed)?;
        let trained = model.store().bytes();
        // Reported last: training through rounding puts other weights in the place of those that were loaded.
        let weights = gpu.allocated_bytes() - trained;
        let trainable = model.store().parameters();
        let batch_size = config.batch_size;
        let trainer = Trainer::new(model, config)?;
        let activations = trainer.activation_bytes();
        let other = gpu.allocated_bytes() - weights - trained - activations;
        let peak = gpu.peak_bytes();

        out.line(format_args!("device       {}", gpu.caps().name));
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
        out.result(&json!({
            "device": gpu.caps().name,
            "weights_bytes": weights,
            "adapter_bytes": trained,
            "activation_bytes": activations,
            "other_bytes": other,
            "peak_bytes": peak,
            "parameters": chosen.arch().parameters(),
            "trainable_parameters": trainable,
            "batch_size": batch_size,
            "max_seq_length": length,
        }));
        Ok(())
    }
}
