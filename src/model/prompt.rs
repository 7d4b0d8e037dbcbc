//! Virtual tokens: what stands in front of each text, and the gradients of what the blocks read.

use super::Model;
use crate::{
    DType, Error, Result,
    adapter::{PROMPT, PeftConfig, PromptInit},
    graph::{Graph, Value},
    kernels::{QuantizedTensor, elementwise, embedding},
    nn::Parameter,
    random::{Random, finish},
};
use std::ops::Range;

/// Where a part of the gradient of what the first block reads goes.
pub(super) struct InputGradient {
    /// [rows, hidden]
    pub grads: Value,
    /// The token of its first row.
    pub first: usize,
    /// What a row is multiplied by where it is read.
    pub factor: f32,
    /// Whether something of this micro-batch is there already.
    pub begun: bool,
}

impl Model {
    /// The ids of the virtual tokens that prompt tuning puts in front of each text, behind those of the vocabulary; none without it.
    /// Whoever records with [`Model::embed`] puts them there ([`Batch::behind`](crate::data::Batch::behind)).
    pub fn virtual_tokens(&self) -> Range<u32> {
        let first = self.embedding.shape()[0] as u32;
        let count = self.prompt().map_or(0, |prompt| prompt.values.shape()[0] as u32);
        first..first + count
    }

    /// Their embeddings. [virtual tokens, hidden]
    fn prompt(&self) -> Option<&Parameter> {
        match &self.adapter {
            Some(PeftConfig::PromptTuning(_)) => self.store.get(PROMPT),
            _ => None,
        }
    }

    /// Embedding of `ids`, among which may be [`Model::virtual_tokens`]. [tokens] -> [tokens, hidden]
    pub fn embed(&self, g: &mut Graph, ids: &Value) -> Result<Value> {
        let x = embedding::embed(g, ids, &self.embedding, self.arch.embedding_factor)?;
        if let Some(prompt) = self.prompt() {
            let (table, first) = (QuantizedTensor::of_floats(PROMPT, &prompt.values)?, self.embedding.shape()[0]);
            embedding::embed_beyond(g, ids, first, &table, self.arch.prompt_factor, &x)?;
        }
        Ok(x)
    }

    /// Where the gradient of what the first block reads goes, if somebody asks for it.
    pub(super) fn input_gradient(&self, g: &mut Graph) -> Option<InputGradient> {
        let Some(prompt) = self.prompt() else {
            let (grads, begun) = self.embedding_gradient(g)?;
            return Some(InputGradient { grads, first: 0, factor: self.arch.embedding_factor, begun });
        };
        let grads = g.import(prompt.grads.as_ref()?);
        let first = self.embedding.shape()[0];
        Some(InputGradient { grads, first, factor: self.arch.prompt_factor, begun: false })
    }

    /// Gives new virtual tokens the embeddings that they begin as, where those are of the vocabulary. Errors: Config for a text that has
    /// other tokens; Device.
    pub(super) fn begin_prompt(&self) -> Result<()> {
        let (Some(PeftConfig::PromptTuning(config)), Some(prompt)) = (&self.adapter, self.prompt()) else {
            return Ok(());
        };
        let [vocab, width] = self.embedding.shape();
        let count = config.num_virtual_tokens;
        let ids: Vec<u32> = match &config.prompt_tuning_init {
            PromptInit::Random => return Ok(()),
            PromptInit::SampleVocab => {
                let mut random = Random::new(finish(config.seed));
                (0..count).map(|_| (random.bits() % vocab as u64) as u32).collect()
            }
            PromptInit::Text(ids) => ids.iter().copied().cycle().take(count).collect(),
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            let message = format!("has token {id}; the model's vocabulary has {vocab}");
            return Err(Error::config("prompt_tuning_init_text", message));
        }
        if self.gpu.is_dry() {
            return Ok(());
        }
        let mut g = Graph::new(&self.gpu);
        let ids = g.import(&self.gpu.tensor("tokens of the text", [count], DType::U32, &ids)?);
        let out = g.import(&prompt.values.slice(0, [count, width])?);
        // A factor that virtual tokens get too comes when they are read.
        let factor = self.arch.embedding_factor;
        let factor = if factor == self.arch.prompt_factor { 1.0 } else { factor };
        let x = embedding::embed(&mut g, &ids, &self.embedding, factor)?;
        elementwise::assign(&mut g, &out, &x, 1.0)?;
        g.run().map(|_| ())
    }
}
