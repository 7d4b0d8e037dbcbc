//! Quantized weights as other tools keep them in safetensors files: which tensors make one up, what they say, and how to
//! write them.
//!
//! | layout | tensors of a module `X` | numbers |
//! |---|---|---|
//! | [`Bitsandbytes`] 4-bit | `X.weight` and `X.weight.*` | NF4, FP4 |
//! | [`Bitsandbytes`] LLM.int8 | `X.weight`, `X.SCB` | 8-bit rows |
//! | [`Gptq`] | `X.qweight`, `X.qzeros`, `X.scales`, `X.g_idx` | 2, 3, 4, 8 bits in groups |
//! | [`Awq`] | `X.qweight`, `X.qzeros`, `X.scales` | 4 bits in groups |
//! | [`Hqq`] | `X.W_q`, `X.scale`, `X.zero` and settings | 2, 3, 4, 8 bits in groups |
//! | [`Aqlm`] | `X.codes`, `X.codebooks`, `X.scales` | two code books of 256 vectors |
//! | [`Quip`], fourbit's own | `X.Qidxs`, `X.SU`, `X.SV`, `X.Wscale` | E8P between Hadamard transforms |
//! | [`CompressedTensors`] | `X.weight_packed` or `X.weight`, `X.weight_scale` and more | 2 to 8 bits |
//!
//! Most are affine integers, [`Scheme::Int`]: codes are taken over bit for bit, and scales as they are where
//! they are halves, else as f32. Where a file asks to round activations too (W8A8, LLM.int8), [`Checkpoint::rounding`] says
//! so.

use super::fields::{Fields, MAX_EXTENT};
use super::{
    TensorView, Weights, aqlm, awq, bitsandbytes, compressed_tensors, gptq, hqq, plain, quip, safetensors::TensorSpec,
};
use crate::quant::{BlockSize, Packed, Scheme, bytes_to_words, hadamard};
use crate::{DType, Error, Result};
use serde_json::Value;
use std::{borrow::Cow, fmt::Debug, path::Path};

pub use {
    aqlm::Aqlm, awq::Awq, bitsandbytes::Bitsandbytes, compressed_tensors::CompressedTensors, gptq::Gptq, hqq::Hqq,
    plain::Plain, quip::Quip,
};

/// Names and bytes of the tensors that make up one weight.
pub type Parts<'a> = Vec<(String, Cow<'a, [u8]>)>;

/// What a quantized weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// How its numbers are stored.
    pub scheme: Scheme,
    /// (out, in)
    pub shape: [usize; 2],
    /// What they were before, or what its scales are where the file does not say.
    pub dtype: DType,
}

/// How a layer rounds its input to 8 bits before the product, where a file says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounding {
    /// One scale per token, from its largest magnitude.
    Dynamic,
    /// This scale for all.
    Static(f32),
    /// LLM.int8(): as [`Rounding::Dynamic`], but columns with a magnitude of at least `threshold` are left as they are.
    LlmInt8 {
        /// The paper's is 6.
        threshold: f32,
    },
}

/// The basis in which a weight is stored, where it is not its own: the layer puts its input into it, and its output back.
#[derive(Clone, Debug, PartialEq)]
pub enum Basis {
    /// Columns in another order, where those that share a scale do not lie side by side (GPTQ's act-order): position p holds
    /// column `order[p]`.
    Order(Vec<u32>),
    /// U · W · Tᵀ between the transforms of [`crate::quant::hadamard`] (QuIP#), by what each column of the input, and of the
    /// output, is multiplied by: signs, or the numbers that fine-tuning made of them.
    Hadamard {
        /// Of T. `[in]`
        input: Vec<f32>,
        /// Of U. `[out]`
        output: Vec<f32>,
    },
}

impl Basis {
    /// The weight in its own basis, from one in this.
    ///
    /// values: `[rows * cols]`. Errors: Unsupported for extents that no transform has.
    pub fn undo(&self, values: &mut Vec<f32>, [rows, cols]: [usize; 2]) -> Result<()> {
        match self {
            Basis::Order(order) => {
                let mut row = vec![0.0; cols];
                for values in values.chunks_exact_mut(cols.max(1)) {
                    values.iter().zip(order).for_each(|(&value, &column)| row[column as usize] = value);
                    values.copy_from_slice(&row);
                }
            }
            Basis::Hadamard { input, output } => {
                hadamard::undo(values, input)?;
                *values = transposed(values, cols);
                hadamard::undo(values, output)?;
                *values = transposed(values, rows);
            }
        }
        Ok(())
    }

