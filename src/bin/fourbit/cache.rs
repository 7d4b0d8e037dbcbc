//! What is kept for later runs in the user's cache folder: compiled pipelines, and choices among kernels that were measured.

use crate::output::note;
use fourbit::{
    Error, Result,
    format::{atomic, choices::KernelChoices},
    gpu::Gpu,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long `--tune quick` measures in all.
const QUICK: Duration = Duration::from_secs(10);

/// How kernels are chosen among those that compute the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tune {
    /// By a table that is the same everywhere
    #[default]
    Off,
    /// By measuring each product when it first comes up, for ten seconds in all; what was measured is kept for later runs
    Quick,
}

/// Options about it.
#[derive(clap::Args)]
pub struct TuneArgs {
    /// How kernels are chosen among those that compute the same
    #[arg(long, global = true, value_enum, default_value_t = Tune::Off)]
    tune: Tune,
    /// Repeat the choices that a run with --tune quick left in its kernels.json: the same seed then gives the same bits
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "tune")]
    tune_from: Option<PathBuf>,
}

/// The cache folder: FOURBIT_CACHE_DIR, by default that of the system; none where the variable is empty.
fn folder() -> Option<PathBuf> {
    match std::env::var_os("FOURBIT_CACHE_DIR") {
        Some(folder) if folder.is_empty() => None,
        Some(folder) => Some(folder.into()),
        None => dirs::cache_dir().map(|folder| folder.join("fourbit")),
    }
}

/// The choices made on a device.
pub fn choices(gpu: &Gpu) -> KernelChoices {
    KernelChoices::new(&gpu.caps().name, &gpu.caps().driver, gpu.choices().all())
}

fn choices_file(folder: &Path, gpu: &Gpu) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    folder.join(format!("kernels-{}.json", gpu.caps().name.chars().map(plain).collect::<String>()))
}

impl TuneArgs {
    /// Whether products are measured when they first come up.
    pub fn is_quick(&self) -> bool {
        self.tune == Tune::Quick
    }

    /// Hands what is kept to a device that was opened. Errors: Io, Format for --tune-from; Device.
    pub fn begin(&self, gpu: &Gpu) -> Result<()> {
        let folder = folder();
        if let (Some(folder), Some(key)) = (&folder, gpu.pipeline_cache_key()) {
            // Without one, the cache begins empty.
            gpu.load_pipeline_cache(&fs::read(folder.join(key)).unwrap_or_default())?;
        }
        if let Some(file) = &self.tune_from {
            let file = KernelChoices::read(file)?;
            if !file.are_of(&choices(gpu)) {
                let KernelChoices { fourbit, adapter, driver, .. } = &file;
                note(format_args!("--tune-from: measured by fourbit {fourbit} on {adapter} ({driver})"));
            }
            gpu.choices().repeat(&file.choices);
        }
        if self.is_quick() {
            let kept = folder.map(|folder| choices_file(&folder, gpu)).filter(|file| file.exists());
            match kept.map(KernelChoices::read).transpose() {
                Ok(Some(kept)) if kept.are_of(&choices(gpu)) => gpu.choices().repeat(&kept.choices),
                Ok(_) => {}
                Err(error) => note(format_args!("what was measured before is not used: {error}")),
            }
            gpu.choices().measure_for(QUICK);
        }
        Ok(())
    }

    /// Keeps what is new. A cache that cannot be written costs time, not results.
    pub fn end(&self, gpu: &Gpu) {
        let Some(folder) = folder() else { return };
        let keep = || -> Result<()> {
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            if let (Some(key), Some(bytes)) = (gpu.pipeline_cache_key(), gpu.pipeline_cache()?) {
                let file = folder.join(key);
                if fs::metadata(&file).map_or(0, |data| data.len()) != bytes.len() as u64 {
                    atomic::write(&file, bytes)?;
                }
            }
            match self.tune {
                Tune::Quick => {
                    let (mut all, file) = (choices(gpu), choices_file(&folder, gpu));
                    // A run that went on from a checkpoint has the choices of that alone.
                    if let Some(kept) = KernelChoices::read(&file).ok().filter(|kept| kept.are_of(&all)) {
                        all.choices = kept.choices.into_iter().chain(all.choices).collect();
                    }
                    all.write(file)
                }
                Tune::Off => Ok(()),
            }
        };
        if let Err(error) = keep() {
            log::warn!("nothing is kept for later runs: {error}");
        }
    }
}
