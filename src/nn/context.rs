//! What the layers of a recording share.

use super::KvCache;
use crate::{Error, Result, graph::Value};

/// How layers are recorded: for inference or for a training step, with what was changed of the base or without.
#[derive(Default)]
pub struct Pass {
    /// Training's values; `None` in inference.
    pub step: Option<StepValues>,
    /// Whether adapters are passed over, so that the base alone speaks.
    pub base_only: bool,
}

/// What a training step hands to its layers, in device memory because it changes every step.
pub struct StepValues {
    /// Seed and step, the key of all dropout masks; `None`: nothing is dropped. [2] u32
    pub seed: Option<Value>,
    /// 0 in the first micro-batch of an optimizer step, 1 in the others: old gradients are multiplied by it. [1] f32
    pub accumulate: Value,
}

impl Pass {
    /// Inference.
    pub fn inference() -> Pass {
        Pass::default()
    }

    /// A training step.
    pub fn training(step: StepValues) -> Pass {
        Pass { step: Some(step), base_only: false }
    }

    /// The values of the training step. Errors: Config in inference.
    pub fn training_step(&self) -> Result<&StepValues> {
        self.step.as_ref().ok_or_else(|| Error::config("backward", "the recording has no training step"))
    }
}

/// What all blocks share in one recording.
pub struct Context {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Position of each token. [tokens] u32
    pub positions: Value,
    /// Cosines and sines, one table for each rotary embedding of the model. [positions, rotary_dim]
    pub ropes: Vec<Value>,
    /// How it is recorded.
    pub pass: Pass,
}

/// Whose keys and values the queries of a recording see.
#[derive(Clone, Copy)]
pub enum Keys<'a> {
    /// The recording's own: tokens see each other where their segments are equal and not 0. [batch, seq] u32
    Own(&'a Value),
    /// Those of one sequence so far, to which the recording's are added.
    Cache {
        /// The block's.
        cache: &'a KvCache,
        /// Tokens before those of the recording. [1] u32
        position: &'a Value,
    },
}
