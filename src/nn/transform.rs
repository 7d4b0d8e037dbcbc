//! What a layer does to its input before the product, and to the product: the weight is stored for the transformed input.

use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{hadamard::Hadamard, permute},
};

/// A linear map T of a layer's input, `y = (x · Tᵀ) · Wᵀ`; it is orthogonal, so that its transpose undoes it, unless it was
/// fine-tuned. Some have another map U of the output: `y = ((x · Tᵀ) · Wᵀ) · U`.
#[derive(Clone)]
pub enum Transform {
    /// The columns in another order: those that share a scale lie side by side.
    Permute(Permutation),
    /// Incoherence processing (QuIP#, Tseng et al. 2024): the weight is stored as U · W · Tᵀ, whose numbers are all about
    /// as large.
    Hadamard {
        /// T, of the input's columns.
        input: Hadamard,
        /// U, of the output's columns.
        output: Hadamard,
    },
}

/// An order of columns and its inverse, on the device.
#[derive(Clone)]
pub struct Permutation {
    /// Position c of the permuted input holds column `order[c]`. [cols] u32
    order: Tensor,
    /// Column `order[c]` lies at position c. [cols] u32
    inverse: Tensor,
}

impl Permutation {
    /// Uploads an order. Errors: Config, with `name`, where it is no permutation; OutOfMemory.
    pub fn upload(gpu: &Gpu, name: &str, order: &[u32]) -> Result<Permutation> {
        let inverse = inverse(name, order)?;
        let tensor = |order: &[u32]| gpu.tensor(name, [order.len()], DType::U32, order);
        Ok(Permutation { order: tensor(order)?, inverse: tensor(&inverse)? })
    }

    /// The order: position c of the permuted input holds column `order[c]`. [cols] u32
    pub fn order(&self) -> &Tensor {
        &self.order
    }
}

/// The order that undoes `order`. Errors: Config where a column is missing or comes twice.
fn inverse(name: &str, order: &[u32]) -> Result<Vec<u32>> {
    let mut inverse = vec![u32::MAX; order.len()];
    for (position, &column) in order.iter().enumerate() {
        match inverse.get_mut(column as usize) {
            Some(slot) if *slot == u32::MAX => *slot = position as u32,
            _ => {
                let message = format!("position {position} holds column {column}: each of {} comes once", order.len());
                return Err(Error::config(name, message));
            }
        }
    }
    Ok(inverse)
}

impl Transform {
    /// x · Tᵀ
    ///
    /// x: [.., in] f32. Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value) -> Result<Value> {
        match self {
            Transform::Permute(permutation) => {
                let order = g.import(&permutation.order);
                permute::permute(g, x, &order)
            }
            Transform::Hadamard { input, .. } => input.forward(g, x),
        }
    }

    /// dz · T: the gradient of x from that of the transformed input.
    ///
    /// dz: [.., in] f32. Errors: Shape.
    pub fn backward(&self, g: &mut Graph, dz: &Value) -> Result<Value> {
        match self {
            Transform::Permute(permutation) => {
                let inverse = g.import(&permutation.inverse);
                permute::permute(g, dz, &inverse)
            }
            Transform::Hadamard { input, .. } => input.backward(g, dz),
        }
    }

    /// U, where the product is transformed too.
    pub(super) fn output(&self) -> Option<&Hadamard> {
        match self {
            Transform::Permute(_) => None,
            Transform::Hadamard { output, .. } => Some(output),
        }
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Transform::Permute(permutation) => permutation.order.bytes() + permutation.inverse.bytes(),
            Transform::Hadamard { input, output } => input.bytes() + output.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_undone_by_its_inverse_and_others_are_refused() {
        assert_eq!(inverse("g", &[2, 0, 3, 1]).unwrap(), [1, 3, 0, 2]);
        assert!(inverse("g", &[]).unwrap().is_empty());
        for order in [&[0, 0][..], &[0, 2], &[1]] {
            let message = inverse("layer.g_idx", order).unwrap_err().to_string();
            assert!(message.starts_with("layer.g_idx: position"), "{message}");
        }
    }
}
