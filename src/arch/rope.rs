//! The rotary embeddings that config.json describes, as transformers 5.23 reads them.

use crate::{
    Error, Result,
    format::fields::{Fields, MAX_EXTENT},
    kernels::rope::{RopeScaling, RopeTable},
};
use serde_json::Value;
use std::sync::Arc;

/// Angles of a rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Features of a head that turn, the first ones: even, and all of them as a rule.
    pub rotary_dim: usize,
    /// Stretch of the frequencies.
    pub scaling: RopeScaling,
}

impl RopeSpec {
    /// Cosines and sines of the first positions as a text of `length` tokens has them. Errors: Config.
    pub fn table(&self, length: usize, positions: usize) -> Result<RopeTable> {
        RopeTable::new(self.theta, self.rotary_dim, &self.scaling, length, positions)
    }

    /// The longest text that it is made for, where that is told by more than the model's positions: those of the pretraining times the
    /// factor.
    pub(super) fn reach(&self) -> Option<usize> {
        let (factor, original) = match self.scaling {
            RopeScaling::Dynamic { factor, max_position_embeddings } => (factor, max_position_embeddings),
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                (factor, original_max_position_embeddings)
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::LongRope { .. } => return None,
        };
        Some((original as f64 * factor).min(MAX_EXTENT as f64) as usize)
    }
}

/// What rotary embeddings take from the rest of a configuration.
#[derive(Clone, Copy)]
pub(super) struct Around {
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The base where none is told.
    pub theta: f64,
    /// The share of a head that turns where the embedding does not tell; `None` where the class turns whole heads.
    pub partial: Option<f64>,
    /// Tokens of the pretraining where they stand beside the embeddings, which counts before what stands in them.
    pub original: Option<usize>,
}

/// Reads the rotary embeddings of a model. Errors: Format, Unsupported.
pub(super) type Read = fn(&Fields<'_>, Around) -> Result<Vec<RopeSpec>>;

/// The share of a head that turns, as the configuration has it beside the embeddings. `default`: where it does not say, and `None` where
/// the class turns whole heads. Errors: Format, Unsupported for a share where the class has none.
pub(super) fn partial(f: &Fields<'_>, default: Option<f64>) -> Result<Option<f64>> {
    let name = "partial_rotary_factor";
    let told = f.nullable_number(name, default)?;
    match (default, told) {
        (Some(_), told) => Ok(Some(told.unwrap_or(1.0))),
        (None, Some(factor)) if factor != 1.0 => {
            Err(Error::unsupported(format!("{name} in {}", f.path().display()), factor, "1.0"))
        }
        (None, _) => Ok(None),
    }
}

/// The features of a head that turn: int(head_dim · share). Errors: Format where that is odd, none, or more than there are.
fn rotary_dim(f: &Fields<'_>, head_dim: usize, share: f64) -> Result<usize> {
    let dim = (head_dim as f64 * share) as usize;
    match (2..=head_dim).contains(&dim) && dim.is_multiple_of(2) {
        true => Ok(dim),
        false => Err(f.fail(
            "partial_rotary_factor",
            format!("a share of a head's {head_dim} features that is a positive even number of them"),
        )),
    }
}

/// One rotary embedding, the same in all blocks. transformers 5 keeps it in `rope_parameters`; `rope_scaling`, the older name of the
/// same, wins where both stand, and a `rope_theta` inside wins over one beside it. Errors: Format, Unsupported.
pub(super) fn one(f: &Fields<'_>, around: Around) -> Result<Vec<RopeSpec>> {
    // An empty object counts as none there.
    let filled = |name: &str| f.get(name).and_then(Value::as_object).is_some_and(|object| !object.is_empty());
    let (old, new) = (f.object("rope_scaling")?, f.object("rope_parameters")?);
    let rope = if filled("rope_scaling") { old } else { new };
    let theta = f.number_or("rope_theta", around.theta)?;
    // A field of the configuration itself wins over one inside.
    let original = f.nullable_extent("original_max_position_embeddings", None)?;
    Ok(vec![of(f, rope.as_ref(), Around { theta, original, ..around })?])
}

/// The rotary embedding of an object of the configuration `f`, or the plain one where there is none. Errors: Format, Unsupported.
pub(super) fn of(f: &Fields<'_>, rope: Option<&Fields<'_>>, around: Around) -> Result<RopeSpec> {
    let Around { head_dim, theta, partial, .. } = around;
    let Some(rope) = rope else {
        let rotary_dim = partial.map_or(Ok(head_dim), |share| rotary_dim(f, head_dim, share))?;
        return Ok(RopeSpec { theta, rotary_dim, scaling: RopeScaling::None });
    };
    let theta = rope.number_or("rope_theta", theta)?;
    if let Some(name) = rope.names().find(|name| rope.get(name).is_some_and(Value::is_object)) {
        return Err(rope.fail(name, "one scaling for all blocks"));
    }
    let rotary_dim = match partial {
        None if rope.number_or("partial_rotary_factor", 1.0)? != 1.0 => {
            return Err(rope.fail("partial_rotary_factor", "1.0"));
        }
        None => head_dim,
        Some(_) if rope.has("partial_rotary_factor") => {
            rotary_dim(rope, head_dim, rope.number("partial_rotary_factor")?)?
        }
        Some(share) => rotary_dim(f, head_dim, share)?,
    };
    Ok(RopeSpec { theta, rotary_dim, scaling: scaling(rope, &around, theta, rotary_dim)? })
}

fn scaling(rope: &Fields<'_>, around: &Around, theta: f64, rotary_dim: usize) -> Result<RopeScaling> {
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let original = || match around.original {
        Some(original) => Ok(original),
        None => rope.extent_or("original_max_position_embeddings", around.max_positions),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: positive(rope, "factor")? }),
        "dynamic" if rotary_dim == 2 => Err(rope.fail("partial_rotary_factor", "4 or more features that turn")),
        "dynamic" => Ok(RopeScaling::Dynamic {
            factor: positive(rope, "factor")?,
            max_position_embeddings: around.max_positions,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: positive(rope, "factor")?,
            low_freq_factor: positive(rope, "low_freq_factor")?,
            high_freq_factor: positive(rope, "high_freq_factor")?,
            original_max_position_embeddings: original()?,
        }),
        "yarn" => yarn(rope, around, original()?, theta),
        "longrope" => longrope(rope, around, original()?, rotary_dim),
        _ => {
            let name = if rope.has("rope_type") { "rope_type" } else { "type" };
            Err(rope.fail(name, "one of default, linear, dynamic, llama3, yarn, longrope"))
        }
    }
}

