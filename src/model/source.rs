//! A model on disk under transformers' tensor names, whatever the file calls them.

use super::accounting;
use crate::{
    DType, Error, Result, Shape,
    arch::{Architecture, EMBEDDING, HEAD, Role, Rows},
    format::{
        self, Checkpoint, Kind, Stored, TensorView, Weights,
        checkpoint::{self, Basis, Bitsandbytes, Rounding},
        fields::Fields,
    },
    quant::{Packed, Scheme, ggml},
};
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

/// A mapped model: configuration and tensors. Opening reads headers only.
pub struct Source {
    /// The model's shape.
    pub(crate) arch: Architecture,
    weights: Weights,
    /// How weights that are quantized in a folder are stored.
    checkpoint: Box<dyn Checkpoint>,
    naming: Naming,
    /// Whether the one table of a tied model is stored as the head.
    head_alone: bool,
}

/// Elements that are converted on the host at once.
pub(crate) const PIECE: usize = 4 << 20;

/// How the tensors of a file are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// As transformers calls them.
    Transformers,
    /// Without `model.`, as a model saved without its head has them.
    Bare,
    Gguf,
}

impl Source {
    /// The model's shape.
    pub fn arch(&self) -> &Architecture {
        &self.arch
    }

    /// Opens a Hugging Face folder, also one that another tool quantized (see [`checkpoint`]), or a GGUF file. Every tensor of
    /// it has to be one that the model uses, or one that is known to change nothing.
    /// Errors: Io, Format, Config, Unsupported.
    pub fn open(path: impl AsRef<Path>) -> Result<Source> {
        let path = path.as_ref();
        let weights = Weights::open(path)?;
        let mut checkpoint: Box<dyn Checkpoint> = Box::new(Bitsandbytes::default());
        let arch = match weights.kind() {
            Kind::Gguf => Architecture::from_gguf(weights.gguf().expect("the kind says so"))?,
            Kind::Folder => {
                let file = path.join("config.json");
                let json: serde_json::Value = format::read_json(&file)?;
                let arch = Architecture::from_json(json, &file)?;
                if let Some(layout) = layout(path, &file, &arch.json)? {
                    checkpoint = layout;
                }
                arch
            }
            Kind::Safetensors => {
                let message =
                    "a single safetensors file is no model: expected a folder with config.json, or a GGUF file";
                return Err(Error::format(path, message));
            }
        };
        let bare = |name: &str| name.starts_with("layers.") || name == "embed_tokens.weight";
        let naming = match weights.kind() {
            Kind::Gguf => Naming::Gguf,
            _ if !weights.names().any(|n| n.starts_with("model.")) && weights.names().any(bare) => Naming::Bare,
            _ => Naming::Transformers,
        };
        let mut source = Source { arch, weights, checkpoint, naming, head_alone: false };
        source.untie()?;
        accounting::check(&source)?;
        Ok(source)
    }

