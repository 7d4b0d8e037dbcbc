//! What is trained, by name.

use super::{
    Chunk,
    chunk::{self, Training},
};
use crate::{
    DType, Result, Shape,
    gpu::{Gpu, Tensor},
    nn::Parameter,
};
use std::collections::HashMap;

/// Tensors that are trained, by name, and the flat arrays that they lie in.
///
/// The layers hold the same [`Parameter`]s: a backward pass writes gradients into the arrays, and an optimizer steps array by array.
#[derive(Default)]
pub struct Store {
    chunks: Vec<Chunk>,
    entries: Vec<(String, Parameter)>,
    places: HashMap<String, usize>,
    /// What training must remember beside them, by name.
    remembered: Vec<(String, Tensor)>,
}

impl Store {
    /// Zeros of these names and shapes; with `trainable` also their gradients and moments. `what` is for messages; `decays`: whether
    /// weight decay pulls them to 0. Errors: Shape for a tensor that one binding cannot hold, OutOfMemory.
    pub fn new(gpu: &Gpu, what: &str, shapes: &[(String, Shape)], trainable: bool, decays: bool) -> Result<Store> {
        let (chunks, parameters) = chunk::allocate(gpu, what, shapes, trainable, decays)?;
        let mut store = Store { chunks, ..Store::default() };
        for ((name, _), parameter) in shapes.iter().zip(parameters) {
            store.insert(name.clone(), parameter);
        }
        Ok(store)
    }

    /// Takes a tensor of a layer in, where it lies: an array of its own, with memory for its gradient and moments, trained at `rate`
    /// parts of the learning rate. Errors: OutOfMemory.
    pub fn adopt(&mut self, name: String, values: &Tensor, rate: f64) -> Result<Parameter> {
        let training = Training::new(values.gpu(), &name, values)?;
        let parameter = Parameter { values: values.clone(), grads: Some(training.grads.clone()) };
        self.chunks.push(Chunk { params: values.clone(), training: Some(training), decays: false, rate });
        self.insert(name, parameter.clone());
        Ok(parameter)
    }

    /// Takes in all that `other` holds.
    pub fn append(&mut self, other: Store) {
        self.chunks.extend(other.chunks);
        for (name, parameter) in other.entries {
            self.insert(name, parameter);
        }
        self.remembered.extend(other.remembered);
    }

    /// Memory for the sensitivity and uncertainty of each number that is trained. Errors: OutOfMemory.
    pub(crate) fn keep_importance(&mut self) -> Result<()> {
        for chunk in &mut self.chunks {
            let Chunk { params, training: Some(training), .. } = chunk else { continue };
            let zeros = |what: &str| params.gpu().zeros(what, params.shape().clone(), DType::F32);
            training.importance = Some([zeros("sensitivities")?, zeros("uncertainties")?]);
        }
        Ok(())
    }

    /// Takes in a tensor that is not trained, and goes into checkpoints.
    pub(crate) fn remember(&mut self, name: String, tensor: Tensor) {
        self.remembered.push((name, tensor));
    }

    /// A tensor that is remembered.
    pub(crate) fn remembered(&self, name: &str) -> Option<&Tensor> {
        self.remembered.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor)
    }

    /// The sensitivity and uncertainty of a tensor, where there is memory for them. Errors: Shape for one of another store.
    pub(crate) fn importance(&self, values: &Tensor) -> Result<Option<[Tensor; 2]>> {
        let Some(chunk) = self.chunks.iter().find(|chunk| chunk.params.contains(values)) else { return Ok(None) };
        let start = ((values.offset - chunk.params.offset) / DType::F32.size() as u64) as usize;
        let Some([s, u]) = chunk.training.as_ref().and_then(|t| t.importance.as_ref()) else { return Ok(None) };
        let view = |of: &Tensor| of.slice(start, values.shape().clone());
        Ok(Some([view(s)?, view(u)?]))
    }

    fn insert(&mut self, name: String, parameter: Parameter) {
        self.places.insert(name.clone(), self.entries.len());
        self.entries.push((name, parameter));
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.places.get(name).map(|&place| &self.entries[place].1)
    }

    /// All of them, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.entries.iter().map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// All that training changes, by name: of each tensor its values, and its moments where there is memory for them, as
    /// `NAME.exp_avg` and `NAME.exp_avg_sq`, under AdaLoRA `NAME.exp_avg_ipt` and `NAME.exp_avg_unc` too; and what is remembered. Errors: none but for a store whose tensors lie elsewhere.
    pub(crate) fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::with_capacity(3 * self.entries.len());
        for (name, Parameter { values, .. }) in &self.entries {
            all.push((name.clone(), values.clone()));
            let lies_in = |chunk: &&Chunk| chunk.params.contains(values);
            let Some(chunk) = self.chunks.iter().find(lies_in) else { continue };
            let start = ((values.offset - chunk.params.offset) / DType::F32.size() as u64) as usize;
            if let Some(Training { m, v, importance, .. }) = &chunk.training {
                let importance = importance.iter().flat_map(|[s, u]| [("exp_avg_ipt", s), ("exp_avg_unc", u)]);
                for (suffix, moments) in [("exp_avg", m), ("exp_avg_sq", v)].into_iter().chain(importance) {
                    all.push((format!("{name}.{suffix}"), moments.slice(start, values.shape().clone())?));
                }
            }
        }
        all.extend(self.remembered.iter().cloned());
        Ok(all)
    }

    /// The arrays that they lie in.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Values, the padding between tensors left out.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(|(_, parameter)| parameter.values.shape().len()).sum()
    }

    /// Bytes of the values and of all that training keeps for them.
    pub fn bytes(&self) -> u64 {
        let remembered = self.remembered.iter().map(|(_, tensor)| tensor.bytes()).sum::<u64>();
        self.chunks.iter().map(Chunk::bytes).sum::<u64>() + remembered
    }

    /// Whether gradients and moments are there.
    pub fn is_trainable(&self) -> bool {
        !self.is_empty() && self.chunks.iter().all(|chunk| chunk.training.is_some())
    }
}
