//! Weights in device memory, in the layout of [`crate::quant`], and their shards.
//!
//! A weight larger than one binding stays in one buffer, which is bound by range: a kernel that reads weights records one
//! dispatch for each [`Shard`]. Nothing here computes.

use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    quant::{Packed, Scheme, gcd},
};

/// A weight `[rows, cols]` (out, in) on the device in any [`Scheme`], plain floats included. Cloning shares the memory.
#[derive(Clone, Debug)]
pub struct QuantizedTensor {
    scheme: Scheme,
    shape: [usize; 2],
    /// Buffers of `part_rows` rows each (the last one of fewer), u32 words; one but for weights beyond the buffer limit.
    /// Filled up to whole vec4 of words, so that kernels may bind them so.
    parts: Vec<Tensor>,
    part_rows: usize,
    /// `[words]`, u32
    scales: Option<Tensor>,
    /// `[257 + blocks.div_ceil(256)]`, f32
    nested: Option<Tensor>,
}

/// Rows of a weight that one dispatch can bind.
///
/// A shard begins with a block. Kernels number its elements from its own first row, `i = (row - row0) * cols + col`: the
/// code of element `i` is number `i` of `codes`, its scale is number `first_block + i / block_size` of `scales`. `nested`
/// is whole, and so are the `scales` of a double-quantized weight, so that both go by the same block number.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The first row.
    pub row0: usize,
    /// Rows.
    pub rows: usize,
    /// The shard's first block, counted from the beginning of `scales`.
    pub first_block: u32,
    /// u32 words, a multiple of four.
    pub codes: Tensor,
    /// u32 words; none for plain floats.
    pub scales: Option<Tensor>,
    /// f32: offset, 256 map values, one absmax per 256 blocks; none but for double quantization.
    pub nested: Option<Tensor>,
}

impl Shard {
    /// The buffers that a kernel of this scheme binds, in order: codes, then scales and nested where the scheme has them.
    pub fn args(&self, g: &mut Graph) -> Vec<Value> {
        let tensors = [Some(&self.codes), self.scales.as_ref(), self.nested.as_ref()];
        tensors.into_iter().flatten().map(|t| g.import(t)).collect()
    }
}

impl QuantizedTensor {
    /// A weight of zero bits. `name` is for messages. Errors: OutOfMemory, Shape, Config for a bad block size.
    pub fn zeros(gpu: &Gpu, name: &str, scheme: Scheme, shape: [usize; 2]) -> Result<QuantizedTensor> {
        let scheme = scheme.resolve(shape);
        scheme.validate_for(shape)?;
        let caps = gpu.caps();
        if shape[0].checked_mul(shape[1]).is_none_or(|len| len > u32::MAX as usize) {
            return Err(Error::shape(name, "fewer than 2^32 elements", format!("{shape:?}")));
        }
        let part_rows = rows_within(name, scheme, shape, caps.offset_alignment, caps.max_buffer)?;
        // Found out here, so that no kernel meets a weight that it cannot bind.
        shard_rows(name, scheme, shape, caps.offset_alignment, caps.max_binding)?;
        let [_, scales, nested] = scheme.words(shape);
        let parts = (0..shape[0].max(1)).step_by(part_rows).map(|row| {
            let rows = part_rows.min(shape[0] - row);
            gpu.zeros(name, [code_words(scheme, rows * shape[1])], DType::U32)
        });
        Ok(QuantizedTensor {
            scheme,
            shape,
            parts: parts.collect::<Result<_>>()?,
            part_rows,
            scales: (scales > 0).then(|| gpu.zeros(name, [scales], DType::U32)).transpose()?,
            nested: (nested > 0).then(|| gpu.zeros(name, [nested], DType::F32)).transpose()?,
        })
    }

    /// Floats that lie in memory already, which is shared. values: [rows, cols] f32. Errors: Shape, also where the memory
    /// ends before whole vec4.
    pub fn of_floats(name: &str, values: &Tensor) -> Result<QuantizedTensor> {
        let (scheme, dims) = (Scheme::F32, values.shape().dims());
        let (DType::F32, &[rows, cols]) = (values.dtype(), dims) else {
            return Err(Error::shape(name, "F32 [rows, cols]", format!("{} {}", values.dtype(), values.shape())));
        };
        let words = code_words(scheme, rows * cols);
        if values.offset + 4 * words as u64 > values.buffer.size() || values.bytes() > values.gpu().caps().max_binding {
            return Err(Error::shape(name, format!("{words} words that one binding holds"), values.shape()));
        }
        let part = Tensor::view(values.buffer.clone(), values.offset, [words].into(), DType::U32);
        let parts = vec![part];
        Ok(QuantizedTensor { scheme, shape: [rows, cols], parts, part_rows: rows.max(1), scales: None, nested: None })
    }

