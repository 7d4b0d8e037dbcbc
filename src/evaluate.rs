//! Perplexity of a text, and logits for comparison with other programs.

use crate::{
    DType, Error, Result,
    gpu::Tensor,
    graph::{Graph, Pool, Program},
    model::{BUCKET, Inputs, LossValues, Model},
};

/// The result of [`perplexity`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean negative log-likelihood of the predicted tokens.
    pub loss: f64,
    /// exp(loss)
    pub perplexity: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// Mean loss over independent windows of `window` tokens: each predicts all its tokens but the first. A last window with
/// fewer than two tokens is left out. `progress` is told the tokens done. Errors: Config, Shape, Device, DeviceLost.
pub fn perplexity(model: &Model, ids: &[u32], window: usize, mut progress: impl FnMut(usize)) -> Result<Evaluation> {
    if window < 2 {
        return Err(Error::config("max_seq_length", format!("expected at least 2, got {window}")));
    }
    check_ids(model, ids)?;
    let windows: Vec<&[u32]> = ids.chunks(window).filter(|w| w.len() >= 2).collect();
    let longest = windows.iter().map(|w| w.len()).max().unwrap_or(0);
    if longest == 0 {
        return Err(Error::config("evaluate", "the text has fewer than two tokens"));
    }
    let mut runner = Runner::new(model, longest)?;
    let (mut sum, mut tokens) = (0.0, 0);
    for window in windows {
        sum += runner.loss(window)?;
        tokens += window.len() - 1;
        progress(window.len());
    }
    let loss = sum / tokens as f64;
    Ok(Evaluation { loss, perplexity: loss.exp(), tokens })
}

/// Logits of every position of one sequence. [ids.len(), vocab] Errors: Shape where they exceed a binding, Device.
pub fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    check_ids(model, ids)?;
    let gpu = model.gpu();
    let seq = ids.len().next_multiple_of(BUCKET);
    let inputs = Inputs::new(gpu, 1, seq)?;
    let rope = model.rope_table(ids.len())?;
    write(&inputs, ids, seq)?;
    let mut g = Graph::new(gpu);
    let cx = model.context(&mut g, &inputs, &rope, None);
    let hidden = model.hidden(&mut g, &inputs, &cx)?;
    let logits = model.logits(&mut g, &hidden)?;
    g.keep(&logits);
    let mut all = g.run()?.read::<f32>(&logits)?;
    all.truncate(ids.len() * model.config.vocab_size);
    Ok(all)
}

fn check_ids(model: &Model, ids: &[u32]) -> Result<()> {
    let vocab = model.config.vocab_size;
    match ids.iter().position(|&id| id as usize >= vocab) {
        None => Ok(()),
        Some(at) => {
            Err(Error::config("input ids", format!("token {at} is {}; the model's vocabulary has {vocab}", ids[at])))
        }
    }
}

/// Uploads one sequence, padded to `seq`.
fn write(inputs: &Inputs, ids: &[u32], seq: usize) -> Result<()> {
    let pad = |values: &mut Vec<u32>| values.resize(seq, 0);
    let mut padded = ids.to_vec();
    let mut positions: Vec<u32> = (0..ids.len() as u32).collect();
    let mut segments = vec![1; ids.len()];
    pad(&mut padded);
    pad(&mut positions);
    pad(&mut segments);
    let mut labels: Vec<i32> = ids[1..].iter().map(|&id| id as i32).collect();
    labels.resize(seq, crate::data::IGNORE);
    inputs.write(&padded, &positions, &segments, &labels)
}

/// The loss of single sequences, one program a length.
struct Runner<'m> {
    model: &'m Model,
    rope: Tensor,
    scale: Tensor,
    accumulate: Tensor,
    metrics: Tensor,
    pool: Pool,
    programs: Vec<(usize, Inputs, Program)>,
}

impl<'m> Runner<'m> {
    fn new(model: &'m Model, longest: usize) -> Result<Runner<'m>> {
        let gpu = model.gpu();
        Ok(Runner {
            model,
            rope: model.rope_table(longest)?,
            scale: gpu.zeros("loss scale", [1], DType::F32)?,
            accumulate: gpu.zeros("accumulation flag", [1], DType::F32)?,
            metrics: gpu.zeros("metrics", [4], DType::F32)?,
            pool: Pool::default(),
            programs: Vec::new(),
        })
    }

    /// Sum of the negative log-likelihoods.
    fn loss(&mut self, ids: &[u32]) -> Result<f64> {
        let seq = ids.len().next_multiple_of(BUCKET);
        let index = match self.programs.iter().position(|(s, _, _)| *s == seq) {
            Some(index) => index,
            None => {
                self.record(seq)?;
                self.programs.len() - 1
            }
        };
        let (_, inputs, program) = &mut self.programs[index];
        write(inputs, ids, seq)?;
        program.run()?;
        Ok(f64::from(self.metrics.read::<f32>()?[0]))
    }

    fn record(&mut self, seq: usize) -> Result<()> {
        let inputs = Inputs::new(self.model.gpu(), 1, seq)?;
        let mut g = Graph::new(self.model.gpu());
        let cx = self.model.context(&mut g, &inputs, &self.rope, None);
        let (scale, accumulate) = (g.import(&self.scale), g.import(&self.accumulate));
        let metrics = g.import(&self.metrics);
        let out = LossValues { scale: &scale, metrics: &metrics, accumulate: &accumulate };
        self.model.evaluate(&mut g, &inputs, &cx, &out)?;
        let program = g.plan().build(&mut self.pool)?;
        self.programs.push((seq, inputs, program));
        Ok(())
    }
}
