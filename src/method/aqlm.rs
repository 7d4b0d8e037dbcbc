//! AQLM: eight weights are the sum of two vectors of two code books that are learned for the layer.

use super::{
    FineTune, Layer, LayerMethod, Needs,
    of_hessian::{self, OfHessian},
};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{QuantizedTensor, dense},
    nn::Linear,
    ops::lattice,
    quant::{Packed, Scheme, VECTOR},
    random::Random,
};
use std::sync::Arc;

/// Vectors of a code book.
const BOOK: usize = 256;

/// AQLM (Egiazarian et al. 2024) with two code books of 256 vectors of 8, one scale per row: K-means of the weights and of what
/// it leaves; then in turn codes by beam search, and code books by least squares of the output's error,
/// tr((W - Q) H (W - Q)ᵀ).
///
/// Codes are searched vector by vector from the last column to the first, each after what its successors lost was carried
/// over to it, or without that where it loses less: the paper's search goes over the vectors several times instead, and its
/// steps on the code books are Adam's, where conjugate gradients solve here. The search and the products with H are the
/// device's; K-means and the sums over codes are the host's.
///
/// With [`Aqlm::finetune`] code books, row scales and norms of each block learn together once its layers are quantized
/// (section 3.4): see [`FineTune`].
#[derive(Debug)]
pub struct Aqlm {
    /// Searches and fits at most; fewer where the error no longer falls.
    pub rounds: u32,
    /// Steps of conjugate gradients a fit.
    pub steps: u32,
    /// Added to the Hessian's diagonal, in parts of its mean.
    pub damping: f64,
    /// Vectors that K-means sees.
    pub samples: usize,
    /// Fine-tuning of blocks; none unless asked for.
    pub finetune: FineTune,
    factor: OfHessian<Factor>,
}

/// The damped Hessian of a layer's input, and its factor.
#[derive(Debug)]
struct Factor {
    /// The damped Hessian. [cols, cols]
    hessian: Tensor,
    /// Its block-lower factor. `[cols * cols]`
    lower: Vec<f32>,
}

impl Default for Aqlm {
    fn default() -> Aqlm {
        Aqlm {
            rounds: 2,
            steps: 8,
            damping: 0.01,
            samples: 8192,
            finetune: FineTune::default(),
            factor: OfHessian::default(),
        }
    }
}

impl Aqlm {
    /// With this damping, which is above 0 and at most 1. Errors: Config.
    pub fn new(damping: f64) -> Result<Aqlm> {
        Ok(Aqlm { damping: of_hessian::damping(damping)?, ..Aqlm::default() })
    }

    /// The same with blocks fine-tuned in this way.
    pub fn finetuned(self, finetune: FineTune) -> Aqlm {
        Aqlm { finetune, ..self }
    }

    /// Errors: Config, where it is no Hessian.
    fn solve(&self, gpu: &Gpu, name: &str, mut h: Vec<f64>, cols: usize) -> Result<Factor> {
        of_hessian::damp(&mut h, cols, self.damping);
        let single: Vec<f32> = h.iter().map(|&v| v as f32).collect();
        let hessian = gpu.tensor("a Hessian", [cols, cols], DType::F32, &single)?;
        Ok(Factor { hessian, lower: of_hessian::block_lower(name, h, cols, gpu.cancel())? })
    }

    /// The factor of a layer's Hessian; without one that of the identity. Errors: Shape, Config.
    fn factor(&self, gpu: &Gpu, name: &str, layer: &Layer<'_>) -> Result<Arc<Factor>> {
        let [_, cols] = layer.shape();
        match &layer.stats.hessian {
            Some(h) => self.factor.get(name, h, cols, |h, _| self.solve(gpu, name, h, cols)),
            None => self.solve(gpu, name, vec![0.0; cols * cols], cols).map(Arc::new),
        }
    }
}