    /// A model whose configuration ties embedding and head may hold both: then it keeps its head, unless they are the same. It
    /// may hold the head alone: then that is the embedding too. transformers 5 does both.
    fn untie(&mut self) -> Result<()> {
        if !self.arch.tie_embeddings || self.naming == Naming::Gguf {
            return Ok(());
        }
        match (self.contains(EMBEDDING), self.contains(HEAD)) {
            (false, true) => self.head_alone = true,
            (true, true) if !self.same(EMBEDDING, HEAD)? => {
                log::warn!(
                    "{}: tie_word_embeddings is true, and {HEAD} differs from {EMBEDDING}: the model keeps both, as in transformers 5",
                    self.weights.path().display()
                );
                self.arch.tie_embeddings = false;
                self.arch.json["tie_word_embeddings"] = false.into();
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether two tensors hold the same numbers.
    fn same(&self, a: &str, b: &str) -> Result<bool> {
        let (a, b) = (self.stored_name(a), self.stored_name(b));
        if self.quantized(&a).is_some() || self.quantized(&b).is_some() {
            return Ok(false);
        }
        let (a, b) = (self.weights.get(&a)?, self.weights.get(&b)?);
        if a.shape != b.shape {
            return Ok(false);
        }
        Ok(if a.stored == b.stored { a.bytes == b.bytes } else { a.to_f32()? == b.to_f32()? })
    }

    /// The files.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The folder or file.
    pub fn path(&self) -> PathBuf {
        self.weights.path().to_owned()
    }

    fn is_gguf(&self) -> bool {
        self.naming == Naming::Gguf
    }

    /// The name in the file of the tensor that transformers calls `name`.
    fn stored_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let name = if self.head_alone && name == EMBEDDING { HEAD } else { name };
        match self.naming {
            Naming::Transformers => Cow::Borrowed(name),
            Naming::Bare => Cow::Borrowed(name.strip_prefix("model.").unwrap_or(name)),
            Naming::Gguf => self.arch.gguf_name(name).map_or(Cow::Borrowed(name), Cow::Owned),
        }
    }

    /// The weight that a tensor of the file holds, or holds the codes of, by transformers' name; `None` for the other parts of a
    /// weight, and in a GGUF file for what transformers has no name for.
    pub(super) fn name_of(&self, stored: &str) -> Option<String> {
        if self.naming == Naming::Gguf {
            return self.arch.name_of_gguf(stored);
        }
        let name = self.checkpoint.weight_name(&self.weights, stored)?;
        Some(match name.as_str() {
            HEAD if self.head_alone => EMBEDDING.to_owned(),
            HEAD => name,
            _ if self.naming == Naming::Bare => format!("model.{name}"),
            _ => name,
        })
    }

    /// The layout of a weight of this stored name, where another tool quantized it.
    fn quantized(&self, stored: &str) -> Option<&dyn Checkpoint> {
        Some(&*self.checkpoint).filter(|checkpoint| !self.is_gguf() && checkpoint.is_quantized(&self.weights, stored))
    }

    /// Whether the tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        let stored = self.stored_name(name);
        self.weights.contains(&stored) || self.quantized(&stored).is_some()
    }

    /// A tensor as it lies in the file. Errors: MissingTensor, Unsupported.
    pub(crate) fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.weights.get(&self.stored_name(name))
    }

    /// Transformers' names of all tensors that the model uses, sorted; the parts of quantized weights are left out.
    pub fn names(&self) -> Vec<String> {
        let named = self.weights.names().filter_map(|stored| self.name_of(stored));
        let mut names: Vec<String> = named.filter(|name| self.arch.has(name)).collect();
        names.sort();
        names
    }

    /// The scheme in which a tensor is stored. Errors: MissingTensor, Format, Unsupported.
    pub fn scheme(&self, name: &str) -> Result<Scheme> {
        let stored = self.stored_name(name);
        if let Some(checkpoint) = self.quantized(&stored) {
            return Ok(checkpoint.describe(&self.weights, &stored)?.scheme);
        }
        // F64 is rounded; integers are refused where they are read.
        Ok(self.weights.get(&stored)?.stored.scheme().unwrap_or(Scheme::F32))
    }

    /// The extents of a tensor as a matrix (rows, cols); a vector has one row. Errors: MissingTensor, Format.
    pub fn shape(&self, name: &str) -> Result<[usize; 2]> {
        let stored = self.stored_name(name);
        if let Some(checkpoint) = self.quantized(&stored) {
            return Ok(checkpoint.describe(&self.weights, &stored)?.shape);
        }
        let (rows, cols) = Shape::from(self.weights.get(&stored)?.shape).rows_cols();
        Ok([rows, cols])
    }

