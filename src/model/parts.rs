//! A model put together of its parts, wherever they come from.

use super::{Block, Model};
use crate::{
    Result,
    adapter::Store,
    arch::{Architecture, AttentionSpec, LinearId, NormId, Role},
    gpu::{Gpu, Tensor},
    kernels::QuantizedTensor,
    nn::{Adapted, Attention, FeedForward, Linear, Parameter, Projections, RmsNorm},
};

/// Where the parts of a model come from.
pub(super) trait Parts {
    /// The device that they are made on.
    fn gpu(&self) -> &Gpu;

    /// The model's shape.
    fn arch(&self) -> &Architecture;

    /// The weight of a norm, or a bias. [len] f32
    fn vector(&self, role: Role, len: usize) -> Result<Tensor>;

    /// A linear layer of a block. shape: (out, in)
    fn linear(&self, role: Role, shape: [usize; 2], bias: Option<Tensor>) -> Result<Linear>;

    /// Embedding or head. shape: (vocab, hidden)
    fn table(&self, role: Role, shape: [usize; 2]) -> Result<QuantizedTensor>;

    /// The whole model.
    fn model(&self) -> Result<Model> {
        let mut model = self.without_blocks()?;
        model.blocks = (0..self.arch().blocks.len()).map(|number| self.block(number)).collect::<Result<_>>()?;
        Ok(model)
    }

    /// Embedding, head and final norm, and no block yet.
    fn without_blocks(&self) -> Result<Model> {
        let arch = self.arch();
        let table = [arch.vocab_size, arch.hidden_size];
        let embedding = self.table(Role::Embedding, table)?;
        let head = match arch.tie_embeddings {
            true => None,
            false => Some(self.table(Role::Head, table)?),
        };
        let norm = self.norm(Role::FinalNorm, arch.hidden_size)?;
        Ok(Model {
            arch: arch.clone(),
            embedding,
            blocks: Vec::new(),
            norm,
            head,
            adapter: None,
            qat: None,
            full: None,
            store: Store::default(),
            gpu: self.gpu().clone(),
        })
    }

    /// A block.
    fn block(&self, number: usize) -> Result<Block> {
        let spec = self.arch().blocks[number];
        let AttentionSpec { heads, kv_heads, head_dim, scale, soft_cap } = self.arch().attention;
        let norm = |id| self.arch().norm(id).map(|spec| self.norm(Role::Norm(number, id), spec.width)).transpose();
        let linear = |id| self.adapted(number, id);
        let (width, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv = match self.arch().linear(LinearId::Qkv) {
            Some(_) => Projections::fused(linear(LinearId::Qkv)?, [width, kv, kv]),
            None => Projections::apart([linear(LinearId::Q)?, linear(LinearId::K)?, linear(LinearId::V)?]),
        };
        let attention = Attention {
            qkv,
            o: linear(LinearId::O)?,
            q_norm: norm(NormId::Query)?,
            k_norm: norm(NormId::Key)?,
            heads,
            kv_heads,
            head_dim,
            scale,
            soft_cap,
            window: spec.window,
            rope: spec.rope,
        };
        let gate_up = match self.arch().linear(LinearId::GateUp) {
            Some(_) => Projections::fused(linear(LinearId::GateUp)?, [self.arch().intermediate_size; 2]),
            None => Projections::apart([linear(LinearId::Gate)?, linear(LinearId::Up)?]),
        };
        let feed_forward = FeedForward { gate_up, down: linear(LinearId::Down)?, activation: self.arch().activation };
        Ok(Block {
            attention_norm: norm(NormId::Attention)?,
            attention,
            after_attention_norm: norm(NormId::AfterAttention)?,
            feed_forward_norm: norm(NormId::FeedForward)?,
            feed_forward,
            after_feed_forward_norm: norm(NormId::AfterFeedForward)?,
            residual_factor: self.arch().residual_factor,
        })
    }

    fn norm(&self, role: Role, width: usize) -> Result<RmsNorm> {
        let weight = self.vector(role, width)?;
        Ok(RmsNorm { weight: Parameter::frozen(weight), offset: self.arch().norm_offset, eps: self.arch().norm_eps })
    }

    fn adapted(&self, block: usize, id: LinearId) -> Result<Adapted> {
        let arch = self.arch();
        let spec = arch.linear(id).expect("ids are those of the family");
        let bias = match spec.bias {
            true => Some(self.vector(Role::Bias(block, id), spec.shape[0])?),
            false => None,
        };
        let base = self.linear(Role::Weight(block, id), spec.shape, bias)?;
        Ok(Adapted::new(arch.module(block, id), base))
    }
}
