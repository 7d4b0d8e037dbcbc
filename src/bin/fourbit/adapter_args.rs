//! Options about the adapter, in PEFT's words.

use crate::output::note;
use clap::Args;
use fourbit::{
    Error, Result,
    adapter::{AdaLoraConfig, Ia3Config, LoraConfig, PeftConfig, PromptInit, PromptTuningConfig},
    model::Model,
    tokenizer::Tokenizer,
    train::TrainConfig,
};
use std::path::Path;

/// The adapter to be trained.
#[derive(Args)]
pub struct AdapterArgs {
    /// Rank of the adapter [default: 16]
    #[arg(long, value_name = "R")]
    pub lora_r: Option<usize>,
    /// Scale of the adapter: alpha / r [default: 16]
    #[arg(long, value_name = "ALPHA")]
    pub lora_alpha: Option<f64>,
    /// Chance that an input of the adapter is dropped in training [default: 0]
    #[arg(long, value_name = "P")]
    pub lora_dropout: Option<f64>,
    /// Layers that get an adapter: names such as q_proj,v_proj, or all-linear [default: all-linear, all but the head; with
    /// --peft-type ia3 k_proj,v_proj,down_proj]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1..)]
    pub target_modules: Option<Vec<String>>,
    /// Scale by alpha / sqrt(r)
    #[arg(long)]
    pub use_rslora: bool,
    /// DoRA: a low-rank update of the directions of the weight's rows, and a trained magnitude for each row
    #[arg(long)]
    pub use_dora: bool,
    /// Kind of the adapter: lora; adalora, whose ranks are allocated to layers while it learns; ia3: vectors that scale keys, values and
    /// what the last layer of the feed-forward part reads; or prompt_tuning: the embeddings of virtual tokens in front of each text
    #[arg(long, value_name = "KIND", value_enum, ignore_case = true, default_value_t)]
    pub peft_type: PeftType,
    /// With --peft-type ia3: those of --target-modules whose vector scales the input, not the output [default: down_proj, where
    /// --target-modules is not given]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1..)]
    pub feedforward_modules: Option<Vec<String>>,
    #[command(flatten)]
    pub adalora: AdaLoraArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
}

/// Options of `--peft-type prompt_tuning`.
#[derive(Args)]
pub struct PromptArgs {
    /// With --peft-type prompt_tuning: virtual tokens in front of each text, beside --max-seq-length [default: 20]
    #[arg(long, value_name = "N")]
    pub num_virtual_tokens: Option<usize>,
    /// With --peft-type prompt_tuning: what they begin as: random numbers, the embeddings of tokens drawn from the vocabulary
    /// (sample_vocab), or those of a text [default: random, or text with --prompt-tuning-init-text]
    #[arg(long, value_name = "NAME", value_enum, ignore_case = true)]
    pub prompt_tuning_init: Option<InitArg>,
    /// With --peft-type prompt_tuning: the text whose embeddings they begin as, best what the model is to do
    #[arg(long, value_name = "TEXT")]
    pub prompt_tuning_init_text: Option<String>,
}

/// `--prompt-tuning-init`
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InitArg {
    /// Random numbers
    Random,
    /// Tokens drawn from the vocabulary
    #[value(name = "sample_vocab")]
    SampleVocab,
    /// The tokens of a text
    Text,
}

impl PromptArgs {
    /// An option that was given.
    fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--num-virtual-tokens", self.num_virtual_tokens.is_some()),
            ("--prompt-tuning-init", self.prompt_tuning_init.is_some()),
            ("--prompt-tuning-init-text", self.prompt_tuning_init_text.is_some()),
        ])
    }

    /// files: as in [`AdapterArgs::config`]. Errors: Config, those of the tokenizer.
    fn config(&self, seed: u64, files: Option<&Path>) -> Result<PromptTuningConfig> {
        let default = PromptTuningConfig::default();
        let option = "--prompt-tuning-init-text";
        let prompt_tuning_init = match (self.prompt_tuning_init, &self.prompt_tuning_init_text) {
            (None | Some(InitArg::Text), Some(text)) => match files {
                Some(files) => {
                    let tokenizer = Tokenizer::open(files)?.ok_or_else(|| {
                        Error::config(option, "needs a tokenizer, and the model's folder has none (tokenizer.json)")
                    })?;
                    PromptInit::Text(tokenizer.encode(text, true)?)
                }
                None => PromptInit::Random,
            },
            (Some(InitArg::Text), None) => {
                return Err(Error::config(option, "is needed with --prompt-tuning-init text"));
            }
            (Some(_), Some(_)) => return Err(Error::config(option, "goes with --prompt-tuning-init text alone")),
            (None | Some(InitArg::Random), None) => PromptInit::Random,
            (Some(InitArg::SampleVocab), None) => PromptInit::SampleVocab,
        };
        let num_virtual_tokens = self.num_virtual_tokens.unwrap_or(default.num_virtual_tokens);
        Ok(PromptTuningConfig { num_virtual_tokens, prompt_tuning_init, seed, ..default })
    }
}

