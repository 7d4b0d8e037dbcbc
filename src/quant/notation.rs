//! Schemes as text: `nf4`, `nf4-dq`, `int4-g64`, `int8-channel-sym`, `q4_k`.
//!
//! A name, then parts behind dashes, in any order: `gN` elements to a block, `channel` (one block per row), `tensor` (one
//! block), `sym` (no zero point), `f32` (scales in f32), `dq` (double quantization). What is not said is the default: blocks
//! of 64, zero points, halves for scales.

use super::{BlockSize, ScaleType, Scheme};
use crate::{Error, Result};
use std::{fmt, str::FromStr};

/// What some forms of a scheme have and others do not.
const FORM_PARTS: [&str; 3] = ["double quantization", "zero points", "f32 scales"];

/// Whether a scheme has each of [`FORM_PARTS`]; `None` where all its forms are alike in that.
fn form_parts(scheme: Scheme) -> [Option<bool>; FORM_PARTS.len()] {
    match scheme {
        Scheme::Nf4 { double_quant, .. } | Scheme::Fp4 { double_quant, .. } => [Some(double_quant), None, None],
        Scheme::Int { symmetric, scale, .. } => [None, Some(!symmetric), Some(scale == ScaleType::F32)],
        Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => [None; 3],
        Scheme::Mxfp4 | Scheme::Nvfp4 | Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => [None; 3],
    }
}

/// The schemes that `accepts` holds for, in words: `nf4, fp4, int2 to int8, without double quantization`.
pub(crate) fn listed(accepts: impl Fn(Scheme) -> bool) -> String {
    let accepted: Vec<Scheme> = Scheme::forms().into_iter().filter(|scheme| accepts(*scheme)).collect();
    let mut names: Vec<&str> = accepted.iter().map(|scheme| scheme.name()).collect();
    names.dedup();
    let ints = ["int2", "int3", "int4", "int5", "int6", "int7", "int8"];
    if let Some(at) = names.windows(ints.len()).position(|names| names == ints) {
        names.splice(at..at + ints.len(), ["int2 to int8"]);
    }
    let mut text = names.join(", ");
    for (i, part) in FORM_PARTS.into_iter().enumerate() {
        let mut of = accepted.iter().filter_map(|scheme| form_parts(*scheme)[i]);
        let Some(first) = of.next() else { continue };
        if of.all(|other| other == first) {
            text += &format!(", {} {part}", if first { "with" } else { "without" });
        }
    }
    text
}

impl Scheme {
    /// Errors: Unsupported where `accepts` does not hold. What is supported is what `accepts` holds for.
    pub(crate) fn expect(self, what: impl Into<String>, accepts: impl Fn(Scheme) -> bool) -> Result<()> {
        match accepts(self) {
            true => Ok(()),
            false => Err(Error::unsupported(what, self, listed(accepts))),
        }
    }
}

/// The parts behind a name.
#[derive(Default)]
struct Parts {
    block: Option<BlockSize>,
    symmetric: bool,
    wide: bool,
    double: bool,
}

impl FromStr for Scheme {
    type Err = Error;

    /// Errors: Unsupported for a name that there is not, Config for a part that does not go with it.
    fn from_str(text: &str) -> Result<Scheme> {
        let lower = text.to_ascii_lowercase();
        let mut words = lower.split('-');
        let name = words.next().unwrap_or_default();
        let mut parts = Parts::default();
        for word in words {
            match word {
                "channel" => parts.block = Some(BlockSize::Row),
                "tensor" => parts.block = Some(BlockSize::Tensor),
                "sym" => parts.symmetric = true,
                "f32" => parts.wide = true,
                "dq" => parts.double = true,
                _ => {
                    let size = word.strip_prefix('g').and_then(|n| n.parse().ok()).filter(|&n| n > 0);
                    let expected = || Error::config(format!("scheme {text}"), format!("{word:?} is none of {PARTS}"));
                    parts.block = Some(BlockSize::Elements(size.ok_or_else(expected)?));
                }
            }
        }
        let scheme = Scheme::all().find(|scheme| scheme.name() == name);
        let scheme = parts.of(scheme.ok_or_else(|| Error::unsupported("scheme", text, listed(|_| true)))?);
        if !parts.fit(scheme) {
            let message = format!("{} takes no such parts; it is written {scheme}", scheme.name());
            return Err(Error::config(format!("scheme {text}"), message));
        }
        scheme.validate()?;
        Ok(scheme)
    }
}

const PARTS: &str = "gN, channel, tensor, sym, f32, dq";

