mod gemv;
mod gemv_rows;
mod gemv_subgroup;
mod parts;
mod subgroup;
mod tiles;

use crate::support::{Rng, gpu, int, packed, without_subgroups};
use fourbit::{
    DType, QuantizedTensor,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::product::{LowRank, matmul, matmul_dx},
    quant::{BlockSize, Packed, Scheme, ggml::BlockType},
};

/// The device under test with subgroup operations: software drivers then run the other variant.
pub fn with_subgroups() -> Option<Gpu> {
    let gpu = gpu()?;
    if !gpu.caps().subgroups {
        eprintln!("skipped: {} has no subgroup operations", gpu.caps().name);
        return None;
    }
    Some(gpu)
}

/// A sum and what it may be off by: a bound on the rounding of a sum in any order that is met by far in practice, taken as
/// 1e-6 of the sum of magnitudes (float epsilon is 6e-8, and errors partly cancel).
#[derive(Clone, Copy, Default)]
pub struct Sum {
    value: f64,
    magnitude: f64,
}

impl Sum {
    pub fn add(&mut self, a: f64, b: f64) {
        self.value += a * b;
        self.magnitude += (a * b).abs();
    }
}

#[track_caller]
pub fn assert_sums(what: &str, got: &[f32], want: &[Sum]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*g) - w.value).abs();
        assert!(off <= 1e-6 * w.magnitude + 1e-30, "{what}: element {i}: got {g}, want {}, off by {off:e}", w.value);
    }
}

pub fn upload(gpu: &Gpu, shape: [usize; 2], values: &[f32]) -> Tensor {
    gpu.tensor("test", shape, DType::F32, values).unwrap()
}

pub struct Case {
    scheme: Scheme,
    /// rows of x, out, in
    sizes: [usize; 3],
    /// Rank of the low-rank term; 0 for none.
    rank: usize,
    bias: bool,
    add: bool,
}

struct Data {
    packed: Packed,
    w: Vec<f32>,
    x: Vec<f32>,
    dy: Vec<f32>,
    xa: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    add: Vec<f32>,
}

impl Case {
    fn data(&self) -> Data {
        let [m, n, k] = self.sizes;
        let mut rng = Rng((m * 31 + n * 7 + k) as u64);
        let packed = packed(self.scheme, [n, k], &rng.normals(n * k));
        Data {
            w: packed.dequantize(),
            packed,
            x: rng.normals(m * k),
            dy: rng.normals(m * n),
            xa: rng.normals(m * self.rank),
            a: rng.normals(self.rank * k),
            b: rng.normals(n * self.rank),
            bias: rng.normals(n),
            add: rng.normals(m * k),
        }
    }

    fn forward(&self, d: &Data) -> Vec<Sum> {
        let [m, n, k] = self.sizes;
        let mut y = vec![Sum::default(); m * n];
        for (i, y) in y.iter_mut().enumerate() {
            let (r, c) = (i / n, i % n);
            for j in 0..k {
                y.add(d.x[r * k + j].into(), d.w[c * k + j].into());
            }
            for j in 0..self.rank {
                y.add(d.xa[r * self.rank + j].into(), 0.5 * f64::from(d.b[c * self.rank + j]));
            }
            if self.bias {
                y.add(1.0, d.bias[c].into());
            }
        }
        y
    }

    fn backward(&self, d: &Data) -> Vec<Sum> {
        let [m, n, k] = self.sizes;
        let mut dx = vec![Sum::default(); m * k];
        for (i, dx) in dx.iter_mut().enumerate() {
            let (r, c) = (i / k, i % k);
            for j in 0..n {
                dx.add(d.dy[r * n + j].into(), d.w[j * k + c].into());
            }
            for j in 0..self.rank {
                dx.add(d.xa[r * self.rank + j].into(), 0.5 * f64::from(d.a[j * k + c]));
            }
            if self.add {
                dx.add(1.0, d.add[i].into());
            }
        }
        dx
    }

    /// [`Case::check`], computed by `way`.
    fn check_by(&self, gpu: &Gpu, way: &str) {
        let ([m, n, k], scheme) = (self.sizes, self.scheme);
        let classes = [format!("forward {scheme} {m}x{n}x{k}"), format!("backward {scheme} {m}x{k}x{n}")];
        gpu.choices().repeat(&classes.map(|class| (class, way.to_owned())).into());
        self.check(gpu);
    }

