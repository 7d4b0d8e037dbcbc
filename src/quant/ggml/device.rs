//! Blocks in the device layout: codes of all blocks one after the other, and beside them the heads.

use super::{BlockType, MOST};
use crate::quant::{Packed, Scheme, bytes_to_words, checked_len, pack_nibbles};
use crate::{Error, Result};

impl BlockType {
    /// That of a scheme; `None` for schemes that GGUF does not have.
    pub const fn of(scheme: Scheme) -> Option<BlockType> {
        if let Scheme::Ggml(ty) = scheme { Some(ty) } else { None }
    }

    fn expect(scheme: Scheme) -> Result<BlockType> {
        BlockType::of(scheme).ok_or_else(|| {
            let names: Vec<_> = BlockType::ALL.iter().map(|ty| ty.name()).collect();
            Error::unsupported("GGUF block type", scheme.name(), names.join(", "))
        })
    }

    /// Where in a head on the device its halves lie: d, and m or dmin.
    const fn halves(self) -> &'static [usize] {
        match self {
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 | BlockType::Iq4Nl | BlockType::Iq4Xs => &[0],
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q2K => &[16, 18],
            BlockType::Q3K => &[12],
            BlockType::Q6K => &[16],
        }
    }

    /// The first scale of a head that is NaN or infinite: its exponent is all ones.
    fn broken_scale(self, head: &[u8]) -> Option<f32> {
        let broken = self.halves().iter().find(|&&at| head[at + 1] & 0x7c == 0x7c);
        broken.map(|&at| super::half_at(head, at))
    }

    /// Whether the scales of a block as it lies in a file are finite.
    pub(crate) fn is_finite(self, raw: &[u8]) -> bool {
        let mut head = [0; 20];
        self.layout().read_head(raw, &mut head);
        self.broken_scale(&head).is_none()
    }

    /// Bits of a code.
    pub(in crate::quant) const fn code_bits(self) -> usize {
        self.layout().bits
    }

    /// Elements of a block that share a scale.
    pub(in crate::quant) const fn sub_block(self) -> usize {
        self.layout().sub
    }

    /// GGUF's name of the type in the small letters of schemes.
    pub(in crate::quant) const fn scheme_name(self) -> &'static str {
        self.layout().scheme
    }

    /// Bytes of the codes of a block on the device.
    const fn code_bytes(self) -> usize {
        self.layout().block * self.layout().bits / 8
    }

    fn check_shape(self, shape: [usize; 2]) -> Result<usize> {
        let block = self.block_size();
        if !shape[1].is_multiple_of(block) {
            let expected = format!("a multiple of {block} columns, which the blocks of GGUF need");
            return Err(Error::shape(self.name(), expected, format!("{shape:?}")));
        }
        checked_len(shape)
    }

    /// codes: `[block]`, words: `[code_bytes]`.
    fn write_words(self, codes: &[u8], words: &mut [u8]) {
        match self.layout().bits {
            8 => words.copy_from_slice(codes),
            4 => {
                let words = words.chunks_exact_mut(4).zip(codes.chunks_exact(8));
                words.for_each(|(word, codes)| word.copy_from_slice(&pack_nibbles(codes).to_le_bytes()));
            }
            bits => {
                // Eight codes are `bits` bytes.
                for (bytes, codes) in words.chunks_exact_mut(bits).zip(codes.chunks_exact(8)) {
                    let joined = codes.iter().rev().fold(0u64, |joined, &code| joined << bits | u64::from(code));
                    bytes.copy_from_slice(&joined.to_le_bytes()[..bits]);
                }
            }
        }
    }

    /// The inverse of `write_words`.
    fn read_words(self, words: &[u8], codes: &mut [u8]) {
        match self.layout().bits {
            8 => codes.copy_from_slice(words),
            4 => {
                let pairs = codes.chunks_exact_mut(2).zip(words);
                pairs.for_each(|(codes, byte)| (codes[0], codes[1]) = (byte >> 4, byte & 15));
            }
            bits => {
                for (bytes, codes) in words.chunks_exact(bits).zip(codes.chunks_exact_mut(8)) {
                    let joined = bytes.iter().rev().fold(0u64, |joined, &byte| joined << 8 | u64::from(byte));
                    let code = |(i, code): (usize, &mut u8)| *code = (joined >> (bits * i)) as u8 & ((1 << bits) - 1);
                    codes.iter_mut().enumerate().for_each(code);
                }
            }
        }
    }
}

