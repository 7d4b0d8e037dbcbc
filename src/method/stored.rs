//! A model as it is stored, for reports.

use super::{Layer, LayerMethod};
use crate::{
    Error, Result,
    gpu::Gpu,
    model::{Block, LoadOptions, Model, Source},
    nn::Linear,
};
use std::cell::RefCell;

/// Chooses nothing: each layer is what the source holds, in its scheme and with its own rounding of inputs. With
/// [`PipelineOptions::report`](super::PipelineOptions::report) it reports what the rounding of a stored model's inputs costs; its
/// weights are compared with themselves.
pub struct Stored<'a> {
    source: &'a Source,
    block: RefCell<Option<Block>>,
}

impl<'a> Stored<'a> {
    /// Of the model that [`quantize_model`](super::quantize_model) is given.
    pub fn new(source: &'a Source) -> Stored<'a> {
        Stored { source, block: RefCell::new(None) }
    }
}

impl LayerMethod for Stored<'_> {
    fn name(&self) -> &'static str {
        "stored"
    }

    fn prepare(&self, gpu: &Gpu, number: usize, _: &Block) -> Result<()> {
        // The last block goes before the next one comes.
        self.block.replace(None);
        self.block.replace(Some(Model::load_block(gpu, self.source, number, &LoadOptions::default())?));
        Ok(())
    }

    fn quantize(&self, _gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let block = self.block.borrow();
        block
            .as_ref()
            .and_then(|block| Some(block.linear(layer.id)?.base.clone()))
            .ok_or_else(|| Error::config(layer.name, "the source has no such layer"))
    }
}
