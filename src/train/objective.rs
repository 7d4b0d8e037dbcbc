//! What a run learns from its rows.

use crate::{Error, Result};
use serde::Serialize;

/// What is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Objective {
    /// The next token of each row.
    #[default]
    NextToken,
    /// Which of two answers is preferred, by how much more the model likes it than the model without its adapter does (DPO's sigmoid
    /// loss, Rafailov et al. 2023; see [`Comparison::Dpo`](crate::kernels::preference::Comparison::Dpo)).
    Dpo {
        /// How far the model may go from the one without its adapter: less is further.
        beta: f64,
    },
    /// The tokens of the preferred answer and its prompt, and which of two answers is preferred by their odds, without another model
    /// (Hong et al. 2024; see [`Comparison::Orpo`](crate::kernels::preference::Comparison::Orpo)).
    Orpo {
        /// What the odds count for beside the tokens.
        beta: f64,
    },
}

impl Objective {
    /// TRL's β of DPO and ORPO.
    pub const BETA: f64 = 0.1;

    /// Whether rows are pairs of answers.
    pub fn is_of_pairs(self) -> bool {
        self != Objective::NextToken
    }

    /// Rows of a batch that a row of the data is.
    pub(super) fn rows(self) -> usize {
        if self.is_of_pairs() { 2 } else { 1 }
    }

    /// Errors: Config.
    pub(super) fn validate(self) -> Result<()> {
        match self {
            Objective::Dpo { beta } | Objective::Orpo { beta } if !(beta.is_finite() && beta > 0.0) => {
                Err(Error::config("beta", format!("expected more than 0, got {beta}")))
            }
            _ => Ok(()),
        }
    }
}