impl Scheme {
    /// This scheme for rows of `cols`: where GGUF's blocks do not divide them, [`BlockType::fallback`]'s, and F16 where 32 does
    /// not divide them either, as llama.cpp does. Other schemes stay.
    pub fn fitting(self, cols: usize) -> Scheme {
        let Some(ty) = BlockType::of(self) else { return self };
        let whole = |ty: &BlockType| cols.is_multiple_of(ty.block_size());
        [ty, ty.fallback()].into_iter().find(whole).map_or(Scheme::F16, Scheme::Ggml)
    }
}

/// GGUF's blocks of 32 without offsets, and the integers that are the same numbers.
const INTEGERS: [(Scheme, Scheme); 3] = [
    (Scheme::Q4_0, Scheme::int(4, 32).symmetric()),
    (Scheme::Q5_0, Scheme::int(5, 32).symmetric()),
    (Scheme::Q8_0, Scheme::int(8, 32).symmetric()),
];

/// The integers whose numbers are those of Q4_0, Q5_0 or Q8_0, for methods that choose integers; `None` for all else.
pub fn integers(scheme: Scheme) -> Option<Scheme> {
    INTEGERS.into_iter().find(|(block, _)| *block == scheme).map(|(_, integers)| integers)
}

/// Integers of [`integers`] as GGUF's blocks, number for number; what a GGUF file holds as it is stays.
/// Errors: Unsupported for other schemes.
pub fn from_integers(packed: Packed) -> Result<Packed> {
    if packed.scheme.is_ggml() || packed.scheme.is_float() {
        return Ok(packed);
    }
    let Some((block, _)) = INTEGERS.into_iter().find(|(_, integers)| *integers == packed.scheme) else {
        let supported = INTEGERS.map(|(_, integers)| integers.to_string()).join(", ");
        return Err(Error::unsupported("integers for a GGUF file", packed.scheme, supported));
    };
    // Of each pair only the scale is kept, two to a word: the zero point is the middle code.
    let scales = packed.scales.chunks(2).map(|pair| pair[0] & 0xffff | pair.get(1).map_or(0, |next| next << 16));
    Packed::new(block, packed.shape, packed.codes, scales.collect(), vec![])
}

/// Bytes of a block in a file; `None` for schemes that GGUF does not have.
pub fn block_bytes(scheme: Scheme) -> Option<usize> {
    BlockType::of(scheme).map(BlockType::block_bytes)
}

/// Blocks as they lie in a file to the device layout. `name` is the tensor's.
///
/// bytes: `[rows * cols / block_size * block_bytes]`; shape: (rows, cols), cols a multiple of the block size.
/// Errors: Shape, Unsupported; Config, with the name, for scales that are NaN or infinite.
pub fn unpack_blocks(name: &str, scheme: Scheme, shape: [usize; 2], bytes: &[u8]) -> Result<Packed> {
    let ty = BlockType::expect(scheme)?;
    let layout = ty.layout();
    let blocks = ty.check_shape(shape)? / layout.block;
    if Some(bytes.len()) != blocks.checked_mul(layout.bytes) {
        let expected = format!("{} bytes for {shape:?}", blocks.saturating_mul(layout.bytes));
        return Err(Error::shape(format!("{} blocks", layout.name), expected, bytes.len()));
    }
    let mut codes = vec![0; blocks * ty.code_bytes()];
    let mut heads = vec![0; blocks * layout.stride];
    let mut block = [0; MOST];
    let places = codes.chunks_exact_mut(ty.code_bytes()).zip(heads.chunks_exact_mut(layout.stride));
    for (b, (raw, (codes, head))) in bytes.chunks_exact(layout.bytes).zip(places).enumerate() {
        layout.read_codes(raw, &mut block[..layout.block]);
        ty.write_words(&block[..layout.block], codes);
        layout.read_head(raw, head);
        if let Some(scale) = ty.broken_scale(head) {
            return Err(Error::config(name, format!("block {b} has the scale {scale}; only finite ones can be used")));
        }
    }
    Packed::new(scheme, shape, bytes_to_words(&codes), bytes_to_words(&heads), vec![])
}

