//! The memory of what is trained: all values in few flat arrays, so that the optimizer needs few dispatches.

use crate::{
    DType, Error, Result, Shape,
    gpu::{Gpu, Tensor},
    nn::Parameter,
};

/// A flat range of parameters with everything the optimizer keeps for it. All f32, all of one length.
pub struct Chunk {
    /// Values.
    pub params: Tensor,
    /// Gradients and AdamW's two moments; none in inference.
    pub training: Option<Training>,
    /// Whether weight decay pulls the values to 0: not where they are steps of a grid.
    pub decays: bool,
    /// The learning rate of these values, in parts of that of the run.
    pub rate: f64,
}

/// What training keeps for a [`Chunk`].
pub struct Training {
    /// Gradients.
    pub grads: Tensor,
    /// First moments.
    pub m: Tensor,
    /// Second moments.
    pub v: Tensor,
    /// Of what AdaLoRA allocates ranks by: sensitivity and uncertainty of each number.
    pub importance: Option<[Tensor; 2]>,
}

impl Chunk {
    /// Bytes of the values, and of all that training keeps for them.
    pub fn bytes(&self) -> u64 {
        let importance = |t: &Training| t.importance.iter().flatten().map(Tensor::bytes).sum::<u64>();
        let training = |t: &Training| t.grads.bytes() + t.m.bytes() + t.v.bytes() + importance(t);
        self.params.bytes() + self.training.as_ref().map_or(0, training)
    }
}

/// Room for tensors of these shapes, zeros at first, and the chunks they lie in. `what` and each tensor's name are for
/// messages. Errors: Shape for a tensor that one binding cannot hold; OutOfMemory.
pub(super) fn allocate(
    gpu: &Gpu,
    what: &str,
    shapes: &[(String, Shape)],
    trainable: bool,
    decays: bool,
) -> Result<(Vec<Chunk>, Vec<Parameter>)> {
    let (places, lengths) = lay_out(gpu, what, shapes)?;
    let chunks =
        lengths.iter().map(|&len| Chunk::new(gpu, what, len, trainable, decays)).collect::<Result<Vec<_>>>()?;
    let mut all = Vec::with_capacity(shapes.len());
    for (&(chunk, start), (_, shape)) in places.iter().zip(shapes) {
        let view = |of: &Tensor| of.slice(start, shape.clone());
        let Chunk { params, training, .. } = &chunks[chunk];
        all.push(Parameter {
            values: view(params)?,
            grads: training.as_ref().map(|training| view(&training.grads)).transpose()?,
        });
    }
    Ok((chunks, all))
}

impl Chunk {
    fn new(gpu: &Gpu, what: &str, len: usize, trainable: bool, decays: bool) -> Result<Chunk> {
        let params = gpu.zeros(what, [len], DType::F32)?;
        let training = trainable.then(|| Training::new(gpu, what, &params)).transpose()?;
        Ok(Chunk { params, training, decays, rate: 1.0 })
    }
}

impl Training {
    /// Zeros of the shape of `params`. Errors: OutOfMemory.
    pub(super) fn new(gpu: &Gpu, what: &str, params: &Tensor) -> Result<Training> {
        let zeros = |part: &str| gpu.zeros(part, params.shape().clone(), DType::F32);
        Ok(Training {
            grads: zeros(&format!("gradients of {what}"))?,
            m: zeros("first moments")?,
            v: zeros("second moments")?,
            importance: None,
        })
    }
}

/// (chunk, first element) of a tensor.
type Place = (usize, usize);

/// Places every tensor, aligned for binding, in chunks that one binding can hold; and the chunks' lengths.
fn lay_out(gpu: &Gpu, what: &str, shapes: &[(String, Shape)]) -> Result<(Vec<Place>, Vec<usize>)> {
    let align = gpu.caps().offset_alignment as usize / 4;
    let most = (gpu.caps().max_binding.min(gpu.caps().max_buffer) / 4) as usize / align * align;
    let mut places = Vec::with_capacity(shapes.len());
    let mut lengths: Vec<usize> = Vec::new();
    for (name, shape) in shapes {
        let len = shape.checked_len().and_then(|len| len.checked_next_multiple_of(align)).unwrap_or(usize::MAX);
        if len > most {
            let expected = format!("{what} of at most {} bytes a tensor on this device", 4 * most);
            return Err(Error::shape(name, expected, format!("{shape} f32")));
        }
        if lengths.last().is_none_or(|&used| used + len > most) {
            lengths.push(0);
        }
        let chunk = lengths.len() - 1;
        places.push((chunk, lengths[chunk]));
        lengths[chunk] += len;
    }
    Ok((places, lengths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    #[test]
    fn tensors_lie_aligned_in_chunks_that_can_be_bound() {
        let gpu = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
        let most = gpu.caps().max_binding as usize / 4;
        let shapes = [[3, 5], [1, 1], [most / 4, 3], [most / 4, 2]].map(|s| ("w".to_owned(), Shape::from(s)));
        let (chunks, all) = allocate(&gpu, "weights", &shapes, true, true).unwrap();
        assert_eq!(chunks.len(), 2);
        let align = gpu.caps().offset_alignment;
        for (trained, (_, shape)) in all.iter().zip(&shapes) {
            assert_eq!(trained.values.shape(), shape);
            assert!(trained.values.offset.is_multiple_of(align));
            assert_eq!(trained.grads.as_ref().unwrap().offset, trained.values.offset);
        }
        assert_eq!(all[1].values.offset, align, "behind the first, whose 15 elements are filled up");
        let wide = [("model.layers.0.mlp.up_proj".to_owned(), Shape::from([most, 2]))];
        let message = allocate(&gpu, "weights", &wide, true, true).err().unwrap().to_string();
        assert!(message.starts_with("model.layers.0.mlp.up_proj: expected weights of at most"), "{message}");
        assert!(allocate(&gpu, "weights", &[], true, true).unwrap().0.is_empty());
    }
}
