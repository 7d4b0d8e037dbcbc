//! Rotary position embedding: the table of angles and the rotation.

use crate::{
    DType, Error, Result,
    gpu::{Gpu, Kernel, Tensor},
    graph::{Graph, Value},
};
use std::{f64::consts::TAU, sync::Arc};

/// How the angles are stretched for contexts longer than the pretraining's: transformers' rope types.
///
/// f\[i\] = theta^(−2i / rotary_dim) are the angles of one step of position as pretrained. Lengths are in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// `default`: as pretrained.
    #[default]
    None,
    /// `linear`: f / factor (Chen et al. 2023).
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// `dynamic`: of a text of n > m = `max_position_embeddings` tokens the f of the base
    /// theta · (factor · n / m − factor + 1)^(rotary_dim / (rotary_dim − 2)), of shorter ones as pretrained (NTK-aware, bloc97 and
    /// emozilla 2023). transformers keeps the base of the longest text since it last read a short one; here n is the text's own.
    Dynamic {
        /// How fast the base grows with the length.
        factor: f64,
        /// The longest text that is rotated as pretrained.
        max_position_embeddings: usize,
    },
    /// `llama3`: slow angles divided by `factor`, fast ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// Divides the slow angles.
        factor: f64,
        /// Angles with a wavelength above `original_max_position_embeddings / low_freq_factor` are slow.
        low_freq_factor: f64,
        /// Angles with a wavelength below `original_max_position_embeddings / high_freq_factor` are fast.
        high_freq_factor: f64,
        /// Context of the pretraining.
        original_max_position_embeddings: usize,
    },
    /// `yarn`: f · (k + (1 − k) / factor), where k falls from 1 to 0 along a line between the two i whose angles turn `beta_fast` and
    /// `beta_slow` times in the context of the pretraining (YaRN, Peng et al. 2023).
    Yarn {
        /// Divides the slow angles.
        factor: f64,
        /// Angles that turn more often are kept.
        beta_fast: f64,
        /// Angles that turn less often are divided.
        beta_slow: f64,
        /// Whether the two ends of the line are rounded to whole i, away from each other.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Context of the pretraining.
        original_max_position_embeddings: usize,
    },
    /// `longrope`: f\[i\] / short\[i\] in a text of up to `original_max_position_embeddings` tokens, f\[i\] / long\[i\] in a longer
    /// one (LongRoPE, Ding et al. 2024).
    LongRope {
        /// \[rotary_dim / 2\]
        short_factor: Arc<[f64]>,
        /// \[rotary_dim / 2\]
        long_factor: Arc<[f64]>,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Context of the pretraining.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// Multiplies cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match *self {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Llama3 { .. } => 1.0,
        }
    }

    /// Texts whose lengths, in tokens, have the same class have the same rotations.
    pub fn length_class(&self, length: usize) -> usize {
        match *self {
            RopeScaling::Dynamic { max_position_embeddings, .. } => length.max(max_position_embeddings),
            RopeScaling::LongRope { ref short_factor, ref long_factor, original_max_position_embeddings, .. } => {
                usize::from(length > original_max_position_embeddings && short_factor != long_factor)
            }
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. } => 0,
        }
    }
}

/// cos and sin of every position's angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    values: Vec<f32>, // [positions, cos: rotary_dim / 2, sin: rotary_dim / 2]
    positions: usize,
    rotary_dim: usize,
}

impl RopeTable {
    /// a · cos(p · f\[i\]) and a · sin(p · f\[i\]) for positions p, as a text of `length` tokens has them: f and a as the scaling says.
    ///
    /// Computed in f64. Errors: Config where rotary_dim is odd or zero, or a factor or theta is not positive.
    /// RoPE, Su et al. 2021.
    pub fn new(
        theta: f64,
        rotary_dim: usize,
        scaling: &RopeScaling,
        length: usize,
        positions: usize,
    ) -> Result<RopeTable> {
        let frequencies = frequencies(theta, rotary_dim, scaling, length)?;
        let len = positions.checked_mul(rotary_dim).filter(|&n| n > 0 && n <= u32::MAX as usize);
        let len = len.ok_or_else(|| {
            Error::config(
                "max_position_embeddings",
                format!("expected 1 to 2^32 / {rotary_dim} positions, got {positions}"),
            )
        })?;
        let a = scaling.attention_factor();
        positive("rope_scaling.attention_factor", a)?;
        let mut values = Vec::with_capacity(len);
        for p in 0..positions {
            values.extend(frequencies.iter().map(|f| (a * (p as f64 * f).cos()) as f32));
            values.extend(frequencies.iter().map(|f| (a * (p as f64 * f).sin()) as f32));
        }
        Ok(RopeTable { values, positions, rotary_dim })
    }

    /// [positions, rotary_dim] row-major: a row holds its cosines, then its sines.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The table on the device: [positions, rotary_dim] f32. Errors: OutOfMemory, Device.
    pub fn upload(&self, gpu: &Gpu) -> Result<Tensor> {
        gpu.tensor("rope table", [self.positions, self.rotary_dim], DType::F32, &self.values)
    }
}

