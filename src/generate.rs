//! Text generation with a KV cache.

use crate::{
    DType, Error, Result,
    arch::RopeScaling,
    gpu::{Readback, Tensor},
    graph::{Graph, Pool, Program, Programs},
    kernels::{elementwise, sample},
    model::{Model, Ropes},
    nn::{Context, KvCache, Pass},
    ops::tune::tuned,
    random,
};
use std::{borrow::Borrow, ops::Range, sync::Once};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; above, logits are divided by it.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities add up to `top_p` are considered.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model chose this token of those that end generation.
    EndToken(u32),
    /// `max_new_tokens` were generated.
    MaxNewTokens,
    /// There is no room for a further token: the model has no more positions, or the generator no more capacity.
    Positions,
    /// Whoever takes the tokens wanted no more.
    Stopped,
}

impl Default for Sampling {
    /// Greedy, up to 256 tokens.
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 42, max_new_tokens: 256 }
    }
}

impl Sampling {
    fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::config("temperature", format!("expected 0 or more, got {}", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::config("top_p", format!("expected above 0 up to 1, got {}", self.top_p)));
        }
        Ok(())
    }

    /// The token at draw number `draw`.
    ///
    /// softmax(logits / temperature), cut to `top_k`, then to the smallest set with mass `top_p`, as transformers orders
    /// its filters. Equal logits keep the order of their ids.
    pub fn sample(&self, logits: &[f32], draw: u64) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.top_k > 0 && self.top_k < order.len() {
            order.select_nth_unstable_by(self.top_k - 1, by_logit);
            order.truncate(self.top_k);
        }
        order.sort_unstable_by(by_logit);
        let Some(&first) = order.first() else { return 0 };
        if self.temperature == 0.0 {
            return first;
        }
        let top = f64::from(logits[first as usize]);
        let weights: Vec<f64> = order
            .iter()
            .map(|&id| ((f64::from(logits[id as usize]) - top) / f64::from(self.temperature)).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0;
        let mut mass = 0.0;
        while kept < weights.len() && (kept == 0 || mass < f64::from(self.top_p) * total) {
            mass += weights[kept];
            kept += 1;
        }
        let mut left = random::nth(self.seed, draw) * mass;
        for (&id, weight) in order[..kept].iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        order[kept - 1]
    }
}

/// Prompt tokens are read in programs of at most this many.
const PREFILL: usize = 256;
/// Shorter reads are rounded up to multiples of this.
const PREFILL_BUCKET: usize = 32;

/// Generates with one model, with its adapter where one is attached, over one sequence at a time.
///
/// It owns, shares or borrows the model: `M` is [`Model`], `Arc<Model>` or `&Model`.
///
/// What it says is what the model says without a cache. Where a text grows past a length from which its rotary embedding turns all of it
/// otherwise, the keys so far carry rotations that are no more those of the text, and are computed anew: once at the border of
/// `longrope`, and at each token beyond that of `dynamic`, whose angles change with every length.
pub struct Generator<M> {
    model: M,
    /// Whether the adapter is passed over.
    base_only: bool,
    capacity: usize,
    /// Of prompt tuning, which stand in front of the sequence unless the adapter is passed over.
    virtual_tokens: Range<u32>,
    caches: Vec<KvCache>,
    ropes: Ropes,
    /// Tokens before the ones that a program reads. [1] u32
    position: Tensor,
    /// [vocab] f32
    logits: Tensor,
    /// The last program's likeliest token. [1] u32
    likeliest: Option<Tensor>,
    readback: Readback,
    /// By the number of tokens that they read, with or without the adapter.
    programs: Programs<(usize, bool), Reader>,
    /// The sequence, behind its virtual tokens.
    tokens: Vec<u32>,
    /// How many of its tokens the caches hold.
    filled: usize,
    finish: Finish,
}

/// A program that reads a number of tokens and leaves the logits after the last real one.
struct Reader {
    ids: Tensor,
    positions: Tensor,
    /// The last real token. [1] u32
    last: Tensor,
    /// [1] u32
    likeliest: Tensor,
    program: Program,
}

