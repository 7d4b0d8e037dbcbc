//! The schemes: names, sizes, and what a block may be.

use super::ggml::BlockType;
use crate::{Error, Result};

/// How scale and zero point of [`Scheme::Int`] are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// Two f32 a block.
    F32,
    /// Two f16 a block, the scale in the low half of a word.
    F16,
}

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockSize {
    /// So many elements, one after the other; they may cross rows.
    Elements(usize),
    /// A row: one scale per output, "per channel" in other programs.
    Row,
    /// The whole tensor.
    Tensor,
}

impl From<usize> for BlockSize {
    fn from(elements: usize) -> BlockSize {
        BlockSize::Elements(elements)
    }
}

impl BlockSize {
    /// Elements of a block in a weight of `shape` (rows, cols); at most `usize::MAX` where they cannot be counted.
    pub const fn size(self, [rows, cols]: [usize; 2]) -> usize {
        match self {
            BlockSize::Elements(elements) => elements,
            BlockSize::Row => cols,
            BlockSize::Tensor => rows.saturating_mul(cols),
        }
    }
}

/// Elements that one code of a vector scheme stands for.
pub const VECTOR: usize = 8;
/// Elements of a super-block of GGUF's K-quants.
pub const SUPER_BLOCK: usize = 256;

/// How a weight's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// 32-bit floats.
    F32,
    /// IEEE halves.
    F16,
    /// bfloat16.
    BF16,
    /// NormalFloat-4 (QLoRA, Dettmers et al. 2023): `table[code] * absmax`.
    Nf4 {
        /// Elements that share one absmax: a power of two from 32 to 4096.
        block_size: usize,
        /// Whether the absmax values are themselves held in 8 bits.
        double_quant: bool,
    },
    /// 4-bit floats as bitsandbytes defines them: `table[code] * absmax`.
    Fp4 {
        /// Elements that share one absmax: a power of two from 32 to 4096.
        block_size: usize,
        /// Whether the absmax values are themselves held in 8 bits.
        double_quant: bool,
    },
    /// The 8 values of a NormalFloat of 3 bits: `table[code] * absmax`.
    Nf3 {
        /// Elements that share one absmax: a power of two from 32 to 4096.
        block_size: usize,
    },
    /// The 4 values of a NormalFloat of 2 bits: `table[code] * absmax`.
    Nf2 {
        /// Elements that share one absmax: a power of two from 32 to 4096.
        block_size: usize,
    },
    /// Affine integers: `(code - zero_point) * scale`. Codes are 0..2^bits, but -128..=127 for 8 bits.
    Int {
        /// Bits of a code, 2 to 8.
        bits: u8,
        /// What shares one scale and zero point; a multiple of 8 elements where the row length is one.
        block: BlockSize,
        /// Whether the zero point is the middle code.
        symmetric: bool,
        /// How scales and zero points are held.
        scale: ScaleType,
    },
    /// Microscaling FP4 of the Open Compute Project: blocks of 32 of E2M1 numbers, a power of two (E8M0) a block.
    Mxfp4,
    /// NVIDIA's FP4: blocks of 16 of E2M1 numbers, an E4M3 scale a block, an f32 scale for the tensor.
    Nvfp4,
    /// A block type of GGUF: `d * code + m` in blocks of 32 or super-blocks of 256, see [`ggml`](super::ggml).
    Ggml(BlockType),
    /// QuIP#'s lattice E8P (Tseng et al. 2024): 16 bits for 8 numbers, one scale for the tensor.
    E8p,
    /// AQLM (Egiazarian et al. 2024): 8 numbers are the sum of two vectors of two code books of 256, times the row's scale.
    Aqlm,
}

/// What a scheme is made of.
struct Layout {
    name: &'static str,
    /// Bits of an element.
    bits: usize,
    scales: Option<Scales>,
}

/// How a scheme's scales lie.
#[derive(Clone, Copy)]
struct Scales {
    /// What shares a scale.
    block: BlockSize,
    /// What one entry of `scales` is for: a block, but a super-block for K-quants.
    entry: BlockSize,
    /// Of an entry.
    bytes: usize,
}

/// One entry for each block.
const fn per(block: BlockSize, bytes: usize) -> Option<Scales> {
    Some(Scales { block, entry: block, bytes })
}

/// One row per scheme: examples of it, one for each of its names, and what it is made of. The match makes it an error to leave a
/// scheme out, and the examples are the list of all schemes.
macro_rules! table {
    ($($examples:expr, $pattern:pat => $row:expr;)*) => {
        impl Scheme {
            const fn layout(self) -> Layout {
                let (name, bits, scales) = match self { $($pattern => $row),* };
                Layout { name, bits, scales }
            }
        }

        /// Examples of each scheme, one for each name, as it is without parts.
        const EXAMPLES: &[&[Scheme]] = &[$(&$examples),*];
    };
}

