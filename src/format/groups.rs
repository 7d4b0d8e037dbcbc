//! What the layouts of affine integers share: streams of codes in words, and columns that share a scale.

use super::checkpoint::Module;
pub(super) use crate::quant::stream_words;
use crate::quant::{self, BlockSize, Packed, ScaleType, Scheme, affine_words, gcd, pack_codes};
use crate::{DType, Error, Result};
use serde_json::{Value, json};

/// Field `k` of a stream of `bits` each, from the lowest bit of word `first`, whose words lie `stride` apart.
pub(super) fn field(words: &[u32], bits: usize, first: usize, stride: usize, k: usize) -> u32 {
    let (word, shift) = (k / 32 * bits + k % 32 * bits / 32, k % 32 * bits % 32);
    let low = words[first + word * stride] >> shift;
    let high = if shift + bits > 32 { words[first + (word + 1) * stride] << (32 - shift) } else { 0 };
    (low | high) & ((1 << bits) - 1)
}

/// Writes what [`field`] reads into words that are 0 there.
pub(super) fn set_field(words: &mut [u32], bits: usize, first: usize, stride: usize, k: usize, value: u32) {
    let (word, shift) = (k / 32 * bits + k % 32 * bits / 32, k % 32 * bits % 32);
    words[first + word * stride] |= value << shift;
    if shift + bits > 32 {
        words[first + (word + 1) * stride] |= value >> (32 - shift);
    }
}

/// Which columns share a scale, in blocks of equal length.
pub(super) struct Groups {
    /// Position p of a row holds column `order[p]`; none where columns keep their places.
    pub order: Option<Vec<u32>>,
    /// Columns of a block; it divides the row.
    pub block: usize,
    /// The group of each block of a row.
    pub of_block: Vec<usize>,
}

impl Groups {
    /// From the group of each column. Groups may differ in length: blocks are as long as their lengths' common divisor, and
    /// a group's scale is repeated for each. Errors: Format for a group that is none of `count`.
    pub(super) fn from_index(module: &Module, index: &[i64], count: usize) -> Result<Groups> {
        if let Some(column) = index.iter().position(|&g| !(0..count as i64).contains(&g)) {
            return Err(module.fail(format!("column {column} is in group {} of {count}", index[column])));
        }
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|&column| index[column as usize]);
        let sorted: Vec<usize> = order.iter().map(|&column| index[column as usize] as usize).collect();
        let block = sorted.chunk_by(|a, b| a == b).fold(0, |d, run| gcd(run.len(), d));
        let of_block = sorted.iter().step_by(block.max(1)).copied().collect();
        let order = (!index.is_sorted()).then_some(order);
        Ok(Groups { order, block, of_block })
    }

    /// Groups that lie side by side in a row, the last one shorter.
    /// Errors: Format where that does not give `count`.
    pub(super) fn contiguous(module: &Module, cols: usize, group: BlockSize, count: usize) -> Result<Groups> {
        let size = group.size([1, cols]).max(1);
        if cols.div_ceil(size) != count {
            return Err(module.fail(format!("expected {} groups of {size} columns, got {count}", cols.div_ceil(size))));
        }
        let index: Vec<i64> = (0..cols).map(|column| (column / size) as i64).collect();
        Groups::from_index(module, &index, count)
    }

    /// The scheme of such a weight, checked for `shape`. Errors: Format.
    pub(super) fn scheme(
        &self,
        module: &Module,
        bits: usize,
        symmetric: bool,
        scale: DType,
        shape: [usize; 2],
    ) -> Result<Scheme> {
        let scale = if scale == DType::F16 { ScaleType::F16 } else { ScaleType::F32 };
        let scheme = Scheme::Int { bits: bits as u8, block: self.block.into(), symmetric, scale };
        quant::checked_len(shape).map_err(|e| module.fail(e.to_string()))?;
        scheme.validate_for(shape).map_err(|e| module.fail(e.to_string()))?;
        Ok(scheme)
    }

    /// The weight out of the code of (row, column) and of scale and zero point of (row, group), both unsigned.
    pub(super) fn pack(
        &self,
        scheme: Scheme,
        shape: [usize; 2],
        code: impl Fn(usize, usize) -> u32,
        pair: impl Fn(usize, usize) -> (f32, f32),
    ) -> Result<Packed> {
        let [rows, cols] = shape;
        let (bits, offset) = (scheme.code_bits(), code_offset(scheme));
        let column = |p: usize| self.order.as_ref().map_or(p, |order| order[p] as usize);
        let mut codes = Vec::with_capacity(rows * cols);
        let mut pairs = Vec::with_capacity(rows * self.of_block.len());
        for row in 0..rows {
            codes.extend((0..cols).map(|p| (code(row, column(p)) as u8).wrapping_sub(offset)));
            pairs.extend(self.of_block.iter().map(|&group| {
                let (scale, zero) = pair(row, group);
                (scale, zero - f32::from(offset))
            }));
        }
        let Scheme::Int { scale, .. } = scheme else { unreachable!("groups are of integers") };
        let padding = pairs.last().map_or(0, |&(_, zero)| zero as i32 as u8);
        Packed::new(scheme, shape, pack_codes(bits, &codes, padding), affine_words(scale, pairs), vec![])
    }
}

