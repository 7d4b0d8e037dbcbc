//! Loss and perplexity of texts and rows, and logits for comparison with other programs.

use crate::{
    DType, Error, Result,
    data::{Batch, Example, IGNORE},
    gpu::Tensor,
    graph::{Graph, Program, Programs},
    model::{BUCKET, Inputs, LossValues, Model, Ropes},
    nn::Pass,
    ops::tune::tuned,
};

/// The result of [`loss`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean negative log-likelihood of the predicted tokens.
    pub loss: f64,
    /// exp(loss)
    pub perplexity: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// [`loss`] over [`windows`] of a text. Errors: those of the two.
pub fn perplexity(
    model: &Model,
    ids: &[u32],
    window: usize,
    progress: impl FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    loss(model, &windows(ids, window)?, progress)
}

/// Independent windows of `window` tokens: each predicts all its tokens but the first. A last window with fewer than two tokens
/// is left out. Errors: Config for windows below 2 tokens, and for a text that has fewer.
pub fn windows(ids: &[u32], window: usize) -> Result<Vec<Example>> {
    if window < 2 {
        return Err(Error::config("window", format!("expected at least 2, got {window}")));
    }
    let parts = ids.chunks(window).filter(|part| part.len() >= 2);
    let windows: Vec<Example> = parts.map(|part| learned(part.to_vec(), 1)).collect();
    match windows.is_empty() {
        true => Err(Error::config("evaluate", "the text has fewer than two tokens")),
        false => Ok(windows),
    }
}

/// The windows whose perplexity llama.cpp's `llama-perplexity -c WINDOW` prints (b11549): `bos` takes the place of the first token of
/// each, where the vocabulary asks for one; the tokens after the middle one are predicted; what is left of the text is dropped.
/// `ids`: the text with `bos` in front. Errors: Config for windows below 3 tokens, and for a text shorter than two of them, as there.
pub fn llama_cpp_windows(ids: &[u32], window: usize, bos: Option<u32>) -> Result<Vec<Example>> {
    if window < 3 {
        return Err(Error::config("window", format!("expected at least 3 for halves of windows, got {window}")));
    }
    if ids.len() < 2 * window {
        let message = format!(
            "llama.cpp's convention needs a text of two windows, 2 x {window} tokens, got {}; give a longer one, or a smaller \
             `window`",
            ids.len()
        );
        return Err(Error::config("evaluate", message));
    }
    let one = |part: &[u32]| {
        let mut ids = part.to_vec();
        ids[0] = bos.unwrap_or(ids[0]);
        learned(ids, window / 2 + 1)
    };
    Ok(ids.chunks_exact(window).map(one).collect())
}

/// A sequence of which the tokens from `first` on are predicted.
fn learned(ids: Vec<u32>, first: usize) -> Example {
    let label = |(i, &id): (usize, &u32)| if i < first { IGNORE } else { id as i32 };
    let labels = ids.iter().enumerate().map(label).collect();
    Example { input_ids: ids, labels, attention_mask: None }
}

/// Mean loss over the labelled tokens of independent sequences: windows of a text, or rows of a
/// [`Dataset`](crate::data::Dataset). `progress` is called with the tokens done; its error ends the work. Errors: Config,
/// Shape, Device, DeviceLost.
pub fn loss(model: &Model, sequences: &[Example], mut progress: impl FnMut(usize) -> Result<()>) -> Result<Evaluation> {
    sequences.iter().try_for_each(|sequence| check_ids(model, &sequence.input_ids))?;
    // Behind virtual tokens the first one is predicted too.
    let first = usize::from(model.virtual_tokens().is_empty());
    let labels = sequences.iter().flat_map(|sequence| sequence.labels.iter().skip(first));
    let tokens = labels.filter(|&&label| label != IGNORE).count();
    if tokens == 0 {
        return Err(Error::config("evaluate", "no token is predicted: there is none, or every label is -100"));
    }
    let longest = sequences.iter().map(|sequence| sequence.input_ids.len()).max().unwrap_or(0);
    let mut runner = Runner::new(model, longest + model.virtual_tokens().len())?;
    let mut sum = 0.0;
    for sequence in sequences {
        sum += runner.loss(sequence)?;
        progress(sequence.input_ids.len())?;
    }
    let loss = sum / tokens as f64;
    if !loss.is_finite() {
        let message =
            format!("the loss is {loss}: the model has numbers that are not finite, or too large to compute with");
        return Err(Error::config("evaluate", message));
    }
    Ok(Evaluation { loss, perplexity: loss.exp(), tokens })
}

