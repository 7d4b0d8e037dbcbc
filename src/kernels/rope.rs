//! Rotary position embedding: the table of angles and the rotation.

use crate::{
    DType, Error, Result,
    gpu::{Gpu, Kernel, Tensor},
    graph::{Graph, Value},
};
use std::{f64::consts::TAU, sync::Arc};

/// How the angles are stretched for contexts longer than the pretraining's.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// As pretrained.
    #[default]
    None,
    /// Every angle divided by `factor` (Chen et al. 2023).
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// Llama 3.1: slow angles divided by `factor`, fast ones kept, those between blended.
    Llama3 {
        /// Divides the slow angles.
        factor: f64,
        /// Angles with a wavelength above `original_max_position_embeddings / low_freq_factor` are slow.
        low_freq_factor: f64,
        /// Angles with a wavelength below `original_max_position_embeddings / high_freq_factor` are fast.
        high_freq_factor: f64,
        /// Context of the pretraining, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Each angle divided by a number of its own, whatever it was computed from. [head_dim / 2]
    Divisors(Arc<[f64]>),
}

/// cos and sin of every position's angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    values: Vec<f32>, // [positions, cos: head_dim / 2, sin: head_dim / 2]
    positions: usize,
    head_dim: usize,
}

impl RopeTable {
    /// cos(p · f\[i\]) and sin(p · f\[i\]) with f\[i\] = theta^(−2i / head_dim), scaled.
    ///
    /// Computed in f64. Errors: Config where head_dim is odd or zero, or a factor or theta is not positive.
    /// RoPE, Su et al. 2021.
    pub fn new(theta: f64, head_dim: usize, scaling: &RopeScaling, positions: usize) -> Result<RopeTable> {
        let frequencies = frequencies(theta, head_dim, scaling)?;
        let len = positions.checked_mul(head_dim).filter(|&n| n > 0 && n <= u32::MAX as usize);
        let len = len.ok_or_else(|| {
            Error::config(
                "max_position_embeddings",
                format!("expected 1 to 2^32 / {head_dim} positions, got {positions}"),
            )
        })?;
        let mut values = Vec::with_capacity(len);
        for p in 0..positions {
            values.extend(frequencies.iter().map(|f| (p as f64 * f).cos() as f32));
            values.extend(frequencies.iter().map(|f| (p as f64 * f).sin() as f32));
        }
        Ok(RopeTable { values, positions, head_dim })
    }

    /// [positions, head_dim] row-major: a row holds its cosines, then its sines.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The table on the device: [positions, head_dim] f32. Errors: OutOfMemory, Device.
    pub fn upload(&self, gpu: &Gpu) -> Result<Tensor> {
        gpu.tensor("rope table", [self.positions, self.head_dim], DType::F32, &self.values)
    }
}

/// The angles of one step of position. [head_dim / 2]
pub(crate) fn frequencies(theta: f64, head_dim: usize, scaling: &RopeScaling) -> Result<Vec<f64>> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(Error::config("head_dim", format!("expected a positive even number, got {head_dim}")));
    }
    let positive = |name: &str, v: f64| match v.is_finite() && v > 0.0 {
        true => Ok(()),
        false => Err(Error::config(name, format!("expected a positive number, got {v}"))),
    };
    positive("rope_theta", theta)?;
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    match *scaling {
        RopeScaling::None => Ok(plain.collect()),
        RopeScaling::Divisors(ref divisors) => {
            if divisors.len() != head_dim / 2 {
                let message = format!("expected {} for heads of {head_dim}, got {}", head_dim / 2, divisors.len());
                return Err(Error::config("divisors of the rotary frequencies", message));
            }
            divisors.iter().try_for_each(|&divisor| positive("divisor of a rotary frequency", divisor))?;
            Ok(plain.zip(divisors.iter()).map(|(f, divisor)| f / divisor).collect())
        }
        RopeScaling::Linear { factor } => {
            positive("rope_scaling.factor", factor)?;
            Ok(plain.map(|f| f / factor).collect())
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            positive("rope_scaling.factor", factor)?;
            positive("rope_scaling.low_freq_factor", low_freq_factor)?;
            positive("rope_scaling.high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor)?;
            let context = original_max_position_embeddings as f64;
            Ok(plain
                .map(|f| {
                    let turns = context * f / TAU;
                    // 0 for slow angles, 1 for fast ones.
                    let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                })
                .collect())
        }
    }
}

crate::graph::params! {
    struct Params {
        rows: u32,
        heads: u32,
        half_dim: u32,
        head_blocks: u32,
        positions: u32,
        sign: f32,
    }
}

/// Heads that one lane turns.
const HEADS: usize = 4;

fn kernel() -> Kernel {
    Kernel::new("rope", "rotate").with("HEADS", HEADS as u32)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel()]
}

/// (a, b) ← (a·cos − b·sin, b·cos + a·sin) for a = x\[r, h, i\], b = x\[r, h, i + head_dim/2\], in place
///
/// x: [rows, heads · head_dim] f32, overwritten; table: [positions, head_dim] f32 of [`RopeTable`]; positions: [rows] u32,
/// each inside the table. `inverse` turns back, which is the gradient. Errors: Shape. The halves pair up as in
/// transformers' `rotate_half`; GGUF files of Llama models store q and k permuted.
pub fn rope(
    g: &mut Graph,
    x: &Value,
    table: &Value,
    positions: &Value,
    heads: usize,
    head_dim: usize,
    inverse: bool,
) -> Result<()> {
    let (rows, cols) = x.rows_cols();
    let (entries, width) = table.rows_cols();
    if heads * head_dim != cols || !head_dim.is_multiple_of(2) || cols == 0 {
        return Err(Error::shape("rope", format!("[rows, {heads} heads of {head_dim}, even]"), x.shape()));
    }
    if width != head_dim || entries == 0 {
        return Err(Error::shape("rope", format!("a table [positions, {head_dim}]"), table.shape()));
    }
    if positions.dtype() != DType::U32 || positions.shape().len() != rows {
        let got = format!("{} {}", positions.dtype(), positions.shape());
        return Err(Error::shape("rope", format!("positions U32 [{rows}]"), got));
    }
    let (half, head_blocks) = (head_dim / 2, heads.div_ceil(HEADS));
    let params = Params {
        rows: rows as u32,
        heads: heads as u32,
        half_dim: half as u32,
        head_blocks: head_blocks as u32,
        positions: entries as u32,
        sign: if inverse { -1.0 } else { 1.0 },
    };
    let groups = (rows * head_blocks * half).div_ceil(256);
    g.dispatch(kernel(), &params, &[table, positions, x], groups, 12.0 * (rows * cols) as f64)
}
