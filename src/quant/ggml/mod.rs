//! GGUF's block types: file bytes to numbers and back, and the way of both into the device layout.
//!
//! | type | elements | bytes | value of an element |
//! |---|---|---|---|
//! | Q4_0, Q5_0 | 32 | 18, 22 | d * (code - 8), d * (code - 16) |
//! | Q4_1, Q5_1 | 32 | 20, 24 | d * code + m |
//! | Q8_0 | 32 | 34 | d * code |
//! | IQ4_NL | 32 | 18 | d * table\[code\] |
//! | Q2_K | 256 | 84 | (d * scale) * code - dmin * min, 4-bit scale and min for 16 elements |
//! | Q3_K | 256 | 110 | (d * (scale - 32)) * (code - 4), 6-bit scale for 16 elements |
//! | Q4_K, Q5_K | 256 | 144, 176 | (d * scale) * code - dmin * min, 6-bit scale and min for 32 elements |
//! | Q6_K | 256 | 210 | (d * scale) * (code - 32), signed 8-bit scale for 16 elements |
//! | IQ4_XS | 256 | 136 | (d * (scale - 32)) * table\[code\], 6-bit scale for 32 elements |
//!
//! d, m and dmin are f16 and all arithmetic is f32. Blocks lie along rows, so a row is a whole number of them. Where the
//! bits lie in the file is `layout`'s matter; on the device codes are in plain element order, and the scales keep the
//! file's packing (see [`BlockType::head_bytes`]).
//!
//! Encoding follows ggml's reference rule for Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, byte for byte. The others have no one right
//! answer: `search` finds scales that make the squared error small.

use crate::{Error, Result};

mod device;
mod iq4;
mod k_quants;
mod layout;
mod legacy;
mod search;

pub use device::{block_bytes, decode_blocks, from_integers, integers, pack_blocks, unpack_blocks};
pub(super) use device::{dequantize, quantize};
pub use iq4::IQ4_LEVELS;

/// A block type of GGUF that fourbit reads, computes with and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 4 bits and a scale for 32 elements.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 elements.
    Q4_1,
    /// 5 bits and a scale for 32 elements.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32 elements.
    Q5_1,
    /// 8 bits and a scale for 32 elements.
    Q8_0,
    /// 2 bits, two levels of scales and minima.
    Q2K,
    /// 3 bits, two levels of scales.
    Q3K,
    /// 4 bits, two levels of scales and minima.
    Q4K,
    /// 5 bits, two levels of scales and minima.
    Q5K,
    /// 6 bits, two levels of scales.
    Q6K,
    /// 4 bits into a table of uneven levels, a scale for 32 elements.
    Iq4Nl,
    /// 4 bits into the same table, two levels of scales.
    Iq4Xs,
}

/// Sub-blocks of a block at most.
const SUBS: usize = 16;
/// Elements of a block at most.
const MOST: usize = 256;

/// Scale and offset of each sub-block.
type Scales = [(f32, f32); SUBS];

