//! What a part of a model is to one GPU: kernels, and bytes of what they read, write and keep.

use super::ModelSource;
use crate::ir::{Kernels, OpKind};
use crate::model::{Cut, Part, Work};
use crate::spec::Phase;

impl ModelSource<'_> {
    pub(super) fn op(&self, kernels: Kernels) -> OpKind {
        OpKind::Model {
            kernels,
            dtype: self.model.dtype,
        }
    }

    /// Rows, input and output channels of a product as one GPU has it, for one item: where it is cut, the tokens of the
    /// group meet some of the channels.
    pub(super) fn sizes(&self, [rows, input, output]: [u64; 3], cut: Cut) -> [u64; 3] {
        let group = self.tensor_parallel;
        match cut {
            Cut::Whole => [rows, input, output],
            Cut::Outputs => [rows * group, input, output.div_ceil(group)],
            Cut::Inputs => [rows * group, input.div_ceil(group), output],
        }
    }

    /// What a part does with all items of a GPU; `None` for an MoE layer and for collectives.
    pub(super) fn kernels(&self, part: &Part) -> Option<Kernels> {
        let items = self.items;
        Some(match part.work {
            Work::Linear {
                rows,
                input,
                output,
                cut,
                ..
            } => {
                let [rows, input, output] = self.sizes([rows, input, output], cut);
                Kernels::Linear {
                    rows: rows * items,
                    input,
                    output,
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
            Work::Linear {
                rows,
                input,
                output,
                cut,
                ..
            } => {
                let [rows, _, output] = self.sizes([rows, input, output], cut);
                Some(self.bytes(rows * output))
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
            Work::Linear {
                rows,
                input,
                output,
                cut,
                ..
            } => {
                let [rows, input, _] = self.sizes([rows, input, output], cut);
                Some(self.bytes(rows * input))
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
            Work::Linear { rows, input, .. } => self.bytes(rows * input),
            Work::FusedAttention { .. } => self.input_bytes(part)? + self.output_bytes(part)?,
            Work::Product { .. } => self.input_bytes(part)?,
            Work::Pass(pass) => pass.saved.saturating_mul(self.items),
            Work::Gather { .. } | Work::Scatter { .. } | Work::Moe(_) => return None,
        };
        (bytes > 0).then_some(bytes)
    }
}
