//! Gradients of AQLM's code books and row scales, codes being fixed.

use super::{QuantizedTensor, expect};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Kernel, Tensor},
    graph::{Graph, Value},
    quant::{Scheme, VECTOR},
};

crate::graph::params! {
    struct Params {
        vectors: u32,
        chunks: u32,
    }
}

/// Vectors of a code book.
const BOOK: usize = 256;
/// Vectors of the weight that one invocation adds up, at most: a code that many share keeps many invocations busy.
const CHUNK: usize = 64;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("codebook", entry).with("LANES", 64).with("SIDE", 8)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["partials", "vectors", "row_scales"].map(kernel).to_vec()
}

/// A weight's codes, sorted once so that sums over all vectors of a code need no atomics and have one order.
pub struct Codes {
    shape: [usize; 2],
    /// [words] u32
    codes: Tensor,
    /// [2, rows * cols / 8] u32
    order: Tensor,
    /// [chunks, 2] u32
    chunks: Tensor,
    /// [2 * 256 + 1] u32
    firsts: Tensor,
}

impl Codes {
    /// Sorts the codes of an AQLM weight, on the host: `words` are [`Codes::words`], read back (see [`crate::ops::codebook::sort`]).
    /// Errors: as [`Codes::words`], OutOfMemory.
    pub fn new(gpu: &Gpu, weight: &QuantizedTensor, words: &[u32]) -> Result<Codes> {
        let codes = Codes::words(weight)?;
        let vectors = weight.len() / VECTOR;
        let code = |book: usize, v: usize| (words[v / 2] >> (16 * (v % 2) + 8 * book) & 255) as usize;
        let (mut order, mut chunks, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
        for book in 0..2 {
            let mut of_code = vec![Vec::new(); BOOK];
            (0..vectors).for_each(|v| of_code[code(book, v)].push(v as u32));
            for list in of_code {
                firsts.push((chunks.len() / 2) as u32);
                for chunk in list.chunks(CHUNK) {
                    let from = order.len();
                    order.extend_from_slice(chunk);
                    chunks.extend([from as u32, order.len() as u32]);
                }
            }
        }
        firsts.push((chunks.len() / 2) as u32);
        let upload = |what, values: &[u32]| gpu.tensor(what, [values.len()], DType::U32, values);
        Ok(Codes {
            shape: weight.shape(),
            codes,
            order: upload("vectors of a weight by code", &order)?,
            chunks: upload("chunks of vectors of one code", &chunks)?,
            firsts: upload("first chunks of codes", &firsts)?,
        })
    }

    /// The codes of an AQLM weight, [words] u32. Errors: Shape for other schemes, and for weights that are empty or do not fit one
    /// binding.
    pub fn words(weight: &QuantizedTensor) -> Result<Tensor> {
        let (op, shape) = ("codebook", weight.shape());
        let Scheme::Aqlm = weight.scheme() else {
            return Err(Error::shape(op, "a weight of AQLM", weight.scheme().name()));
        };
        match weight.shards().next().filter(|shard| shard.rows == shape[0]) {
            Some(shard) => Ok(shard.codes),
            None => Err(Error::shape(op, "a weight whose codes fit one binding", format!("{shape:?}"))),
        }
    }

    /// dbooks\[m, k\] ← accumulate · dbooks\[m, k\] + Σ over the vectors v of code k in book m of scales\[row(v)\] · dw\[v\];
    /// dscales\[r\] ← accumulate · dscales\[r\] + Σ_c dw\[r, c\] · w\[r, c\] / scales\[r\]
    ///
    /// dw: [rows, cols], the gradient of the weight w; books, dbooks: [2 * 256 * 8]; scales, dscales: [rows];
    /// accumulate: [1], all f32: where it is 0, what is written may hold anything. Errors: Shape.
    pub fn gradient(
        &self,
        g: &mut Graph,
        dw: &Value,
        [books, scales]: [&Value; 2],
        [dbooks, dscales]: [&Value; 2],
        accumulate: &Value,
    ) -> Result<()> {
        let ([rows, cols], op) = (self.shape, "codebook");
        expect(op, "dw", dw, [rows, cols])?;
        expect(op, "accumulate", accumulate, [1, 1])?;
        for (what, value, len) in [
            ("books", books, 2 * BOOK * VECTOR),
            ("scales", scales, rows),
            ("dbooks", dbooks, 2 * BOOK * VECTOR),
            ("dscales", dscales, rows),
        ] {
            expect(op, what, value, [1, len])?;
        }
        let count = self.chunks.shape().len() / 2;
        let params = Params { vectors: (cols / VECTOR) as u32, chunks: count as u32 };
        let [codes, order, chunks, firsts] =
            [&self.codes, &self.order, &self.chunks, &self.firsts].map(|tensor| g.import(tensor));
        let sums = g.value([count, VECTOR], DType::F32)?;
        let work = 4.0 * (rows * cols) as f64;
        let args = [dw, scales, &order, &chunks, &sums];
        g.dispatch(kernel("partials"), &params, &args, (2 * count).div_ceil(64), work)?;
        let args = [&sums, &firsts, accumulate, dbooks];
        g.dispatch(kernel("vectors"), &params, &args, (2 * 2 * BOOK).div_ceil(64), (count * VECTOR) as f64)?;
        g.dispatch(kernel("row_scales"), &params, &[dw, &codes, books, accumulate, dscales], rows, work)
    }
}