/// Elements of a block unless others are asked for.
pub(super) const BLOCK: usize = 64;

/// Integers of each width.
const INTEGERS: [Scheme; 7] = [
    Scheme::int(2, BLOCK),
    Scheme::int(3, BLOCK),
    Scheme::int(4, BLOCK),
    Scheme::int(5, BLOCK),
    Scheme::int(6, BLOCK),
    Scheme::int(7, BLOCK),
    Scheme::int(8, BLOCK),
];

/// GGUF's block types.
const GGML: [Scheme; BlockType::ALL.len()] = {
    let mut all = [Scheme::F32; BlockType::ALL.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = Scheme::Ggml(BlockType::ALL[i]);
        i += 1;
    }
    all
};

table! {
    [Scheme::F32], Scheme::F32 => ("f32", 32, None);
    [Scheme::F16], Scheme::F16 => ("f16", 16, None);
    [Scheme::BF16], Scheme::BF16 => ("bf16", 16, None);
    [Scheme::Nf4 { block_size: BLOCK, double_quant: false }], Scheme::Nf4 { block_size, double_quant } => {
        ("nf4", 4, per(BlockSize::Elements(block_size), absmax_bytes(double_quant)))
    };
    [Scheme::Fp4 { block_size: BLOCK, double_quant: false }], Scheme::Fp4 { block_size, double_quant } => {
        ("fp4", 4, per(BlockSize::Elements(block_size), absmax_bytes(double_quant)))
    };
    [Scheme::Nf3 { block_size: BLOCK }], Scheme::Nf3 { block_size } => ("nf3", 3, per(BlockSize::Elements(block_size), 4));
    [Scheme::Nf2 { block_size: BLOCK }], Scheme::Nf2 { block_size } => ("nf2", 2, per(BlockSize::Elements(block_size), 4));
    INTEGERS, Scheme::Int { bits, block, scale, .. } => (int_name(bits), bits as usize, per(block, scale.pair_bytes()));
    [Scheme::Mxfp4], Scheme::Mxfp4 => ("mxfp4", 4, per(BlockSize::Elements(32), 1));
    [Scheme::Nvfp4], Scheme::Nvfp4 => ("nvfp4", 4, per(BlockSize::Elements(16), 1));
    [Scheme::E8p], Scheme::E8p => ("e8p", 2, per(BlockSize::Tensor, 4));
    [Scheme::Aqlm], Scheme::Aqlm => ("aqlm", 2, per(BlockSize::Row, 4));
    GGML, Scheme::Ggml(ty) => {
        let (block, entry) = (BlockSize::Elements(ty.sub_block()), BlockSize::Elements(ty.block_size()));
        (ty.scheme_name(), ty.code_bits(), Some(Scales { block, entry, bytes: ty.head_bytes() }))
    };
}

/// GGUF's block types, as GGUF names them.
#[allow(missing_docs, reason = "each is the block type of its name")]
impl Scheme {
    pub const Q4_0: Scheme = Scheme::Ggml(BlockType::Q4_0);
    pub const Q4_1: Scheme = Scheme::Ggml(BlockType::Q4_1);
    pub const Q5_0: Scheme = Scheme::Ggml(BlockType::Q5_0);
    pub const Q5_1: Scheme = Scheme::Ggml(BlockType::Q5_1);
    pub const Q8_0: Scheme = Scheme::Ggml(BlockType::Q8_0);
    pub const Q2_K: Scheme = Scheme::Ggml(BlockType::Q2K);
    pub const Q3_K: Scheme = Scheme::Ggml(BlockType::Q3K);
    pub const Q4_K: Scheme = Scheme::Ggml(BlockType::Q4K);
    pub const Q5_K: Scheme = Scheme::Ggml(BlockType::Q5K);
    pub const Q6_K: Scheme = Scheme::Ggml(BlockType::Q6K);
    pub const IQ4_NL: Scheme = Scheme::Ggml(BlockType::Iq4Nl);
    pub const IQ4_XS: Scheme = Scheme::Ggml(BlockType::Iq4Xs);
}

impl Scheme {
    /// 8-bit integers with an f32 scale per row and no zero point, of LLM.int8() and W8A8.
    pub const INT8_ROWS: Scheme =
        Scheme::Int { bits: 8, block: BlockSize::Row, symmetric: true, scale: ScaleType::F32 };

    /// Affine integers with halves for scale and zero point, as HQQ, GPTQ and AWQ store them.
    pub const fn int(bits: u8, block_size: usize) -> Scheme {
        Scheme::int_per(bits, BlockSize::Elements(block_size))
    }

