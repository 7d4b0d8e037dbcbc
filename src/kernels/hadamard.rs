//! Random orthogonal transforms of columns, which spread outliers over all of them; and transposing.

use super::{dense, expect};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Kernel, Tensor},
    graph::{Graph, Value},
    quant::hadamard as spec,
};
use std::sync::{Mutex, PoisonError};

crate::graph::params! {
    struct Params {
        rows: u32,
        cols: u32,
        stride: u32,
        scale: f32,
    }
}

/// When columns are negated.
#[derive(Clone, Copy, PartialEq)]
enum Signs {
    Never,
    Before,
    After,
}

const RADICES: [u32; 5] = [1, 2, 4, 8, 16];

/// `real`: signs are numbers, not bits.
fn kernel(entry: &'static str, radix: u32, signs: Signs, real: bool) -> Kernel {
    let kernel = Kernel::new("hadamard", entry).with("RADIX", radix).with("SIGNS", signs as u32);
    kernel.with("REAL", u32::from(real && signs != Signs::Never))
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let (before, after) = (Signs::Before, Signs::After);
    let signs = [(Signs::Never, false), (before, false), (after, false), (before, true), (after, true)];
    let all = RADICES.into_iter().flat_map(|radix| signs.map(|(signs, real)| kernel("walsh", radix, signs, real)));
    all.chain([kernel("transpose", 1, Signs::Never, false)]).collect()
}

/// Dense factors that lie on the device: maps that are made with the same `Factors` share them.
#[derive(Default)]
pub struct Factors(Mutex<Vec<Tensor>>);

impl Factors {
    /// That of this order; none for order 1. [order, order] f32. Errors: OutOfMemory.
    fn get(&self, gpu: &Gpu, order: usize) -> Result<Option<Tensor>> {
        if order == 1 {
            return Ok(None);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factor) = known.iter().find(|factor| factor.shape().dims() == [order, order]) {
            return Ok(Some(factor.clone()));
        }
        let entries = spec::factor(order, spec::FACTOR_SEED);
        let factor = gpu.tensor("factor of a Hadamard transform", [order, order], DType::F32, &entries)?;
        known.push(factor.clone());
        Ok(Some(factor))
    }
}

/// An orthogonal map of n columns, x ↦ x · Tᵀ: random signs, a Walsh-Hadamard transform of 2^k columns times a dense factor
/// for what is no power of two (see [`crate::quant::hadamard`]). Fine-tuning makes numbers of the signs
/// ([`Hadamard::with_signs`]): then T is no longer orthogonal. Cloning shares the memory.
#[derive(Clone)]
pub struct Hadamard {
    cols: usize,
    /// One bit per column, u32; or one number per column, f32.
    signs: Tensor,
    /// [order, order] f32; none for order 1.
    factor: Option<Tensor>,
    order: usize,
    twos: usize,
}

impl Hadamard {
    /// The map of `cols` columns whose signs are those of `seed`. Errors: Unsupported for large odd parts, OutOfMemory.
    pub fn new(gpu: &Gpu, cols: usize, seed: u64) -> Result<Hadamard> {
        Hadamard::sharing(gpu, cols, seed, &Factors::default())
    }

    /// [`Hadamard::new`] with a factor that other maps may have too.
    pub fn sharing(gpu: &Gpu, cols: usize, seed: u64, factors: &Factors) -> Result<Hadamard> {
        let signs = spec::signs(cols.max(1), seed);
        let signs = gpu.tensor("signs of a Hadamard transform", [signs.len()], DType::U32, &signs)?;
        Hadamard::around(gpu, cols, signs, factors)
    }

    /// The map of `signs.len()` columns that are multiplied by these numbers. Errors: as [`Hadamard::new`].
    pub fn of_signs(gpu: &Gpu, signs: &[f32], factors: &Factors) -> Result<Hadamard> {
        let cols = signs.len();
        let signs = gpu.tensor("signs of a Hadamard transform", [cols], DType::F32, signs)?;
        Hadamard::around(gpu, cols, signs, factors)
    }