impl BlockType {
    /// All types, in GGUF's order.
    pub const ALL: [BlockType; 12] = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Iq4Nl,
        BlockType::Iq4Xs,
    ];

    /// GGUF's number of the type.
    pub const fn kind(self) -> u32 {
        self.layout().kind
    }

    /// The type of a number in a file.
    pub fn from_kind(kind: u32) -> Option<BlockType> {
        BlockType::ALL.into_iter().find(|ty| ty.kind() == kind)
    }

    /// GGUF's name of the type: `Q4_K`, `IQ4_NL`.
    pub const fn name(self) -> &'static str {
        self.layout().name
    }

    /// Elements of a block: 32 or 256.
    pub const fn block_size(self) -> usize {
        self.layout().block
    }

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        self.layout().bytes
    }

    /// Bytes that the scales of a block take on the device: d (and m) of the blocks of 32, and
    /// Q2_K: 16 bytes of scales, d, dmin; Q3_K: 12 bytes of scales, d, 2 unused; Q4_K, Q5_K: d, dmin, 12 bytes of scales;
    /// Q6_K: 16 bytes of scales, d, 2 unused; IQ4_XS: d, the high bits, the low bits.
    pub const fn head_bytes(self) -> usize {
        self.layout().stride
    }

    /// What llama.cpp takes where rows are no multiple of 256: a type of about the same size with blocks of 32.
    pub const fn fallback(self) -> BlockType {
        match self {
            BlockType::Q2K | BlockType::Q3K | BlockType::Iq4Xs => BlockType::Iq4Nl,
            BlockType::Q4K => BlockType::Q5_0,
            BlockType::Q5K => BlockType::Q5_1,
            BlockType::Q6K => BlockType::Q8_0,
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => self,
            BlockType::Q8_0 | BlockType::Iq4Nl => self,
        }
    }

    /// out[i] = the value of element i (see the module's table).
    ///
    /// bytes: `[blocks * block_bytes]`, out: `[blocks * block_size]`; what is left over on either side is ignored.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let layout = self.layout();
        let (mut codes, mut head) = ([0; MOST], [0; 20]);
        let codes = &mut codes[..layout.block];
        for (raw, out) in bytes.chunks_exact(layout.bytes).zip(out.chunks_exact_mut(layout.block)) {
            layout.read_codes(raw, codes);
            layout.read_head(raw, &mut head);
            self.values(codes, &head[..layout.stride], out);
        }
    }

    /// Rounds x to blocks as a file holds them: [`BlockType::encode_named`] for numbers without a name.
    pub fn encode(self, x: &[f32]) -> Result<Vec<u8>> {
        self.encode_named("tensor", x)
    }

    /// Rounds x to blocks as a file holds them. `what` is whose numbers they are, in words, for messages.
    ///
    /// x: `[blocks * block_size]`; the result: `[blocks * block_bytes]`. Errors: Shape; Config, with `what`, for a number that
    /// the type cannot hold (NaN, infinity, a scale beyond f16).
    pub fn encode_named(self, what: &str, x: &[f32]) -> Result<Vec<u8>> {
        let layout = self.layout();
        let mut bytes = vec![0; x.len() / layout.block * layout.bytes];
        self.encode_with(what, x, &mut bytes, layout.bytes, |codes, head, raw| {
            layout.write_codes(codes, raw);
            layout.write_head(head, raw);
        })?;
        Ok(bytes)
    }

    /// Encodes each block and hands its codes and head to `store` with the `size` bytes of `out` that are its place. Blocks
    /// are shared out over the processor's cores.
    fn encode_with(
        self,
        what: &str,
        x: &[f32],
        out: &mut [u8],
        size: usize,
        store: impl Fn(&[u8], &[u8], &mut [u8]) + Sync,
    ) -> Result<()> {
        let layout = self.layout();
        if !x.len().is_multiple_of(layout.block) {
            return Err(Error::shape(layout.name, format!("whole blocks of {}", layout.block), x.len()));
        }
        if let Some(i) = x.iter().position(|v| !v.is_finite()) {
            return Err(Error::config(what, format!("element {i} is {}: only finite numbers can be stored", x[i])));
        }
        let run = |first: usize, x: &[f32], out: &mut [u8]| {
            let (mut codes, mut head) = ([0; MOST], [0; 20]);
            let (codes, head) = (&mut codes[..layout.block], &mut head[..layout.stride]);
            for (b, (x, out)) in x.chunks_exact(layout.block).zip(out.chunks_exact_mut(size)).enumerate() {
                if !self.encode_block(x, codes, head) {
                    let name = layout.name;
                    let message =
                        format!("block {} has numbers too large for {name}, whose scale is an f16", first + b);
                    return Err(Error::config(what, message));
                }
                store(codes, head, out);
            }
            Ok(())
        };
        let blocks = x.len() / layout.block;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Small tensors are done before a thread has begun.
        let share = blocks.div_ceil(cores).max(8192 / layout.block);
        if share >= blocks {
            return run(0, x, out);
        }
        let parts = x.chunks(share * layout.block).zip(out.chunks_mut(share * size)).enumerate();
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts.map(|(i, (x, out))| scope.spawn(move || run(i * share, x, out))).collect();
            threads.into_iter().try_for_each(|t| t.join().expect("encoding a block does not panic"))
        })
    }

    /// Codes and head of one block; false where a scale is beyond f16.
    fn encode_block(self, x: &[f32], codes: &mut [u8], head: &mut [u8]) -> bool {
        match self {
            BlockType::Q2K | BlockType::Q4K | BlockType::Q5K => k_quants::encode_affine(self, x, codes, head),
            BlockType::Q3K | BlockType::Q6K => k_quants::encode_symmetric(self, x, codes, head),
            BlockType::Iq4Nl | BlockType::Iq4Xs => iq4::encode(self, x, codes, head),
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => {
                legacy::encode(self, x, codes, head)
            }
        }
    }

    /// The numbers of a block. codes: `[block]`, head: `[stride]`, out: `[block]`.
    pub(super) fn values(self, codes: &[u8], head: &[u8], out: &mut [f32]) {
        let layout = self.layout();
        let mut scales = [(0.0, 0.0); SUBS];
        match self {
            BlockType::Iq4Nl | BlockType::Iq4Xs => iq4::scales(self, head, &mut scales),
            BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
                k_quants::scales(self, head, &mut scales);
            }
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => {
                legacy::scales(self, head, &mut scales);
            }
        }
        let subs = out.chunks_exact_mut(layout.sub).zip(codes.chunks_exact(layout.sub)).zip(&scales);
        for ((out, codes), &(scale, offset)) in subs {
            let level = |code: u8| match self {
                BlockType::Q4_0 => code as f32 - 8.0,
                BlockType::Q5_0 => code as f32 - 16.0,
                BlockType::Q8_0 => code as i8 as f32,
                BlockType::Q3K => code as f32 - 4.0,
                BlockType::Q6K => code as f32 - 32.0,
                BlockType::Iq4Nl | BlockType::Iq4Xs => IQ4_LEVELS[code as usize & 15],
                BlockType::Q4_1 | BlockType::Q5_1 => code as f32,
                BlockType::Q2K | BlockType::Q4K | BlockType::Q5K => code as f32,
            };
            // Adding an offset of 0 would turn -0 into 0.
            match self.has_offset() {
                true => out.iter_mut().zip(codes).for_each(|(y, &code)| *y = scale * level(code) + offset),
                false => out.iter_mut().zip(codes).for_each(|(y, &code)| *y = scale * level(code)),
            }
        }
    }

    const fn has_offset(self) -> bool {
        matches!(self, BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q2K | BlockType::Q4K | BlockType::Q5K)
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
