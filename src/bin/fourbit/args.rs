//! Options that several subcommands share, in the words of TRL and PEFT, and what they stand for.

use crate::cache::TuneArgs;
use crate::embedded::{self, Embedded};
use crate::interrupt;
use crate::measure::{note_beyond, note_rows};
use crate::output::{Output, note};
use clap::Args;
use fourbit::{
    Error, Result,
    arch::Architecture,
    data::{DataLoader, DataOptions, Dataset, LoaderOptions},
    format::peft::AdapterConfig,
    gpu::{Backend, Gpu, GpuOptions, Search, parse_bytes},
    model::{LoadOptions, Quantization, Source},
    quant::{BlockSize, Scheme},
    tokenizer::Tokenizer,
    train::{Objective, Schedule, TrainConfig, Warmup},
};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Options of every subcommand.
#[derive(Args)]
pub struct Global {
    /// Device: a number of `fourbit devices` or a part of a name [default: FOURBIT_DEVICE, else the fastest kind]
    #[arg(long, global = true, value_name = "N|NAME")]
    pub device: Option<String>,
    /// Backend to open, and no other: vulkan, metal, dx12, or a list [default: WGPU_BACKEND, else all there are]
    #[arg(long, global = true, value_name = "NAMES")]
    pub backend: Option<String>,
    /// Device memory to use at most, as 6GB or 5.5GiB: training computes as many blocks again in its backward pass as that takes, and
    /// what needs more is refused [default: FOURBIT_MEMORY_LIMIT, else all there is]
    #[arg(long, global = true, value_name = "BYTES")]
    pub memory_budget: Option<String>,
    #[command(flatten)]
    pub tune: TuneArgs,
    /// Print the result as one line of JSON on stdout, and everything else on stderr
    #[arg(long, global = true)]
    pub json: bool,
    /// Bytes of a row of data (a JSON line, an element of a JSON array, a row of parquet) at most; larger ones are refused
    #[arg(long, global = true, value_name = "N", default_value_t = DataOptions::MAX_ROW_BYTES)]
    pub max_row_bytes: usize,
    /// The device that is open.
    #[arg(skip)]
    device_in_use: RefCell<Option<Gpu>>,
}

impl Global {
    /// Where results go.
    pub fn output(&self) -> Output {
        Output::new(self.json)
    }

    /// How rows are read: cut to so many tokens, until a signal asks to stop.
    pub fn data_options(&self, max_seq_length: usize, source: &Source) -> DataOptions {
        let options = DataOptions::new(max_seq_length, source.arch().vocab_size);
        DataOptions { max_row_bytes: self.max_row_bytes, cancel: interrupt::cancel(), ..options }
    }

    /// Where the environment and `--backend` look for adapters. Errors: Unsupported.
    pub fn search(&self) -> Result<Search> {
        let mut search = Search::from_env()?;
        if let Some(names) = &self.backend {
            search.backends = Backend::parse_list(names)?;
        }
        Ok(search)
    }

    /// The environment's options with `--device`, `--backend` and `--memory-budget` on top. Errors: Config, Unsupported.
    pub fn gpu_options(&self) -> Result<GpuOptions> {
        let mut options = GpuOptions { search: self.search()?, ..GpuOptions::from_env()? };
        options.device = self.device.clone().or(options.device);
        if let Some(text) = &self.memory_budget {
            options.memory_limit = Some(parse_bytes("--memory-budget", text)?);
        }
        options.cancel = interrupt::cancel();
        Ok(options)
    }

    /// Opens the device, with what earlier runs kept for it. Errors: NoAdapter, Config, Device; Io, Format for --tune-from.
    pub fn gpu(&self) -> Result<Gpu> {
        let gpu = Gpu::open(&self.gpu_options()?)?;
        self.opened(&gpu)?;
        Ok(gpu)
    }

    /// Hands what earlier runs kept to a device that was opened. Errors: Io, Format for --tune-from; Device.
    pub fn opened(&self, gpu: &Gpu) -> Result<()> {
        self.tune.begin(gpu)?;
        self.device_in_use.replace(Some(gpu.clone()));
        Ok(())
    }

    /// Keeps for later runs what this one found out about its device, and lets go of it.
    pub fn close(&self) {
        if let Some(gpu) = self.device_in_use.take() {
            self.tune.end(&gpu);
        }
    }
}

