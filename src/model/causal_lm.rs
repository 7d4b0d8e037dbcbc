//! The causal language model: embedding, blocks, final norm, head and loss.

use super::{Block, Ropes, block::Saved, full::Full, prompt::InputGradient};
use crate::{
    DType, Error, Result,
    adapter::{PeftConfig, Qat, Store},
    arch::{Architecture, Role},
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{
        QuantizedTensor, dense, embedding, logits,
        loss::{self, Share},
        preference::{self, Comparison, Pairs},
        product,
    },
    nn::{Adapted, Context, Keys, KvCache, Parameter, Pass, RmsNorm},
};

/// A model in device memory: frozen weights in their storage schemes, and at most one adapter.
pub struct Model {
    /// Its shape.
    pub(crate) arch: Architecture,
    /// [vocab, hidden]
    pub(super) embedding: QuantizedTensor,
    /// The blocks.
    pub(crate) blocks: Vec<Block>,
    /// Before the head.
    pub(super) norm: RmsNorm,
    /// [vocab, hidden]; `None` where the embedding serves.
    pub(super) head: Option<QuantizedTensor>,
    /// The configuration of the adapter attached to the blocks.
    pub(super) adapter: Option<PeftConfig>,
    /// Training through rounding, where the blocks are being trained so.
    pub(super) qat: Option<Qat>,
    /// Full fine-tuning, where the weights themselves are trained.
    pub(super) full: Option<Full>,
    /// All that is trained; the layers hold the same tensors.
    pub(super) store: Store,
    pub(super) gpu: Gpu,
}

/// The inputs of a recording, in device memory; the host overwrites them before each run. Cloning shares the memory.
#[derive(Clone)]
pub struct Inputs {
    /// [tokens] u32
    pub ids: Tensor,
    /// [tokens] u32
    pub positions: Tensor,
    /// [batch, seq] u32; 0 is padding, the highest bit marks tokens that none attends to
    pub segments: Tensor,
    /// Shifted: the token that each position predicts, or -100. [tokens] i32
    pub labels: Tensor,
}

impl Inputs {
    /// Room for `batch` rows of `seq` tokens.
    pub fn new(gpu: &Gpu, batch: usize, seq: usize) -> Result<Inputs> {
        let tokens = batch * seq;
        Ok(Inputs {
            ids: gpu.zeros("token ids", [tokens], DType::U32)?,
            positions: gpu.zeros("positions", [tokens], DType::U32)?,
            segments: gpu.zeros("segments", [batch, seq], DType::U32)?,
            labels: gpu.zeros("labels", [tokens], DType::I32)?,
        })
    }

    /// Uploads rows of exactly this size; `labels` are shifted already. Errors: Shape.
    pub fn write(&self, ids: &[u32], positions: &[u32], segments: &[u32], labels: &[i32]) -> Result<()> {
        self.ids.write(bytemuck::cast_slice(ids))?;
        self.positions.write(bytemuck::cast_slice(positions))?;
        self.segments.write(bytemuck::cast_slice(segments))?;
        self.labels.write(bytemuck::cast_slice(labels))
    }
}

/// What the loss of a recording reads besides its inputs, and where it leaves its results.
pub struct LossValues<'a> {
    /// 1 / predicted tokens of the whole optimizer step; of pairs as [`preference::weigh`] has it. [1] or [2] f32
    pub scale: &'a Value,
    /// Sum of negative log-likelihoods, tokens predicted right, tokens predicted, [4]; of pairs as [`preference::weigh`] has it. f32
    pub metrics: &'a Value,
    /// 0 where metrics are to be overwritten, 1 where they are added to. [1] f32
    pub accumulate: &'a Value,
    /// Where the rows are pairs of answers.
    pub pairs: Option<PairValues<'a>>,
}

/// How pairs of answers are compared.
#[derive(Clone, Copy)]
pub struct PairValues<'a> {
    /// The loss.
    pub comparison: Comparison<'a>,
    /// 1 where a label is one of the answer, else 0. [tokens] f32
    pub answer: &'a Value,
}

/// Lengths are rounded up to multiples of this, so that few programs serve all rows.
pub const BUCKET: usize = 64;

