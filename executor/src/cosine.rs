//! Where the parts of a cosine gate lie: those of its weights, and those of the directions that it compares, which the
//! forward pass leaves to the backward pass.

use moeplan_sim::spec::Gate;
use std::ops::Range;

/// Sizes of a cosine gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CosineLayout {
    /// T.
    pub tokens: usize,
    /// D.
    pub model_dim: usize,
    /// E.
    pub experts: usize,
    /// P.
    pub channels: usize,
}

/// Vectors of `channels` that lie `stride` apart, their channels `channel_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors {
    pub(crate) count: usize,
    pub(crate) channels: usize,
    pub(crate) stride: usize,
    pub(crate) channel_stride: usize,
}

impl CosineLayout {
    /// `None` for another gate.
    pub fn new(gate: Gate, tokens: usize, model_dim: usize, experts: usize) -> Option<Self> {
        match gate {
            Gate::Linear => None,
            Gate::Cosine { projection_dim } => Some(CosineLayout {
                tokens,
                model_dim,
                experts,
                channels: projection_dim as usize,
            }),
        }
    }

    /// T, D, E and P.
    pub(crate) fn sizes(&self) -> [usize; 4] {
        [self.tokens, self.model_dim, self.experts, self.channels]
    }

    /// Vectors of tokens (T, P), a row each.
    pub(crate) fn token_vectors(&self) -> Vectors {
        Vectors {
            count: self.tokens,
            channels: self.channels,
            stride: self.channels,
            channel_stride: 1,
        }
    }

    /// Vectors of experts (P, E), a column each.
    pub(crate) fn expert_vectors(&self) -> Vectors {
        Vectors {
            count: self.experts,
            channels: self.channels,
            stride: 1,
            channel_stride: self.experts,
        }
    }

    /// Of the weights: the projection (D, P).
    pub fn projection(&self) -> Range<usize> {
        0..self.model_dim * self.channels
    }

    /// Of the weights: the experts' vectors (P, E), a column each.
    pub fn experts(&self) -> Range<usize> {
        let first = self.projection().end;
        first..first + self.channels * self.experts
    }

    /// Of the weights: the temperature, their last number.
    pub fn temperature(&self) -> usize {
        self.experts().end
    }

    /// Of the directions: tokens (T, P), each of length 1.
    pub fn token_directions(&self) -> Range<usize> {
        0..self.tokens * self.channels
    }

    /// Of the directions: experts (P, E), each as long as the temperature says.
    pub fn expert_directions(&self) -> Range<usize> {
        let first = self.token_directions().end;
        first..first + self.channels * self.experts
    }

    /// Of the directions: what each token's vector was multiplied by (T).
    pub fn token_factors(&self) -> Range<usize> {
        let first = self.expert_directions().end;
        first..first + self.tokens
    }

    /// Of the directions: what each expert's vector was multiplied by (E).
    pub fn expert_factors(&self) -> Range<usize> {
        let first = self.token_factors().end;
        first..first + self.experts
    }
}