impl<M: Borrow<Model>> Generator<M> {
    /// A generator with room for `capacity` tokens, prompt included, beside those of prompt tuning. Errors: Config, also where the model has
    /// no position behind these; OutOfMemory.
    pub fn new(model: M, capacity: usize) -> Result<Generator<M>> {
        let borrowed: &Model = model.borrow();
        let gpu = borrowed.gpu();
        let virtual_tokens = borrowed.virtual_tokens();
        let (prompt, longest) = (virtual_tokens.len(), borrowed.arch.max_positions);
        if prompt >= longest {
            let message = format!("{prompt} leave no position of the model's {longest} for a text");
            return Err(Error::config("num_virtual_tokens", message));
        }
        let capacity = capacity.min(longest - prompt).max(1);
        let vocab = borrowed.arch.vocab_size;
        Ok(Generator {
            base_only: false,
            capacity,
            // The padding of the last read lands behind the sequence.
            caches: borrowed.kv_cache(prompt + capacity + PREFILL_BUCKET, PREFILL)?,
            ropes: borrowed.rope_tables(prompt + capacity)?,
            virtual_tokens,
            position: gpu.zeros("position", [1], DType::U32)?,
            logits: gpu.zeros("logits", [1, vocab], DType::F32)?,
            likeliest: None,
            readback: gpu.readback(4 * vocab as u64)?,
            programs: Programs::default(),
            tokens: Vec::new(),
            filled: 0,
            finish: Finish::MaxNewTokens,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.model.borrow()
    }

    /// Gives the model back.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Passes the model's adapter over from here on, or lets it take part again; where that changes something, the sequence is
    /// forgotten, since its keys and values are the other's.
    pub fn set_base_only(&mut self, base_only: bool) {
        if self.base_only != base_only {
            self.base_only = base_only;
            self.reset();
        }
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.tokens.clear();
        self.filled = 0;
    }

    /// Why the last [`Generator::generate`] ended.
    pub fn finish(&self) -> Finish {
        self.finish
    }

    /// Reads `prompt` after what was read before, then generates until a token of `stop`, `max_new_tokens`, or the end of
    /// the capacity. Each token is handed to `on_token` as it comes; it returns whether to go on. Stop tokens are not
    /// handed out. Where the device is asked to stop, what there is so far is the answer. Errors: Config for an empty or too long
    /// prompt or bad options; Interrupted while the prompt is read, which is then not part of the sequence; Device, DeviceLost.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        stop: &[u32],
        mut on_token: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Vec<u32>> {
        sampling.validate()?;
        let room = self.room();
        if prompt.is_empty() || prompt.len() > room {
            let message = format!("expected 1 to {room} tokens, got {}", prompt.len());
            return Err(Error::config("prompt", message));
        }
        let vocab = self.model().arch.vocab_size;
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::config("prompt", format!("token {id} is outside the vocabulary of {vocab}")));
        }
        self.extend(prompt)?;
        let mut out = Vec::new();
        self.finish = Finish::MaxNewTokens;
        for draw in 0..sampling.max_new_tokens {
            let id = self.next(sampling, draw as u64)?;
            if stop.contains(&id) {
                self.finish = Finish::EndToken(id);
                break;
            }
            out.push(id);
            if !on_token(id)? {
                self.finish = Finish::Stopped;
                break;
            }
            if self.room() == 0 {
                if draw + 1 < sampling.max_new_tokens {
                    self.finish = Finish::Positions;
                }
                break;
            }
            if draw + 1 < sampling.max_new_tokens {
                match self.extend(&[id]) {
                    Err(Error::Interrupted(_)) => {
                        self.finish = Finish::Stopped;
                        break;
                    }
                    read => read?,
                }
            }
        }
        Ok(out)
    }

    /// The virtual tokens in front of the sequence.
    fn prompt(&self) -> Range<u32> {
        if self.base_only { 0..0 } else { self.virtual_tokens.clone() }
    }

    /// How many tokens more it can hold.
    fn room(&self) -> usize {
        self.capacity - self.tokens.len().saturating_sub(self.prompt().len())
    }

    fn next(&mut self, sampling: &Sampling, draw: u64) -> Result<u32> {
        if let (true, Some(likeliest)) = (sampling.temperature == 0.0, &self.likeliest) {
            return Ok(self.readback.fetch::<u32>(likeliest)?[0]);
        }
        let logits: Vec<f32> = self.readback.fetch(&self.logits)?;
        Ok(sampling.sample(&logits, draw))
    }

    /// Appends tokens to the sequence, and reads what of it the caches do not hold. Where that fails, the sequence is as it was.
    fn extend(&mut self, tokens: &[u32]) -> Result<()> {
        let before = self.tokens.len();
        if before == 0 {
            self.tokens.extend(self.prompt());
        }
        self.tokens.extend_from_slice(tokens);
        let read = self.read_rest();
        if read.is_err() {
            self.tokens.truncate(before);
            // Rows of a window's cache may be those of tokens that are no more.
            if self.filled > before {
                self.filled = 0;
            }
        }
        read
    }

    fn read_rest(&mut self) -> Result<()> {
        if self.ropes.fit(self.tokens.len())? && self.filled > 0 {
            self.filled = 0;
            tell_of_rereading(self.model());
        }
        while self.filled < self.tokens.len() {
            let end = self.tokens.len().min(self.filled + PREFILL);
            let piece = self.tokens[self.filled..end].to_vec();
            self.read(&piece)?;
        }
        Ok(())
    }

