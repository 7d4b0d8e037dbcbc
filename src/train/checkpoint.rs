//! Checkpoints: folders `checkpoint-N` from which a run goes on as if it had never stopped.
//!
//! | file | contents |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter as PEFT reads it, where one is trained beside the model |
//! | `optimizer.safetensors` | all that is trained: values, and moments as `NAME.exp_avg` and `NAME.exp_avg_sq` |
//! | `trainer_state.json` | the records, in transformers' shape |
//! | `run.json` | what run it is, its place in the data, and steps that no record covers yet |
//!
//! Nothing else is needed: the learning rate follows from the step, the order of the rows from seed and place, and each mask of
//! dropout from seed and step.

use super::{Course, StepMetrics, TrainConfig, trainer::Taken};
use crate::{
    DType, Error, Result,
    adapter::Store,
    arch::HEAD,
    data::DataLoader,
    format::{
        atomic, manifest, read_json,
        safetensors::{Safetensors, TensorSpec, Writer},
    },
    gpu::Tensor,
    model::Model,
    nn::{Change, Float},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const PREFIX: &str = "checkpoint-";
const TENSORS: &str = "optimizer.safetensors";
const RUN: &str = "run.json";

/// `run.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct Progress {
    /// The version that wrote it.
    pub fourbit: String,
    /// Steps and tokens.
    pub taken: Taken,
    /// Rows delivered ([`DataLoader::position`]).
    pub position: u64,
    /// Steps since the last record.
    pub unrecorded: Vec<StepMetrics>,
    /// The loss of each step.
    pub course: Course,
    /// Which of several kernels that compute the same it took, where they were measured.
    #[serde(default)]
    pub choices: BTreeMap<String, String>,
    /// What run it is: see [`identity`].
    pub run: Value,
}

impl Progress {
    /// Errors: Io, Format, also where a checkpoint has no such file.
    pub(super) fn read(checkpoint: &Path) -> Result<Progress> {
        manifest::check(checkpoint)?;
        read_json(checkpoint.join(RUN))
    }

    /// Errors: Io.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        atomic::write_json(folder.join(RUN), self)
    }
}

/// The checkpoints in an output folder, by step. Errors: Io.
pub fn checkpoints(output: impl AsRef<Path>) -> Result<Vec<(usize, PathBuf)>> {
    let output = output.as_ref();
    if !output.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(output).map_err(Error::io(output))? {
        let entry = entry.map_err(Error::io(output))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|step| step.parse().ok());
        if let Some(step) = step.filter(|_| entry.path().is_dir()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The folder of the checkpoint after `step`.
pub(super) fn folder(output: &Path, step: usize) -> PathBuf {
    output.join(format!("{PREFIX}{step}"))
}

/// Removes the oldest checkpoints, so that `keep` are left. Errors: Io.
pub(super) fn rotate(output: &Path, keep: usize) -> Result<()> {
    let all = checkpoints(output)?;
    let old = all.len().saturating_sub(keep);
    all[..old].iter().try_for_each(|(_, folder)| atomic::remove_folder(folder))
}

/// Writes values and moments, one tensor at a time. Errors: Io, Device.
pub(super) fn write_tensors(store: &Store, folder: &Path) -> Result<()> {
    let tensors = store.state()?;
    let specs = tensors.iter().map(|(name, tensor)| TensorSpec::new(name, DType::F32, tensor.shape().dims()));
    let mut file = Writer::create(folder.join(TENSORS), specs.collect())?;
    for (name, tensor) in &tensors {
        file.write(name, bytemuck::cast_slice(&tensor.read::<f32>()?))?;
    }
    file.finish()
}

/// Reads values and moments back. Nothing is overwritten unless all are there. Errors: Io, Format, MissingTensor, Shape.
pub(super) fn read_tensors(store: &Store, folder: &Path) -> Result<()> {
    let file = Safetensors::open(folder.join(TENSORS))?;
    let tensors = store.state()?;
    let of = |(name, tensor): &(String, Tensor)| file.get(name)?.expect_shape(tensor.shape().dims());
    tensors.iter().try_for_each(|tensor| of(tensor).map(|_| ()))?;
    if let Some(other) = file.names().find(|name| !tensors.iter().any(|(known, _)| known == name)) {
        return Err(Error::format(file.path(), format!("holds {other}, which this run does not train")));
    }
    tensors.iter().try_for_each(|tensor| tensor.1.write(bytemuck::cast_slice(&of(tensor)?.to_f32()?)))
}

/// What may differ between a checkpoint's run and the one that goes on: how long it is, and when it gives up.
pub(super) const FREE: [&str; 2] = ["training.max_steps", "training.max_bad_steps"];

/// All that decides what a run's steps give: see [`crate::run`].
///
/// Weights are told apart by their first codes and scales. Errors: Device.
pub(super) fn identity(model: &Model, training: &TrainConfig, loader: &DataLoader) -> Result<Value> {
    let mut weights = blake3::Hasher::new();
    // What is trained changes with the run; what it began from is in the checkpoint.
    if model.trained_table(HEAD).is_none() {
        weights.update(&model.head().head_bytes()?);
    }
    for linear in model.linears() {
        if matches!(linear.change, Change::Weight(_)) {
            continue;
        }
        let frozen = match linear.change.rounded().map(|latent| &latent.float) {
            None | Some(Float::Fixed) => &linear.base.weight,
            Some(Float::Merged(merged)) => &merged.frozen,
            Some(Float::Whole(_)) => continue,
        };
        weights.update(&frozen.head_bytes()?);
    }
    let schemes: std::collections::BTreeSet<String> =
        model.linears().map(|linear| linear.base.weight.scheme().to_string()).collect();
    Ok(json!({
        "training": training,
        "adapter": model.adapter(),
        "full": model.full(),
        "qat": model.qat().map(|qat| format!("{:?}", qat.config)),
        "quantization": schemes,
        "weights": weights.finalize().to_hex().as_str(),
        "data": loader.identity(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_found_by_step_and_the_oldest_go() {
        let output = tempfile::tempdir().unwrap();
        for name in ["checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-x", "other-1"] {
            fs::create_dir(output.path().join(name)).unwrap();
        }
        fs::write(output.path().join("checkpoint-7"), "a file").unwrap();
        let steps = || checkpoints(output.path()).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(steps(), [9, 10, 100]);
        rotate(output.path(), 2).unwrap();
        assert_eq!(steps(), [10, 100]);
        rotate(output.path(), 5).unwrap();
        assert_eq!(steps(), [10, 100]);
        assert!(output.path().join("other-1").is_dir() && output.path().join("checkpoint-x").is_dir());
        assert!(checkpoints(output.path().join("absent")).unwrap().is_empty());
    }
}
