//! A quantity that is the same on every rank, or not.

use serde::{Deserialize, Serialize};

/// One value for all ranks, or one a rank. Symmetric programs stay small at any world size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerRank<T> {
    /// Every rank has this value.
    Same(T),
    /// Value by rank.
    Each(Vec<T>),
}

impl<T> PerRank<T> {
    /// The value of `rank`.
    pub fn get(&self, rank: usize) -> &T {
        match self {
            PerRank::Same(value) => value,
            PerRank::Each(values) => &values[rank],
        }
    }

    /// Whether every rank has the same value by construction.
    pub fn is_same(&self) -> bool {
        matches!(self, PerRank::Same(_))
    }

    /// Applies `f` to every value.
    pub fn map<U>(&self, f: impl FnMut(&T) -> U) -> PerRank<U> {
        let mut f = f;
        match self {
            PerRank::Same(value) => PerRank::Same(f(value)),
            PerRank::Each(values) => PerRank::Each(values.iter().map(f).collect()),
        }
    }
}

impl PerRank<u64> {
    /// The largest value of any rank.
    pub fn max(&self) -> u64 {
        match self {
            PerRank::Same(value) => *value,
            PerRank::Each(values) => values.iter().copied().max().unwrap_or(0),
        }
    }

    /// The sum over `world_size` ranks.
    pub fn total(&self, world_size: usize) -> u64 {
        match self {
            PerRank::Same(value) => value.saturating_mul(world_size as u64),
            PerRank::Each(values) => values.iter().sum(),
        }
    }
}