/// out[i] = the value of element i (see [`BlockType::decode`]); nothing for schemes that GGUF does not have.
pub fn decode_blocks(scheme: Scheme, bytes: &[u8], out: &mut [f32]) {
    if let Some(ty) = BlockType::of(scheme) {
        ty.decode(bytes, out);
    }
}

/// Calls `f(block, codes, head)` for each block of a packed weight of blocks of `ty`.
fn for_each_block(ty: BlockType, packed: &Packed, mut f: impl FnMut(usize, &[u8], &[u8])) {
    let layout = ty.layout();
    let mut block = [0; MOST];
    let words: &[u8] = bytemuck::cast_slice(&packed.codes);
    let heads: &[u8] = bytemuck::cast_slice(&packed.scales);
    let parts = words.chunks_exact(ty.code_bytes()).zip(heads.chunks_exact(layout.stride));
    for (b, (words, head)) in parts.take(packed.len() / layout.block).enumerate() {
        ty.read_words(words, &mut block[..layout.block]);
        f(b, &block[..layout.block], head);
    }
}

/// The blocks of a packed weight as GGUF stores them. Errors: Unsupported.
pub fn pack_blocks(packed: &Packed) -> Result<Vec<u8>> {
    let ty = BlockType::expect(packed.scheme)?;
    let layout = ty.layout();
    let mut bytes = vec![0; packed.len() / layout.block * layout.bytes];
    for_each_block(ty, packed, |b, codes, head| {
        let raw = &mut bytes[b * layout.bytes..(b + 1) * layout.bytes];
        layout.write_codes(codes, raw);
        layout.write_head(head, raw);
    });
    Ok(bytes)
}

/// The numbers of a packed weight of blocks of `ty`: `[rows * cols]`.
pub(in crate::quant) fn dequantize(ty: BlockType, packed: &Packed) -> Vec<f32> {
    let mut y = vec![0.0; packed.len()];
    let size = ty.block_size();
    for_each_block(ty, packed, |b, codes, head| ty.values(codes, head, &mut y[b * size..(b + 1) * size]));
    y
}

