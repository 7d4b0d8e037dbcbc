//! A model on disk to a GGUF file that llama.cpp runs, tensor by tensor.

use super::{ModelWriter, OnTensor, Summary, Written, floats::narrow, gguf_metadata};
use crate::{
    DType, Error, Result,
    arch::Role,
    format::{
        Stored,
        gguf::{MetaValue, TensorSpec, Writer},
        is_same,
    },
    gpu::{Gpu, GpuOptions, Tensor},
    model::{LoadOptions, Model, PIECE, Source, added_in_gguf, heads_in_gguf, rotated_row},
    quant::{
        Packed, Scheme,
        ggml::{self, BlockType},
    },
};
use std::path::{Path, PathBuf};

/// A model that is to be written as GGUF, its linear weights in one scheme.
///
/// As llama.cpp does: where rows are no multiple of a type's 256 elements, the weight takes [`BlockType::fallback`] (and F16
/// where 32 does not divide them either); the head, and the embedding where it serves as the head, become Q6_K (Q8_0 in a
/// Q8_0 file), any other embedding the scheme itself; norms and biases are F32. What a GGUF file holds in the type asked
/// for, and an embedding or head in any block type, is copied unchanged. Rounding is done on the host.
///
/// The metadata of a GGUF file is carried over, tokenizer included; that of a folder is made from config.json, and its
/// tokenizer comes from [`GgufFile::with_metadata`]. A sliding window has no place in llama.cpp's files of most families and is left
/// out.
pub struct GgufFile {
    source: Source,
    scheme: Scheme,
    output: PathBuf,
    items: Vec<Item>,
    extra: Vec<(String, MetaValue)>,
}

struct Item {
    /// Transformers' name; of tensors that it does not know, the file's.
    name: String,
    spec: TensorSpec,
    action: Action,
}

enum Action {
    /// The bytes as they are in the source.
    Copy,
    /// A norm or bias of this length, to F32.
    Vector(usize),
    /// (rows, cols) to the type of the spec.
    Convert([usize; 2]),
    /// Computed here.
    Values(Vec<f32>),
}

