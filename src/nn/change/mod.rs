//! What training changes of a linear layer: nothing, or one of these. A new kind is one file and one line in each `match` here.

mod adalora;
mod codebooks;
mod dora;
mod ia3;
mod lora;
mod rounded;
mod signs;
mod weight;

pub use adalora::AdaLora;
pub use codebooks::Codebooks;
pub use dora::Dora;
pub(crate) use dora::weight_alone;
pub use ia3::Ia3;
pub use lora::Lora;
pub use rounded::{Float, Latent, Merged};
pub use signs::Signs;
pub use weight::Weight;

use super::{Linear, Parameter, Pass, StepValues, adapted::Saved};
use crate::{
    Error, Result,
    graph::{Graph, Value},
};

/// How a layer differs from its frozen base.
#[derive(Default)]
pub enum Change {
    /// Not at all.
    #[default]
    None,
    /// A low-rank update beside the base.
    Lora(Lora),
    /// A low-rank update of the directions of the weight's rows, and a magnitude for each.
    Dora(Dora),
    /// A low-rank update with singular values, ranks of which are taken away while it learns.
    AdaLora(AdaLora),
    /// A vector that scales the output, or the input.
    Ia3(Ia3),
    /// The base's weight is the rounding of one in floats that is trained (quantization-aware training).
    Rounded(Latent),
    /// The base's weight, in f32, is trained itself.
    Weight(Weight),
    /// The code books and row scales of AQLM's weight are trained.
    Codebooks(Codebooks),
    /// The signs of a weight between two Hadamard transforms are trained as real numbers (QuIP#).
    Signs(Signs),
}

/// What a change keeps of the forward pass.
#[derive(Default)]
pub(super) struct Kept {
    /// drop(x) · Aᵀ of a low-rank update. [tokens, r]
    pub xa: Option<Value>,
    /// What a trained vector scaled: of DoRA the product with the update's unit rows, of IA3 the layer's output,
    /// [tokens, out]; of AdaLoRA `xa` times the singular values, [tokens, r].
    pub product: Option<Value>,
}

impl Change {
    /// The low-rank pair beside the base, where that is the change.
    pub fn lora(&self) -> Option<&Lora> {
        match self {
            Change::Lora(lora) => Some(lora),
            _ => None,
        }
    }

    /// What is trained through rounding, where that is the change.
    pub fn rounded(&self) -> Option<&Latent> {
        match self {
            Change::Rounded(latent) => Some(latent),
            _ => None,
        }
    }

    /// DoRA's update, where that is the change.
    pub fn dora(&self) -> Option<&Dora> {
        match self {
            Change::Dora(dora) => Some(dora),
            _ => None,
        }
    }

    /// Whether nothing is changed, so that nothing is trained.
    pub fn is_none(&self) -> bool {
        matches!(self, Change::None)
    }

    /// Whether the base is left as it was, so that a pass without the change has a meaning.
    fn leaves_base(&self) -> bool {
        matches!(self, Change::None | Change::Lora(_) | Change::Dora(_) | Change::AdaLora(_) | Change::Ia3(_))
    }

    /// y, plus `add`, and what the change keeps for the backward pass. Errors: as [`super::Adapted::forward`].
    pub(super) fn forward(
        &self,
        g: &mut Graph,
        name: &str,
        base: &Linear,
        x: &Value,
        add: Option<&Value>,
        pass: &Pass,
    ) -> Result<(Value, Kept)> {
        if pass.base_only && !self.leaves_base() {
            return Err(Error::config(name, "its own weight is trained, so that there is no base without the change"));
        }
        match self {
            Change::Lora(lora) if !pass.base_only => {
                let (y, xa) = lora.forward(g, base, x, add, pass.step.as_ref())?;
                Ok((y, Kept { xa: Some(xa), product: None }))
            }
            Change::Dora(dora) if !pass.base_only => dora.forward(g, base, x, add, pass.step.as_ref()),
            Change::AdaLora(ada) if !pass.base_only => ada.forward(g, base, x, add, pass.step.as_ref()),
            Change::Ia3(ia3) if !pass.base_only => ia3.forward(g, base, x, add),
            _ => Ok((base.forward(g, x, None, add)?, Kept::default())),
        }
    }

    /// dx, plus `add`, and the gradients of what is trained. Errors: Shape.
    pub(super) fn backward(
        &self,
        g: &mut Graph,
        base: &Linear,
        saved: &Saved,
        dy: &Value,
        add: Option<&Value>,
        step: &StepValues,
    ) -> Result<Value> {
        let (x, Kept { xa, product }) = (&saved.x, &saved.kept);
        match (self, xa, product) {
            (Change::Lora(lora), Some(xa), _) => lora.backward(g, base, (x, xa), dy, add, step),
            (Change::Dora(dora), Some(xa), Some(product)) => dora.backward(g, base, (x, xa, product), dy, add, step),
            (Change::AdaLora(ada), Some(xa), Some(product)) => ada.backward(g, base, (x, xa, product), dy, add, step),
            (Change::Ia3(ia3), _, product) => ia3.backward(g, base, (x, product.as_ref()), dy, add, step),
            (Change::Rounded(latent), ..) => latent.backward(g, base, x, dy, add, &step.accumulate),
            _ => {
                self.gradients(g, base, saved, dy, step)?;
                base.backward(g, dy, None, add)
            }
        }
    }

    /// The gradients of what is trained. Errors: Shape.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        base: &Linear,
        saved: &Saved,
        dy: &Value,
        step: &StepValues,
    ) -> Result<()> {
        let (x, Kept { xa, product }) = (&saved.x, &saved.kept);
        match (self, xa, product) {
            (Change::Lora(lora), Some(xa), _) => lora.gradients(g, (x, xa), dy, step).map(|_| ()),
            (Change::Dora(dora), Some(xa), Some(product)) => dora.gradients(g, (x, xa, product), dy, step),
            (Change::AdaLora(ada), Some(xa), Some(product)) => ada.gradients(g, (x, xa, product), dy, step).map(|_| ()),
            (Change::None | Change::Lora(_) | Change::Dora(_) | Change::AdaLora(_), ..) => Ok(()),
            (Change::Ia3(ia3), _, product) => ia3.gradients(g, base, (x, product.as_ref()), dy, step),
            (Change::Rounded(latent), ..) => latent.gradients(g, base, x, dy, &step.accumulate),
            (Change::Weight(weight), ..) => weight.gradients(g, x, dy, &step.accumulate),
            (Change::Codebooks(books), ..) => books.gradients(g, x, dy, &step.accumulate),
            (Change::Signs(signs), ..) => signs.gradients(g, x, dy, &step.accumulate),
        }
    }
}
