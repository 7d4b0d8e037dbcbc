//! The causal language model: embedding, blocks, final norm, head and loss.

use super::{
    Config,
    block::{Block, Context, Saved},
};
use crate::{
    DType, Error, Result,
    adapter::{AdaptedLinear, Adapter, Chunk, LoraConfig, Qat, StepValues},
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{QuantizedTensor, attention::Attention, embedding, loss, product, rope::RopeTable},
    nn::RmsNorm,
};

/// A model in device memory: frozen weights in their storage schemes, and at most one adapter.
pub struct Model {
    /// Its shape.
    pub config: Config,
    /// [vocab, hidden]
    pub embedding: QuantizedTensor,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: RmsNorm,
    /// [vocab, hidden]; `None` where the embedding serves.
    pub head: Option<QuantizedTensor>,
    /// The adapter attached to the blocks.
    pub adapter: Option<Adapter>,
    /// Training through rounding, where the blocks are being trained so.
    pub qat: Option<Qat>,
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

/// Where a recording of the loss leaves its results.
pub struct LossValues<'a> {
    /// 1 / predicted tokens of the whole optimizer step. [1] f32
    pub scale: &'a Value,
    /// Sum of negative log-likelihoods, tokens predicted right, tokens predicted. [4] f32
    pub metrics: &'a Value,
    /// 0 where metrics are to be overwritten, 1 where they are added to. [1] f32
    pub accumulate: &'a Value,
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

    /// The head's weight.
    pub fn head(&self) -> &QuantizedTensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The linear layer of this name, such as `model.layers.0.self_attn.q_proj`.
    pub fn linear(&self, name: &str) -> Option<&AdaptedLinear> {
        self.blocks.iter().flat_map(|b| b.linears()).find(|linear| linear.name == name)
    }

    /// The weight of a norm or the bias of a linear layer of the blocks, by transformers' name. [width] f32
    pub fn vector(&self, name: &str) -> Option<&Tensor> {
        if let Some(linear) = name.strip_suffix(".bias") {
            return self.linear(linear)?.base.bias.as_ref();
        }
        let (layer, module) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let block = self.blocks.get(layer.parse::<usize>().ok()?)?;
        match module {
            "input_layernorm.weight" => Some(&block.input_norm.weight),
            "post_attention_layernorm.weight" => Some(&block.post_norm.weight),
            _ => None,
        }
    }

    /// Bytes of the frozen weights.
    pub fn weight_bytes(&self) -> u64 {
        let linears = self.blocks.iter().flat_map(|b| b.linears()).map(|l| l.base.bytes()).sum::<u64>();
        linears + self.embedding.bytes() + self.head.as_ref().map_or(0, |h| h.bytes())
    }

    /// The memory of all that is trained: the adapter's, and that of training through rounding.
    pub fn trained(&self) -> impl Iterator<Item = &Chunk> {
        let adapter = self.adapter.iter().flat_map(|adapter| &adapter.chunks);
        adapter.chain(self.qat.iter().flat_map(|qat| &qat.chunks))
    }

    /// Values that are trained, the padding between them left out.
    pub fn trained_parameters(&self) -> usize {
        let adapter = self.adapter.as_ref().map_or(0, Adapter::parameters);
        adapter + self.qat.as_ref().map_or(0, |qat| qat.parameters)
    }