    /// The dtype of a tensor; of a quantized weight that it had before, or that of its scales, and F16 for GGUF blocks.
    /// Errors: MissingTensor, Format.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let stored = self.stored_name(name);
        if let Some(checkpoint) = self.quantized(&stored) {
            return Ok(checkpoint.describe(&self.weights, &stored)?.dtype);
        }
        match self.weights.get(&stored)?.stored {
            Stored::Plain(dtype) => Ok(dtype),
            Stored::Ggml(_) => Ok(DType::F16),
        }
    }

    /// The basis in which [`Source::packed`] gives a weight, where it is not its own: the layer has to put its input into
    /// it, and its output back. Errors: MissingTensor, Format.
    pub fn basis(&self, name: &str) -> Result<Option<Basis>> {
        let stored = self.stored_name(name);
        self.quantized(&stored).map_or(Ok(None), |checkpoint| checkpoint.basis(&self.weights, &stored))
    }

    /// How the layer of this weight rounds its input, where the file tells so. Errors: MissingTensor, Format.
    pub fn rounding(&self, name: &str) -> Result<Option<Rounding>> {
        let stored = self.stored_name(name);
        self.quantized(&stored).map_or(Ok(None), |checkpoint| checkpoint.rounding(&self.weights, &stored))
    }

    /// A weight as it is stored, in its [`Source::basis`]. Errors: MissingTensor, Format, Shape.
    pub fn packed(&self, name: &str, shape: [usize; 2]) -> Result<Packed> {
        self.expect(name, shape)?;
        let stored = self.stored_name(name);
        if let Some(checkpoint) = self.quantized(&stored) {
            return checkpoint.read(&self.weights, &stored);
        }
        let view = self.weights.get(&stored)?;
        match (view.stored, self.rotated_heads(name, shape[0])?) {
            (Stored::Ggml(scheme), Some(heads)) => {
                let bytes = unrotate(view.bytes, shape[0], heads);
                ggml::unpack_blocks(view.name, scheme, shape, &bytes)
            }
            (Stored::Plain(_), Some(heads)) => {
                let bytes = unrotate(view.bytes, shape[0], heads);
                TensorView { bytes: &bytes, ..view }.packed()
            }
            (_, None) => view.packed(),
        }
    }

    /// The little-endian bytes of a plain float tensor straight from the mapping, where they can be used as they are.
    pub fn plain(&self, name: &str) -> Result<Option<(DType, &[u8])>> {
        let stored = self.stored_name(name);
        if self.is_rotated(name) || self.added(name) != 0.0 || self.quantized(&stored).is_some() {
            return Ok(None);
        }
        let view = self.weights.get(&stored)?;
        match view.stored {
            Stored::Plain(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => Ok(Some((dtype, view.bytes))),
            _ => Ok(None),
        }
    }

    /// Errors: MissingTensor; Format where a number that is stored as a float, a quantized weight's scale too, is not finite.
    pub(crate) fn check_finite(&self, name: &str) -> Result<()> {
        let stored = self.stored_name(name);
        match self.quantized(&stored) {
            Some(_) => {
                let module = stored.strip_suffix("weight").unwrap_or(&stored);
                let parts = self.weights.names().filter(|name| name.starts_with(module));
                parts.map(|part| self.weights.get(part)).try_for_each(|part| part?.check_finite())
            }
            None => self.weights.get(&stored)?.check_finite(),
        }
    }

    /// A vector (norm weight or bias) as f32. Errors: MissingTensor, Shape, Format where it is not finite.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.expect(name, [1, len])?;
        let view = self.weights.get(&self.stored_name(name))?;
        view.check_finite()?;
        let (mut values, added) = (view.to_f32()?, self.added(name));
        values.iter_mut().for_each(|value| *value -= added);
        match self.rotated_heads(name, len)? {
            None => Ok(values),
            Some(heads) => {
                let bytes = unrotate(bytemuck::cast_slice(&values), len, heads);
                Ok(bytemuck::pod_collect_to_vec(&bytes))
            }
        }
    }

    /// Rows of a weight as f32, in its own basis, in pieces of at most `most` elements: `f(first element, values)`. Bounds the
    /// host's memory. Errors: MissingTensor, Format, Shape, and those of `f`.
    pub fn for_each_piece(
        &self,
        name: &str,
        shape: [usize; 2],
        most: usize,
        mut f: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.expect(name, shape)?;
        let stored = self.stored_name(name);
        if let Some(checkpoint) = self.quantized(&stored) {
            let mut values = checkpoint.read(&self.weights, &stored)?.dequantize();
            if let Some(basis) = checkpoint.basis(&self.weights, &stored)? {
                basis.undo(&mut values, shape)?;
            }
            return f(0, &values);
        }
        let view = self.weights.get(&stored)?;
        let [rows, cols] = shape;
        if rows * cols == 0 {
            return Ok(());
        }
        let step = (most / cols).clamp(1, rows);
        let heads = self.rotated_heads(name, rows)?;
        let added = self.added(name);
        let mut values = vec![0.0; step * cols];
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            match heads {
                None => view.read_f32(first * cols, &mut values[..count * cols])?,
                Some(heads) => {
                    for (row, out) in (first..first + count).zip(values.chunks_exact_mut(cols)) {
                        view.read_f32(rotated_row(row, rows / heads) * cols, out)?;
                    }
                }
            }
            values[..count * cols].iter_mut().for_each(|value| *value -= added);
            f(first * cols, &values[..count * cols])?;
        }
        Ok(())
    }

    /// Errors: MissingTensor, Shape where a tensor has other extents.
    pub(super) fn expect(&self, name: &str, shape: [usize; 2]) -> Result<()> {
        let got = self.shape(name)?;
        if got == shape {
            return Ok(());
        }
        let op = format!("{}: tensor {}", self.weights.path().display(), self.stored_name(name));
        Err(Error::shape(op, format!("{shape:?}"), format!("{got:?}")))
    }

    /// What the file has added to the tensor.
    fn added(&self, name: &str) -> f32 {
        if self.is_gguf() { added_in_gguf(&self.arch, name) } else { 0.0 }
    }

    /// Whether the file has the tensor's rows in llama.cpp's own rotary order.
    fn is_rotated(&self, name: &str) -> bool {
        self.is_gguf() && heads_in_gguf(&self.arch, name).is_some()
    }

    /// The heads of a tensor of so many rows that [`Source::is_rotated`]. Errors: Shape where they are no pairs of each head.
    fn rotated_heads(&self, name: &str, rows: usize) -> Result<Option<usize>> {
        let heads = if self.is_gguf() { heads_in_gguf(&self.arch, name) } else { None };
        match heads {
            Some(heads) if rows == 0 || !rows.is_multiple_of(2 * heads) => {
                let op = format!("{}: tensor {}", self.weights.path().display(), self.stored_name(name));
                Err(Error::shape(op, format!("an even number of rows for each of {heads} heads"), rows))
            }
            heads => Ok(heads),
        }
    }
}