impl Parts {
    /// The scheme of a name with these parts; those that it has no use for are left out.
    fn of(&self, scheme: Scheme) -> Scheme {
        match self.block.map_or(scheme, |block| scheme.with_block(block)) {
            Scheme::Nf4 { block_size, .. } => Scheme::Nf4 { block_size, double_quant: self.double },
            Scheme::Fp4 { block_size, .. } => Scheme::Fp4 { block_size, double_quant: self.double },
            Scheme::Int { bits, block, .. } => {
                let scale = if self.wide { ScaleType::F32 } else { ScaleType::F16 };
                Scheme::Int { bits, block, symmetric: self.symmetric, scale }
            }
            scheme @ (Scheme::Nf3 { .. } | Scheme::Nf2 { .. }) => scheme,
            scheme @ (Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Mxfp4 | Scheme::Nvfp4) => scheme,
            scheme @ (Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm) => scheme,
        }
    }

    fn is_none(&self) -> bool {
        self.block.is_none() && !self.symmetric && !self.wide && !self.double
    }

    /// Whether the scheme has a use for all that was said.
    fn fit(&self, scheme: Scheme) -> bool {
        if self.block.is_some_and(|block| scheme.block() != Some(block)) {
            return false;
        }
        match scheme {
            Scheme::Int { .. } => !self.double,
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } => !self.symmetric && !self.wide,
            Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => !self.symmetric && !self.wide && !self.double,
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Mxfp4 | Scheme::Nvfp4 => self.is_none(),
            Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => self.is_none(),
        }
    }
}

impl fmt::Display for Scheme {
    /// What [`Scheme::from_str`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match *self {
            Scheme::Nf4 { block_size, double_quant } | Scheme::Fp4 { block_size, double_quant } => {
                write!(f, "-g{block_size}{}", if double_quant { "-dq" } else { "" })
            }
            Scheme::Nf3 { block_size } | Scheme::Nf2 { block_size } => write!(f, "-g{block_size}"),
            Scheme::Int { block, symmetric, scale, .. } => {
                match block {
                    BlockSize::Row => f.write_str("-channel")?,
                    BlockSize::Tensor => f.write_str("-tensor")?,
                    BlockSize::Elements(size) => write!(f, "-g{size}")?,
                }
                f.write_str(if symmetric { "-sym" } else { "" })?;
                f.write_str(if scale == ScaleType::F32 { "-f32" } else { "" })
            }
            Scheme::F32 | Scheme::F16 | Scheme::BF16 | Scheme::Mxfp4 | Scheme::Nvfp4 => Ok(()),
            Scheme::Ggml(_) | Scheme::E8p | Scheme::Aqlm => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let schemes = [
            Scheme::F32,
            Scheme::Nf4 { block_size: 64, double_quant: true },
            Scheme::Fp4 { block_size: 128, double_quant: false },
            Scheme::Nf2 { block_size: 32 },
            Scheme::int(3, 128),
            Scheme::INT8_ROWS,
            Scheme::int_per(5, BlockSize::Tensor).symmetric(),
            Scheme::Q4_K,
            Scheme::IQ4_NL,
            Scheme::Nvfp4,
            Scheme::Aqlm,
        ];
        for scheme in schemes {
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        }
        assert_eq!("nf4".parse::<Scheme>().unwrap(), Scheme::Nf4 { block_size: 64, double_quant: false });
        assert_eq!("INT4-sym-g128".parse::<Scheme>().unwrap(), Scheme::int(4, 128).symmetric());
        assert_eq!(Scheme::INT8_ROWS.to_string(), "int8-channel-sym-f32");
    }

    #[test]
    fn a_list_says_what_is_accepted() {
        assert_eq!(listed(Scheme::is_float), "f32, f16, bf16");
        assert_eq!(listed(Scheme::is_int), "int2 to int8");
        let some = |scheme| matches!(scheme, Scheme::Int { bits: 3 | 4, symmetric: true, .. });
        assert_eq!(listed(some), "int3, int4, without zero points");
        let tables = |scheme: Scheme| matches!(scheme, Scheme::Nf4 { double_quant: false, .. } | Scheme::Nf3 { .. });
        assert_eq!(listed(tables), "nf4, nf3, without double quantization");
        assert_eq!(listed(|scheme| scheme.double_quant()), "nf4, fp4, with double quantization");
        let all = listed(|_| true);
        assert!(
            Scheme::all().all(|scheme| all.contains(scheme.name()) || matches!(scheme, Scheme::Int { .. })),
            "{all}"
        );
        let message = Scheme::Q4_K.expect("scheme here", Scheme::is_int).unwrap_err().to_string();
        assert_eq!(message, "unsupported scheme here: q4_k; supported: int2 to int8");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            "int9",
            "int1",
            "nf5",
            "nf4-g48",
            "nf4-channel",
            "nf4-sym",
            "int4-dq",
            "q4_k-g64",
            "int4-g0",
            "int4-x",
            "f32-dq",
        ] {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
        let message = "int4-big".parse::<Scheme>().unwrap_err().to_string();
        assert!(message.contains("int4-big") && message.contains("gN"), "{message}");
    }
}
