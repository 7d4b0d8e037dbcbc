//! Where the bits of a block lie in a file: codes in planes, scales in a head.
//!
//! The low bits of all codes form one plane and the high bits, where there are any, another. In a plane of `bits` bits the
//! elements run over `run` bytes, then over the same bytes again one shift higher, until the bytes are full; then the next
//! `run` bytes follow:
//!
//! byte = j / (run * 8 / bits) * run + j % run, shift = bits * (j / run % (8 / bits))
//!
//! The head is what the device keeps beside the codes: the bytes of the block that hold its scales, in the file's own
//! packing, one range after the other.

use super::BlockType;

/// Bits of all codes of a block: first byte, bits, bytes that elements run over before the shift rises, and the place of
/// these bits in the code.
type Plane = [usize; 4];
type Planes = &'static [Plane];
/// (start, length) of the head's parts.
type Head = &'static [(usize, usize)];

/// How a block lies in a file.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// GGUF's number of the type.
    pub kind: u32,
    /// GGUF's name of the type.
    pub name: &'static str,
    /// The same in small letters, as schemes are named.
    pub scheme: &'static str,
    /// Elements of a block.
    pub block: usize,
    /// Elements that share a scale within the block.
    pub sub: usize,
    /// Bits of a code.
    pub bits: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Bytes that the head takes on the device.
    pub stride: usize,
    head: Head,
    planes: Planes,
}

const fn of_32(
    kind: u32,
    [name, scheme]: [&'static str; 2],
    bits: usize,
    stride: usize,
    head: Head,
    planes: Planes,
) -> Layout {
    // The head comes first, and whole bytes of codes follow.
    Layout { kind, name, scheme, block: 32, sub: 32, bits, bytes: stride + 4 * bits, stride, head, planes }
}

const fn of_256(
    kind: u32,
    [name, scheme]: [&'static str; 2],
    [sub, bits, bytes, stride]: [usize; 4],
    head: Head,
    planes: Planes,
) -> Layout {
    Layout { kind, name, scheme, block: 256, sub, bits, bytes, stride, head, planes }
}

impl BlockType {
    pub(super) const fn layout(self) -> Layout {
        match self {
            BlockType::Q4_0 => of_32(2, ["Q4_0", "q4_0"], 4, 2, &[(0, 2)], &[[2, 4, 16, 0]]),
            BlockType::Q4_1 => of_32(3, ["Q4_1", "q4_1"], 4, 4, &[(0, 4)], &[[4, 4, 16, 0]]),
            BlockType::Q5_0 => of_32(6, ["Q5_0", "q5_0"], 5, 2, &[(0, 2)], &[[6, 4, 16, 0], [2, 1, 1, 4]]),
            BlockType::Q5_1 => of_32(7, ["Q5_1", "q5_1"], 5, 4, &[(0, 4)], &[[8, 4, 16, 0], [4, 1, 1, 4]]),
            BlockType::Q8_0 => of_32(8, ["Q8_0", "q8_0"], 8, 2, &[(0, 2)], &[[2, 8, 32, 0]]),
            BlockType::Iq4Nl => of_32(20, ["IQ4_NL", "iq4_nl"], 4, 2, &[(0, 2)], &[[2, 4, 16, 0]]),
            BlockType::Q2K => of_256(10, ["Q2_K", "q2_k"], [16, 2, 84, 20], &[(0, 16), (80, 4)], &[[16, 2, 32, 0]]),
            BlockType::Q3K => {
                of_256(11, ["Q3_K", "q3_k"], [16, 3, 110, 16], &[(96, 14)], &[[32, 2, 32, 0], [0, 1, 32, 2]])
            }
            BlockType::Q4K => of_256(12, ["Q4_K", "q4_k"], [32, 4, 144, 16], &[(0, 16)], &[[16, 4, 32, 0]]),
            BlockType::Q5K => {
                of_256(13, ["Q5_K", "q5_k"], [32, 5, 176, 16], &[(0, 16)], &[[48, 4, 32, 0], [16, 1, 32, 4]])
            }
            BlockType::Q6K => {
                of_256(14, ["Q6_K", "q6_k"], [16, 6, 210, 20], &[(192, 18)], &[[0, 4, 64, 0], [128, 2, 32, 4]])
            }
            BlockType::Iq4Xs => of_256(23, ["IQ4_XS", "iq4_xs"], [32, 4, 136, 8], &[(0, 8)], &[[8, 4, 16, 0]]),
        }
    }
}

impl Layout {
    /// Codes in element order. raw: `[bytes]`, codes: `[block]`.
    pub(super) fn read_codes(&self, raw: &[u8], codes: &mut [u8]) {
        codes.fill(0);
        for &[at, bits, run, up] in self.planes {
            let (mask, shifts) = (0xff >> (8 - bits), 8 / bits);
            for (codes, bytes) in codes.chunks_mut(run * shifts).zip(raw[at..].chunks(run)) {
                for (step, codes) in codes.chunks_mut(run).enumerate() {
                    let shift = step * bits;
                    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code |= (byte >> shift & mask) << up);
                }
            }
        }
    }

    /// The inverse of [`Layout::read_codes`]; the bytes of the planes must be zeros.
    pub(super) fn write_codes(&self, codes: &[u8], raw: &mut [u8]) {
        for &[at, bits, run, up] in self.planes {
            let (mask, shifts) = (0xff >> (8 - bits), 8 / bits);
            for (codes, bytes) in codes.chunks(run * shifts).zip(raw[at..].chunks_mut(run)) {
                for (step, codes) in codes.chunks(run).enumerate() {
                    let shift = step * bits;
                    bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= (code >> up & mask) << shift);
                }
            }
        }
    }

    /// The bytes of the scales. raw: `[bytes]`, head: `[stride]`, what is left over stays as it is.
    pub(super) fn read_head(&self, raw: &[u8], head: &mut [u8]) {
        let mut done = 0;
        for &(start, len) in self.head {
            head[done..done + len].copy_from_slice(&raw[start..start + len]);
            done += len;
        }
    }

    /// The inverse of [`Layout::read_head`].
    pub(super) fn write_head(&self, head: &[u8], raw: &mut [u8]) {
        let mut done = 0;
        for &(start, len) in self.head {
            raw[start..start + len].copy_from_slice(&head[done..done + len]);
            done += len;
        }
    }
}
