//! Sweeps: many scenarios of one file, in parallel, kept as they finish.
//!
//! A scenario is a study, so every setting of the one schema can be varied and nothing is decided
//! here that `compare` does not decide. Results always pass through the lines of a [`journal`]: a
//! run that was interrupted, cut into shards or neither ends in the same bytes.

pub mod expression;
pub mod file;
pub mod journal;
pub mod launch;
pub mod rows;
pub mod run;
pub mod scenario;

pub use file::Sweep;
pub use journal::{Header, Journal};

use std::fmt;
use std::str::FromStr;

/// A part of a sweep: every `of`-th scenario, beginning with the `number`-th.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub struct Shard {
    /// Which, from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

impl Shard {
    /// The whole sweep.
    pub const WHOLE: Shard = Shard { number: 1, of: 1 };

    /// The scenarios of this shard among `scenarios`, in order.
    pub fn indices(self, scenarios: usize) -> impl Iterator<Item = usize> {
        (self.number - 1..scenarios).step_by(self.of)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let parsed = text.split_once('/').and_then(|(number, of)| {
            Some(Shard {
                number: number.parse().ok()?,
                of: of.parse().ok()?,
            })
        });
        parsed
            .filter(|shard| (1..=shard.of).contains(&shard.number) && shard.of <= 1_000_000)
            .ok_or_else(|| format!("expected I/N with 1 <= I <= N, such as 2/8, found `{text}`"))
    }
}