/// Which model.
#[derive(Args)]
pub struct ModelArgs {
    /// Hugging Face folder, also one that another tool quantized, or GGUF file [default: the adapter's base model, else a small
    /// model that is part of fourbit]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Adapter folder as PEFT writes it, with its own configuration; training begins from its values alone, with a new optimizer and
    /// schedule (a run that was stopped goes on with --resume)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

/// A model that was chosen.
pub struct Base {
    /// The folder or file.
    pub path: PathBuf,
    /// The embedded model, where it is the one; its files go when this is dropped.
    pub embedded: Option<Embedded>,
    /// The adapter that goes with it.
    pub adapter: Option<PathBuf>,
}

impl Base {
    /// Its tokenizer; what training left beside the adapter, a tokenizer or chat templates, serves instead. Errors: Io, Format.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match &self.adapter {
            Some(adapter) => Tokenizer::with_adapter(&self.path, adapter),
            None => Tokenizer::open(&self.path),
        }
    }

    /// What `adapter_config.json` calls the model; nothing for the embedded one.
    pub fn name(&self) -> Option<String> {
        self.embedded.is_none().then(|| self.path.display().to_string())
    }
}

impl ModelArgs {
    /// Errors: Io, Format for an adapter that cannot be read.
    pub fn base(&self) -> Result<Base> {
        let beside = self.adapter.clone();
        if let Some(path) = &self.model {
            return Ok(Base { path: path.clone(), embedded: None, adapter: beside });
        }
        let adapter =
            self.adapter.as_ref().map(|dir| AdapterConfig::read(dir.join("adapter_config.json"))).transpose()?;
        if let Some(name) = adapter.and_then(|config| config.base_model_name_or_path) {
            if !Path::new(&name).exists() {
                let message = format!("is needed: the adapter's base model {name} is no path here");
                return Err(Error::config("--model", message));
            }
            return Ok(Base { path: name.into(), embedded: None, adapter: beside });
        }
        note(format_args!("no --model: this is about the small model that is part of fourbit"));
        let embedded = Embedded::unpack()?;
        Ok(Base { path: embedded.model(), embedded: Some(embedded), adapter: beside })
    }
}

/// How the linear layers of the blocks are held.
#[derive(Args)]
pub struct QuantArgs {
    /// Scheme of the blocks' linear layers, such as nf4, fp4, int4-g64, int8-channel-sym, mxfp4, q4_k, or none to keep what is
    /// stored; embedding, head and norms stay as stored [default: nf4; a model that is stored quantized stays as it is]
    #[arg(long, value_name = "SCHEME")]
    pub quantization: Option<String>,
    /// Hold the block scales of nf4 and fp4 in 8 bits too
    #[arg(long)]
    pub double_quant: bool,
    /// Elements that share a scale [default: 64]
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
}

impl QuantArgs {
    /// How to load `source`. Errors: Config for options that do not go together, Unsupported, Format.
    pub fn options(&self, source: &Source) -> Result<LoadOptions> {
        if !self.is_given() && is_quantized(source)? {
            return Ok(LoadOptions::default());
        }
        self.of_floats()
    }

    /// [`QuantArgs::options`] of a model that is stored in floats.
    pub fn of_floats(&self) -> Result<LoadOptions> {
        let quantization = match self.scheme()? {
            Some(scheme) => Quantization::To(scheme),
            None => Quantization::AsStored,
        };
        Ok(LoadOptions { quantization })
    }

    /// Whether a scheme was asked for: by name, or as the default in another form.
    pub fn is_given(&self) -> bool {
        self.quantization.is_some() || self.double_quant || self.block_size.is_some()
    }

    /// The scheme asked for; `None` to keep what is stored. Errors: Config, Unsupported.
    fn scheme(&self) -> Result<Option<Scheme>> {
        let text = self.quantization.as_deref().unwrap_or("nf4");
        if text == "none" {
            return Ok(None);
        }
        let scheme = shaped(text.parse()?, self.block_size.map(BlockSize::Elements), self.double_quant)?;
        Ok(Some(scheme))
    }
}

