//! Learning-rate schedules as transformers computes them.

use crate::{Error, Result};
use serde::Serialize;
use std::{f64::consts::PI, str::FromStr};

/// How the learning rate runs over the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays from the first step on, whatever the steps of warm-up.
    Constant,
    /// Stays, once it has risen from 0.
    ConstantWithWarmup,
    /// Rises from 0 and falls to 0 in a line.
    #[default]
    Linear,
    /// Rises from 0 and falls to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// All of them.
    pub const ALL: [Schedule; 4] =
        [Schedule::Constant, Schedule::ConstantWithWarmup, Schedule::Linear, Schedule::Cosine];

    /// transformers' name.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::ConstantWithWarmup => "constant_with_warmup",
            Schedule::Linear => "linear",
            Schedule::Cosine => "cosine",
        }
    }

    /// Whether steps of warm-up do anything.
    pub fn warms_up(self) -> bool {
        self != Schedule::Constant
    }

    /// The factor on the learning rate that step `step` (from 0) of `total` is taken with.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if self.warms_up() && step < warmup {
            return step as f64 / warmup as f64;
        }
        let rest = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
            Schedule::Linear => total.saturating_sub(step) as f64 / rest,
            Schedule::Cosine => (0.5 * (1.0 + (PI * ((step - warmup) as f64 / rest)).cos())).max(0.0),
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Schedule> {
        let found = Schedule::ALL.into_iter().find(|schedule| schedule.name() == name);
        found.ok_or_else(|| Error::unsupported("lr_scheduler_type", name, Schedule::ALL.map(Schedule::name).join(", ")))
    }
}

/// Steps over which the learning rate rises, as transformers' `warmup_steps` has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// So many.
    Steps(usize),
    /// A share of all steps, below 1, rounded up.
    Share(f64),
}

impl Warmup {
    /// Steps of a run of `total`.
    pub fn steps(self, total: usize) -> usize {
        match self {
            Warmup::Steps(steps) => steps,
            Warmup::Share(share) => (total as f64 * share).ceil() as usize,
        }
    }
}

impl FromStr for Warmup {
    type Err = Error;

    /// A whole number, or a share below 1. Errors: Config.
    fn from_str(text: &str) -> Result<Warmup> {
        let share = || text.parse().ok().filter(|share| (0.0..1.0).contains(share)).map(Warmup::Share);
        let found = text.parse().ok().map(Warmup::Steps).or_else(share);
        let expected = "expected a whole number of steps, or a share of all steps below 1";
        found.ok_or_else(|| Error::config("warmup_steps", format!("{expected}, got {text}")))
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
        assert_eq!(Schedule::Constant.factor(1, 4, 20), 1.0);
        assert_eq!(Schedule::ConstantWithWarmup.factor(1, 4, 20), 0.25);
    }

    #[test]
    fn names_are_those_of_transformers() {
        assert_eq!("cosine".parse::<Schedule>().unwrap(), Schedule::Cosine);
        assert!("polynomial".parse::<Schedule>().unwrap_err().to_string().contains("polynomial"));
    }
}