    fn check(&self, gpu: &Gpu) {
        let [m, n, k] = self.sizes;
        let d = self.data();
        let w = QuantizedTensor::upload(gpu, "w", &d.packed).unwrap();
        let mut g = Graph::new(gpu);
        let x = g.import(&upload(gpu, [m, k], &d.x));
        let dy = g.import(&upload(gpu, [m, n], &d.dy));
        let bias = g.import(&gpu.tensor("bias", [n], DType::F32, &d.bias).unwrap());
        let add = g.import(&upload(gpu, [m, k], &d.add));
        let low = |g: &mut Graph, factor: &[f32], shape| {
            (self.rank > 0)
                .then(|| (g.import(&upload(gpu, [m, self.rank], &d.xa)), g.import(&upload(gpu, shape, factor))))
        };
        let b = low(&mut g, &d.b, [n, self.rank]);
        let a = low(&mut g, &d.a, [self.rank, k]);
        fn update<'a>((xa, factor): &'a (fourbit::graph::Value, fourbit::graph::Value)) -> LowRank<'a> {
            LowRank { xa, factor, scale: 0.5 }
        }
        let y = matmul(&mut g, &x, &w, b.as_ref().map(update), self.bias.then_some(&bias), None).unwrap();
        let dx = matmul_dx(&mut g, &dy, &w, a.as_ref().map(update), self.add.then_some(&add)).unwrap();
        g.keep(&y);
        g.keep(&dx);
        let program = g.run().unwrap();
        let name = format!("{:?} {:?} rank {} subgroups {}", self.scheme, self.sizes, self.rank, gpu.caps().subgroups);
        assert_sums(&format!("y {name}"), &program.read::<f32>(&y).unwrap(), &self.forward(&d));
        assert_sums(&format!("dx {name}"), &program.read::<f32>(&dx).unwrap(), &self.backward(&d));
    }
}

const NF4: Scheme = Scheme::Nf4 { block_size: 64, double_quant: false };

pub fn schemes() -> Vec<Scheme> {
    let mut all = vec![
        Scheme::F32,
        Scheme::F16,
        Scheme::BF16,
        NF4,
        Scheme::Nf4 { block_size: 64, double_quant: true },
        Scheme::Fp4 { block_size: 128, double_quant: false },
        Scheme::Fp4 { block_size: 64, double_quant: true },
        int(8, 64, false),
        int(4, 24, false),
        Scheme::int(2, 32),
        Scheme::int(3, 64),
        int(5, 24, true),
        int(6, 64, false).with_block(BlockSize::Row),
        Scheme::int_per(7, BlockSize::Tensor),
        Scheme::Nf3 { block_size: 64 },
        Scheme::Nf2 { block_size: 64 },
        Scheme::Mxfp4,
        Scheme::Nvfp4,
        Scheme::E8p,
        Scheme::Aqlm,
    ];
    all.extend(BlockType::ALL.map(Scheme::Ggml));
    let named = |name: &str| all.iter().any(|scheme| scheme.name() == name);
    Scheme::all().for_each(|scheme| assert!(named(scheme.name()), "{scheme} is left out"));
    all
}

/// `k`, or as much as rows of whole blocks need.
pub fn row_of(scheme: Scheme, k: usize) -> usize {
    if let Scheme::Ggml(ty) = scheme { k.next_multiple_of(ty.block_size()) } else { k }
}

pub fn check(gpu: Option<Gpu>, cases: Vec<Case>) {
    let Some(gpu) = gpu else { return };
    for case in cases {
        case.check(&gpu);
    }
}

/// Rows of 176 cut blocks of 64 in two; a low-rank term and a bias ride along.
pub fn every_scheme() -> Vec<Case> {
    let case = |scheme: Scheme| {
        let k = row_of(scheme, if scheme.is_ggml() { 160 } else { 176 });
        Case { scheme, sizes: [33, 65, k], rank: 8, bias: true, add: true }
    };
    schemes().into_iter().map(case).collect()
}

/// Rows that begin inside a word, and a sum of odd length.
pub fn rows_of_any_length() -> Vec<Case> {
    let case = |scheme| Case { scheme, sizes: [7, 33, 65], rank: 0, bias: false, add: false };
    schemes().into_iter().filter(|s| !s.is_ggml() && !s.is_vector()).map(case).collect()
}