    /// The map of `cols` columns with these signs: one bit per column, u32, or one number per column, f32. Errors: as [`Hadamard::new`].
    pub(crate) fn around(gpu: &Gpu, cols: usize, signs: Tensor, factors: &Factors) -> Result<Hadamard> {
        let (order, twos) = spec::split(cols)?;
        Ok(Hadamard { cols, signs, factor: factors.get(gpu, order)?, order, twos })
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The same map with these numbers in place of its signs. signs: [cols] f32, kept and not copied: whoever overwrites
    /// them changes the map. Errors: Shape.
    pub fn with_signs(&self, signs: &Tensor) -> Result<Hadamard> {
        if signs.shape().dims() != [self.cols] || signs.dtype() != DType::F32 {
            let expected = format!("signs [{}] F32", self.cols);
            return Err(Error::shape("hadamard", expected, format!("{} {}", signs.shape(), signs.dtype())));
        }
        Ok(Hadamard { signs: signs.clone(), ..self.clone() })
    }

    /// What the columns are multiplied by: one bit per column, set where it is negated, u32; or one number per column, f32
    /// ([`Hadamard::is_real`]). Read back by [`crate::ops::hadamard::read_signs`].
    pub fn signs(&self) -> &Tensor {
        &self.signs
    }

    /// Whether numbers have taken the place of bits.
    pub fn is_real(&self) -> bool {
        self.signs.dtype() == DType::F32
    }

    /// Bytes of device memory that are not shared: the signs.
    pub fn bytes(&self) -> u64 {
        self.signs.bytes()
    }

    /// x · Tᵀ
    ///
    /// x, y: [.., cols] f32. Errors: Shape. QuIP#, Tseng et al. 2024, section 3.
    pub fn forward(&self, g: &mut Graph, x: &Value) -> Result<Value> {
        let rows = x.rows_cols().0;
        expect("hadamard", "x", x, [rows, self.cols])?;
        let y = self.walsh(g, x, Signs::Before)?;
        let Some(factor) = &self.factor else { return Ok(y) };
        let factor = g.import(factor);
        let folded = g.reshape(&y, [rows << self.twos, self.order])?;
        let y = dense::x_wt(g, &folded, &factor)?;
        g.reshape(&y, x.shape().clone())
    }

    /// y · T: the gradient of [`Hadamard::forward`], which it undoes where the signs are signs.
    ///
    /// y, x: [.., cols] f32. Errors: Shape.
    pub fn backward(&self, g: &mut Graph, y: &Value) -> Result<Value> {
        let rows = y.rows_cols().0;
        expect("hadamard", "y", y, [rows, self.cols])?;
        let Some(factor) = &self.factor else { return self.walsh(g, y, Signs::After) };
        let factor = g.import(factor);
        let folded = g.reshape(y, [rows << self.twos, self.order])?;
        let x = dense::x_w(g, &folded, &factor, 1.0)?;
        let x = g.reshape(&x, y.shape().clone())?;
        self.walsh(g, &x, Signs::After)
    }

    /// The passes over 2^k columns, 16 at a time, whose columns lie `order` and multiples of it apart.
    fn walsh(&self, g: &mut Graph, x: &Value, signs: Signs) -> Result<Value> {
        let (rows, cols) = x.rows_cols();
        let flips = g.import(&self.signs);
        let passes = self.twos.div_ceil(4).max(1);
        let mut x = x.clone();
        for pass in 0..passes {
            let radix = 1usize << (self.twos - 4 * pass).min(4);
            let here = match signs {
                Signs::Before if pass > 0 => Signs::Never,
                Signs::After if pass + 1 < passes => Signs::Never,
                Signs::Never | Signs::Before | Signs::After => signs,
            };
            let params = Params {
                rows: rows as u32,
                cols: cols as u32,
                stride: (self.order << (4 * pass)) as u32,
                scale: (1.0 / (radix as f64).sqrt()) as f32,
            };
            let y = g.value(x.shape().clone(), DType::F32)?;
            let threads = rows * (cols / radix);
            let work = 12.0 * (rows * cols) as f64;
            let kernel = kernel("walsh", radix as u32, here, self.is_real());
            g.dispatch(kernel, &params, &[&x, &flips, &y], threads.div_ceil(64), work)?;
            x = y;
        }
        Ok(x)
    }
}

/// y\[c, r\] = x\[r, c\]
///
/// x: [rows, cols] f32; y: [cols, rows]. Errors: Shape.
pub fn transpose(g: &mut Graph, x: &Value) -> Result<Value> {
    let (rows, cols) = x.rows_cols();
    expect("transpose", "x", x, [rows, cols])?;
    let y = g.value([cols, rows], DType::F32)?;
    let params = Params { rows: rows as u32, cols: cols as u32, stride: 1, scale: 1.0 };
    let len = rows * cols;
    let kernel = kernel("transpose", 1, Signs::Never, false);
    g.dispatch(kernel, &params, &[x, &y], len.div_ceil(64), 2.0 * len as f64)?;
    Ok(y)
}