    /// Runs the model over tokens and appends them to the caches.
    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        let width = if tokens.len() == 1 { 1 } else { tokens.len().next_multiple_of(PREFILL_BUCKET) };
        let last = (self.virtual_tokens.len() + self.capacity) as u32 - 1;
        let Generator { model, base_only, ropes, caches, position, logits, programs, filled, .. } = &mut *self;
        let shared =
            Shared { model: (*model).borrow(), base_only: *base_only, ropes: ropes.tables(), caches, position, logits };
        let reader = programs.get((width, *base_only), |pool| shared.record(width, pool))?;
        let mut ids = tokens.to_vec();
        ids.resize(width, 0);
        let positions: Vec<u32> = (0..width as u32).map(|i| (*filled as u32 + i).min(last)).collect();
        reader.ids.write(bytemuck::cast_slice(&ids))?;
        reader.positions.write(bytemuck::cast_slice(&positions))?;
        reader.last.write(bytemuck::cast_slice(&[tokens.len() as u32 - 1]))?;
        position.write(bytemuck::cast_slice(&[*filled as u32]))?;
        reader.program.run()?;
        self.likeliest = Some(reader.likeliest.clone());
        self.filled += tokens.len();
        Ok(())
    }
}

/// Says once what makes the generation slow.
fn tell_of_rereading(model: &Model) {
    static TOLD: Once = Once::new();
    if model.arch.ropes.iter().any(|rope| matches!(rope.scaling, RopeScaling::Dynamic { .. })) {
        TOLD.call_once(|| {
            log::warn!(
                "rope_type dynamic: beyond max_position_embeddings each token changes the rotations of all, so that the whole text is \
                 read again for each"
            );
        });
    }
}

/// What all programs of a generator read or write.
struct Shared<'a> {
    model: &'a Model,
    base_only: bool,
    ropes: &'a [Tensor],
    caches: &'a [KvCache],
    position: &'a Tensor,
    logits: &'a Tensor,
}

impl Shared<'_> {
    fn record(&self, width: usize, pool: &mut Pool) -> Result<Reader> {
        let model = self.model;
        let gpu = model.gpu();
        let u32s = |what: &str, len: usize| gpu.zeros(what, [len], DType::U32);
        let (ids, positions, last) = (u32s("token ids", width)?, u32s("positions", width)?, u32s("last token", 1)?);
        let record = || {
            let mut g = Graph::new(gpu);
            let position = g.import(self.position);
            let cx = Context {
                batch: 1,
                seq: width,
                positions: g.import(&positions),
                ropes: self.ropes.iter().map(|rope| g.import(rope)).collect(),
                pass: Pass { step: None, base_only: self.base_only },
            };
            let tokens = g.import(&ids);
            let mut hidden = model.hidden_cached(&mut g, &tokens, &cx, self.caches, &position)?;
            if width > 1 {
                let last = g.import(&last);
                hidden = elementwise::take_row(&mut g, &hidden, &last)?;
            }
            let logits = g.import(self.logits);
            model.logits_into(&mut g, &hidden, &logits)?;
            let likeliest = sample::argmax(&mut g, &logits)?;
            g.keep(&likeliest);
            Ok((g, likeliest))
        };
        let (g, likeliest) = tuned(gpu, record)?;
        let program = g.plan().build(pool)?;
        let likeliest = program.tensor(&likeliest)?;
        Ok(Reader { ids, positions, last, likeliest, program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: &Sampling, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for draw in 0..4000 {
            counts[sampling.sample(logits, draw) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampling::default().sample(&[1.0, 3.0, 3.0], 0), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 3.0f32.ln(), f32::MIN];
        let seen = counts(&Sampling { temperature: 1.0, ..Sampling::default() }, &logits);
        // 3000 expected, with a standard deviation of 27.
        assert!((2850..3150).contains(&seen[1]) && seen[2] == 0, "{seen:?}");
    }

    #[test]
    fn top_k_and_top_p_cut() {
        let logits = [1.0, 0.9, 0.8, -5.0];
        let seen = counts(&Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() }, &logits);
        assert!(seen[0] > 0 && seen[1] > 0 && seen[2] + seen[3] == 0);
        let seen = counts(&Sampling { temperature: 1.0, top_p: 0.3, ..Sampling::default() }, &logits);
        assert_eq!(seen[0], 4000);
    }

    #[test]
    fn bad_options_are_refused() {
        assert!(Sampling { temperature: -1.0, ..Sampling::default() }.validate().is_err());
        assert!(Sampling { top_p: 0.0, ..Sampling::default() }.validate().is_err());
    }
}