fn positive(rope: &Fields<'_>, name: &str) -> Result<f64> {
    match rope.number(name)? {
        number if number > 0.0 => Ok(number),
        _ => Err(rope.fail(name, "a positive number")),
    }
}

/// A positive number, or null for none. Errors: Format.
fn maybe_positive(rope: &Fields<'_>, name: &str) -> Result<Option<f64>> {
    match rope.nullable_number(name, None)? {
        Some(number) if number <= 0.0 => Err(rope.fail(name, "a positive number or null")),
        number => Ok(number),
    }
}

fn yarn(rope: &Fields<'_>, around: &Around, original: usize, theta: f64) -> Result<RopeScaling> {
    let factor = match rope.is_null("factor") {
        true => around.max_positions as f64 / original as f64,
        false => positive(rope, "factor")?,
    };
    // Null and 0 count as none.
    let number = |name: &str| Ok(rope.nullable_number(name, None)?.filter(|&number| number != 0.0));
    let beta = |name: &str, default: f64| match number(name)? {
        Some(number) if number < 0.0 => Err(rope.fail(name, "a positive number, or null or 0 for none")),
        beta => Ok(beta.unwrap_or(default)),
    };
    let (mscale, all) = (number("mscale")?, number("mscale_all_dim")?);
    let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor = match (maybe_positive(rope, "attention_factor")?, mscale, all) {
        (Some(told), ..) => told,
        (None, Some(mscale), Some(all)) => of(mscale) / of(all),
        (None, ..) => of(1.0),
    };
    if !(attention_factor.is_finite() && attention_factor > 0.0) {
        return Err(rope.fail("mscale", format!("one that makes a positive attention factor, not {attention_factor}")));
    }
    if theta == 1.0 {
        return Err(rope.fail("rope_theta", "another base than 1"));
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        truncate: !rope.is_null("truncate") && rope.flag("truncate", true)?,
        attention_factor,
        original_max_position_embeddings: original,
    })
}

fn longrope(rope: &Fields<'_>, around: &Around, original: usize, rotary_dim: usize) -> Result<RopeScaling> {
    let factor = maybe_positive(rope, "factor")?.unwrap_or(around.max_positions as f64 / original as f64);
    let attention_factor = match maybe_positive(rope, "attention_factor")? {
        Some(told) => told,
        None if factor <= 1.0 => 1.0,
        None if original == 1 => return Err(rope.fail("original_max_position_embeddings", "2 or more")),
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let divisors = |name: &str| -> Result<Arc<[f64]>> {
        let numbers = rope.list(name)?.unwrap_or_default().iter();
        let numbers: Option<Vec<f64>> = numbers.map(|value| value.as_f64().filter(|&d| d > 0.0)).collect();
        match numbers.filter(|numbers| numbers.len() == rotary_dim / 2) {
            Some(numbers) => Ok(numbers.into()),
            None => Err(rope.fail(name, format!("{} positive numbers", rotary_dim / 2))),
        }
    };
    Ok(RopeScaling::LongRope {
        short_factor: divisors("short_factor")?,
        long_factor: divisors("long_factor")?,
        attention_factor,
        original_max_position_embeddings: original,
    })
}
