//! The tensors of golden files.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// A safetensors file of `tests/golden`.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Golden {
        Golden(std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap())
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// Sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.file().names().into_iter().map(String::from).collect();
        names.sort();
        names
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn dtype(&self, name: &str) -> Dtype {
        self.file().tensor(name).expect(name).dtype()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.file().tensor(name).expect(name).data().to_vec()
    }

    /// Numbers of any dtype that goldens have.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        let data = self.bytes(name);
        let (halves, words) = (data.chunks_exact(2), data.chunks_exact(4));
        match self.dtype(name) {
            Dtype::F32 => words.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F16 => halves.map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            Dtype::BF16 => halves.map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            Dtype::I32 => words.map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            Dtype::U8 => data.iter().map(|&b| b.into()).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }
}