/// Bytes of logits that are alive at once: the loss works through the tokens in chunks of this size.
const LOGITS_BYTES: usize = 32 << 20;

impl Model {
    /// The device that the model lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its shape.
    pub fn arch(&self) -> &Architecture {
        &self.arch
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The head's weight.
    pub fn head(&self) -> &QuantizedTensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// All linear layers of the blocks, in the model's order.
    pub fn linears(&self) -> impl Iterator<Item = &Adapted> {
        self.blocks.iter().flat_map(|block| block.linears().map(|(_, linear)| linear))
    }

    /// Calls `f` for each linear layer of the blocks, in the model's order. Errors: those of `f`.
    pub(super) fn for_each_linear(&mut self, mut f: impl FnMut(&mut Adapted) -> Result<()>) -> Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.for_each_linear(|_, linear| f(linear)))
    }

    /// The linear layer of this name, such as `model.layers.0.self_attn.q_proj`.
    pub fn linear(&self, name: &str) -> Option<&Adapted> {
        self.linears().find(|linear| linear.name == name)
    }

    /// The weight of a norm or the bias of a linear layer of the blocks, by transformers' name; the final norm's where full fine-tuning
    /// trains it. [width] f32
    pub fn vector(&self, name: &str) -> Option<&Tensor> {
        match self.arch.role(name)? {
            Role::Bias(block, id) => self.blocks.get(block)?.linear(id)?.base.bias.as_ref(),
            Role::Norm(block, id) => Some(&self.blocks.get(block)?.norm(id)?.weight.values),
            Role::FinalNorm => self.full.as_ref().map(|_| &self.norm.weight.values),
            Role::Embedding | Role::Head | Role::Weight(..) => None,
        }
    }

    /// Bytes of the frozen weights.
    pub fn weight_bytes(&self) -> u64 {
        let linears = self.linears().map(|l| l.base.bytes()).sum::<u64>();
        linears + self.embedding.bytes() + self.head.as_ref().map_or(0, |h| h.bytes())
    }

    /// All that is trained: an adapter's tensors, and those of training through rounding.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A tensor that is trained, by name: `model.layers.0.self_attn.q_proj.lora_B.weight`, or of training through rounding
    /// `….weight`, `….step`, `….input_step`.
    pub fn trained(&self, name: &str) -> Option<&Parameter> {
        self.store.get(name)
    }

    /// The configuration of the adapter that is attached.
    pub fn adapter(&self) -> Option<&PeftConfig> {
        self.adapter.as_ref()
    }

    /// Training through rounding, where the model is in it.
    pub fn qat(&self) -> Option<&Qat> {
        self.qat.as_ref()
    }

    /// Cosines and sines for positions below `positions`, one table for each of the model's rotary embeddings, as a text of that many
    /// tokens has them; where shorter ones are read too, [`Ropes::fit`] goes before each. Errors: OutOfMemory, Config where the model is
    /// shorter.
    pub fn rope_tables(&self, positions: usize) -> Result<Ropes> {
        if positions > self.arch.max_positions {
            let longest = self.arch.max_positions;
            return Err(Error::config("max_seq_length", format!("{positions} is more than the model's {longest}")));
        }
        Ropes::new(&self.gpu, &self.arch.ropes, positions)
    }

    /// Errors: Config where there is no sample of token ids, or one has no token or one that the model does not know.
    pub(crate) fn check_samples(&self, samples: &[Vec<u32>]) -> Result<()> {
        let refused = |message: String| Err(Error::config("calibration", message));
        let vocab = self.arch.vocab_size;
        for (i, ids) in samples.iter().enumerate() {
            if ids.is_empty() {
                return refused(format!("sample {i} has no token"));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return refused(format!("sample {i} has token {id}; the model's vocabulary has {vocab}"));
            }
        }
        match samples.is_empty() {
            true => refused("a calibration text is needed, and there is no sample".to_owned()),
            false => Ok(()),
        }
    }

    /// Records what all blocks share. ropes: of [`Model::rope_tables`].
    pub fn context(&self, g: &mut Graph, inputs: &Inputs, ropes: &Ropes, pass: Pass) -> Context {
        let (batch, seq) = (inputs.segments.shape()[0], inputs.segments.shape()[1]);
        let positions = g.import(&inputs.positions);
        Context { batch, seq, positions, ropes: ropes.tables().iter().map(|rope| g.import(rope)).collect(), pass }
    }

    /// The final norm's output, for inference. [tokens, hidden]
    pub fn hidden(&self, g: &mut Graph, inputs: &Inputs, cx: &Context) -> Result<Value> {
        let (ids, segments) = (g.import(&inputs.ids), g.import(&inputs.segments));
        let mut x = self.embed(g, &ids)?;
        for block in &self.blocks {
            x = block.forward(g, &x, cx, Keys::Own(&segments))?.0;
        }
        Ok(self.norm.forward(g, &x)?.0)
    }

    /// Logits of all tokens. [tokens, vocab]: for inspection; training never holds them all.
    pub fn logits(&self, g: &mut Graph, hidden: &Value) -> Result<Value> {
        let logits = product::matmul(g, hidden, self.head(), None, None, None)?;
        logits::shape(g, &logits, self.arch.logits)?;
        Ok(logits)
    }

    /// [`Model::logits`] into memory that is there. Errors: Shape.
    pub fn logits_into(&self, g: &mut Graph, hidden: &Value, logits: &Value) -> Result<()> {
        product::matmul_into(g, hidden, self.head(), None, None, None, logits)?;
        logits::shape(g, logits, self.arch.logits)
    }

    /// Records the loss of the hidden states without gradients. Errors: Shape.
    pub fn evaluate(&self, g: &mut Graph, inputs: &Inputs, cx: &Context, out: &LossValues<'_>) -> Result<()> {
        let hidden = self.hidden(g, inputs, cx)?;
        self.loss(g, &hidden, inputs, out, None)
    }

    /// Records forward, loss and backward of one micro-batch. The first `checkpointed` blocks keep only their inputs and are recorded again
    /// before their backward pass: the same gradients with less memory. Those are the first, since what the others keep is free again by
    /// then. Errors: Shape.
    pub fn train(
        &self,
        g: &mut Graph,
        inputs: &Inputs,
        cx: &Context,
        out: &LossValues<'_>,
        checkpointed: usize,
    ) -> Result<()> {
        let accumulate = cx.pass.training_step()?.accumulate.clone();
        let first = self.first_trained();
        let (ids, segments) = (g.import(&inputs.ids), g.import(&inputs.segments));
        let mut x = self.embed(g, &ids)?;
        let mut kept: Vec<Kept> = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, saved) = block.forward(g, &x, cx, Keys::Own(&segments))?;
            kept.push(if index < checkpointed { Kept::Input(x) } else { Kept::All(Box::new(saved)) });
            x = y;
        }
        let (hidden, saved_norm) = self.norm.forward(g, &x)?;
        let dh = g.value(hidden.shape().clone(), DType::F32)?;
        self.loss(g, &hidden, inputs, out, Some(&dh))?;
        let mut dy = self.norm.backward(g, &saved_norm, &dh, None, cx)?;
        let input = self.input_gradient(g);
        for (index, (block, kept)) in self.blocks.iter().zip(kept).enumerate().skip(first).rev() {
            let saved = match kept {
                Kept::All(saved) => saved,
                Kept::Input(x) => Box::new(block.forward(g, &x, cx, Keys::Own(&segments))?.1),
            };
            match index == first && input.is_none() {
                true => block.gradients(g, &saved, &dy, cx)?,
                false => dy = block.backward(g, &saved, &dy, cx)?,
            }
        }
        match input {
            // A table that is the head too has that gradient already.
            Some(InputGradient { grads, first, factor, begun }) => {
                embedding::embed_backward(g, &ids, first, &dy, factor, &grads, (!begun).then_some(&accumulate))
            }
            None => Ok(()),
        }
    }

    /// Cross-entropy of `hidden` against the labels, chunk by chunk, and its gradient where there is room for it.
    fn loss(
        &self,
        g: &mut Graph,
        hidden: &Value,
        inputs: &Inputs,
        out: &LossValues<'_>,
        gradient: Option<&Value>,
    ) -> Result<()> {
        let (tokens, _) = hidden.rows_cols();
        let labels = g.import(&inputs.labels);
        let losses = g.value([tokens, 2], DType::F32)?;
        let Some(pairs) = out.pairs else {
            let gradient = gradient.map(|dh| (dh, Share::All(out.scale)));
            self.losses(g, hidden, &labels, &losses, gradient, out.accumulate)?;
            return loss::sum_losses(g, &losses, &labels, out.accumulate, out.metrics);
        };
        // What a token counts for depends on all tokens of its pair.
        self.losses(g, hidden, &labels, &losses, None, out.accumulate)?;
        let seq = inputs.segments.shape()[1];
        let tokens = Pairs { labels: &labels, answer: pairs.answer, losses: &losses, seq };
        let shares = preference::weigh(g, pairs.comparison, &tokens, out.scale, out.accumulate, out.metrics)?;
        match gradient {
            None => Ok(()),
            Some(dh) => self.losses(g, hidden, &labels, &losses, Some((dh, Share::Each(&shares))), out.accumulate),
        }
    }

    /// The loss of each token, chunk by chunk, and its gradient where there is room for it, with that of the head where it is trained.
    /// losses: [tokens, 2]
    fn losses(
        &self,
        g: &mut Graph,
        hidden: &Value,
        labels: &Value,
        losses: &Value,
        gradient: Option<(&Value, Share<'_>)>,
        accumulate: &Value,
    ) -> Result<()> {
        // The gradient of the head, where it is trained, is begun by the first chunk.
        let head = match gradient.and_then(|_| self.head_gradient(g)) {
            Some(grads) => {
                let one = g.gpu().tensor("one", [1], DType::F32, &[1.0f32])?;
                Some((grads, g.import(&one)))
            }
            None => None,
        };
        let (tokens, _) = hidden.rows_cols();
        let chunk = (LOGITS_BYTES / (4 * self.arch.vocab_size) / 64 * 64).max(64);
        for start in (0..tokens).step_by(chunk) {
            let count = chunk.min(tokens - start);
            let h = g.rows(hidden, start, count)?;
            let logits = product::matmul(g, &h, self.head(), None, None, None)?;
            match gradient {
                None => loss::cross_entropy_losses(g, &logits, self.arch.logits, labels, start, losses)?,
                Some((dh, share)) => {
                    loss::cross_entropy(g, &logits, self.arch.logits, labels, start, share, losses)?;
                    if let Some((grads, one)) = &head {
                        dense::xt_w_into(g, &logits, &h, 1.0, grads, if start == 0 { accumulate } else { one })?;
                    }
                    let dh = g.rows(dh, start, count)?;
                    product::matmul_dx_into(g, &logits, self.head(), None, None, &dh)?;
                }
            }
        }
        Ok(())
    }
}