/// The angles of one step of position in a text of `length` tokens. [rotary_dim / 2]
pub(crate) fn frequencies(theta: f64, rotary_dim: usize, scaling: &RopeScaling, length: usize) -> Result<Vec<f64>> {
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(Error::config("rotary_dim", format!("expected a positive even number, got {rotary_dim}")));
    }
    positive("rope_theta", theta)?;
    let of_base = |theta: f64| (0..rotary_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / rotary_dim as f64));
    let plain = of_base(theta);
    match *scaling {
        RopeScaling::None => Ok(plain.collect()),
        RopeScaling::Linear { factor } => {
            positive("rope_scaling.factor", factor)?;
            Ok(plain.map(|f| f / factor).collect())
        }
        RopeScaling::Dynamic { factor, max_position_embeddings } => {
            positive("rope_scaling.factor", factor)?;
            positive("max_position_embeddings", max_position_embeddings as f64)?;
            if rotary_dim == 2 {
                return Err(Error::config("rotary_dim", "expected 4 or more for dynamic angles, got 2"));
            }
            let longer = length.max(max_position_embeddings) as f64 / max_position_embeddings as f64;
            let exponent = rotary_dim as f64 / (rotary_dim - 2) as f64;
            Ok(of_base(theta * (factor * longer - factor + 1.0).powf(exponent)).collect())
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
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } => {
            positive("rope_scaling.factor", factor)?;
            positive("rope_scaling.beta_fast", beta_fast)?;
            positive("rope_scaling.beta_slow", beta_slow)?;
            positive("rope_scaling.original_max_position_embeddings", original_max_position_embeddings as f64)?;
            if theta == 1.0 {
                return Err(Error::config("rope_theta", "expected another base than 1, whose angles are all the same"));
            }
            // The i whose angle turns so often in the context of the pretraining.
            let at = |turns: f64| {
                let radians = TAU * turns;
                rotary_dim as f64 * (original_max_position_embeddings as f64 / radians).ln() / (2.0 * theta.ln())
            };
            let (fast, slow) = (at(beta_fast), at(beta_slow));
            let (fast, slow) = if truncate { (fast.floor(), slow.ceil()) } else { (fast, slow) };
            let (fast, slow) = (fast.max(0.0), slow.min((rotary_dim - 1) as f64));
            let width = if fast == slow { 0.001 } else { slow - fast };
            let stretched = |(i, f): (usize, f64)| {
                let keep = 1.0 - ((i as f64 - fast) / width).clamp(0.0, 1.0);
                f * (keep + (1.0 - keep) / factor)
            };
            Ok(plain.enumerate().map(stretched).collect())
        }
        RopeScaling::LongRope { ref short_factor, ref long_factor, original_max_position_embeddings, .. } => {
            let (name, divisors) = match length > original_max_position_embeddings {
                true => ("rope_scaling.long_factor", long_factor),
                false => ("rope_scaling.short_factor", short_factor),
            };
            if divisors.len() != rotary_dim / 2 {
                return Err(Error::config(
                    name,
                    format!("expected {} numbers, got {}", rotary_dim / 2, divisors.len()),
                ));
            }
            divisors.iter().try_for_each(|&divisor| positive(name, divisor))?;
            Ok(plain.zip(divisors.iter()).map(|(f, divisor)| f / divisor).collect())
        }
    }
}

fn positive(name: &str, v: f64) -> Result<()> {
    match v.is_finite() && v > 0.0 {
        true => Ok(()),
        false => Err(Error::config(name, format!("expected a positive number, got {v}"))),
    }
}

crate::graph::params! {
    struct Params {
        rows: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        half_dim: u32,
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

/// (a, b) ← (a·cos − b·sin, b·cos + a·sin) for a = x\[r, h, i\], b = x\[r, h, i + rotary_dim/2\], i < rotary_dim/2, in place, for x = q and x = k
///
/// q: [rows, heads · head_dim], k: [rows, kv_heads · head_dim], each with its number of heads; f32, overwritten where they turn. table:
/// [positions, rotary_dim] f32 of [`RopeTable`], where rotary_dim ≤ head_dim: the features behind it stay as they are. positions: [rows] u32,
/// each inside the table. `inverse` takes −sin, which is the gradient. Errors: Shape. The halves pair up as in transformers'
/// `rotate_half`; GGUF files of Llama models store q and k permuted.
pub fn rope(
    g: &mut Graph,
    [(q, heads), (k, kv_heads)]: [(&Value, usize); 2],
    table: &Value,
    positions: &Value,
    head_dim: usize,
    inverse: bool,
) -> Result<()> {
    let (rows, _) = q.rows_cols();
    let (entries, width) = table.rows_cols();
    for (x, heads) in [(q, heads), (k, kv_heads)] {
        if x.rows_cols() != (rows, heads * head_dim) || heads * head_dim == 0 {
            return Err(Error::shape("rope", format!("[{rows}, {heads} heads of {head_dim}]"), x.shape()));
        }
    }
    if !(2..=head_dim).contains(&width) || !width.is_multiple_of(2) || entries == 0 {
        return Err(Error::shape("rope", format!("a table [positions, even and up to {head_dim}]"), table.shape()));
    }
    if positions.dtype() != DType::U32 || positions.shape().len() != rows {
        let got = format!("{} {}", positions.dtype(), positions.shape());
        return Err(Error::shape("rope", format!("positions U32 [{rows}]"), got));
    }
    let half = width / 2;
    let params = Params {
        rows: rows as u32,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        half_dim: half as u32,
        positions: entries as u32,
        sign: if inverse { -1.0 } else { 1.0 },
    };
    let blocks = heads.div_ceil(HEADS) + kv_heads.div_ceil(HEADS);
    let groups = (rows * blocks * half).div_ceil(256);
    let work = 12.0 * (rows * (heads + kv_heads) * width) as f64;
    g.dispatch(kernel(), &params, &[table, positions, q, k], groups, work)
}