    /// [`Scheme::int`] with one scale and zero point per row, per tensor or per so many elements.
    pub const fn int_per(bits: u8, block: BlockSize) -> Scheme {
        Scheme::Int { bits, block, symmetric: false, scale: ScaleType::F16 }
    }

    /// 8-bit integers with an f32 scale and no zero point.
    pub const fn int8(block_size: usize) -> Scheme {
        Scheme::Int { bits: 8, block: BlockSize::Elements(block_size), symmetric: true, scale: ScaleType::F32 }
    }

    /// The same integers with scale and zero point in f32; any other scheme as it is.
    pub const fn with_f32_scales(self) -> Scheme {
        let Scheme::Int { bits, block, symmetric, .. } = self else { return self };
        Scheme::Int { bits, block, symmetric, scale: ScaleType::F32 }
    }

    /// The same integers with the zero point in the middle; any other scheme as it is.
    pub const fn symmetric(self) -> Scheme {
        let Scheme::Int { bits, block, scale, .. } = self else { return self };
        Scheme::Int { bits, block, symmetric: true, scale }
    }

    /// The same with other blocks; schemes that have no such blocks stay as they are.
    pub const fn with_block(self, block: BlockSize) -> Scheme {
        match (self, block) {
            (Scheme::Nf4 { double_quant, .. }, BlockSize::Elements(block_size)) => {
                Scheme::Nf4 { block_size, double_quant }
            }
            (Scheme::Fp4 { double_quant, .. }, BlockSize::Elements(block_size)) => {
                Scheme::Fp4 { block_size, double_quant }
            }
            (Scheme::Nf3 { .. }, BlockSize::Elements(block_size)) => Scheme::Nf3 { block_size },
            (Scheme::Nf2 { .. }, BlockSize::Elements(block_size)) => Scheme::Nf2 { block_size },
            (Scheme::Int { bits, symmetric, scale, .. }, block) => Scheme::Int { bits, block, symmetric, scale },
            (Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Nf3 { .. } | Scheme::Nf2 { .. }, _) => self,
            (Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Mxfp4 | Scheme::Nvfp4, _) => self,
            (Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm, _) => self,
        }
    }

    /// Every scheme, one for each name, as its name alone says it.
    pub fn all() -> impl Iterator<Item = Scheme> {
        EXAMPLES.iter().copied().flatten().copied()
    }

    /// Every scheme in each of its forms (double quantization, zero points, the type of scales), blocks of other sizes aside.
    pub fn forms() -> Vec<Scheme> {
        let forms = |scheme: Scheme| match scheme {
            Scheme::Nf4 { block_size, .. } => {
                [false, true].map(|double_quant| Scheme::Nf4 { block_size, double_quant }).to_vec()
            }
            Scheme::Fp4 { block_size, .. } => {
                [false, true].map(|double_quant| Scheme::Fp4 { block_size, double_quant }).to_vec()
            }
            Scheme::Int { .. } => {
                [scheme, scheme.symmetric()].into_iter().flat_map(|s| [s, s.with_f32_scales()]).collect()
            }
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => vec![scheme],
            Scheme::Mxfp4 | Scheme::Nvfp4 | Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => vec![scheme],
        };
        Scheme::all().flat_map(forms).collect()
    }

    /// What shares a scale; none for plain floats.
    pub const fn block(self) -> Option<BlockSize> {
        match self.layout().scales {
            Some(scales) => Some(scales.block),
            None => None,
        }
    }

    /// Bits of an element.
    pub const fn code_bits(self) -> usize {
        self.layout().bits
    }

    /// The name used in files and flags (`nf4`, `q4_1`, ...).
    pub const fn name(self) -> &'static str {
        self.layout().name
    }

    /// Whether the scales are themselves quantized, as double quantization of bitsandbytes does.
    pub const fn double_quant(self) -> bool {
        matches!(self, Scheme::Nf4 { double_quant: true, .. } | Scheme::Fp4 { double_quant: true, .. })
    }

    /// Whether this is one of GGUF's block types.
    pub const fn is_ggml(self) -> bool {
        matches!(self, Scheme::Ggml(_))
    }

    /// Whether these are affine integers.
    pub const fn is_int(self) -> bool {
        matches!(self, Scheme::Int { .. })
    }

    /// Whether these are plain floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Scheme::F32 | Scheme::F16 | Scheme::BF16)
    }

    /// Whether a code stands for [`VECTOR`] numbers at once.
    pub const fn is_vector(self) -> bool {
        matches!(self, Scheme::E8p | Scheme::Aqlm)
    }

    /// Words of the codes of `len` elements.
    pub(crate) const fn code_words(self, len: usize) -> usize {
        super::stream_words(len, self.code_bits())
    }

    /// Checks bits and block size. Errors: Config.
    pub fn validate(self) -> Result<()> {
        match self {
            Scheme::Nf4 { block_size: n, .. } | Scheme::Fp4 { block_size: n, .. } => check_table_block(n),
            Scheme::Nf3 { block_size } | Scheme::Nf2 { block_size } => check_table_block(block_size),
            Scheme::Int { bits, .. } => match bits {
                2..=8 => Ok(()),
                bits => Err(Error::config("bits", format!("{bits} is not one of 2 to 8"))),
            },
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Mxfp4 | Scheme::Nvfp4 => Ok(()),
            Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => Ok(()),
        }
    }
}

