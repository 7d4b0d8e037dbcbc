//! One named tensor, borrowed from a mapped file.

use crate::quant::ggml::{self, BlockType};
use crate::quant::{Packed, Scheme, bytes_to_words};
use crate::{DType, Error, Result, Shape};
use half::{bf16, f16};
use std::path::Path;

/// How a tensor's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One element after the other.
    Plain(DType),
    /// GGUF blocks (see [`BlockType`]).
    Ggml(Scheme),
}

/// The floats that are schemes too.
const FLOATS: [(DType, Scheme); 3] =
    [(DType::F32, Scheme::F32), (DType::F16, Scheme::F16), (DType::BF16, Scheme::BF16)];

impl Stored {
    /// How the numbers of a scheme lie in one tensor; `None` for schemes that take several, or none that is known.
    pub fn of(scheme: Scheme) -> Option<Stored> {
        let float = FLOATS.into_iter().find(|(_, float)| *float == scheme);
        float.map(|(dtype, _)| Stored::Plain(dtype)).or(scheme.is_ggml().then_some(Stored::Ggml(scheme)))
    }

    /// The inverse of [`Stored::of`]; `None` for integers and F64.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            Stored::Plain(dtype) => FLOATS.into_iter().find(|(float, _)| *float == dtype).map(|(_, scheme)| scheme),
            Stored::Ggml(scheme) => Some(scheme),
        }
    }
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stored::Plain(dtype) => dtype.fmt(f),
            Stored::Ggml(scheme) => f.write_str(scheme.name()),
        }
    }
}