impl LayerMethod for Aqlm {
    fn name(&self) -> &'static str {
        "aqlm"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, ..Needs::default() }
    }

    fn finetune(&self) -> Option<FineTune> {
        Some(self.finetune)
    }

    fn quantize(&self, gpu: &Gpu, layer: &Layer<'_>) -> Result<Linear> {
        let ([rows, cols], name) = (layer.shape(), layer.weight_name());
        let scheme = Scheme::Aqlm;
        // What the scheme has no room for is refused here, too.
        if gpu.is_dry() || rows * cols == 0 || cols % VECTOR != 0 {
            return Ok(layer.done(QuantizedTensor::zeros(gpu, &name, scheme, [rows, cols])?));
        }
        let fit = Fit::new(gpu, layer, self.factor(gpu, &name, layer)?)?;
        let mut books = fit.k_means(self.samples);
        let mut best: Option<(f64, Packed)> = None;
        for round in 0..self.rounds.max(1) {
            let mut improved = false;
            for lower in [Some(&fit.factor.lower[..]), None] {
                let weight = gpu.tensor(&name, [rows, cols], DType::F32, &fit.weight)?;
                let mut packed = lattice::additive(gpu, &name, &weight, lower, &books, &fit.scales)?.download()?;
                packed.nested = fit.solve(&packed, self.steps)?;
                let loss = fit.loss(&packed)?;
                if loss.is_finite() && best.as_ref().is_none_or(|(least, _)| loss < *least) {
                    improved = true;
                    best = Some((loss, packed));
                }
            }
            let Some((loss, packed)) = &best else {
                return Err(Error::config(
                    name,
                    "no code books give a finite error: its weights or inputs are too large",
                ));
            };
            log::debug!("{name}: round {round}, error {loss:.4}");
            books.clone_from(&packed.nested);
            if !improved {
                break;
            }
        }
        let (_, packed) = best.expect("there was a round");
        Ok(layer.done(QuantizedTensor::upload(gpu, &name, &packed)?))
    }
}

/// A layer whose codes and code books are sought: rows are divided by their scales.
struct Fit {
    gpu: Gpu,
    shape: [usize; 2],
    /// `[rows * cols]`
    weight: Vec<f32>,
    /// `[rows]`: the root mean squares of the rows.
    scales: Vec<f32>,
    factor: Arc<Factor>,
}

impl Fit {
    fn new(gpu: &Gpu, layer: &Layer<'_>, factor: Arc<Factor>) -> Result<Fit> {
        let shape @ [rows, cols] = layer.shape();
        let mut weight = layer.weight.read::<f32>()?;
        let mut scales = Vec::with_capacity(rows);
        for row in weight.chunks_exact_mut(cols) {
            let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
            let rms = (square / cols as f64).sqrt() as f32;
            let scale = if rms > f32::MIN_POSITIVE { rms } else { 1.0 };
            row.iter_mut().for_each(|v| *v /= scale);
            scales.push(scale);
        }
        Ok(Fit { gpu: gpu.clone(), shape, weight, scales, factor })
    }

    /// Two code books: K-means of some of the vectors, and of what it leaves of them. `[2 * 256 * 8]`
    fn k_means(&self, samples: usize) -> Vec<f32> {
        let all = self.weight.len() / VECTOR;
        let count = samples.clamp(1, all);
        // Evenly spread, whatever the row length.
        let mut vectors: Vec<[f32; VECTOR]> = (0..count)
            .map(|i| {
                let at = (i as u128 * all as u128 / count as u128) as usize * VECTOR;
                std::array::from_fn(|t| self.weight[at + t])
            })
            .collect();
        let mut random = Random::new(all as u64);
        let mut books = Vec::with_capacity(2 * BOOK * VECTOR);
        for _ in 0..2 {
            let centers = centers(&vectors, &mut random);
            for v in &mut vectors {
                let center = centers[closest(&centers, v)];
                v.iter_mut().zip(center).for_each(|(v, c)| *v -= c);
            }
            books.extend(centers.concat());
        }
        books
    }

    /// e · H with row r times scales[r]²: the gradient of half the error. e: `[rows * cols]`
    fn product(&self, e: &[f32]) -> Result<Vec<f32>> {
        let mut g = Graph::new(&self.gpu);
        let x = g.import(&self.gpu.tensor("an error", self.shape, DType::F32, e)?);
        let h = g.import(&self.factor.hessian);
        // H is its own transpose.
        let y = dense::x_wt(&mut g, &x, &h)?;
        g.keep(&y);
        let mut y = g.run()?.read::<f32>(&y)?;
        for (row, scale) in y.chunks_exact_mut(self.shape[1]).zip(&self.scales) {
            row.iter_mut().for_each(|v| *v *= scale * scale);
        }
        Ok(y)
    }