impl GgufFile {
    /// Opens a Hugging Face folder or a GGUF file and checks that it is whole. `scheme` is one of GGUF's block types, F32, F16
    /// or BF16. Errors: Io, Format, MissingTensor, Shape, Unsupported, Config.
    pub fn open(input: impl AsRef<Path>, scheme: Scheme, output: impl Into<PathBuf>) -> Result<GgufFile> {
        let (input, output) = (input.as_ref(), output.into());
        scheme.expect("scheme for a GGUF file", |scheme| scheme.is_ggml() || scheme.is_float())?;
        if is_same(input, &output) {
            return Err(Error::config("output", "is the file that is read; choose another name"));
        }
        let source = Source::open(input)?;
        // What the file's keys cannot say is refused before the work.
        source.arch.gguf_metadata()?;
        let shortest = source.arch.blocks.iter().filter_map(|block| block.window).min();
        let untold = shortest.filter(|_| !source.arch.family.gguf.windows);
        if let Some(window) = untold.filter(|&window| window < source.arch.max_positions) {
            log::warn!(
                "llama.cpp's files have no windows: behind {window} tokens it sees more than {}",
                input.display()
            );
        }
        // A device that only counts reads every header and shape, so that nothing is begun with a part missing.
        let counting = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() })?;
        Model::from_source(&counting, &source, &LoadOptions::default())?;
        let items = items(&source, scheme)?;
        Ok(GgufFile { source, scheme, output, items, extra: vec![] })
    }

    /// Adds entries to the metadata, such as a tokenizer's (`Tokenizer::gguf_vocab`); they replace those of the same keys.
    pub fn with_metadata(mut self, entries: impl IntoIterator<Item = (String, MetaValue)>) -> GgufFile {
        self.extra.extend(entries);
        self
    }

    /// The folder or file that is read.
    pub fn input(&self) -> &Source {
        &self.source
    }

    /// The scheme that a weight will have in the file; `None` for what is no weight of the model.
    pub fn scheme(&self, name: &str) -> Option<Scheme> {
        self.items.iter().find(|item| item.name == name)?.spec.stored.scheme()
    }

    /// Writes the file where `choose(name, shape)` may give weights whose numbers another method has chosen, in the scheme
    /// that [`GgufFile::scheme`] returns, and `vector(name)` other norms and biases. Matrices are asked for in the order of the
    /// blocks; those outside of them only where they are not copied. Errors: also Shape for another scheme or shape, and those of
    /// `choose` and `vector`.
    pub fn write_with(
        &self,
        mut choose: impl FnMut(&str, [usize; 2]) -> Result<Option<Packed>>,
        mut vector: impl FnMut(&str) -> Result<Option<Vec<f32>>>,
        on_tensor: OnTensor<'_>,
    ) -> Result<Written> {
        let metadata = gguf_metadata::metadata(&self.source, self.scheme, &self.extra)?;
        let specs: Vec<TensorSpec> = self.items.iter().map(|item| item.spec.clone()).collect();
        let mut writer = Writer::create(&self.output, &metadata, &specs)?;
        let mut summary = Summary::default();
        for item in &self.items {
            let chosen: Option<Packed> = match (&item.action, &item.spec.shape[..]) {
                (Action::Convert(shape), _) => choose(&item.name, *shape)?,
                (Action::Copy, &[rows, cols]) if self.is_linear(&item.name) => choose(&item.name, [rows, cols])?,
                _ => None,
            };
            match (&item.action, chosen) {
                (_, Some(packed)) => self.write_packed(&mut writer, item, &packed)?,
                (Action::Copy, None) => {
                    let view = self.source.weights().get(&item.spec.name)?;
                    view.check_finite()?;
                    writer.write(&item.spec.name, view.bytes)?;
                }
                (Action::Values(values), None) => writer.write(&item.spec.name, bytemuck::cast_slice(values))?,
                (Action::Vector(len), None) => {
                    let mut values = vector(&item.name)?.map_or_else(|| self.source.vector(&item.name, *len), Ok)?;
                    let added = added_in_gguf(&self.source.arch, &item.name);
                    values.iter_mut().for_each(|value| *value += added);
                    let bytes = self.rotated(&item.name, bytemuck::cast_slice(&values).to_vec(), *len);
                    writer.write(&item.spec.name, &bytes)?;
                }
                (Action::Convert(shape), None) => self.convert(&mut writer, item, *shape)?,
            }
            match self.is_linear(&item.name) {
                true if self.scheme(&item.name) == Some(self.scheme) => summary.quantized += 1,
                true => summary.fallbacks += 1,
                false => summary.others += 1,
            }
            on_tensor(&item.name)?;
        }
        writer.finish()?;
        let summary = summary.measured(self.source.weights(), &self.output)?;
        Ok(Written { summary, folder: None })
    }

    fn write_packed(&self, writer: &mut Writer, item: &Item, packed: &Packed) -> Result<()> {
        let [rows, cols] = packed.shape;
        let TensorSpec { stored, shape, .. } = &item.spec;
        if Stored::of(packed.scheme) != Some(*stored) || shape != &[rows, cols] {
            let got = format!("{} {:?}", packed.scheme.name(), packed.shape);
            return Err(Error::shape(&item.name, format!("{stored} {shape:?}"), got));
        }
        let bytes = match stored {
            Stored::Plain(dtype) => bytemuck::cast_slice(&packed.codes)[..packed.len() * dtype.size()].to_vec(),
            Stored::Ggml(_) => ggml::pack_blocks(packed)?,
        };
        writer.write(&item.spec.name, &self.rotated(&item.name, bytes, rows))
    }

    fn convert(&self, writer: &mut Writer, item: &Item, shape: [usize; 2]) -> Result<()> {
        let stored = item.spec.stored;
        let what = format!("tensor {}", item.name);
        let encode = |values: &[f32]| encode(&what, stored, values);
        self.source.check_finite(&item.name)?;
        if self.heads(&item.name).is_none() {
            return self
                .source
                .for_each_piece(&item.name, shape, PIECE, |_, values| writer.write(&item.spec.name, &encode(values)?));
        }
        let mut bytes = Vec::new();
        self.source.for_each_piece(&item.name, shape, PIECE, |_, values| {
            bytes.extend(encode(values)?);
            Ok(())
        })?;
        writer.write(&item.spec.name, &self.rotated(&item.name, bytes, shape[0]))
    }

    fn is_linear(&self, name: &str) -> bool {
        self.source.arch.role(name).is_some_and(Role::is_linear)
    }

    fn heads(&self, name: &str) -> Option<usize> {
        heads_in_gguf(&self.source.arch, name)
    }

    /// The bytes of `rows` rows in llama.cpp's order.
    fn rotated(&self, name: &str, bytes: Vec<u8>, rows: usize) -> Vec<u8> {
        let Some(heads) = self.heads(name) else { return bytes };
        let size = bytes.len() / rows;
        let mut out = vec![0; bytes.len()];
        for (row, bytes) in bytes.chunks_exact(size).enumerate() {
            let to = rotated_row(row, rows / heads) * size;
            out[to..to + size].copy_from_slice(bytes);
        }
        out
    }
}

impl ModelWriter for GgufFile {
    fn source(&self) -> Option<&Source> {
        Some(&self.source)
    }

    fn tensors(&self) -> usize {
        self.items.len()
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.items.iter().map(|item| item.spec.bytes().unwrap_or(0) as u64).sum())
    }

    fn round(&self, _: &dyn Fn() -> Result<Gpu>, on_tensor: OnTensor<'_>) -> Result<Written> {
        self.write_with(|_, _| Ok(None), |_| Ok(None), on_tensor)
    }

    /// The weights are in the scheme of the file, or in the integers that are the same numbers ([`ggml::integers`]).
    fn write_model(&self, model: &Model, on_tensor: OnTensor<'_>) -> Result<Written> {
        let weight = |name: &str, _| {
            let Some(linear) = model.linear(name.strip_suffix(".weight").unwrap_or(name)) else { return Ok(None) };
            if linear.base.transform.is_some() {
                return Err(Error::unsupported(name, "columns in another order or basis", "a plain weight"));
            }
            if linear.base.rounding.is_some() {
                return Err(Error::unsupported(name, "rounded inputs, which a GGUF file cannot tell", "a plain layer"));
            }
            ggml::from_integers(linear.base.weight.download()?).map(Some)
        };
        self.write_with(weight, |name| model.vector(name).map(Tensor::read::<f32>).transpose(), on_tensor)
    }
}