/// A scheme on a weight of one shape (rows, cols).
impl Scheme {
    /// The same integers in blocks of so many elements, as a weight of `shape` is stored: rows of 64 are blocks of 64. Any
    /// other scheme as it is.
    pub const fn resolve(self, shape: [usize; 2]) -> Scheme {
        let Scheme::Int { bits, block, symmetric, scale } = self else { return self };
        Scheme::Int { bits, block: BlockSize::Elements(block.size(shape)), symmetric, scale }
    }

    /// Elements that share a scale; none for plain floats.
    pub const fn block_size(self, shape: [usize; 2]) -> Option<usize> {
        match self.block() {
            Some(block) => Some(block.size(shape)),
            None => None,
        }
    }

    /// Elements and bytes of one entry of `scales`: a block, but a super-block for K-quants. None for plain floats.
    pub const fn scale_entry(self, shape: [usize; 2]) -> Option<(usize, usize)> {
        match self.layout().scales {
            Some(scales) => Some((scales.entry.size(shape), scales.bytes)),
            None => None,
        }
    }

    /// Bytes of the scales of the first `len` elements.
    pub(crate) const fn scale_bytes(self, shape: [usize; 2], len: usize) -> usize {
        match self.scale_entry(shape) {
            Some((elements, bytes)) if elements > 0 => len.div_ceil(elements) * bytes,
            _ => 0,
        }
    }

    /// Words of `codes`, `scales` and `nested`.
    pub const fn words(self, shape: [usize; 2]) -> [usize; 3] {
        let len = shape[0] * shape[1];
        let nested = match self {
            Scheme::Nvfp4 => 1,
            Scheme::E8p => 256 * VECTOR,
            Scheme::Aqlm => 2 * 256 * VECTOR,
            Scheme::Nf4 { block_size, double_quant: true } | Scheme::Fp4 { block_size, double_quant: true } => {
                257 + len.div_ceil(block_size).div_ceil(256)
            }
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => 0,
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Int { .. } | Scheme::Mxfp4 | Scheme::Ggml(_) => 0,
        };
        [self.code_words(len), self.scale_bytes(shape, len).div_ceil(4), nested]
    }

    /// Checks that a weight of `shape` can be stored so: rows of whole vectors or super-blocks, blocks that do not end
    /// inside a word of eight. Errors: Config, Shape.
    pub fn validate_for(self, shape: [usize; 2]) -> Result<()> {
        self.validate()?;
        let cols = shape[1];
        let unit = match self {
            Scheme::Ggml(ty) => ty.block_size(),
            Scheme::E8p | Scheme::Aqlm => VECTOR,
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Int { .. } | Scheme::Mxfp4 | Scheme::Nvfp4 => 1,
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } | Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => 1,
        };
        if cols % unit != 0 {
            let expected = format!("a multiple of {unit} columns");
            return Err(Error::shape(self.name(), expected, format!("{shape:?}")));
        }
        if let Scheme::E8p = self
            && shape[0].saturating_mul(cols) > 1 << 31
        {
            return Err(Error::shape(self.name(), "at most 2^31 elements behind one scale", format!("{shape:?}")));
        }
        if let Scheme::Int { block, .. } = self
            && let block = block.size(shape)
            && (block == 0 || (block % 8 != 0 && cols % 8 == 0))
            && shape[0] * cols > 0
        {
            let message = format!("{block} is no positive multiple of 8, which rows of {cols} columns need");
            return Err(Error::config("block_size", message));
        }
        Ok(())
    }
}

fn check_table_block(block: usize) -> Result<()> {
    match block.is_power_of_two() && (32..=4096).contains(&block) {
        true => Ok(()),
        false => Err(Error::config("block_size", format!("{block} is no power of two from 32 to 4096"))),
    }
}

impl ScaleType {
    const fn pair_bytes(self) -> usize {
        match self {
            ScaleType::F32 => 8,
            ScaleType::F16 => 4,
        }
    }
}

const fn absmax_bytes(double_quant: bool) -> usize {
    if double_quant { 1 } else { 4 }
}

const fn int_name(bits: u8) -> &'static str {
    match bits {
        2 => "int2",
        3 => "int3",
        4 => "int4",
        5 => "int5",
        6 => "int6",
        7 => "int7",
        _ => "int8",
    }
}
