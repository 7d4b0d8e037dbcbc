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

/// Of blocks without a window, then of those with one. The newer spelling has an object for each kind of block; `rope_scaling`, the older
/// one, is of those without. The bases are those of blocks with one and without, where none is told. Errors: Format.
pub(super) fn by_window(f: &Fields<'_>, around: Around, [local, global]: [f64; 2]) -> Result<Vec<RopeSpec>> {
    let (old, new) = (f.object("rope_scaling")?, f.object("rope_parameters")?);
    let kinds = ["full_attention", "sliding_attention"];
    if let Some((new, other)) =
        new.as_ref().and_then(|new| Some((new, new.names().find(|name| !kinds.contains(name))?)))
    {
        return Err(new.fail(other, "full_attention and sliding_attention alone, each with its own"));
    }
    if old.is_some() && new.is_some() {
        return Err(f.fail("rope_scaling", "one of rope_scaling, the older spelling, and rope_parameters"));
    }
    let [full, sliding] = kinds.map(|kind| new.as_ref().map_or(Ok(None), |new| new.object(kind)));
    let read = |own: Option<Fields<'_>>, theta: f64| {
        if let Some(own) = own.as_ref().filter(|own| own.get("truncate").is_some_and(|told| told != true)) {
            return Err(own.fail("truncate", "true, which is what transformers takes where blocks differ"));
        }
        of(f, own.as_ref(), Around { theta, ..around })
    };
    Ok(vec![
        read(full?.or(old), f.number_or("rope_theta", global)?)?,
        read(sliding?, f.number_or("rope_local_base_freq", local)?)?,
    ])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::rope::frequencies;
    use serde_json::json;
    use std::path::Path;

    fn read(config: &Value, partial_rotary_factor: Option<f64>) -> Result<RopeSpec> {
        let f = Fields::new(config, Path::new("config.json"))?;
        let max_positions = f.extent("max_position_embeddings")?;
        let partial = partial(&f, partial_rotary_factor)?;
        let around = Around { max_positions, head_dim: 16, theta: 1e4, partial, original: None };
        Ok(one(&f, around)?.remove(0))
    }

    /// `scripts/make_rope_golden.py` wrote it.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rope.json");
        let golden: Value = crate::format::read_json(golden).unwrap();
        for case in golden.as_array().unwrap() {
            let spec = read(&case["config"], case["partial"].as_bool().unwrap().then_some(1.0)).unwrap();
            let length = case["length"].as_u64().unwrap() as usize;
            let got = frequencies(spec.theta, spec.rotary_dim, &spec.scaling, length).unwrap();
            let want: Vec<f64> = case["inv_freq"].as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
            // Powers in f32 there.
            let close = |a: f64, b: f64| (a - b).abs() <= 2e-6 * b;
            assert_eq!(got.len(), want.len(), "{case}");
            assert!(got.iter().zip(&want).all(|(&a, &b)| close(a, b)), "{case}: {got:?}");
            let attention = case["attention_factor"].as_f64().unwrap();
            assert!(close(spec.scaling.attention_factor(), attention), "{case}: {:?}", spec.scaling);
        }
    }

    #[test]
    fn lengths_are_told_apart_where_rotations_differ() {
        let of = |rope: Value| read(&json!({"max_position_embeddings": 64, "rope_parameters": rope}), None).unwrap();
        let [short, long] = [vec![1.0; 8], vec![2.0; 8]];
        let longrope = of(json!({"rope_type": "longrope", "short_factor": short, "long_factor": long,
                                 "original_max_position_embeddings": 16}));
        let class = |spec: &RopeSpec, length: usize| spec.scaling.length_class(length);
        assert!(class(&longrope, 1) == class(&longrope, 16) && class(&longrope, 17) == class(&longrope, 64));
        assert!(class(&longrope, 16) != class(&longrope, 17));
        let same = of(json!({"rope_type": "longrope", "short_factor": long, "long_factor": long}));
        assert_eq!(class(&same, 1), class(&same, 1000));
        let dynamic = of(json!({"rope_type": "dynamic", "factor": 3.0}));
        assert!(class(&dynamic, 1) == class(&dynamic, 64) && class(&dynamic, 65) != class(&dynamic, 66));
        assert_eq!((dynamic.reach(), longrope.reach()), (Some(192), None));
        let yarn = of(json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 48}));
        assert_eq!((yarn.reach(), class(&yarn, 1)), (Some(96), class(&yarn, 65)));
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        let message = |rope: Value, partial: Option<f64>| {
            let config = json!({"max_position_embeddings": 64, "rope_parameters": rope});
            read(&config, partial).unwrap_err().to_string()
        };
        let yarn = |name: &str, value: Value| {
            let mut rope = json!({"rope_type": "yarn", "factor": 4.0});
            rope[name] = value;
            message(rope, None)
        };
        for (name, value) in [
            ("factor", json!(0.0)),
            ("factor", json!("4")),
            ("original_max_position_embeddings", json!(0)),
            ("attention_factor", json!(-1.0)),
            ("attention_factor", json!(0)),
            ("beta_fast", json!(-32)),
            ("beta_slow", json!("1")),
            ("truncate", json!(1)),
            ("rope_theta", json!(1.0)),
            ("partial_rotary_factor", json!(0.5)),
        ] {
            let message = yarn(name, value);
            assert!(message.contains(&format!("rope_parameters.{name}: expected")), "{message}");
        }
        assert!(message(json!({"rope_type": "yarn"}), None).contains("rope_parameters.factor is missing"));
        let mscale = json!({"rope_type": "yarn", "factor": 4.0, "mscale": -20.0, "mscale_all_dim": 1.0});
        assert!(message(mscale, None).contains("rope_parameters.mscale: expected"));
        let longrope = |name: &str, value: Value| {
            let mut rope = json!({"rope_type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![1.0; 8]});
            rope[name] = value;
            message(rope, None)
        };
        for (name, value) in [
            ("short_factor", json!(vec![1.0; 7])),
            ("short_factor", json!(null)),
            ("long_factor", json!(vec![0.0; 8])),
            ("long_factor", json!(vec!["1"; 8])),
            ("attention_factor", json!(-1.0)),
            ("factor", json!(0.0)),
            ("original_max_position_embeddings", json!(1)),
        ] {
            let message = longrope(name, value);
            assert!(message.contains(&format!("rope_parameters.{name}: expected")), "{message}");
        }
        for share in [0.0, 0.1, 0.2, 1.5, -0.5] {
            let message = message(json!({"rope_type": "default", "partial_rotary_factor": share}), Some(1.0));
            assert!(message.contains("rope_parameters.partial_rotary_factor: expected a share"), "{message}");
        }
        let two = json!({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.125});
        assert!(message(two, Some(1.0)).contains("partial_rotary_factor: expected 4 or more features"));
        assert!(
            message(json!({"rope_type": "dynamic", "factor": -2.0}), None).contains("rope_parameters.factor: expected")
        );
        assert!(message(json!({"type": "su"}), None).contains("rope_parameters.type: expected one of default, linear"));
    }

    #[test]
    fn a_share_stands_beside_or_within() {
        let dim = |config: Value, default: f64| read(&config, Some(default)).unwrap().rotary_dim;
        assert_eq!(dim(json!({"max_position_embeddings": 64}), 0.5), 8);
        assert_eq!(dim(json!({"max_position_embeddings": 64, "partial_rotary_factor": 0.25}), 0.5), 4);
        assert_eq!(dim(json!({"max_position_embeddings": 64, "partial_rotary_factor": null}), 0.5), 16);
        let within = json!({"rope_type": "default", "partial_rotary_factor": 0.75});
        let both = json!({"max_position_embeddings": 64, "partial_rotary_factor": 0.25, "rope_parameters": within});
        assert_eq!(dim(both, 0.5), 12);
        let message = read(&json!({"max_position_embeddings": 64, "partial_rotary_factor": 0.5}), None).unwrap_err();
        assert!(message.to_string().contains("partial_rotary_factor in config.json: 0.5; supported: 1.0"), "{message}");
    }
}