/// Options of `--peft-type adalora`.
#[derive(Args)]
pub struct AdaLoraArgs {
    /// With --peft-type adalora: rank of each layer at first [default: 12]
    #[arg(long, value_name = "R")]
    pub init_r: Option<usize>,
    /// With --peft-type adalora: rank of each layer at the end, on average [default: 8]
    #[arg(long, value_name = "R")]
    pub target_r: Option<usize>,
    /// With --peft-type adalora: steps before the first rank is taken away [default: 0]
    #[arg(long, value_name = "N")]
    pub tinit: Option<usize>,
    /// With --peft-type adalora: steps behind the last allocation [default: 0]
    #[arg(long, value_name = "N")]
    pub tfinal: Option<usize>,
    /// With --peft-type adalora: steps from one allocation to the next (PEFT's deltaT) [default: 1]
    #[arg(long, value_name = "N")]
    pub delta_t: Option<usize>,
    /// With --peft-type adalora: decay rate of the sensitivity of each number [default: 0.85]
    #[arg(long, value_name = "B")]
    pub beta1: Option<f64>,
    /// With --peft-type adalora: decay rate of its uncertainty [default: 0.85]
    #[arg(long, value_name = "B")]
    pub beta2: Option<f64>,
    /// With --peft-type adalora: weight of the term that keeps the factors orthonormal [default: 0.5]
    #[arg(long, value_name = "W")]
    pub orth_reg_weight: Option<f64>,
}

impl AdaLoraArgs {
    /// An option that was given.
    fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("--init-r", self.init_r.is_some()),
            ("--target-r", self.target_r.is_some()),
            ("--tinit", self.tinit.is_some()),
            ("--tfinal", self.tfinal.is_some()),
            ("--delta-t", self.delta_t.is_some()),
            ("--beta1", self.beta1.is_some()),
            ("--beta2", self.beta2.is_some()),
            ("--orth-reg-weight", self.orth_reg_weight.is_some()),
        ])
    }
}