/// Rounds x to blocks in the device layout, as [`BlockType::encode_named`] does. Errors: Shape, Config.
pub(in crate::quant) fn quantize(what: &str, ty: BlockType, shape: [usize; 2], x: &[f32]) -> Result<Packed> {
    let blocks = ty.check_shape(shape)? / ty.block_size();
    let (size, stride) = (ty.code_bytes(), ty.head_bytes());
    let mut both = vec![0; blocks * (size + stride)];
    ty.encode_with(what, x, &mut both, size + stride, |codes, head, out| {
        ty.write_words(codes, &mut out[..size]);
        out[size..].copy_from_slice(head);
    })?;
    let (mut codes, mut heads) = (Vec::with_capacity(blocks * size), Vec::with_capacity(blocks * stride));
    for block in both.chunks_exact(size + stride) {
        codes.extend_from_slice(&block[..size]);
        heads.extend_from_slice(&block[size..]);
    }
    Packed::new(Scheme::Ggml(ty), shape, bytes_to_words(&codes), bytes_to_words(&heads), vec![])
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Changes the high bytes of the halves of a block as it lies in a file.
    fn set_scales(ty: BlockType, raw: &mut [u8], change: impl Fn(u8) -> u8) {
        let mut head = [0; 20];
        ty.layout().read_head(raw, &mut head);
        ty.halves().iter().for_each(|at| head[at + 1] = change(head[at + 1]));
        ty.layout().write_head(&head, raw);
    }

    #[test]
    fn scales_that_are_not_finite_are_refused_by_name() {
        for ty in BlockType::ALL {
            let (size, shape) = (ty.block_bytes(), [3, ty.block_size()]);
            let x: Vec<f32> = (0..3 * ty.block_size()).map(|i| (i % 13) as f32 - 5.0).collect();
            let good = ty.encode(&x).unwrap();
            assert!(unpack_blocks("w", Scheme::Ggml(ty), shape, &good).is_ok());
            for &at in ty.halves() {
                for half in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
                    let (mut bytes, mut head) = (good.clone(), [0; 20]);
                    let raw = &mut bytes[2 * size..];
                    ty.layout().read_head(raw, &mut head);
                    head[at..at + 2].copy_from_slice(&half.to_le_bytes());
                    ty.layout().write_head(&head, raw);
                    // The place is that of a scale: the numbers are broken too.
                    let mut y = vec![0.0; x.len()];
                    ty.decode(&bytes, &mut y);
                    assert!(y[2 * ty.block_size()..].iter().any(|v| !v.is_finite()), "{ty:?} {at}");
                    let error = unpack_blocks("blk.0.attn_q", Scheme::Ggml(ty), shape, &bytes).unwrap_err().to_string();
                    assert!(error.starts_with("blk.0.attn_q: block 2 has the scale"), "{error}");
                    assert!(ty.is_finite(&good) && !ty.is_finite(&bytes[2 * size..]));
                }
            }
        }
    }

    #[test]
    fn file_blocks_return_unchanged() {
        for ty in BlockType::ALL {
            let scheme = Scheme::Ggml(ty);
            for blocks in [1, 3] {
                let mut bytes: Vec<u8> = (0..blocks * ty.block_bytes()).map(|i| (i * 37 + 11) as u8).collect();
                for raw in bytes.chunks_exact_mut(ty.block_bytes()) {
                    set_scales(ty, raw, |high| high & 0xbf);
                }
                let packed = unpack_blocks("w", scheme, [blocks, ty.block_size()], &bytes).unwrap();
                assert_eq!(pack_blocks(&packed).unwrap(), bytes);
                let codes = |b: usize| {
                    let mut codes = vec![0; ty.block_size()];
                    ty.layout().read_codes(&bytes[b * ty.block_bytes()..], &mut codes);
                    codes
                };
                let expected: Vec<u8> = (0..blocks).flat_map(codes).collect();
                assert_eq!((0..packed.len()).map(|i| packed.code(i) as u8).collect::<Vec<_>>(), expected);
                let mut y = vec![0.0; blocks * ty.block_size()];
                decode_blocks(scheme, &bytes, &mut y);
                let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert_eq!(bits(y), bits(packed.dequantize()));
            }
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back() {
        assert_eq!(Scheme::Q4_K.fitting(512), Scheme::Q4_K);
        assert_eq!(Scheme::Q4_K.fitting(576), Scheme::Q5_0);
        assert_eq!(Scheme::IQ4_XS.fitting(96), Scheme::IQ4_NL);
        assert_eq!(Scheme::Q6_K.fitting(65), Scheme::F16);
        assert_eq!(Scheme::Mxfp4.fitting(65), Scheme::Mxfp4);
    }

    #[test]
    fn words_hold_codes_of_every_width() {
        for ty in BlockType::ALL {
            let bits = ty.layout().bits;
            let codes: Vec<u8> =
                (0..ty.block_size()).map(|i| (i * 29 + 3) as u8 & ((1u32 << bits) - 1) as u8).collect();
            let mut words = vec![0; ty.code_bytes()];
            ty.write_words(&codes, &mut words);
            let mut back = vec![0; codes.len()];
            ty.read_words(&words, &mut back);
            assert_eq!(back, codes, "{ty:?}");
        }
    }

    #[test]
    fn a_block_by_hand() {
        // d = 0.5, m = -1; element 0 is the low nibble of byte 0, element 16 its high nibble.
        let mut raw = vec![0u8; 20];
        raw[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        raw[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        raw[4] = 0xf3;
        let y = unpack_blocks("w", Scheme::Q4_1, [1, 32], &raw).unwrap().dequantize();
        assert_eq!((y[0], y[16], y[1]), (0.5 * 3.0 - 1.0, 0.5 * 15.0 - 1.0, -1.0));
    }

    #[test]
    fn wrong_lengths_and_columns_are_refused() {
        assert!(matches!(unpack_blocks("w", Scheme::Q4_0, [1, 32], &[0; 17]), Err(Error::Shape { .. })));
        assert!(matches!(unpack_blocks("w", Scheme::Q4_0, [2, 16], &[0; 18]), Err(Error::Shape { .. })));
        assert!(matches!(unpack_blocks("w", Scheme::F16, [1, 32], &[0; 64]), Err(Error::Unsupported { .. })));
        assert!(matches!(Packed::quantize(Scheme::Q8_0, [1, 32], &[1e38; 32]), Err(Error::Config { .. })));
    }
}