/// The same for plain floats, which are the factors of an adapter too.
pub fn floats_of_any_length() -> Vec<Case> {
    let sizes = [[1, 7, 3], [7, 33, 65], [20, 5, 36]];
    sizes.into_iter().map(|sizes| Case { scheme: Scheme::F32, sizes, rank: 3, bias: true, add: true }).collect()
}

/// Few rows of x, with an adapter.
pub fn few_rows() -> Vec<Case> {
    let sizes = |scheme| [1, 65, row_of(scheme, if scheme.is_ggml() { 320 } else { 192 })];
    let case = |scheme| Case { scheme, sizes: sizes(scheme), rank: 4, bias: true, add: false };
    let mut cases: Vec<Case> = schemes().into_iter().map(case).collect();
    for (rows, k, rank) in [(2, 33, 0), (2, 128, 5), (3, 40, 3), (4, 576, 16)] {
        cases.push(Case { scheme: NF4, sizes: [rows, 17, k], rank, bias: false, add: false });
    }
    cases
}

/// Rows of four-bit codes that a lane owns, longer than those of [`few_rows`].
pub fn long_rows() -> Vec<Case> {
    let case = |scheme| Case { scheme, sizes: [1, 33, 2304], rank: 4, bias: true, add: false };
    let mut cases: Vec<Case> = schemes().into_iter().filter(|scheme| scheme.code_bits() == 4).map(case).collect();
    cases.push(Case { scheme: NF4, sizes: [2, 17, 2048], rank: 5, bias: false, add: false });
    cases
}

pub fn awkward_sizes() -> Vec<Case> {
    let sizes = [
        [1, 1, 1],
        [1, 3, 7],
        [2, 1, 64],
        [3, 64, 33],
        [5, 7, 12],
        [7, 65, 8],
        [9, 3, 40],
        [16, 64, 64],
        [17, 130, 4],
        [64, 1, 576],
        [65, 72, 136],
        [70, 192, 64],
        // More than 512 rows, no multiple of a tile: where products of others went wrong on Metal.
        [515, 33, 40],
        [577, 130, 8],
    ];
    sizes.into_iter().map(|sizes| Case { scheme: NF4, sizes, rank: 0, bias: false, add: false }).collect()
}

pub fn ranks() -> Vec<Case> {
    let case = |rank| Case { scheme: NF4, sizes: [10, 40, 64], rank, bias: false, add: true };
    [1, 2, 3, 4, 8, 12, 33, 64].map(case).into()
}

pub fn blocks() -> Vec<Case> {
    let mut cases = Vec::new();
    for (block_size, k) in [(32, 96), (128, 576), (256, 64), (1024, 1536), (4096, 320)] {
        for double_quant in [false, true] {
            let scheme = Scheme::Nf4 { block_size, double_quant };
            cases.push(Case { scheme, sizes: [12, 40, k], rank: 0, bias: false, add: false });
        }
    }
    cases
}

#[test]
fn every_scheme_by_tiles() {
    check(without_subgroups(), every_scheme());
}

#[test]
fn rows_of_any_length_by_tiles() {
    check(without_subgroups(), rows_of_any_length());
}

#[test]
fn awkward_sizes_by_tiles() {
    check(without_subgroups(), awkward_sizes());
}

#[test]
fn ranks_by_tiles() {
    check(without_subgroups(), ranks());
}

#[test]
fn blocks_by_tiles() {
    check(without_subgroups(), blocks());
}

#[test]
fn shapes_must_fit() {
    let Some(gpu) = gpu() else { return };
    let w = QuantizedTensor::zeros(&gpu, "w", Scheme::F32, [3, 5]).unwrap();
    let mut g = Graph::new(&gpu);
    let x = g.import(&upload(&gpu, [2, 4], &[0.0; 8]));
    let message = matmul(&mut g, &x, &w, None, None, None).unwrap_err().to_string();
    assert_eq!(message, "matmul: expected x [2, 5] F32, got [2, 4] F32");
    let message = matmul_dx(&mut g, &x, &w, None, None).unwrap_err().to_string();
    assert_eq!(message, "matmul_dx: expected dy [2, 3] F32, got [2, 4] F32");
}