/// Logits of every position of one sequence, virtual tokens in front of it left out. [ids.len(), vocab] Errors: Shape where they exceed a binding, Device.
pub fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    check_ids(model, ids)?;
    let gpu = model.gpu();
    let prompt = model.virtual_tokens().len();
    let seq = (prompt + ids.len()).next_multiple_of(BUCKET);
    let inputs = Inputs::new(gpu, 1, seq)?;
    let ropes = model.rope_tables(prompt + ids.len())?;
    write(model, &inputs, &learned(ids.to_vec(), 1), seq)?;
    let mut g = Graph::new(gpu);
    let cx = model.context(&mut g, &inputs, &ropes, Pass::inference());
    let hidden = model.hidden(&mut g, &inputs, &cx)?;
    let logits = model.logits(&mut g, &hidden)?;
    g.keep(&logits);
    let mut all = g.run()?.read::<f32>(&logits)?;
    all.drain(..prompt * model.arch.vocab_size);
    all.truncate(ids.len() * model.arch.vocab_size);
    Ok(all)
}

fn check_ids(model: &Model, ids: &[u32]) -> Result<()> {
    let vocab = model.arch.vocab_size;
    match ids.iter().position(|&id| id as usize >= vocab) {
        None => Ok(()),
        Some(at) => {
            Err(Error::config("input ids", format!("token {at} is {}; the model's vocabulary has {vocab}", ids[at])))
        }
    }
}

/// Uploads one sequence behind the model's virtual tokens, padded to `seq`.
fn write(model: &Model, inputs: &Inputs, sequence: &Example, seq: usize) -> Result<()> {
    let batch = Batch::collate(&[sequence], 0).behind(model.virtual_tokens())?.padded_to(seq, 0)?;
    inputs.write(&batch.input_ids, &batch.position_ids, &batch.segment_ids, &batch.shifted_labels())
}

/// The loss of single sequences, one program per length.
struct Runner<'m> {
    model: &'m Model,
    ropes: Ropes,
    scale: Tensor,
    accumulate: Tensor,
    metrics: Tensor,
    programs: Programs<usize, (Inputs, Program)>,
}

impl<'m> Runner<'m> {
    fn new(model: &'m Model, longest: usize) -> Result<Runner<'m>> {
        let gpu = model.gpu();
        Ok(Runner {
            model,
            ropes: model.rope_tables(longest)?,
            scale: gpu.zeros("loss scale", [1], DType::F32)?,
            accumulate: gpu.zeros("accumulation flag", [1], DType::F32)?,
            metrics: gpu.zeros("metrics", [4], DType::F32)?,
            programs: Programs::default(),
        })
    }

    /// Sum of the negative log-likelihoods.
    fn loss(&mut self, sequence: &Example) -> Result<f64> {
        let tokens = self.model.virtual_tokens().len() + sequence.input_ids.len();
        let seq = tokens.next_multiple_of(BUCKET);
        let Runner { model, ropes, scale, accumulate, metrics, programs } = self;
        let (inputs, program) = programs.get(seq, |pool| {
            let inputs = Inputs::new(model.gpu(), 1, seq)?;
            let record = || {
                let mut g = Graph::new(model.gpu());
                let cx = model.context(&mut g, &inputs, ropes, Pass::inference());
                let [scale, accumulate, metrics] = [&*scale, &*accumulate, &*metrics].map(|t| g.import(t));
                let out = LossValues { scale: &scale, metrics: &metrics, accumulate: &accumulate, pairs: None };
                model.evaluate(&mut g, &inputs, &cx, &out)?;
                Ok(g)
            };
            let program = tuned(model.gpu(), record)?.plan().build(pool)?;
            Ok((inputs, program))
        })?;
        write(model, inputs, sequence, seq)?;
        ropes.fit(tokens)?;
        program.run()?;
        Ok(f64::from(self.metrics.read::<f32>()?[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_all_but_their_first_token() {
        let windows = windows(&[5, 6, 7, 8, 9, 10, 11], 3).unwrap();
        assert_eq!(windows.len(), 2, "a window of one token predicts nothing");
        assert_eq!(
            windows[1],
            Example { input_ids: vec![8, 9, 10], labels: vec![IGNORE, 9, 10], attention_mask: None }
        );
        assert!(super::windows(&[5], 3).is_err() && super::windows(&[5, 6], 1).is_err());
    }

    #[test]
    fn llama_cpp_predicts_what_follows_the_middle_of_whole_windows() {
        // n_ctx - n_ctx / 2 - 1 targets a window: two of 5 and of 6.
        let ids: Vec<u32> = (10..23).collect();
        let windows = llama_cpp_windows(&ids, 5, Some(1)).unwrap();
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[1].input_ids, [1, 16, 17, 18, 19]);
        assert_eq!(windows[1].labels, [IGNORE, IGNORE, IGNORE, 18, 19]);
        let windows = llama_cpp_windows(&ids, 6, None).unwrap();
        assert_eq!((windows[0].input_ids[0], windows[0].predicted()), (10, 2));
        let error = llama_cpp_windows(&ids, 7, None).unwrap_err().to_string();
        assert!(error.contains("2 x 7") && error.contains("13"), "{error}");
    }
}