    /// Attaches `adapter` in place of the one there is. Errors: Shape where a module does not fit, Config in
    /// quantization-aware training.
    pub fn attach(&mut self, adapter: Adapter) -> Result<()> {
        if self.qat.is_some() {
            return Err(Error::config(
                "adapter",
                "the model is trained through rounding; an adapter comes before add_qat",
            ));
        }
        self.detach();
        for linear in self.blocks.iter_mut().flat_map(|b| b.linears_mut()) {
            if let Some(pair) = adapter.get(&linear.name) {
                let (a, b) = (pair.a.shape(), pair.b.shape());
                if a[1] != linear.base.inputs() || b[0] != linear.base.outputs() {
                    let expected = format!("in {}, out {}", linear.base.inputs(), linear.base.outputs());
                    return Err(Error::shape(&linear.name, expected, format!("lora_A {a}, lora_B {b}")));
                }
                linear.lora = Some(pair.clone());
            }
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Attaches a new adapter, which changes nothing yet; `trainable` ones also get memory for gradients and moments.
    /// Errors: Config, OutOfMemory.
    pub fn add_adapter(&mut self, config: LoraConfig, trainable: bool) -> Result<()> {
        let layers = self.config.targets(&config)?;
        let adapter = Adapter::new(&self.gpu, config, &layers, trainable)?;
        self.attach(adapter)
    }

    /// Takes the adapter off; the base is as it was. In quantization-aware training it stays, since rounded weights hold it.
    pub fn detach(&mut self) -> Option<Adapter> {
        if self.qat.is_some() {
            return None;
        }
        for linear in self.blocks.iter_mut().flat_map(|b| b.linears_mut()) {
            linear.lora = None;
        }
        self.adapter.take()
    }

    /// Cosines and sines for positions below `positions`. Errors: OutOfMemory, Config where the model is shorter.
    pub fn rope_table(&self, positions: usize) -> Result<Tensor> {
        if positions > self.config.max_positions {
            let longest = self.config.max_positions;
            return Err(Error::config("max_seq_length", format!("{positions} is more than the model's {longest}")));
        }
        let c = &self.config;
        RopeTable::new(c.rope_theta, c.head_dim, &c.rope_scaling, positions)?.upload(&self.gpu)
    }

    /// The length of the longest of some samples of token ids. Errors: Config where there is none, or one has no token or one
    /// that the model does not know.
    pub(crate) fn check_samples(&self, samples: &[Vec<u32>]) -> Result<usize> {
        let refused = |message: String| Err(Error::config("calibration", message));
        let vocab = self.config.vocab_size;
        for (i, ids) in samples.iter().enumerate() {
            if ids.is_empty() {
                return refused(format!("sample {i} has no token"));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return refused(format!("sample {i} has token {id}; the model's vocabulary has {vocab}"));
            }
        }
        match samples.iter().map(Vec::len).max() {
            Some(longest) => Ok(longest),
            None => refused("a calibration text is needed, and there is no sample".to_owned()),
        }
    }

    /// The shape of this model's attention over `batch` rows of `seq` tokens; each block adds its own window.
    pub fn attention(&self, batch: usize, seq: usize) -> Attention {
        let c = &self.config;
        Attention {
            batch,
            seq,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: None,
        }
    }

    /// Records what all blocks share.
    pub fn context(&self, g: &mut Graph, inputs: &Inputs, rope: &Tensor, step: Option<StepValues>) -> Context {
        let (batch, seq) = (inputs.segments.shape()[0], inputs.segments.shape()[1]);
        Context {
            attention: self.attention(batch, seq),
            positions: g.import(&inputs.positions),
            segments: g.import(&inputs.segments),
            rope: g.import(rope),
            step,
        }
    }

    /// Embedding of `ids`. [tokens] -> [tokens, hidden]
    pub fn embed(&self, g: &mut Graph, ids: &Value) -> Result<Value> {
        embedding::embed(g, ids, &self.embedding)
    }

    /// The final norm's output, for inference. [tokens, hidden]
    pub fn hidden(&self, g: &mut Graph, inputs: &Inputs, cx: &Context) -> Result<Value> {
        let ids = g.import(&inputs.ids);
        let mut x = self.embed(g, &ids)?;
        for block in &self.blocks {
            x = block.forward(g, &x, cx)?.0;
        }
        Ok(self.norm.forward(g, &x)?.0)
    }

    /// Logits of all tokens. [tokens, vocab]: for inspection; training never holds them all.
    pub fn logits(&self, g: &mut Graph, hidden: &Value) -> Result<Value> {
        product::matmul(g, hidden, self.head(), None, None)
    }

    /// Records the loss of the hidden states without gradients. Errors: Shape.
    pub fn evaluate(&self, g: &mut Graph, inputs: &Inputs, cx: &Context, out: &LossValues<'_>) -> Result<()> {
        let hidden = self.hidden(g, inputs, cx)?;
        self.loss(g, &hidden, inputs, out, false).map(|_| ())
    }

    /// Records forward, loss and backward of one micro-batch. With `checkpointing` each block keeps only its input and is
    /// recorded again before its backward pass: the same gradients with less memory. Errors: Shape.
    pub fn train(
        &self,
        g: &mut Graph,
        inputs: &Inputs,
        cx: &Context,
        out: &LossValues<'_>,
        checkpointing: bool,
    ) -> Result<()> {
        let step = cx.step.as_ref().ok_or_else(|| Error::config("train", "the context has no training values"))?;
        let ids = g.import(&inputs.ids);
        let mut x = self.embed(g, &ids)?;
        let mut kept: Vec<Kept> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(g, &x, cx)?;
            kept.push(if checkpointing { Kept::Input(x) } else { Kept::All(Box::new(saved)) });
            x = y;
        }
        let (hidden, saved_norm) = self.norm.forward(g, &x)?;
        let dh = self.loss(g, &hidden, inputs, out, true)?.expect("gradients were asked for");
        let mut dy = self.norm.backward(g, &saved_norm, &dh, None)?;
        for (index, (block, kept)) in self.blocks.iter().zip(kept).enumerate().rev() {
            let saved = match kept {
                Kept::All(saved) => saved,
                Kept::Input(x) => Box::new(block.forward(g, &x, cx)?.1),
            };
            match block.backward(g, &saved, &dy, cx, step, index > 0)? {
                Some(dx) => dy = dx,
                None => break,
            }
        }
        Ok(())
    }

    /// Cross-entropy of `hidden` against the labels, chunk by chunk, and its gradient where asked.
    fn loss(
        &self,
        g: &mut Graph,
        hidden: &Value,
        inputs: &Inputs,
        out: &LossValues<'_>,
        gradient: bool,
    ) -> Result<Option<Value>> {
        let (tokens, _) = hidden.rows_cols();
        let labels = g.import(&inputs.labels);
        let losses = g.value([tokens, 2], DType::F32)?;
        let dh = if gradient { Some(g.value(hidden.shape().clone(), DType::F32)?) } else { None };
        let chunk = (LOGITS_BYTES / (4 * self.config.vocab_size) / 64 * 64).max(64);
        for start in (0..tokens).step_by(chunk) {
            let count = chunk.min(tokens - start);
            let h = g.rows(hidden, start, count)?;
            let logits = product::matmul(g, &h, self.head(), None, None)?;
            match &dh {
                None => loss::cross_entropy_losses(g, &logits, &labels, start, &losses)?,
                Some(dh) => {
                    loss::cross_entropy(g, &logits, &labels, start, out.scale, &losses)?;
                    let dh = g.rows(dh, start, count)?;
                    product::matmul_dx_into(g, &logits, self.head(), None, None, &dh)?;
                }
            }
        }
        loss::sum_losses(g, &losses, &labels, out.accumulate, out.metrics)?;
        Ok(dh)
    }
}

/// What a block leaves for its backward pass.
enum Kept {
    Input(Value),
    All(Box<Saved>),
}

/// Keys and values of one block, one row a token of the sequence.
pub struct KvCache {
    /// [capacity, kv_heads * head_dim]
    pub keys: Tensor,
    /// [capacity, kv_heads * head_dim]
    pub values: Tensor,
}

impl Model {
    /// An empty cache for `capacity` tokens, one entry a block. Errors: OutOfMemory.
    pub fn kv_cache(&self, capacity: usize) -> Result<Vec<KvCache>> {
        let width = self.config.kv_heads * self.config.head_dim;
        let zeros = |what| self.gpu.zeros(what, [capacity, width], DType::F32);
        self.blocks
            .iter()
            .map(|_| Ok(KvCache { keys: zeros("cached keys")?, values: zeros("cached values")? }))
            .collect()
    }

    /// Records the blocks over new tokens of one sequence (see [`Block::decode`]), and the final norm. Errors: Shape.
    pub fn decode(
        &self,
        g: &mut Graph,
        ids: &Value,
        cx: &Context,
        caches: &[KvCache],
        position: &Value,
    ) -> Result<Value> {
        let mut x = self.embed(g, ids)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            x = block.decode(g, &x, cx, cache, position)?;
        }
        Ok(self.norm.forward(g, &x)?.0)
    }
}