fn first_given(options: &[(&'static str, bool)]) -> Option<&'static str> {
    options.iter().find_map(|&(name, given)| given.then_some(name))
}

/// `--peft-type`
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PeftType {
    /// A low-rank update beside the weight
    #[default]
    Lora,
    /// A low-rank update whose ranks are allocated to layers while it learns
    Adalora,
    /// Vectors that scale outputs and inputs
    Ia3,
    /// The embeddings of virtual tokens in front of each text
    #[value(name = "prompt_tuning")]
    PromptTuning,
}

impl AdapterArgs {
    /// Attaches the adapter that is to be trained: a new one, or the one in `folder`, which brings its own configuration.
    /// files: as in [`AdapterArgs::config`]. Errors: those of [`Model::add_adapter`] and [`Model::load_adapter`].
    pub fn attach(
        &self,
        model: &mut Model,
        folder: Option<&Path>,
        train: &TrainConfig,
        files: Option<&Path>,
    ) -> Result<()> {
        let Some(folder) = folder else { return model.add_adapter(self.config(train, files)?, true) };
        if self.is_given() && !model.gpu().is_dry() {
            note(format_args!(
                "note: --adapter brings its own configuration; the other options of the adapter are ignored"
            ));
        }
        model.load_adapter(folder, true)
    }

    /// Whether one of the options was given.
    pub fn is_given(&self) -> bool {
        let others = [self.of_low_rank(), self.of_lora(), self.adalora.given(), self.of_ia3(), self.prompt.given()];
        others.iter().any(Option::is_some) || self.target_modules.is_some() || self.peft_type != PeftType::Lora
    }

    /// An option that was given, and that belongs to a low-rank update of any kind.
    fn of_low_rank(&self) -> Option<&'static str> {
        first_given(&[("--lora-alpha", self.lora_alpha.is_some()), ("--lora-dropout", self.lora_dropout.is_some())])
    }

    /// One of LoRA alone.
    fn of_lora(&self) -> Option<&'static str> {
        first_given(&[
            ("--lora-r", self.lora_r.is_some()),
            ("--use-rslora", self.use_rslora),
            ("--use-dora", self.use_dora),
        ])
    }

    /// One of IA3 alone.
    fn of_ia3(&self) -> Option<&'static str> {
        first_given(&[("--feedforward-modules", self.feedforward_modules.is_some())])
    }

    /// The configuration of a new adapter, for a run that is trained so. files: the model, whose tokenizer reads a text that virtual tokens
    /// begin from; `None` where nothing is learned, and they may begin as anything. Errors: Config for options of another kind; those of
    /// the tokenizer.
    pub fn config(&self, train: &TrainConfig, files: Option<&Path>) -> Result<PeftConfig> {
        let (low_rank, lora, adalora, ia3) = (self.of_low_rank(), self.of_lora(), self.adalora.given(), self.of_ia3());
        let (prompt, modules) =
            (self.prompt.given(), first_given(&[("--target-modules", self.target_modules.is_some())]));
        let (kind, other) = match self.peft_type {
            PeftType::Lora => ("lora", adalora.or(ia3).or(prompt)),
            PeftType::Adalora => ("adalora", lora.or(ia3).or(prompt)),
            PeftType::Ia3 => ("ia3", low_rank.or(lora).or(adalora).or(prompt)),
            PeftType::PromptTuning => ("prompt_tuning", low_rank.or(lora).or(adalora).or(ia3).or(modules)),
        };
        if let Some(option) = other {
            let remedy =
                if option == "--lora-r" && kind == "adalora" { "; its ranks are --init-r and --target-r" } else { "" };
            return Err(Error::config(option, format!("is no option of --peft-type {kind}{remedy}")));
        }
        if self.peft_type == PeftType::Ia3 {
            return Ok(PeftConfig::Ia3(Ia3Config {
                target_modules: self.target_modules.clone().unwrap_or_default(),
                feedforward_modules: self.feedforward_modules.clone().unwrap_or_default(),
            }));
        }
        let seed = train.seed;
        if self.peft_type == PeftType::PromptTuning {
            return Ok(self.prompt.config(seed, files)?.into());
        }
        if self.peft_type == PeftType::Adalora {
            let (given, default) = (&self.adalora, AdaLoraConfig::new(train.max_steps));
            return Ok(PeftConfig::AdaLora(AdaLoraConfig {
                init_r: given.init_r.unwrap_or(default.init_r),
                target_r: given.target_r.unwrap_or(default.target_r),
                tinit: given.tinit.unwrap_or(default.tinit),
                tfinal: given.tfinal.unwrap_or(default.tfinal),
                delta_t: given.delta_t.unwrap_or(default.delta_t),
                beta1: given.beta1.unwrap_or(default.beta1),
                beta2: given.beta2.unwrap_or(default.beta2),
                orth_reg_weight: given.orth_reg_weight.unwrap_or(default.orth_reg_weight),
                total_step: default.total_step,
                lora_alpha: self.lora_alpha.unwrap_or(default.lora_alpha),
                lora_dropout: self.lora_dropout.unwrap_or(default.lora_dropout),
                target_modules: self.target_modules.clone().unwrap_or(default.target_modules),
                seed,
            }));
        }
        let default = LoraConfig::default();
        Ok(PeftConfig::Lora(LoraConfig {
            r: self.lora_r.unwrap_or(default.r),
            lora_alpha: self.lora_alpha.unwrap_or(default.lora_alpha),
            lora_dropout: self.lora_dropout.unwrap_or(default.lora_dropout),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            target_modules: self.target_modules.clone().unwrap_or(default.target_modules),
            seed,
            ranks: default.ranks,
            alphas: default.alphas,
        }))
    }
}
