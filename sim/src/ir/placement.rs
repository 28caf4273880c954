//! Where experts sit and which copies they accept: what an interpreter that moves real rows needs
//! beyond sizes.

use crate::spec::ResolvedLayer;
use serde::{Deserialize, Serialize};

/// Which rank computes which part of an expert.
///
/// Expert e of E >= W lives whole on rank e / E_g. Where s = W/E GPUs share an expert, r of them
/// hold different slices of its hidden channels, and the s/r GPUs of a slice divide its rows into
/// groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Homes {
    /// Whole experts of a rank, or 1.
    pub local_experts: u64,
    /// s: ranks that share an expert.
    pub sharded_count: u64,
    /// r: slices of the hidden channels.
    pub slices: u64,
}

impl Homes {
    /// The homes of `layer` under `adaptive_r`; under 0 rows stay where they are, and these are
    /// the homes of weight slices alone.
    pub fn new(layer: &ResolvedLayer, adaptive_r: u64) -> Homes {
        Homes {
            local_experts: layer.local_experts,
            sharded_count: layer.sharded_count,
            slices: match adaptive_r {
                0 => layer.sharded_count,
                r => r,
            },
        }
    }

    /// Groups that the rows of an expert are divided into.
    pub fn groups(&self) -> u64 {
        self.sharded_count / self.slices
    }

    /// The rank that computes `slice` of `expert` on the rows of `group`.
    pub fn rank(&self, expert: u64, slice: u64, group: u64) -> u64 {
        match self.sharded_count {
            1 => expert / self.local_experts,
            shared => expert * shared + slice * self.groups() + group,
        }
    }

    /// The group that all rows of `source` belong to where they are not padded: without slots to
    /// divide, sources are dealt out.
    pub fn group_of_source(&self, source: u64) -> u64 {
        source % self.groups()
    }
}

/// How the rows and weights of a compiled layer are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Where experts are computed.
    pub homes: Homes,
    /// r; 0 computes all experts where the tokens are.
    pub adaptive_r: u64,
    /// Copies that an expert accepts from one rank; further ones, in the order of slots, are dropped.
    pub limit: u64,
}
