//! How a shader reads each scheme: the snippets of `shaders/lib` that decode it, and their constants.

use super::QuantizedTensor;
use crate::{
    gpu::Kernel,
    quant::{BlockSize, ScaleType, Scheme, ggml::BlockType},
};

/// How many elements an invocation decodes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// The eight of a word of 4-bit codes; rows begin at such a word.
    Eight,
    /// The same, those of f32 by integers of 64 bits.
    EightLong,
    /// Codes of four bits in eight words, by integers of 64 bits; rows begin at such words.
    SixtyFour,
    /// One, wherever it lies.
    One,
}

/// Where the values of a code book of 16 are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// In an array of each invocation.
    Private,
    /// In workgroup memory; `decode_init` has a barrier then.
    Workgroup,
    /// In the lanes of a subgroup, by a shuffle.
    Subgroup,
}

/// One scheme for every way of decoding.
pub(super) const SCHEMES: [Scheme; 29] = [
    Scheme::F32,
    Scheme::F16,
    Scheme::BF16,
    Scheme::Nf4 { block_size: 64, double_quant: false },
    Scheme::Fp4 { block_size: 64, double_quant: true },
    Scheme::Nf3 { block_size: 64 },
    Scheme::Nf2 { block_size: 64 },
    Scheme::int(8, 24).with_f32_scales(),
    Scheme::int(4, 64).with_f32_scales(),
    Scheme::int(4, 64),
    Scheme::int(2, 64),
    Scheme::int(3, 64),
    Scheme::int(6, 24).with_f32_scales(),
    Scheme::Mxfp4,
    Scheme::Nvfp4,
    Scheme::Q4_0,
    Scheme::Q4_1,
    Scheme::Q5_0,
    Scheme::Q5_1,
    Scheme::Q8_0,
    Scheme::Q2_K,
    Scheme::Q3_K,
    Scheme::Q4_K,
    Scheme::Q5_K,
    Scheme::Q6_K,
    Scheme::IQ4_NL,
    Scheme::IQ4_XS,
    Scheme::E8p,
    Scheme::Aqlm,
];

/// How codes lie in their words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codes {
    /// Floats, by the name of their type.
    F32,
    F16,
    BF16,
    /// Signed bytes.
    Bytes,
    /// Four bits, which stand for themselves.
    Nibbles,
    /// Four bits, which a code book stands behind.
    Table,
    /// Any number of bits, one code after the other.
    Stream,
    /// QuIP#'s vectors of 8.
    Lattice,
    /// AQLM's sums of two vectors of 8.
    Codebooks,
}

impl Codes {
    const fn of_integers(bits: u8) -> Codes {
        match bits {
            8 => Codes::Bytes,
            4 => Codes::Nibbles,
            _ => Codes::Stream,
        }
    }
}

/// What decodes one scheme.
struct Decoder {
    codes: Codes,
    /// `codebook_*`
    codebook: Option<&'static str>,
    /// `scale_*`
    scale: &'static str,
    /// What GGUF's blocks subtract from a code.
    zero: Option<u32>,
}

/// One row per scheme.
fn decoder(scheme: Scheme) -> Decoder {
    use Codes::{Bytes, Codebooks, Lattice, Nibbles, Stream, Table};
    let absmax = |double_quant| if double_quant { "scale_nested" } else { "scale_absmax" };
    let (codes, codebook, scale, zero) = match scheme {
        Scheme::F32 => (Codes::F32, None, "scale_none", None),
        Scheme::F16 => (Codes::F16, None, "scale_none", None),
        Scheme::BF16 => (Codes::BF16, None, "scale_none", None),
        Scheme::Nf4 { double_quant, .. } => (Table, Some("codebook_nf4"), absmax(double_quant), None),
        Scheme::Fp4 { double_quant, .. } => (Table, Some("codebook_fp4"), absmax(double_quant), None),
        Scheme::Nf3 { .. } => (Stream, Some("codebook_nf3"), "scale_absmax", None),
        Scheme::Nf2 { .. } => (Stream, Some("codebook_nf2"), "scale_absmax", None),
        Scheme::Int { bits, scale: ScaleType::F32, .. } => (Codes::of_integers(bits), None, "scale_affine", None),
        Scheme::Int { bits, scale: ScaleType::F16, .. } => (Codes::of_integers(bits), None, "scale_affine_half", None),
        Scheme::Mxfp4 => (Table, Some("codebook_e2m1"), "scale_e8m0", None),
        Scheme::Nvfp4 => (Table, Some("codebook_e2m1"), "scale_e4m3", None),
        Scheme::Ggml(ty) => match ty {
            BlockType::Q4_0 => (Nibbles, None, "scale_half", Some(8)),
            BlockType::Q4_1 => (Nibbles, None, "scale_half_min", None),
            BlockType::Q5_0 => (Stream, None, "scale_half", Some(16)),
            BlockType::Q5_1 => (Stream, None, "scale_half_min", None),
            BlockType::Q8_0 => (Bytes, None, "scale_half", Some(0)),
            BlockType::Q2K => (Stream, None, "scale_q2_k", None),
            BlockType::Q3K => (Stream, None, "scale_q3_k", Some(4)),
            BlockType::Q4K => (Nibbles, None, "scale_q4_k", None),
            BlockType::Q5K => (Stream, None, "scale_q4_k", None),
            BlockType::Q6K => (Stream, None, "scale_q6_k", Some(32)),
            BlockType::Iq4Nl => (Table, Some("codebook_iq4"), "scale_half", Some(0)),
            BlockType::Iq4Xs => (Table, Some("codebook_iq4"), "scale_iq4_xs", None),
        },
        Scheme::E8p => (Lattice, None, "scale_absmax", None),
        Scheme::Aqlm => (Codebooks, None, "scale_absmax", None),
    };
    Decoder { codes, codebook, scale, zero }
}

