//! `fourbit adapter`

use crate::args::Global;
use fourbit::{
    Error, Result,
    format::{Claim, atomic::AtomicFolder, manifest::Set, peft},
    model::{Combination, combine_adapters},
};
use serde_json::json;
use std::path::PathBuf;

/// Make one adapter of several
///
/// Files alone: no model and no device are needed.
#[derive(clap::Args)]
pub struct Adapter {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Combine(Combine),
}

/// The weighted sum of LoRA adapters of one model, as PEFT's add_weighted_adapter makes it
///
/// `fourbit adapter combine --adapter pirate=0.7 --adapter polite=0.3 --output both`
#[derive(clap::Args)]
struct Combine {
    /// An adapter folder and its weight, which is 1 where none is given and may be below 0; several times
    #[arg(long, value_name = "DIR[=WEIGHT]", required = true, value_parser = weighted)]
    adapter: Vec<(PathBuf, f64)>,
    /// How updates become one
    #[arg(long, value_enum, default_value_t = Kind::Cat)]
    combination_type: Kind,
    /// Rank of the result with svd [default: the largest of the adapters]
    #[arg(long, value_name = "R")]
    svd_rank: Option<usize>,
    /// Folder for the adapter
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// The exact sum: ranks are added up
    Cat,
    /// Sums of the factors, of adapters of one rank: not the sum of the updates
    Linear,
    /// What the largest singular values hold of the exact sum
    Svd,
}

fn weighted(text: &str) -> Result<(PathBuf, f64), String> {
    let Some((folder, weight)) = text.rsplit_once('=') else { return Ok((text.into(), 1.0)) };
    let weight: f64 = weight.parse().map_err(|_| format!("expected DIR or DIR=WEIGHT, got {text}"))?;
    Ok((folder.into(), weight))
}

impl Adapter {
    pub fn run(&self, global: &Global) -> Result<()> {
        match &self.command {
            Command::Combine(combine) => combine.run(global),
        }
    }
}

impl Combine {
    fn run(&self, global: &Global) -> Result<()> {
        if self.svd_rank.is_some() && self.combination_type != Kind::Svd {
            return Err(Error::config("--svd-rank", "goes with --combination-type svd alone"));
        }
        let combination = match self.combination_type {
            Kind::Cat => Combination::Cat,
            Kind::Linear => Combination::Linear,
            Kind::Svd => Combination::Svd(self.svd_rank),
        };
        let _claim = Claim::of(&self.output)?;
        let open = |(folder, weight): &(PathBuf, f64)| Ok((peft::Adapter::open(folder)?, *weight));
        let adapters = self.adapter.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (config, tensors) = combine_adapters(&adapters, combination)?;
        let files = AtomicFolder::create(&self.output, Set::Adapter)?;
        peft::save(files.folder(), &config, &tensors)?;
        files.commit()?;
        let (rank, layers) = (config.lora().map_or(0, |lora| lora.r), tensors.len() / 2);
        let out = global.output();
        out.line(format_args!("adapter: {} ({layers} layers of rank {rank})", self.output.display()));
        out.result(&json!({"output": self.output.display().to_string(), "layers": layers, "r": rank}));
        Ok(())
    }
}