/// A named tensor whose bytes lie in a mapped file; the length of `bytes` agrees with `stored` and `shape`.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The file.
    pub path: &'a Path,
    /// The name there.
    pub name: &'a str,
    /// How to read the bytes.
    pub stored: Stored,
    /// Outermost extent first, for GGUF too.
    pub shape: &'a [usize],
    /// Little-endian, at any alignment.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the shape. Errors: Shape, with the file's and the tensor's name.
    pub fn expect_shape(self, shape: &[usize]) -> Result<TensorView<'a>> {
        if self.shape == shape {
            Ok(self)
        } else {
            Err(self.mismatch(format!("{shape:?}"), format!("{:?}", self.shape)))
        }
    }

    /// Checks the dtype. Errors: Shape, with the file's and the tensor's name.
    pub fn expect_dtype(self, dtype: DType) -> Result<TensorView<'a>> {
        if self.stored == Stored::Plain(dtype) { Ok(self) } else { Err(self.mismatch(dtype, self.stored)) }
    }

    fn mismatch(&self, expected: impl ToString, got: impl ToString) -> Error {
        Error::shape(format!("{}: tensor {}", self.path.display(), self.name), expected, got)
    }

    /// The elements `start..start + out.len()` as f32.
    ///
    /// Floats (F64 rounds) and GGUF blocks; for the latter start and length are whole blocks. Reading in pieces
    /// keeps the host's memory small. Errors: Shape where the range or the dtype does not fit.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<()> {
        let end = start.checked_add(out.len()).filter(|&end| end <= self.len());
        let end = end.ok_or_else(|| self.mismatch(format!("a range within {} elements", self.len()), start))?;
        match self.stored {
            Stored::Plain(DType::F64) => fill(out, &self.bytes[8 * start..8 * end], |b| f64::from_le_bytes(b) as f32),
            Stored::Plain(DType::F32) => fill(out, &self.bytes[4 * start..4 * end], f32::from_le_bytes),
            Stored::Plain(DType::F16) => {
                fill(out, &self.bytes[2 * start..2 * end], |b| f16::from_le_bytes(b).to_f32());
            }
            Stored::Plain(DType::BF16) => {
                fill(out, &self.bytes[2 * start..2 * end], |b| bf16::from_le_bytes(b).to_f32());
            }
            Stored::Plain(_) => return Err(self.mismatch("a float dtype", self.stored)),
            Stored::Ggml(scheme) => {
                let ty = BlockType::of(scheme).expect("Stored::Ggml holds GGUF schemes");
                let (block, size) = (ty.block_size(), ty.block_bytes());
                if !start.is_multiple_of(block) || !end.is_multiple_of(block) {
                    let expected = format!("a range of whole blocks of {block}");
                    return Err(self.mismatch(expected, format!("{start}..{end}")));
                }
                ty.decode(&self.bytes[start / block * size..end / block * size], out);
            }
        }
        Ok(())
    }

    /// Errors: Format naming the first element of a float dtype, or the first one whose scale in a block of GGUF, is not finite.
    pub fn check_finite(&self) -> Result<()> {
        fn first<const N: usize>(bytes: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> Option<usize> {
            let elements = bytes.as_chunks::<N>().0;
            // Without an early end within a piece, so that a compiler may look at many at once.
            let piece =
                elements.chunks(4096).position(|piece| !piece.iter().fold(true, |all, &b| all & is_finite(b)))?;
            elements[4096 * piece..].iter().position(|&b| !is_finite(b)).map(|at| 4096 * piece + at)
        }
        let bad = match self.stored {
            Stored::Plain(DType::F64) => first(self.bytes, |b| f64::from_le_bytes(b).is_finite()),
            Stored::Plain(DType::F32) => first(self.bytes, |b| f32::from_le_bytes(b).is_finite()),
            Stored::Plain(DType::F16) => first(self.bytes, |b| u16::from_le_bytes(b) & 0x7c00 != 0x7c00),
            Stored::Plain(DType::BF16) => first(self.bytes, |b| u16::from_le_bytes(b) & 0x7f80 != 0x7f80),
            Stored::Plain(_) => None,
            Stored::Ggml(scheme) => {
                let ty = BlockType::of(scheme).expect("Stored::Ggml holds GGUF schemes");
                let bad = self.bytes.chunks_exact(ty.block_bytes()).position(|block| !ty.is_finite(block));
                bad.map(|block| block * ty.block_size())
            }
        };
        let Some(at) = bad else { return Ok(()) };
        let cols = self.shape.last().copied().unwrap_or(1).max(1);
        let message = format!(
            "tensor {} has a number that is not finite, in row {}, column {}; the file is damaged, or was trained so",
            self.name,
            at / cols,
            at % cols
        );
        Err(Error::format(self.path, message))
    }

    /// All elements as f32. Errors: Shape for integer dtypes.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.len()];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }

    /// The tensor as it is stored, in the device layout: F32 (and F64, rounded), F16, BF16 or GGUF blocks; all leading
    /// extents are folded into rows. Errors: Shape for integer dtypes.
    pub fn packed(&self) -> Result<Packed> {
        let (rows, cols) = Shape::from(self.shape).rows_cols();
        let shape = [rows, cols];
        match (self.stored, self.stored.scheme()) {
            (Stored::Ggml(scheme), _) => ggml::unpack_blocks(self.name, scheme, shape, self.bytes),
            (Stored::Plain(DType::F64), _) => {
                let words = self.to_f32()?.into_iter().map(f32::to_bits).collect();
                Packed::new(Scheme::F32, shape, words, vec![], vec![])
            }
            (_, Some(scheme)) => Packed::new(scheme, shape, bytes_to_words(self.bytes), vec![], vec![]),
            (_, None) => Err(self.mismatch("a float dtype", self.stored)),
        }
    }

    /// The elements of an integer tensor (I64, I32, I16, I8, U32, U8, BOOL). Errors: Shape for floats.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        let Stored::Plain(dtype) = self.stored else { return Err(self.mismatch("an integer dtype", self.stored)) };
        let mut out = vec![0i64; self.len()];
        match dtype {
            DType::I64 => fill(&mut out, self.bytes, i64::from_le_bytes),
            DType::I32 => fill(&mut out, self.bytes, |b| i32::from_le_bytes(b).into()),
            DType::I16 => fill(&mut out, self.bytes, |b| i16::from_le_bytes(b).into()),
            DType::I8 => fill(&mut out, self.bytes, |b| i8::from_le_bytes(b).into()),
            DType::U32 => fill(&mut out, self.bytes, |b| u32::from_le_bytes(b).into()),
            DType::U8 | DType::Bool => fill(&mut out, self.bytes, |b| u8::from_le_bytes(b).into()),
            _ => return Err(self.mismatch("an integer dtype", dtype)),
        }
        Ok(out)
    }
}

fn fill<const N: usize, T>(out: &mut [T], bytes: &[u8], read: impl Fn([u8; N]) -> T) {
    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(N)) {
        *out = read(bytes.try_into().expect("chunks_exact gives N bytes"));
    }
}