    /// A weight from the host. Errors: as [`QuantizedTensor::zeros`], Device.
    pub fn upload(gpu: &Gpu, name: &str, packed: &Packed) -> Result<QuantizedTensor> {
        let (codes, scales) = (bytemuck::cast_slice(&packed.codes), bytemuck::cast_slice(&packed.scales));
        QuantizedTensor::from_bytes(gpu, name, packed.scheme, packed.shape, codes, scales, &packed.nested)
    }

    /// A weight from little-endian bytes in the device layout, as a file mapping holds them: nothing is copied on the host
    /// but for staging. The bytes that pad the last word may be absent.
    ///
    /// codes, scales: bytes; nested: see [`crate::quant::nested_array`]. Errors: as [`QuantizedTensor::zeros`], Shape for
    /// other lengths, Device.
    pub fn from_bytes(
        gpu: &Gpu,
        name: &str,
        scheme: Scheme,
        shape: [usize; 2],
        codes: &[u8],
        scales: &[u8],
        nested: &[f32],
    ) -> Result<QuantizedTensor> {
        let tensor = QuantizedTensor::zeros(gpu, name, scheme, shape)?;
        let scheme = tensor.scheme;
        let words = scheme.words(shape);
        let fits = |what: &str, bytes: &[u8], exact: usize, words: usize| {
            if bytes.len() == exact || bytes.len() == 4 * words {
                return Ok(());
            }
            let got = format!("{} bytes", bytes.len());
            Err(Error::shape(format!("{name}: {what} of {} {shape:?}", scheme.name()), format!("{exact} bytes"), got))
        };
        fits("codes", codes, (shape[0] * shape[1] * scheme.code_bits()).div_ceil(8), words[0])?;
        fits("scales", scales, scheme.scale_bytes(shape, shape[0] * shape[1]), words[1])?;
        fits("nested", bytemuck::cast_slice(nested), 4 * words[2], words[2])?;
        let part_bytes = 4 * code_words(scheme, tensor.part_rows * shape[1]).max(1);
        for (part, bytes) in tensor.parts.iter().zip(codes.chunks(part_bytes)) {
            write(part, bytes)?;
        }
        if let Some(target) = &tensor.scales {
            write(target, scales)?;
        }
        if let Some(target) = &tensor.nested {
            target.write(bytemuck::cast_slice(nested))?;
        }
        Ok(tensor)
    }

    /// How the numbers are stored.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// (rows, cols) = (out features, in features).
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Out features.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// In features.
    pub fn cols(&self) -> usize {
        self.shape[1]
    }

    /// The number of elements; it fits u32.
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements that share a scale; none for plain floats.
    pub fn block_size(&self) -> Option<usize> {
        self.scheme.block_size(self.shape)
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().chain(&self.scales).chain(&self.nested).map(Tensor::bytes).sum()
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.parts[0].gpu()
    }

    /// The buffers of the codes, u32 words, of whole rows each: one but for weights beyond the buffer limit.
    pub(crate) fn parts(&self) -> &[Tensor] {
        &self.parts
    }

    /// All scales, u32 words; none for plain floats. They may exceed a binding: see [`QuantizedTensor::shards`].
    pub fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// The arrays of double quantization, f32.
    pub fn nested(&self) -> Option<&Tensor> {
        self.nested.as_ref()
    }

