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
    /// `NAME.exp_avg` and `NAME.exp_avg_sq`. Errors: none but for a store whose tensors lie elsewhere.
    pub(crate) fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::with_capacity(3 * self.entries.len());
        for (name, Parameter { values, .. }) in &self.entries {
            all.push((name.clone(), values.clone()));
            let lies_in = |chunk: &&Chunk| chunk.params.contains(values);
            let Some(chunk) = self.chunks.iter().find(lies_in) else { continue };
            let start = ((values.offset - chunk.params.offset) / DType::F32.size() as u64) as usize;
            if let Some(Training { m, v, .. }) = &chunk.training {
                for (suffix, moments) in [("exp_avg", m), ("exp_avg_sq", v)] {
                    all.push((format!("{name}.{suffix}"), moments.slice(start, values.shape().clone())?));
                }
            }
        }
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
        self.chunks.iter().map(Chunk::bytes).sum()
    }

    /// Whether gradients and moments are there.
    pub fn is_trainable(&self) -> bool {
        !self.is_empty() && self.chunks.iter().all(|chunk| chunk.training.is_some())
    }
}