/// Numbers to the bytes of a GGUF tensor. Errors: Config, with `what`, for what the type cannot hold.
fn encode(what: &str, stored: Stored, values: &[f32]) -> Result<Vec<u8>> {
    match stored {
        Stored::Ggml(scheme) => BlockType::of(scheme).expect("items have GGUF's schemes").encode_named(what, values),
        Stored::Plain(dtype) => match values.iter().position(|v| !v.is_finite()) {
            None => narrow(values, what, dtype),
            Some(i) => Err(Error::config(what, format!("number {i} is {}; expected finite numbers", values[i]))),
        },
    }
}

fn items(source: &Source, scheme: Scheme) -> Result<Vec<Item>> {
    let mut names = source.names();
    // The embedding, the blocks in their order, the last norm, the head.
    names.sort_by_key(|name| {
        let role = source.arch.role(name);
        let part = match role {
            Some(Role::Embedding) => 0,
            Some(Role::FinalNorm) => 2,
            Some(Role::Head) => 3,
            _ => 1,
        };
        (part, role.and_then(Role::block), name.clone())
    });
    let mut items = Vec::with_capacity(names.len());
    for name in names {
        items.extend(item(source, name, scheme)?);
    }
    match source.weights().gguf() {
        // What transformers has no name for.
        Some(gguf) => {
            for name in gguf.names().filter(|name| source.arch.name_of_gguf(name).is_none()) {
                // One that cannot be read is one that the model does not use.
                let Ok(view) = gguf.get(name) else { continue };
                let spec = TensorSpec { name: name.to_owned(), stored: view.stored, shape: view.shape.to_vec() };
                items.push(Item { name: name.to_owned(), spec, action: Action::Copy });
            }
        }
        None => {
            for (name, values) in source.arch.rope_divisors() {
                let (name, stored) = (name.to_owned(), Stored::Plain(DType::F32));
                let spec = TensorSpec { name: name.clone(), stored, shape: vec![values.len()] };
                items.push(Item { name, spec, action: Action::Values(values) });
            }
        }
    }
    Ok(items)
}

/// `None` for a tensor that a GGUF file does not have: a head that is the embedding.
fn item(source: &Source, name: String, scheme: Scheme) -> Result<Option<Item>> {
    let (Some(role), Some(stored_name)) = (source.arch.role(&name), source.arch.gguf_name(&name)) else {
        return Err(Error::unsupported("tensor for a GGUF file", name, "the weights of Llama-like models"));
    };
    let tied = source.arch.tie_embeddings;
    if role == Role::Head && tied {
        return Ok(None);
    }
    let [rows, cols] = source.shape(&name)?;
    let spec = |stored: Stored, shape: Vec<usize>| TensorSpec { name: stored_name.clone(), stored, shape };
    if role.is_vector() {
        let spec = spec(Stored::Plain(DType::F32), vec![cols]);
        return Ok(Some(Item { name, spec, action: Action::Vector(cols) }));
    }
    let held = source.weights().gguf().map(|gguf| gguf.get(&stored_name)).transpose()?.map(|view| view.stored);
    let is_head = role == Role::Head || (role == Role::Embedding && tied);
    let finer = is_head && scheme.is_ggml() && scheme != Scheme::Q8_0;
    let wanted = if finer { Scheme::Q6_K } else { scheme };
    let mut stored = Stored::of(wanted.fitting(cols)).expect("GgufFile::open takes floats and GGUF's schemes");
    let outer = is_head || role == Role::Embedding;
    if let Some(Stored::Ggml(held)) = held.filter(|_| outer && scheme.is_ggml()) {
        stored = Stored::Ggml(held);
    }
    let action = if held == Some(stored) { Action::Copy } else { Action::Convert([rows, cols]) };
    Ok(Some(Item { name, spec: spec(stored, vec![rows, cols]), action }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_list_of_schemes_for_a_file_is_true() {
        let (mut taken, mut lists) = (BTreeSet::new(), BTreeSet::new());
        for scheme in Scheme::forms() {
            match GgufFile::open("/no such", scheme, "/no such") {
                Err(Error::Unsupported { supported, .. }) => lists.insert(supported),
                _ => taken.insert(scheme.name().to_owned()),
            };
        }
        let listed: Vec<BTreeSet<String>> =
            lists.iter().map(|list| list.split(", ").map(str::to_owned).collect()).collect();
        assert_eq!(listed, [taken]);
    }
}
