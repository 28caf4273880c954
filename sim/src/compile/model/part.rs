//! What a part of a model is to one GPU: kernels, and bytes of what they read, write and keep.

use super::ModelSource;
use crate::ir::{Kernels, OpKind};
use crate::model::{Part, Work};
use crate::spec::Phase;

impl ModelSource<'_> {
    pub(super) fn op(&self, kernels: Kernels) -> OpKind {
        OpKind::Model {
            kernels,
            dtype: self.model.dtype,
        }
    }

    /// What a part does with all items of a GPU; `None` for an MoE layer and for collectives.
    pub(super) fn kernels(&self, part: &Part) -> Option<Kernels> {
        let items = self.items;
        Some(match part.work {
            Work::Linear(linear) => {
                let linear = linear.on(self.tensor_parallel);
                Kernels::Linear {
                    rows: linear.rows * items,
                    input: linear.input,
                    output: linear.output,
                }
            }
            Work::Product { batch, m, n, k } => Kernels::Product {
                batch: batch * items,
                m,
                n,
                k,
            },
            Work::FusedAttention {
                heads,
                queries,
                keys,
                channels,
            } => Kernels::FusedAttention {
                batch: heads * items,
                queries,
                keys,
                channels,
            },
            Work::Pass(pass) => {
                let group = if pass.is_cut { self.tensor_parallel } else { 1 };
                let items = items.saturating_mul(group);
                Kernels::Pass {
                    kernels: pass.kernels,
                    forward: items.saturating_mul(match self.phase {
                        Phase::Forward => pass.forward,
                        Phase::Training => pass.forward + pass.training,
                    }),
                    backward: items.saturating_mul(pass.backward),
                }
            }
            Work::Gather { .. } | Work::Scatter { .. } | Work::Moe(_) => return None,
        })
    }

    pub(super) fn bytes(&self, elements: u64) -> u64 {
        elements
            .saturating_mul(self.items)
            .saturating_mul(self.model.dtype.bytes())
    }

    /// Bytes a part writes; `None` where it works in place.
    pub(super) fn output_bytes(&self, part: &Part) -> Option<u64> {
        match part.work {
            Work::Linear(linear) => {
                let linear = linear.on(self.tensor_parallel);
                Some(self.bytes(linear.rows * linear.output))
            }
            Work::Product { batch, m, n, .. } => Some(self.bytes(batch * m * n)),
            Work::FusedAttention {
                heads,
                queries,
                channels,
                ..
            } => Some(self.bytes(heads * queries * channels.div_ceil(2))),
            Work::Pass(_) | Work::Gather { .. } | Work::Scatter { .. } | Work::Moe(_) => None,
        }
    }

    /// Bytes of the gradient of a part's input; `None` where it works in place.
    pub(super) fn input_bytes(&self, part: &Part) -> Option<u64> {
        match part.work {
            Work::Linear(linear) => {
                let linear = linear.on(self.tensor_parallel);
                Some(self.bytes(linear.rows * linear.input))
            }
            Work::Product { batch, m, n, k } => Some(self.bytes(batch * k * (m + n))),
            Work::FusedAttention {
                heads,
                queries,
                channels,
                ..
            } => Some(self.bytes(heads * queries * channels * 3 / 2)),
            Work::Pass(_) | Work::Gather { .. } | Work::Scatter { .. } | Work::Moe(_) => None,
        }
    }

    /// Bytes a part keeps for its backward pass: a product its operands, of the own tokens if all of the group's are
    /// needed, attention also its output, a pass what it says.
    pub(super) fn saved(&self, part: &Part) -> Option<u64> {
        if self.phase == Phase::Forward {
            return None;
        }
        let bytes = match part.work {
            Work::Linear(linear) => self.bytes(linear.rows * linear.input),
            Work::FusedAttention { .. } => self.input_bytes(part)? + self.output_bytes(part)?,
            Work::Product { .. } => self.input_bytes(part)?,
            Work::Pass(pass) => pass.saved.saturating_mul(self.items),
            Work::Gather { .. } | Work::Scatter { .. } | Work::Moe(_) => return None,
        };
        (bytes > 0).then_some(bytes)
    }
}