    /// The error of a layout that has no room for it.
    pub(super) fn refused_by(&self, layout: &str) -> Error {
        let got = match self {
            Basis::Order(_) => "columns in another order",
            Basis::Hadamard { .. } => "weights between Hadamard transforms",
        };
        Error::unsupported(format!("weights in the {layout} layout"), got, "those in their own basis")
    }
}

/// Rows of `cols` numbers to columns.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}

/// A layout of quantized weights. `name` is that of the weight in a model that is not quantized: `X.weight`.
pub trait Checkpoint: Debug + Send + Sync {
    /// Whether the weight `name` is there in this layout.
    fn is_quantized(&self, weights: &Weights, name: &str) -> bool;

    /// What a weight is, from what is small in the file. Errors: as [`Checkpoint::read`].
    fn describe(&self, weights: &Weights, name: &str) -> Result<Description>;

    /// A weight, in its [`Checkpoint::basis`]. Errors: MissingTensor, Format where the parts disagree, Shape.
    fn read(&self, weights: &Weights, name: &str) -> Result<Packed>;

    /// The basis in which [`Checkpoint::read`] gives the weight, where it is not its own. Errors: as [`Checkpoint::read`].
    fn basis(&self, weights: &Weights, name: &str) -> Result<Option<Basis>> {
        let _ = (weights, name);
        Ok(None)
    }

    /// How the layer of this weight rounds its input. `None`: not at all, or in a way that is no [`Rounding`].
    /// Errors: as [`Checkpoint::read`].
    fn rounding(&self, weights: &Weights, name: &str) -> Result<Option<Rounding>> {
        let _ = (weights, name);
        Ok(None)
    }

    /// The weight that a tensor of the file holds the codes of, or the tensor itself where it belongs to none; `None` for
    /// the other parts of a weight.
    fn weight_name(&self, weights: &Weights, tensor: &str) -> Option<String>;

    /// The tensors that a weight of this shape takes. Errors: Shape where the layout has no room for it.
    fn specs(&self, name: &str, shape: [usize; 2]) -> Result<Vec<TensorSpec>>;

    /// Names and bytes of the tensors that [`Checkpoint::specs`] announces.
    ///
    /// basis: as [`Checkpoint::basis`] returns it; dtype: what the weight was before. Errors: Unsupported, Config for numbers that
    /// the layout cannot hold.
    fn tensors<'a>(&self, name: &str, packed: &'a Packed, basis: Option<&Basis>, dtype: DType) -> Result<Parts<'a>>;

    /// Name and bytes of the tensor that says how a layer rounds its input, where the layout has one: announced by
    /// [`Checkpoint::specs`] too. Errors: Config where the layout was made for layers that do, and this one does not.
    fn input_tensors(&self, name: &str, rounding: Option<Rounding>) -> Result<Parts<'static>> {
        let _ = (name, rounding);
        Ok(Vec::new())
    }

    /// The `quantization_config` of the model's `config.json`, `Null` for none; dtype: what the weights were before.
    /// Errors: Unsupported.
    fn config(&self, dtype: DType) -> Result<Value>;
}

/// The layout that a `quantization_config` names; `path` is the file that it stands in. Errors: Format, Unsupported.
pub fn open(config: &Value, path: &Path) -> Result<Box<dyn Checkpoint>> {
    of_fields(&Fields::new(config, path)?.within("quantization_config"))
}

/// The layout that the fields of a `quantization_config` name. Every field has to be known: one that is not may change what the
/// codes mean. Errors: Format, Unsupported.
pub(crate) fn of_fields(f: &Fields<'_>) -> Result<Box<dyn Checkpoint>> {
    let method = f.text("quant_method")?.unwrap_or("bitsandbytes");
    let checkpoint: Box<dyn Checkpoint> = match method {
        "bitsandbytes" => Box::new(Bitsandbytes::from_config(f)?),
        "gptq" => Box::new(Gptq::from_config(f)?),
        "awq" => Box::new(Awq::from_config(f)?),
        "aqlm" => Box::new(Aqlm::from_config(f)?),
        "hqq" => Box::new(Hqq::from_config(f)?),
        "compressed-tensors" => Box::new(CompressedTensors::from_config(f)?),
        "quip" => Box::new(Quip::from_config(f)?),
        _ => {
            let supported = "bitsandbytes, gptq, awq, hqq, aqlm, compressed-tensors, quip";
            return Err(Error::unsupported("quantization method of the model", method, supported));
        }
    };
    // Which modules are left as they are shows in their tensors.
    f.ignore(&["modules_to_not_convert", "lm_head"]);
    f.refuse_unknown()?;
    Ok(checkpoint)
}