    /// The weight in ranges of rows that fit one binding each, in order; one where the whole fits, none where it is empty.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + '_ {
        self.shards_within(self.gpu().caps().max_binding)
    }

    /// [`QuantizedTensor::shards`] of at most `limit` bytes of codes, where that is below the device's own limit and
    /// holds the fewest rows that keep the alignment.
    pub fn shards_within(&self, limit: u64) -> impl Iterator<Item = Shard> + '_ {
        let caps = self.gpu().caps();
        let limit = limit.min(caps.max_binding);
        let most = shard_rows("shards", self.scheme, self.shape, caps.offset_alignment, limit)
            .unwrap_or_else(|_| aligned_rows(self.scheme, self.shape, caps.offset_alignment));
        let starts = (0..self.shape[0]).step_by(self.part_rows).flat_map(move |part| {
            let end = self.shape[0].min(part + self.part_rows);
            (part..end).step_by(most).map(move |row0| (row0, most.min(end - row0)))
        });
        starts.filter(|_| !self.is_empty()).map(|(row0, rows)| self.shard(row0, rows))
    }

    fn shard(&self, row0: usize, rows: usize) -> Shard {
        let cols = self.shape[1];
        let words = |elements: usize| code_words(self.scheme, elements);
        let in_part = row0 % self.part_rows;
        let slice = |t: &Tensor, start: usize, words: usize| {
            Tensor::view(t.buffer.clone(), t.offset + 4 * start as u64, [words].into(), t.dtype())
        };
        let codes = slice(&self.parts[row0 / self.part_rows], words(in_part * cols), words(rows * cols));
        let range = |scales| self.scale_range(scales, row0 * cols, (row0 + rows) * cols);
        let (first_block, scales) = match self.scales.as_ref().and_then(|scales| Some((scales, range(scales)?))) {
            None => (0, None),
            Some((scales, (word, words, first))) => (first, Some(slice(scales, word, words))),
        };
        Shard { row0, rows, first_block: first_block as u32, codes, scales, nested: self.nested.clone() }
    }

    /// For the scales of elements `from..to`: the first word and the number of words to bind, which are all where they fit a
    /// binding, and the number of element `from`'s block in that range. None for plain floats.
    fn scale_range(&self, scales: &Tensor, from: usize, to: usize) -> Option<(usize, usize, usize)> {
        let caps = self.gpu().caps();
        let (block, (elements, size)) = (self.block_size()?, self.scheme.scale_entry(self.shape)?);
        if scales.bytes() <= caps.max_binding {
            return Some((0, scales.shape().len(), from / block));
        }
        // The size of an entry divides the alignment: `shard_rows` sees to it.
        let align = caps.offset_alignment as usize;
        let start = from / elements * size / align * align;
        let end = to.div_ceil(elements) * size;
        Some((start / 4, (end - start).div_ceil(4), from / block - start / size * (elements / block)))
    }
}

/// Writes `bytes`, which may lack the padding of the last word.
fn write(target: &Tensor, bytes: &[u8]) -> Result<()> {
    Tensor::view(target.buffer.clone(), target.offset, [bytes.len()].into(), DType::U8).write(bytes)
}

/// Words of the codes of `len` elements on the device: whole vec4.
fn code_words(scheme: Scheme, len: usize) -> usize {
    scheme.code_words(len).next_multiple_of(4)
}

/// The fewest rows whose codes end at a multiple of `align` bytes, and with an entry of the scales; at most all rows.
fn aligned_rows(scheme: Scheme, shape: [usize; 2], align: u64) -> usize {
    let [rows, cols] = shape;
    let bits = align as usize * 8;
    let unit = bits / gcd(bits, scheme.code_bits());
    let block = scheme.scale_entry(shape).map_or(1, |(elements, _)| elements.max(1));
    let unit = (unit / gcd(unit, block)).saturating_mul(block);
    (unit / gcd(cols.max(1), unit)).min(rows)
}

/// The most rows whose codes take at most `limit` bytes; all rows, or a multiple of the rows that keep the alignment.
/// At least 1. Errors: Shape where not even those fit.
fn rows_within(name: &str, scheme: Scheme, shape: [usize; 2], align: u64, limit: u64) -> Result<usize> {
    let bytes = |rows: usize| 4 * code_words(scheme, rows * shape[1]) as u64;
    if bytes(shape[0]) <= limit {
        return Ok(shape[0].max(1));
    }
    let step = aligned_rows(scheme, shape, align);
    match limit / bytes(step) {
        0 => Err(Error::shape(
            name,
            format!("rows of which {step} (the fewest that end with a block, {align}-byte aligned) fit {limit} bytes"),
            format!("{shape:?} of {}", scheme.name()),
        )),
        steps => Ok(steps as usize * step),
    }
}