/// Specialises `kernel` for an encoding: the snippets `decode` (with `codebook` or `value`) and `scale`, and their constants.
pub(super) fn decode(kernel: Kernel, encoding: Encoding, unit: Unit, lookup: Lookup) -> Kernel {
    let Encoding { scheme, block } = encoding;
    let Decoder { codes, codebook, scale, zero } = decoder(scheme);
    let table = if lookup == Lookup::Subgroup { "decode_table_subgroup" } else { "decode_table" };
    let [eight, one] = match codes {
        Codes::F32 if unit == Unit::EightLong => ["decode_f32_long"; 2],
        Codes::F32 => ["decode_f32", "codes_f32"],
        Codes::F16 => ["decode_f16", "codes_f16"],
        Codes::BF16 => ["decode_bf16", "codes_bf16"],
        Codes::Bytes => ["decode_int8", "codes_int8"],
        Codes::Nibbles if unit == Unit::SixtyFour => ["words_int4"; 2],
        Codes::Nibbles => ["decode_int4"; 2],
        Codes::Table if unit == Unit::SixtyFour => ["words_table"; 2],
        Codes::Table => [table; 2],
        Codes::Stream => ["decode_stream"; 2],
        Codes::Lattice => ["decode_lattice"; 2],
        Codes::Codebooks => ["decode_codebooks"; 2],
    };
    let mut kernel = kernel
        .with("POW2", u32::from(block.is_none_or(usize::is_power_of_two)))
        .import("decode", if unit == Unit::One { one } else { eight })
        .import("scale", scale);
    if codes == Codes::Stream {
        kernel = kernel.import("value", if codebook.is_some() { "value_table" } else { "value_code" });
    }
    if codes == Codes::Stream || codebook.is_some() {
        kernel = kernel.with("BITS", scheme.code_bits() as u32);
    }
    if let Some(codebook) = codebook {
        kernel = kernel.import("codebook", codebook);
        if lookup == Lookup::Workgroup {
            kernel = kernel.import("table", "table_workgroup");
        }
    }
    if let Some(zero) = zero {
        kernel = kernel.with("ZERO", zero);
    }
    kernel
}

/// How the numbers of one weight lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    pub scheme: Scheme,
    /// Elements that share a scale; none for plain floats.
    pub block: Option<usize>,
}

impl Encoding {
    /// That of a weight of `shape` (rows, cols). Where one scale is for the whole weight, its block is the largest power of two
    /// that shaders can number elements by, so that they shift instead of dividing.
    pub(super) const fn new(scheme: Scheme, shape: [usize; 2]) -> Encoding {
        let block = match scheme.block() {
            Some(BlockSize::Tensor) => Some(1 << 31),
            _ => scheme.block_size(shape),
        };
        Encoding { scheme, block }
    }

    /// Whether [`Unit::SixtyFour`] decodes it.
    pub(super) fn has_words(self) -> bool {
        matches!(decoder(self.scheme).codes, Codes::Nibbles | Codes::Table)
    }

    /// Whether codes lie one after the other, across words.
    pub(super) fn is_stream(self) -> bool {
        decoder(self.scheme).codes == Codes::Stream
    }

    pub(super) fn of(w: &QuantizedTensor) -> Encoding {
        Encoding::new(w.scheme(), w.shape())
    }

    /// One encoding for every way of decoding: what kernels are specialised for.
    pub(super) fn all() -> impl Iterator<Item = Encoding> {
        SCHEMES.into_iter().map(|scheme| Encoding::new(scheme, [1, 64]))
    }

    /// The uniform `block` beside the constant `POW2`: a block's length, or its logarithm where that is whole.
    pub(super) fn block(self) -> u32 {
        match self.block {
            Some(size) if size.is_power_of_two() => size.trailing_zeros(),
            Some(size) => size as u32,
            None => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::discriminant;

    #[test]
    fn kernels_are_specialised_for_every_way_of_decoding() {
        for scheme in Scheme::forms() {
            let same = |other: &Scheme| match (*other, scheme) {
                (Scheme::Ggml(a), Scheme::Ggml(b)) => a == b,
                (a, b) => discriminant(&a) == discriminant(&b),
            };
            assert!(SCHEMES.iter().any(same), "{scheme}");
            let decoded = decoder(scheme);
            let all = || SCHEMES.iter().map(|other| decoder(*other));
            assert!(all().any(|d| d.codes == decoded.codes && d.codebook == decoded.codebook), "{scheme}: codes");
            assert!(all().any(|d| d.scale == decoded.scale), "{scheme}: {}", decoded.scale);
            assert!(all().any(|d| d.zero == decoded.zero), "{scheme}: {:?}", decoded.zero);
        }
    }
}
