//! safetensors files: a JSON header of names, dtypes, shapes and offsets, then the bytes.
//!
//! | bytes | meaning |
//! |---|---|
//! | 8 | length of the header, little-endian |
//! | header | `{"__metadata__": {..}, "name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..}` |
//! | the rest | the tensors, without gaps; offsets count from here |

mod read;
mod write;

pub use read::Safetensors;
pub use write::{TensorSpec, Writer, write_file};

/// No header in the world comes near this; the reference reader refuses larger ones too.
const HEADER_LIMIT: usize = 100_000_000;
