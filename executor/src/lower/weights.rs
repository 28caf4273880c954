//! Where weights lie: every expert W1^T (h,D), b1 (h), W2 (h,D), b2 (d), for the h hidden channels
//! and d output biases of a slice, so that slices join part by part.

use super::Lowering;
use crate::task::{RowCopy, Task};
use moeplan_sim::ir::{BufferId, Expert, Op, Scope};
use std::ops::Range;

/// The parts of one expert's weights for a share of its hidden channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightLayout {
    /// D.
    pub model_dim: usize,
    /// h.
    pub hidden: usize,
    /// Output biases: D·h/H.
    pub biases: usize,
}

impl WeightLayout {
    /// Elements of one expert.
    pub fn expert(&self) -> usize {
        self.parts()[3].end
    }

    /// W1^T, b1, W2 and b2 of one expert.
    pub fn parts(&self) -> [Range<usize>; 4] {
        let (matrix, hidden) = (self.hidden * self.model_dim, self.hidden);
        let ends = [
            matrix,
            matrix + hidden,
            2 * matrix + hidden,
            2 * matrix + hidden + self.biases,
        ];
        [
            0..ends[0],
            ends[0]..ends[1],
            ends[1]..ends[2],
            ends[2]..ends[3],
        ]
    }

    /// The matrix of an expert.
    pub fn matrix(&self, matrix: Expert) -> Range<usize> {
        match matrix {
            Expert::Up => self.parts()[0].clone(),
            Expert::Down => self.parts()[2].clone(),
        }
    }

    /// The bias of an expert.
    pub fn bias(&self, matrix: Expert) -> Range<usize> {
        match matrix {
            Expert::Up => self.parts()[1].clone(),
            Expert::Down => self.parts()[3].clone(),
        }
    }

    /// A share of `1/shares` of it.
    #[must_use]
    pub fn share(&self, shares: usize) -> WeightLayout {
        WeightLayout {
            model_dim: self.model_dim,
            hidden: self.hidden / shares,
            biases: self.biases / shares,
        }
    }
}

impl Lowering<'_> {
    /// The weights a rank computes with.
    pub(super) fn weight_layout(&self) -> WeightLayout {
        let geometry = &self.geometry;
        WeightLayout {
            model_dim: geometry.model_dim,
            hidden: geometry.hidden,
            biases: geometry.model_dim / geometry.slices(),
        }
    }

    /// First column and number of the output biases of `rank`'s slice.
    pub(super) fn bias_columns(&self, rank: usize) -> (usize, usize) {
        let biases = self.weight_layout().biases;
        let (_, slice, _) = self.geometry.part_of(rank);
        (slice * biases, biases)
    }

    /// Ranks that `rank` gathers weights with, in order.
    fn members(&self, scope: Scope, rank: usize) -> Vec<usize> {
        self.ranks()
            .filter(|&other| scope.group_of(other) == scope.group_of(rank))
            .collect()
    }

    /// Where each part of member `index`'s slice lies: (offset in the slice, offset in what is
    /// computed with, elements).
    fn shares(&self, index: usize, members: usize) -> Vec<(usize, usize, usize)> {
        let whole = self.weight_layout();
        let held = self.geometry.homes.local_experts as usize;
        // Members per expert: all experts of the members together are what is computed with.
        let shares = (members * held / self.geometry.local_experts()).max(1);
        if shares == 1 {
            let slice = held * whole.expert();
            return vec![(0, index * slice, slice)];
        }
        let part = whole.share(shares);
        let expert = index / shares * whole.expert();
        let parts = part.parts().into_iter().zip(whole.parts());
        parts
            .map(|(part, whole)| {
                (
                    part.start,
                    expert + whole.start + index % shares * part.len(),
                    part.len(),
                )
            })
            .collect()
    }

    pub(super) fn all_gather(&self, op: &Op, scope: Scope) -> Vec<Vec<Task>> {
        let source: BufferId = op.reads[0];
        self.each(|rank| {
            let members = self.members(scope, rank);
            let shares = members.iter().enumerate().flat_map(|(index, &member)| {
                let shares = self.shares(index, members.len()).into_iter();
                shares.map(move |(from, to, rows)| RowCopy {
                    rank: member,
                    buffer: source,
                    from,
                    to,
                    rows,
                })
            });
            vec![Task::Pull {
                target: op.writes[0],
                width: 1,
                copies: shares.collect(),
            }]
        })
    }

    pub(super) fn reduce_scatter(&self, op: &Op, scope: Scope) -> Vec<Vec<Task>> {
        self.each(|rank| {
            let members = self.members(scope, rank);
            let own = members.iter().position(|&member| member == rank);
            let shares = self.shares(own.unwrap_or(0), members.len());
            let from = |member: &usize| {
                let copies = shares.iter().map(|&(to, from, rows)| RowCopy {
                    rank: *member,
                    buffer: op.reads[0],
                    from,
                    to,
                    rows,
                });
                copies.collect()
            };
            vec![Task::PullSum {
                target: op.writes[0],
                copies: members.iter().map(from).collect(),
            }]
        })
    }
}