/// A scheme with the options that say more of it. Errors: Config for those that do not go with it.
pub fn shaped(scheme: Scheme, block: Option<BlockSize>, double_quant: bool) -> Result<Scheme> {
    let mut scheme = match block {
        Some(block) if scheme.with_block(block) == scheme && scheme.block() != Some(block) => {
            let message = match block {
                BlockSize::Elements(_) => format!("the blocks of {scheme} have a fixed size"),
                BlockSize::Row | BlockSize::Tensor => format!("one scale per row is for integers alone, not {scheme}"),
            };
            return Err(Error::config("--block-size", message));
        }
        Some(block) => scheme.with_block(block),
        None => scheme,
    };
    if double_quant {
        scheme = match scheme {
            Scheme::Nf4 { block_size, .. } => Scheme::Nf4 { block_size, double_quant },
            Scheme::Fp4 { block_size, .. } => Scheme::Fp4 { block_size, double_quant },
            other => return Err(Error::config("--double-quant", format!("works with nf4 and fp4 alone, not {other}"))),
        };
    }
    scheme.validate()?;
    Ok(scheme)
}

/// Whether some linear layer of the blocks is stored in a scheme other than plain floats.
fn is_quantized(source: &Source) -> Result<bool> {
    for name in source.names().iter().filter(|name| name.ends_with("_proj.weight")) {
        if !matches!(source.scheme(name)?, Scheme::F32 | Scheme::F16 | Scheme::BF16) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How to train.
#[derive(Args)]
pub struct TrainArgs {
    /// What is learned: the next token (sft), or from rows of two answers, chosen and rejected, which one is better (dpo, orpo)
    #[arg(long, value_enum, default_value_t = Learn::Sft)]
    pub objective: Learn,
    /// TRL's beta of dpo and orpo
    #[arg(long, value_name = "B", default_value_t = Objective::BETA)]
    pub beta: f64,
    /// Rows of a micro-batch, of dpo and orpo pairs [default: 1; 4 for the embedded model and data]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Micro-batches of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub gradient_accumulation_steps: usize,
    /// Keep block inputs only and compute the rest again in the backward pass: less memory, more time
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Rows are cut after this many tokens [default: 1024, or the model's positions where they are fewer]
    #[arg(long, value_name = "N")]
    pub max_seq_length: Option<usize>,
    /// Highest learning rate [default: 2e-4, with --full 5e-5; of dpo and orpo 1e-6, as TRL has it; 3e-3 and 1e-3 for the embedded model
    /// and data]
    #[arg(long, value_name = "LR")]
    pub learning_rate: Option<f64>,
    /// Course of the learning rate: constant (without warm-up), constant_with_warmup, linear or cosine
    #[arg(long, value_name = "NAME", default_value = "linear")]
    pub lr_scheduler_type: String,
    /// Steps over which the learning rate rises from 0; below 1, a share of all steps (the warmup_ratio of transformers 4)
    #[arg(long, value_name = "N", default_value = "0")]
    pub warmup_steps: Warmup,
    /// Decoupled weight decay of AdamW
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 switches it off
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub max_grad_norm: f64,
    /// Steps in a row that may be left out because their loss or gradient is not finite; one more ends the run
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_bad_steps: usize,
    /// Seed of the adapter's first values, of dropout and of the order of the rows
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Learn {
    /// The next token
    Sft,
    /// Which answer is preferred, by what the model without its adapter makes of both (DPO, sigmoid loss)
    Dpo,
    /// The preferred answer, and which one it is (ORPO)
    Orpo,
}

impl TrainArgs {
    /// What is learned.
    pub fn objective(&self) -> Objective {
        match self.objective {
            Learn::Sft => Objective::NextToken,
            Learn::Dpo => Objective::Dpo { beta: self.beta },
            Learn::Orpo => Objective::Orpo { beta: self.beta },
        }
    }
}

/// Rows are cut here unless asked otherwise.
pub const MAX_SEQ_LENGTH: usize = 1024;

/// `--max-seq-length`, or `default` where the model has so many positions. Errors: Config where it is beyond them.
pub fn max_seq_length(asked: Option<usize>, default: usize, arch: &Architecture) -> Result<usize> {
    let longest = arch.max_positions;
    match asked {
        None => Ok(default.min(longest)),
        Some(length) if length > longest => {
            let message = format!("{length} is more than the model's {longest} positions; use {longest} or less");
            Err(Error::config("--max-seq-length", message))
        }
        Some(length) => Ok(length),
    }
}

impl TrainArgs {
    /// Rows a micro-batch; `embedded` where model and data are.
    pub fn batch_size(&self, embedded: bool) -> usize {
        self.batch_size.unwrap_or(if embedded { embedded::BATCH_SIZE } else { 1 })
    }

    /// embedded: whether model and data are; full: whether whole weights are trained, which take smaller steps than an adapter's.
    /// Errors: Unsupported schedule, Config.
    pub fn config(&self, embedded: bool, max_seq_length: usize, max_steps: usize, full: bool) -> Result<TrainConfig> {
        let default = TrainConfig::default();
        let objective = self.objective();
        let learning_rate = match (full, embedded) {
            _ if objective.is_of_pairs() => 1e-6,
            (false, false) => default.learning_rate,
            (true, false) => 5e-5,
            // High, because the model is small and the change is one of manner.
            (false, true) => 3e-3,
            (true, true) => 1e-3,
        };
        let schedule = self.lr_scheduler_type.parse::<Schedule>()?;
        let warmup_steps = self.warmup_steps.steps(max_steps);
        if warmup_steps > 0 && !schedule.warms_up() {
            let [name, other] = [schedule, Schedule::ConstantWithWarmup].map(Schedule::name);
            note(format_args!(
                "note: --warmup-steps does nothing: {name} has no warm-up, as in transformers; {other} has"
            ));
        }
        let config = TrainConfig {
            objective,
            learning_rate: self.learning_rate.unwrap_or(learning_rate),
            lr_scheduler_type: schedule,
            warmup_steps,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            max_bad_steps: self.max_bad_steps,
            max_steps,
            batch_size: self.batch_size(embedded),
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            gradient_checkpointing: self.gradient_checkpointing,
            max_seq_length,
            seed: self.seed,
            ..default
        };
        config.validate()?;
        Ok(config)
    }
}

/// What to train on.
#[derive(Args)]
pub struct DataArgs {
    /// Rows as JSON lines, a JSON array or parquet, each of one of these kinds: messages (role and content), conversations
    /// (ShareGPT: from and value), prompt and completion (texts or messages), instruction, input and output (Alpaca), text, or
    /// input_ids and labels; for dpo and orpo chosen and rejected, with a prompt or behind what both begin with; beside a conversation tools, documents and chat_template_kwargs
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Take the rows in the order of the file, each epoch
    #[arg(long)]
    pub no_shuffle: bool,
    /// Learn the completions alone; `false` learns prompts too
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub completion_only_loss: bool,
}

impl DataArgs {
    /// The file, or the one that comes with the embedded model.
    pub fn path(&self, base: &Base) -> Option<PathBuf> {
        self.data.clone().or_else(|| base.embedded.as_ref().map(Embedded::data))
    }

    /// Whether model and data are the embedded ones.
    pub fn is_showcase(&self, base: &Base) -> bool {
        self.data.is_none() && base.embedded.is_some()
    }

    /// Reads the rows. Errors: Io, Format, Data, Config.
    pub fn loader(
        &self,
        global: &Global,
        data: &Path,
        base: &Base,
        source: &Source,
        train: &TrainArgs,
    ) -> Result<DataLoader> {
        let tokenizer = base.tokenizer()?;
        tokenizer.iter().for_each(|tokenizer| note_beyond(tokenizer, source.arch().vocab_size));
        let length = max_seq_length(train.max_seq_length, MAX_SEQ_LENGTH, source.arch())?;
        let options = DataOptions {
            completion_only: self.completion_only_loss,
            pairs: train.objective().is_of_pairs(),
            ..global.data_options(length, source)
        };
        let dataset = Dataset::load(data, tokenizer.as_ref(), &options)?;
        note_rows(&dataset, tokenizer.as_ref(), options.max_seq_length);
        let options = LoaderOptions {
            batch_size: train.batch_size(self.is_showcase(base)),
            shuffle: !self.no_shuffle,
            seed: train.seed,
            packing: None,
            pad_id: tokenizer.as_ref().map_or(0, Tokenizer::pad_id),
        };
        DataLoader::new(dataset, options)
    }
}