/// [`rows_within`], and such that the scales of a shard fit a binding too.
fn shard_rows(name: &str, scheme: Scheme, shape: [usize; 2], align: u64, limit: u64) -> Result<usize> {
    let codes = rows_within(name, scheme, shape, align, limit)?;
    let scale = |rows: usize| scheme.scale_bytes(shape, rows * shape[1]) as u64;
    if scale(shape[0]) <= limit {
        return Ok(codes);
    }
    if scheme.scale_entry(shape).is_some_and(|(_, bytes)| !bytes.is_power_of_two()) {
        let expected = format!("scales of {} of at most {limit} bytes", scheme.name());
        return Err(Error::shape(name, expected, format!("{shape:?}")));
    }
    // The range of a shard's scales is extended to the alignment in front.
    let step = aligned_rows(scheme, shape, align);
    let steps = limit.saturating_sub(align + 16) / scale(step).max(1);
    match steps as usize * step {
        0 => Err(Error::shape(name, format!("{step} rows whose scales fit {limit} bytes"), format!("{shape:?}"))),
        rows => Ok(codes.min(rows)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    /// A device with WebGPU's default limits that allocates nothing: bindings of 128 MiB, buffers of 256 MiB.
    fn counting() -> Gpu {
        Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap()
    }

    fn check(scheme: Scheme, shape: [usize; 2]) -> usize {
        let gpu = counting();
        let tensor = QuantizedTensor::zeros(&gpu, "w", scheme, shape).unwrap();
        let caps = gpu.caps();
        let mut row = 0;
        let mut count = 0;
        for shard in tensor.shards() {
            assert_eq!(shard.row0, row);
            let words = code_words(scheme, shard.rows * shape[1]);
            assert_eq!(shard.codes.shape().dims(), [words], "{scheme:?} {shape:?}");
            assert!(
                shard.codes.bytes() <= caps.max_binding && shard.codes.offset.is_multiple_of(caps.offset_alignment)
            );
            if let Some(scales) = &shard.scales {
                // Blocks of an entry number on within it.
                let (block, size) = scheme.scale_entry(shape).unwrap();
                let first_block = shard.first_block as usize / (block / tensor.block_size().unwrap());
                assert!(scales.bytes() <= caps.max_binding && scales.offset.is_multiple_of(caps.offset_alignment));
                assert_eq!((row * shape[1]) % block, 0, "{scheme:?} {shape:?}: begins with a block");
                let first = row * shape[1] / block;
                assert_eq!(scales.offset as usize + first_block * size, first * size);
                let count = (shard.rows * shape[1]).div_ceil(block);
                assert!((first_block + count) * size <= scales.bytes() as usize);
                assert!(!scheme.double_quant() || first_block == first);
            }
            row += shard.rows;
            count += 1;
        }
        assert_eq!(row, shape[0]);
        let bytes = 4 * scheme.words(shape).iter().sum::<usize>() as u64;
        assert!((bytes..bytes + 16).contains(&tensor.bytes()));
        count
    }

    #[test]
    fn shards_cover_every_row_within_the_limits() {
        assert_eq!(check(Scheme::F16, [32000, 4096]), 2);
        assert_eq!(check(Scheme::F32, [32000, 4096]), 4);
        assert_eq!(check(Scheme::BF16, [128_256, 4096]), 8);
        assert_eq!(check(Scheme::F16, [3, 63]), 1);
        assert_eq!(check(Scheme::Nf4 { block_size: 64, double_quant: true }, [128_256, 4096]), 2);
        assert_eq!(check(Scheme::Nf4 { block_size: 4096, double_quant: false }, [151_936, 4095]), 3);
        // Scales that exceed a binding where the codes do not.
        assert!(check(Scheme::int(4, 8).with_f32_scales(), [50_000, 4096]) > 1);
        assert!(check(Scheme::int(8, 24).with_f32_scales(), [151_936, 4099]) > 4);
        assert!(check(Scheme::Q4_0, [151_936, 4096]) > 2);
        // Codes of 3 bits: a shard ends with a whole group of words.
        assert!(check(Scheme::int(3, 64), [151_936, 4096]) > 1);
        assert_eq!(check(Scheme::Q2_K, [151_936, 4096]), 2);
    }

    #[test]
    fn what_no_shard_can_hold_is_refused() {
        let gpu = counting();
        let wide = QuantizedTensor::zeros(&gpu, "head", Scheme::F32, [2, 1 << 26]).unwrap_err().to_string();
        assert!(wide.starts_with("head: expected rows"), "{wide}");
        assert!(QuantizedTensor::zeros(&gpu, "w", Scheme::Q4_0, [1 << 17, 1 << 15]).is_err());
        assert!(QuantizedTensor::zeros(&gpu, "w", Scheme::F16, [usize::MAX, 2]).is_err());
        let one_block = Scheme::int8(usize::MAX - 7);
        assert!(QuantizedTensor::zeros(&gpu, "w", one_block, [1 << 15, 1 << 15]).is_err());
        assert!(QuantizedTensor::zeros(&gpu, "w", one_block, [1 << 10, 1 << 10]).is_ok());
        let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
        let short = QuantizedTensor::from_bytes(&gpu, "w", nf4, [2, 64], &[0; 63], &[0; 8], &[]);
        let message = short.unwrap_err().to_string();
        assert_eq!(message, "w: codes of nf4 [2, 64]: expected 64 bytes, got 63 bytes");
    }

    #[test]
    fn an_empty_weight_has_no_shards() {
        assert_eq!(check(Scheme::Nf4 { block_size: 64, double_quant: false }, [0, 32]), 0);
    }
}