/// What 8-bit codes here are less than unsigned ones.
pub(super) fn code_offset(scheme: Scheme) -> u8 {
    if scheme.code_bits() == 8 { 128 } else { 0 }
}

/// Bits and groups of what a layout is asked to write. Errors: Unsupported for schemes that are no affine integers of one of
/// these widths, and for one scale per tensor.
pub(super) fn int_scheme(layout: &str, scheme: Scheme, widths: &[u8], scales: &[ScaleType]) -> Result<(u8, BlockSize)> {
    match scheme {
        Scheme::Int { block: BlockSize::Tensor, .. } => {
            let got = "one scale per tensor";
            Err(Error::unsupported(format!("scheme for the {layout} layout"), got, "one scale per group or row"))
        }
        Scheme::Int { bits, block, scale, .. } if widths.contains(&bits) && scales.contains(&scale) => {
            Ok((bits, block))
        }
        _ => {
            let got = match scheme {
                Scheme::Int { bits, scale, .. } => format!("integers of {bits} bits with scales in {scale:?}"),
                _ => scheme.name().to_owned(),
            };
            let widths = widths.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            let supported = format!("integers of {widths} bits with scales in {scales:?}");
            Err(Error::unsupported(format!("scheme for the {layout} layout"), got, supported))
        }
    }
}

/// Blocks of a row. Errors: Shape where they end inside it.
pub(super) fn blocks_of_row(name: &str, scheme: Scheme, shape: [usize; 2]) -> Result<usize> {
    scheme.validate_for(shape)?;
    match scheme.block_size(shape).unwrap_or(1) {
        block if block > 0 && shape[1].is_multiple_of(block) => Ok(shape[1] / block),
        block => Err(Error::shape(name, format!("rows of whole blocks of {block}"), format!("{shape:?}"))),
    }
}

/// How configurations say it: -1 for one group per row.
pub(super) fn group_field(group: BlockSize) -> Value {
    match group {
        BlockSize::Elements(size) => json!(size),
        BlockSize::Row | BlockSize::Tensor => json!(-1),
    }
}

/// The unsigned integer that block `b` has for its zero point. Errors: Config where it is none.
pub(super) fn integer_zero(name: &str, packed: &Packed, b: usize) -> Result<u32> {
    let zero = packed.affine(b).1 + f32::from(code_offset(packed.scheme));
    let most = (1u32 << packed.scheme.code_bits()) - 1;
    if zero.fract() == 0.0 && (0.0..=most as f32).contains(&zero) {
        return Ok(zero as u32);
    }
    Err(Error::config(
        name,
        format!("block {b} has the zero point {zero}: this layout holds integers from 0 to {most}"),
    ))
}

/// The unsigned code of element `i`.
pub(super) fn unsigned_code(packed: &Packed, i: usize) -> u32 {
    packed.code(i) ^ u32::from(code_offset(packed.scheme))
}

/// The scale's bits as they lie in memory, as F16 or F32, of block `b`.
pub(super) fn scale_bytes(packed: &Packed, blocks: impl Iterator<Item = usize>) -> Vec<u8> {
    let Scheme::Int { scale, .. } = packed.scheme else { unreachable!("only integers are written in groups") };
    match scale {
        ScaleType::F16 => blocks.flat_map(|b| (packed.scales[b] as u16).to_le_bytes()).collect(),
        ScaleType::F32 => blocks.flat_map(|b| packed.scales[2 * b].to_le_bytes()).collect(),
    }
}

/// The dtype of scales on disk.
pub(super) fn scale_dtype(scale: ScaleType) -> DType {
    match scale {
        ScaleType::F16 => DType::F16,
        ScaleType::F32 => DType::F32,
    }
}

/// Words as little-endian bytes.
pub(super) fn word_bytes(words: &[u32]) -> Vec<u8> {
    bytemuck::cast_slice(words).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_width_come_back_from_strided_words() {
        for bits in 2..=8 {
            let len = 67;
            let mut words = vec![0; 3 * stream_words(len, bits)];
            let value = |k: usize| (k * 37 + 5) as u32 & ((1 << bits) - 1);
            (0..len).for_each(|k| set_field(&mut words, bits, 1, 3, k, value(k)));
            assert!((0..len).all(|k| field(&words, bits, 1, 3, k) == value(k)), "{bits} bits");
            assert!(words.chunks(3).all(|w| w[0] == 0 && w[2] == 0));
        }
    }
}