/// What a block leaves for its backward pass.
enum Kept {
    Input(Value),
    All(Box<Saved>),
}

impl Model {
    /// An empty cache for `capacity` tokens of one sequence, one entry per block. Of a block with a window it holds the window, and
    /// room for `ahead` tokens that are read at once. Errors: OutOfMemory.
    pub fn kv_cache(&self, capacity: usize, ahead: usize) -> Result<Vec<KvCache>> {
        let width = self.arch.attention.kv_heads * self.arch.attention.head_dim;
        let cache = |block: &Block| {
            let rows = block.attention.window.map_or(capacity, |window| capacity.min(window.saturating_add(ahead)));
            let zeros = |what| self.gpu.zeros(what, [rows, width], DType::F32);
            Ok(KvCache { keys: zeros("cached keys")?, values: zeros("cached values")? })
        };
        self.blocks.iter().map(cache).collect()
    }

    /// The final norm's output over new tokens of one sequence, whose keys and values are added to `caches`. `position`: [1] u32, the
    /// tokens before them. Errors: Shape.
    pub fn hidden_cached(
        &self,
        g: &mut Graph,
        ids: &Value,
        cx: &Context,
        caches: &[KvCache],
        position: &Value,
    ) -> Result<Value> {
        let mut x = self.embed(g, ids)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            x = block.forward(g, &x, cx, Keys::Cache { cache, position })?.0;
        }
        Ok(self.norm.forward(g, &x)?.0)
    }
}