/// Heads of a tensor whose rows lie in llama.cpp's own rotary order in a GGUF file.
pub(crate) fn heads_in_gguf(arch: &Architecture, name: &str) -> Option<usize> {
    let (Role::Weight(_, id) | Role::Bias(_, id)) = arch.role(name)? else { return None };
    match arch.linear(id)?.rows {
        Rows::Own => None,
        Rows::Rotated(heads) => Some(heads),
    }
}

/// What is added to a tensor in a GGUF file: norms whose weights are differences from 1 in transformers are whole there.
pub(crate) fn added_in_gguf(arch: &Architecture, name: &str) -> f32 {
    match arch.role(name) {
        Some(Role::Norm(..) | Role::FinalNorm) => arch.norm_offset,
        _ => 0.0,
    }
}

/// How the weights of a folder are quantized: what config.json says, or the file beside it in which older tools kept it.
/// Errors: Io, Format, Unsupported.
fn layout(folder: &Path, file: &Path, json: &serde_json::Value) -> Result<Option<Box<dyn Checkpoint>>> {
    if let Some(fields) = Fields::new(json, file)?.object("quantization_config")? {
        return checkpoint::of_fields(&fields).map(Some);
    }
    // AutoGPTQ's and AutoAWQ's, of before transformers read their models.
    for (name, method) in [("quantize_config.json", "gptq"), ("quant_config.json", "awq")] {
        let file = folder.join(name);
        if !file.exists() {
            continue;
        }
        let mut json: serde_json::Value = format::read_json(&file)?;
        if let Some(fields) = json.as_object_mut() {
            fields.entry("quant_method").or_insert_with(|| method.into());
        }
        return checkpoint::of_fields(&Fields::new(&json, &file)?).map(Some);
    }
    Ok(None)
}

/// The stored row of transformers' row `row`: pairs of a rotation lie side by side there, half a head apart here.
pub(crate) fn rotated_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * pair + half
}

/// Rows of `bytes` in transformers' order.
fn unrotate(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let from = rotated_row(row, rows / heads) * row_bytes;
        out.extend_from_slice(&bytes[from..from + row_bytes]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_rows_are_a_permutation_within_each_head() {
        // One head of 4: stored (0, 2, 1, 3) of transformers' rows, so row 1 is stored third.
        assert_eq!((0..4).map(|r| rotated_row(r, 4)).collect::<Vec<_>>(), [0, 2, 1, 3]);
        let mut rows: Vec<_> = (0..24).map(|r| rotated_row(r, 8)).collect();
        assert!(rows.iter().enumerate().all(|(i, r)| i / 8 == r / 8));
        rows.sort_unstable();
        assert_eq!(rows, (0..24).collect::<Vec<_>>());
    }
}