    fn loss(&self, packed: &Packed) -> Result<f64> {
        let books: Vec<f64> = packed.nested.iter().map(|&v| f64::from(v)).collect();
        let e = self.lost(packed, &books);
        Ok(self.product(&e)?.iter().zip(&e).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
    }

    /// W minus the vectors of the codes.
    fn lost(&self, packed: &Packed, books: &[f64]) -> Vec<f32> {
        gather(packed, books).zip(&self.weight).map(|(q, w)| (f64::from(*w) - q) as f32).collect()
    }

    /// The code books that make the error least for these codes: conjugate gradients from those of `packed` on, each
    /// vector's step by how often it is used.
    fn solve(&self, packed: &Packed, steps: u32) -> Result<Vec<f32>> {
        let mut books: Vec<f64> = packed.nested.iter().map(|&v| f64::from(v)).collect();
        let squares: Vec<f32> = self.scales.iter().flat_map(|s| std::iter::repeat_n(s * s, self.shape[1])).collect();
        let uses = self.scatter(packed, &squares);
        let scaled =
            |r: &[f64]| -> Vec<f64> { r.iter().zip(&uses).map(|(r, n)| if *n > 0.0 { r / n } else { 0.0 }).collect() };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut rest = self.scatter(packed, &self.product(&self.lost(packed, &books))?);
        let mut z = scaled(&rest);
        let mut step = z.clone();
        let mut size = dot(&rest, &z);
        for _ in 0..steps {
            let moved: Vec<f32> = gather(packed, &step).map(|v| v as f32).collect();
            let turned = self.scatter(packed, &self.product(&moved)?);
            let curvature = dot(&step, &turned);
            if size <= 0.0 || curvature <= 0.0 {
                break;
            }
            let length = size / curvature;
            books.iter_mut().zip(&step).for_each(|(b, s)| *b += length * s);
            rest.iter_mut().zip(&turned).for_each(|(r, t)| *r -= length * t);
            z = scaled(&rest);
            let next = dot(&rest, &z);
            step.iter_mut().zip(&z).for_each(|(s, z)| *s = z + next / size * *s);
            size = next;
        }
        Ok(books.into_iter().map(|v| v as f32).collect())
    }

    /// What the numbers add up to for each element of the code books. x: `[rows * cols]`
    fn scatter(&self, packed: &Packed, x: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; 2 * BOOK * VECTOR];
        for (v, x) in x.chunks_exact(VECTOR).enumerate() {
            for at in vectors(packed, v) {
                sums[at..at + VECTOR].iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
            }
        }
        sums
    }
}

/// Where the two vectors of vector `v` of the weight begin in the code books.
fn vectors(packed: &Packed, v: usize) -> [usize; 2] {
    let code = packed.codes[v / 2] >> (16 * (v % 2));
    [(code & 255) as usize * VECTOR, (BOOK + (code >> 8 & 255) as usize) * VECTOR]
}

/// The sums of the vectors of the codes, number after number.
fn gather<'a>(packed: &'a Packed, books: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    (0..packed.len() / VECTOR).flat_map(move |v| {
        let [a, b] = vectors(packed, v);
        (0..VECTOR).map(move |t| books[a + t] + books[b + t])
    })
}

fn closest(centers: &[[f32; VECTOR]], v: &[f32; VECTOR]) -> usize {
    let distance = |c: &[f32; VECTOR]| c.iter().zip(v).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    let mut best = (f32::INFINITY, 0);
    for (i, center) in centers.iter().enumerate() {
        let d = distance(center);
        if d < best.0 {
            best = (d, i);
        }
    }
    best.1
}

/// Lloyd's algorithm from random vectors on, ten times; a center that nothing is near to moves to a random vector.
fn centers(vectors: &[[f32; VECTOR]], random: &mut Random) -> Vec<[f32; VECTOR]> {
    let mut pick = || vectors[(random.bits() % vectors.len() as u64) as usize];
    let mut centers: Vec<[f32; VECTOR]> = (0..BOOK).map(|_| pick()).collect();
    for _ in 0..10 {
        let mut sums = vec![([0.0f64; VECTOR], 0usize); BOOK];
        for v in vectors {
            let (sum, count) = &mut sums[closest(&centers, v)];
            sum.iter_mut().zip(v).for_each(|(s, v)| *s += f64::from(*v));
            *count += 1;
        }
        for (center, (sum, count)) in centers.iter_mut().zip(sums) {
            *center = if count == 0 { pick() } else { sum.map(|s| (s / count as f64) as f32) };
        }
    }
    centers
}
