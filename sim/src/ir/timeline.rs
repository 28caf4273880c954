//! When every operation ran on every rank: what both interpreters return.

use super::OpId;
use crate::units::Time;
use serde::{Deserialize, Serialize};

/// One operation on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// When it began to make progress (a collective: when its last participant arrived).
    pub start: Time,
    /// When it was done.
    pub end: Time,
}

/// Spans of all operations on all ranks that were simulated.
///
/// When every rank does the same, one row stands for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Ranks of the program.
    pub world_size: usize,
    /// Operations of the program.
    pub num_ops: usize,
    /// Row-major: `rows x num_ops`.
    spans: Vec<Span>,
}

impl Timeline {
    /// A timeline from its spans, one row of `num_ops` for every rank, or one row for all.
    pub fn new(world_size: usize, num_ops: usize, spans: Vec<Span>) -> Timeline {
        Timeline {
            world_size,
            num_ops,
            spans,
        }
    }

    /// Rows held: 1 when all ranks are alike, else the world size.
    pub fn rows(&self) -> usize {
        self.spans.len().checked_div(self.num_ops).unwrap_or(0)
    }

    /// The spans of `rank`, by operation.
    pub fn rank(&self, rank: usize) -> &[Span] {
        let row = if self.rows() == 1 { 0 } else { rank };
        &self.spans[row * self.num_ops..(row + 1) * self.num_ops]
    }

    /// The span of one operation on one rank.
    pub fn span(&self, rank: usize, op: OpId) -> Span {
        self.rank(rank)[op.index()]
    }

    /// When `rank` is done.
    pub fn finish_of(&self, rank: usize) -> Time {
        self.rank(rank)
            .iter()
            .map(|span| span.end)
            .max()
            .unwrap_or(Time::ZERO)
    }

    /// The rank that is done last (the first of equals).
    pub fn slowest_rank(&self) -> usize {
        (0..self.rows())
            .rev()
            .max_by_key(|&rank| self.finish_of(rank))
            .unwrap_or(0)
    }

    /// When all ranks are done.
    pub fn step_time(&self) -> Time {
        self.finish_of(self.slowest_rank())
    }
}