/// The groups in the field `name`: a size, or -1 for one group per row. Errors: Format.
pub(super) fn group_size(f: &Fields<'_>, name: &str, default: usize) -> Result<BlockSize> {
    match f.integer(name, -1..=MAX_EXTENT)?.unwrap_or(default as i64) {
        -1 => Ok(BlockSize::Row),
        0 => Err(f.fail(name, "a positive number, or -1 for one group per row")),
        size => Ok(BlockSize::Elements(size as usize)),
    }
}

/// The tensors of one module: `X.qweight` and the like for the weight `X.weight`.
pub(super) struct Module<'a> {
    weights: &'a Weights,
    base: &'a str,
}

impl<'a> Module<'a> {
    /// `None` where `name` is no weight.
    pub(super) fn of(weights: &'a Weights, name: &'a str) -> Option<Module<'a>> {
        name.strip_suffix(".weight").map(|base| Module { weights, base })
    }

    /// The module of a weight that is known to be quantized. Errors: MissingTensor.
    pub(super) fn expect(weights: &'a Weights, name: &'a str) -> Result<Module<'a>> {
        Module::of(weights, name).ok_or_else(|| weights.missing(name))
    }

    pub(super) fn has(&self, part: &str) -> bool {
        self.weights.contains(&format!("{}.{part}", self.base))
    }

    pub(super) fn get(&self, part: &str) -> Result<TensorView<'a>> {
        self.weights.get(&format!("{}.{part}", self.base))
    }

    /// Error::Format with the file's and the weight's name.
    pub(super) fn fail(&self, message: impl AsRef<str>) -> Error {
        let message = format!("tensor {}.weight: {}", self.base, message.as_ref());
        Error::format(self.weights.path(), message)
    }

    /// A matrix of 32-bit words.
    pub(super) fn words(&self, part: &str) -> Result<(Vec<u32>, [usize; 2])> {
        let view = self.get(part)?.expect_dtype(DType::I32)?;
        Ok((bytes_to_words(view.bytes), self.matrix(&view)?))
    }

    /// The extents of a tensor that has two, neither of them 0: beside a 0 the other may be any number, whatever the file's size.
    pub(super) fn matrix(&self, view: &TensorView) -> Result<[usize; 2]> {
        match *view.shape {
            [rows, cols] if rows * cols > 0 => Ok([rows, cols]),
            _ => Err(self.fail(format!("expected two extents of {}, got {:?}", view.name, view.shape))),
        }
    }

    /// Finite floats, with their dtype and extents.
    pub(super) fn floats(&self, part: &str) -> Result<(Vec<f32>, DType, &'a [usize])> {
        let view = self.get(part)?;
        let values = view.to_f32()?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(self.fail(format!("element {i} of {} is not finite", view.name)));
        }
        Ok((values, self.float_dtype(part)?, view.shape))
    }

    /// The dtype of a tensor of floats.
    pub(super) fn float_dtype(&self, part: &str) -> Result<DType> {
        let view = self.get(part)?;
        match view.stored {
            super::Stored::Plain(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => Ok(dtype),
            stored => Err(self.fail(format!("expected {} in F32, F16 or BF16, got {stored}", view.name))),
        }
    }

    /// The only number of a tensor of integers.
    pub(super) fn integer(&self, part: &str) -> Result<i64> {
        match self.get(part)?.to_i64()?[..] {
            [n] => Ok(n),
            ref all => Err(self.fail(format!("expected one number in {part}, got {}", all.len()))),
        }
    }
}

/// [`Checkpoint::weight_name`] for layouts whose codes are in `X.{codes}` and whose other parts are `X.{parts}`.
pub(super) fn weight_name(weights: &Weights, tensor: &str, codes: &str, parts: &[&str]) -> Option<String> {
    match tensor.rsplit_once('.') {
        Some((base, part)) if part == codes => Some(format!("{base}.weight")),
        Some((base, part)) if parts.contains(&part) && weights.contains(&format!("{base}.{codes}")) => None,
        _ => Some(tensor.to_owned()),
    }
}

/// The base of a weight's name. Errors: Config.
pub(super) fn base_of(name: &str) -> Result<&str> {
    name.strip_suffix(".weight")
        .ok_or_else(|| Error::config(name, "only tensors named *.weight can be written quantized"))
}

/// Errors: Unsupported where the weight is in another basis, for layouts that cannot describe one.
pub(super) fn expect_own_basis(layout: &str, basis: Option<&Basis>) -> Result<()> {
    basis.map_or(Ok(()), |basis| Err(basis.refused_by(layout)))
}
