//! Element types of named tensors on disk and of buffers on the device.

use std::fmt;

/// An element type. The names follow safetensors; sub-byte schemes (NF4, Q4_1, ...) are no element types: see
/// [`crate::quant::Scheme`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 64-bit float (files only).
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half; on the device two to a 32-bit word.
    F16,
    /// bfloat16; on the device two to a 32-bit word.
    BF16,
    /// Signed 64-bit integer (files only).
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer (files only).
    I16,
    /// Signed byte; on the device four to a 32-bit word.
    I8,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned byte; on the device four to a 32-bit word.
    U8,
    /// One byte, 0 or 1 (files only).
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether elements are floating point.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// The name as safetensors writes it (`F32`, `BF16`, ...).
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U32 => "U32",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
