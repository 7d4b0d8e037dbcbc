//! Learning-rate schedules as transformers computes them.

use crate::{Error, Result};
use std::{f64::consts::PI, str::FromStr};

/// How the learning rate runs over the steps, after a linear warm-up from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Stays (transformers' `constant_with_warmup`).
    Constant,
    /// Falls to 0 in a line.
    #[default]
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Schedule> {
        match name {
            "constant" | "constant_with_warmup" => Ok(Schedule::Constant),
            "linear" => Ok(Schedule::Linear),
            "cosine" => Ok(Schedule::Cosine),
            other => {
                Err(Error::unsupported("lr_scheduler_type", other, "constant, constant_with_warmup, linear, cosine"))
            }
        }
    }
}

impl Schedule {
    /// The factor on the learning rate that step `step` (from 0) of `total` is taken with.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_with_warmup_is_that_of_transformers() {
        // get_cosine_schedule_with_warmup(3, 20) at 1e-3, as transformers 5 printed it.
        let expected = [(0, 0.0), (1, 1.0 / 3.0), (3, 1.0), (4, 0.991486549841951), (19, 0.008513450158049108)];
        for (step, factor) in expected {
            let got = Schedule::Cosine.factor(step, 3, 20);
            assert!((got - factor).abs() < 1e-15, "step {step}: {got}");
        }
    }

    #[test]
    fn the_line_ends_at_zero_and_the_constant_stays() {
        assert_eq!(Schedule::Linear.factor(10, 0, 20), 0.5);
        assert_eq!(Schedule::Linear.factor(20, 0, 20), 0.0);
        assert_eq!(Schedule::Linear.factor(25, 0, 20), 0.0);
        assert_eq!(Schedule::Constant.factor(19, 3, 20), 1.0);
        assert_eq!(Schedule::Constant.factor(1, 4, 20), 0.25);
    }

    #[test]
    fn names_are_those_of_transformers() {
        assert_eq!("cosine".parse::<Schedule>().unwrap(), Schedule::Cosine);
        assert!("polynomial".parse::<Schedule>().unwrap_err().to_string().contains("polynomial"));
    }
}
