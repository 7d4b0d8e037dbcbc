//! Schemes as text: `nf4`, `nf4-dq`, `int4-g64`, `int8-channel-sym`, `q4_k`.
//!
//! A name, then parts behind dashes, in any order: `gN` elements to a block, `channel` (a block a row), `tensor` (one
//! block), `sym` (no zero point), `f32` (scales in f32), `dq` (double quantization). What is not said is the default: blocks
//! of 64, zero points, halves for scales.

use super::{PER_CHANNEL, PER_TENSOR, ScaleType, Scheme, ggml::BlockType};
use crate::{Error, Result};
use std::{fmt, str::FromStr};

/// Schemes without parts, GGUF's aside.
const PLAIN: [Scheme; 7] = [
    Scheme::F32,
    Scheme::F16,
    Scheme::BF16,
    Scheme::Mxfp4,
    Scheme::Nvfp4,
    Scheme::E8p,
    Scheme::Aqlm { block_size: PER_CHANNEL },
];

/// All schemes without parts.
fn plain() -> impl Iterator<Item = Scheme> {
    PLAIN.into_iter().chain(BlockType::ALL.map(BlockType::scheme))
}

/// Blocks of this size unless another is asked for.
const BLOCK: usize = 64;

/// The parts behind a name.
#[derive(Default)]
struct Parts {
    block: Option<usize>,
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
                "channel" => parts.block = Some(PER_CHANNEL),
                "tensor" => parts.block = Some(PER_TENSOR),
                "sym" => parts.symmetric = true,
                "f32" => parts.wide = true,
                "dq" => parts.double = true,
                _ => {
                    let size = word.strip_prefix('g').and_then(|n| n.parse().ok()).filter(|&n| n > 0);
                    let expected = || Error::config(format!("scheme {text}"), format!("{word:?} is none of {PARTS}"));
                    parts.block = Some(size.ok_or_else(expected)?);
                }
            }
        }
        let scheme = named(name, &parts).ok_or_else(|| {
            let plain: Vec<_> = plain().map(Scheme::name).collect();
            Error::unsupported("scheme", text, format!("nf4, fp4, nf3, nf2, int2 to int8, {}", plain.join(", ")))
        })?;
        if !parts.fit(scheme) {
            let message = format!("{} takes no such parts; it is written {scheme}", scheme.name());
            return Err(Error::config(format!("scheme {text}"), message));
        }
        scheme.validate()?;
        Ok(scheme)
    }
}

const PARTS: &str = "gN, channel, tensor, sym, f32, dq";

fn named(name: &str, parts: &Parts) -> Option<Scheme> {
    let block_size = parts.block.unwrap_or(BLOCK);
    if let Some(scheme) = plain().find(|scheme| scheme.name() == name) {
        return Some(scheme);
    }
    Some(match name {
        "nf4" => Scheme::Nf4 { block_size, double_quant: parts.double },
        "fp4" => Scheme::Fp4 { block_size, double_quant: parts.double },
        "nf3" => Scheme::Nf3 { block_size },
        "nf2" => Scheme::Nf2 { block_size },
        _ => {
            let bits = name.strip_prefix("int")?.parse().ok().filter(|bits| (2..=8).contains(bits))?;
            let scale = if parts.wide { ScaleType::F32 } else { ScaleType::F16 };
            Scheme::Int { bits, block_size, symmetric: parts.symmetric, scale }
        }
    })
}

impl Parts {
    /// Whether the scheme has a use for all that was said.
    fn fit(&self, scheme: Scheme) -> bool {
        match scheme {
            Scheme::Int { .. } => !self.double,
            Scheme::Nf4 { .. } | Scheme::Fp4 { .. } => !self.symmetric && !self.wide,
            Scheme::Nf3 { .. } | Scheme::Nf2 { .. } => !self.symmetric && !self.wide && !self.double,
            _ => self.block.is_none() && !self.symmetric && !self.wide && !self.double,
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
            Scheme::Int { block_size, symmetric, scale, .. } => {
                match block_size {
                    PER_CHANNEL => f.write_str("-channel")?,
                    PER_TENSOR => f.write_str("-tensor")?,
                    size => write!(f, "-g{size}")?,
                }
                f.write_str(if symmetric { "-sym" } else { "" })?;
                f.write_str(if scale == ScaleType::F32 { "-f32" } else { "" })
            }
            _ => Ok(()),
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
            Scheme::int8(PER_CHANNEL),
            Scheme::int(5, PER_TENSOR).symmetric(),
            Scheme::Q4K,
            Scheme::Iq4Nl,
            Scheme::Nvfp4,
            Scheme::Aqlm { block_size: PER_CHANNEL },
        ];
        for scheme in schemes {
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        }
        assert_eq!("nf4".parse::<Scheme>().unwrap(), Scheme::Nf4 { block_size: 64, double_quant: false });
        assert_eq!("INT4-sym-g128".parse::<Scheme>().unwrap(), Scheme::int(4, 128).symmetric());
        assert_eq!(Scheme::int8(PER_CHANNEL).to_string(), "int8-channel-sym-f32");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in
            ["", "int9", "int1", "nf5", "nf4-g48", "nf4-sym", "int4-dq", "q4_k-g64", "int4-g0", "int4-x", "f32-dq"]
        {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
        let message = "int4-big".parse::<Scheme>().unwrap_err().to_string();
        assert!(message.contains("int4-big") && message.contains("gN"), "{message}");
    }
}
