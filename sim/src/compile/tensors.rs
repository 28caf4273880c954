//! Shapes of the step's tensors and the persistent weights.

use super::Source;
use super::capacity::least_common_multiple;
use super::exchange::{self, Exchange};
use super::uneven::Uneven;
use crate::ir::{BufferId, ExpertRows, PerRank, ProgramBuilder, Scope, Traffic, share_of_chunk};
use crate::spec::{AllToAll, DType, Layout, Padding, Phase, ResolvedLayer};
use std::sync::Arc;

/// Shapes that forward and backward share.
#[derive(Debug)]
pub(super) struct Shapes {
    /// Rows of the dispatch buffer of a GPU before repetition: E·C_g, or its kept copies.
    pub(super) slots: PerRank<u64>,
    /// Uneven rows by (source, destination) for dispatch, and transposed for combine.
    uneven: Option<Arc<Uneven>>,
    /// C_g after rounding, for padded plans.
    capacity: u64,
    local_experts: u64,
    sharded_count: u64,
    world: (usize, usize),
    adaptive_r: u64,
    layout: Layout,
    row_bytes: u64,
    /// H of a GPU's slice: H / r (H where r = 0).
    pub(super) hidden_dim: u64,
    /// D.
    pub(super) model_dim: u64,
}

impl Shapes {
    pub(super) fn new(source: &Source<'_>) -> Shapes {
        let Source {
            layer, plan, load, ..
        } = source;
        // Both passes cut the same slots: 3 chunks forward and 2 backward take a multiple of 6.
        let degree = least_common_multiple(plan.forward_degree, plan.backward_degree);
        let capacity = load.capacity.padded(layer.sharded_count, degree);
        let uneven = match plan.padding {
            Padding::Capacity => None,
            Padding::Dropless => load.uneven(layer, plan.adaptive_r),
        };
        Shapes {
            slots: match plan.padding {
                Padding::Capacity => PerRank::Same(layer.num_experts * capacity),
                Padding::Dropless => load.kept.clone(),
            },
            uneven,
            capacity,
            local_experts: layer.local_experts,
            sharded_count: layer.sharded_count,
            world: (layer.world_size as usize, source.gpus_per_node as usize),
            adaptive_r: plan.adaptive_r,
            layout: plan.layout,
            row_bytes: layer.token_bytes(),
            hidden_dim: layer.spec.hidden_dim / plan.adaptive_r.max(1),
            model_dim: layer.spec.model_dim,
        }
    }

    /// Rows a GPU sends in chunk `chunk` of `degree`, all r copies.
    pub(super) fn sent_rows(&self, chunk: u64, degree: u64) -> PerRank<u64> {
        self.slots
            .map(|&rows| self.adaptive_r.max(1) * share_of_chunk(rows, chunk, degree))
    }

    /// Rows a GPU's experts multiply in chunk `chunk` of `degree`, by expert.
    ///
    /// Padded, r >= 1: E·C_g·r rows in all, from W sources, over H/r hidden channels, so the work
    /// is equal for every r (Section 11 of the spec sheet). r = 0: all E experts over own tokens.
    pub(super) fn expert_rows(&self, chunk: u64, degree: u64) -> ExpertRows {
        if let Some(uneven) = &self.uneven {
            return ExpertRows::Grouped {
                rows: uneven.expert_rows.clone(),
                experts: uneven.experts,
                chunk: chunk as u32,
                chunks: degree as u32,
            };
        }
        if self.adaptive_r == 0 {
            let experts = self.local_experts * self.world.0 as u64 / self.sharded_count;
            return ExpertRows::Padded {
                experts,
                blocks: 1,
                rows: self.capacity,
            };
        }
        let block = self.capacity * self.adaptive_r / self.sharded_count / degree;
        match self.layout {
            Layout::Conventional => ExpertRows::Padded {
                experts: self.local_experts,
                blocks: self.world.0 as u64,
                rows: block.max(1),
            },
            Layout::Flexible => ExpertRows::Padded {
                experts: self.local_experts,
                blocks: 1,
                rows: (self.world.0 as u64 * block).max(1),
            },
        }
    }

    /// Rows over all experts of a GPU in one chunk.
    pub(super) fn received_rows(&self, chunk: u64, degree: u64) -> PerRank<u64> {
        let rows = self.expert_rows(chunk, degree);
        match rows {
            ExpertRows::Padded { .. } => PerRank::Same(rows.total(0)),
            ExpertRows::Grouped { .. } => {
                PerRank::Each((0..self.world.0).map(|rank| rows.total(rank)).collect())
            }
        }
    }

    /// The exchanges of one chunk's dispatch (or, `transposed`, combine) All-to-All: one a phase.
    pub(super) fn all_to_all(
        &self,
        algorithm: AllToAll,
        chunk: u64,
        degree: u64,
        transposed: bool,
    ) -> Vec<Exchange> {
        let rows = match transposed {
            false => self.sent_rows(chunk, degree),
            true => self.received_rows(chunk, degree),
        };
        let elements = |rows: &PerRank<u64>| rows.map(|rows| rows * self.model_dim);
        let Some(uneven) = &self.uneven else {
            let bytes_per_peer =
                self.local_experts * self.capacity * self.adaptive_r * self.row_bytes
                    / self.sharded_count
                    / degree;
            return exchange::uniform_phases(
                algorithm,
                bytes_per_peer,
                &elements(&rows),
                self.world,
            );
        };
        let phases = uneven.phases(algorithm, transposed, self.world);
        let phases = phases.iter().enumerate();
        phases
            .map(|(index, phase)| Exchange {
                traffic: Traffic::Matrix {
                    scope: phase.scope,
                    rows: phase.rows.clone(),
                    row_bytes: self.row_bytes,
                    chunk: chunk as u32,
                    chunks: degree as u32,
                },
                held: match index {
                    0 => elements(&rows),
                    _ => elements(&phase.held.map(|&rows| share_of_chunk(rows, chunk, degree))),
                },
            })
            .collect()
    }

    /// Bytes of `rows` rows of `channels` channels.
    pub(super) fn bytes(&self, rows: &PerRank<u64>, channels: u64) -> PerRank<u64> {
        let element = self.row_bytes / self.model_dim;
        rows.map(|&rows| rows.saturating_mul(channels * element))
    }
}

/// Persistent and gathered weights.
#[derive(Debug)]
pub(super) struct Weights {
    /// This GPU's 1/W slice of all expert weights.
    pub(super) slice: BufferId,
    /// Gradient of the slice.
    pub(super) gradient: Option<BufferId>,
    /// Who gathers weights together and how many bytes result, where a GPU computes with more than
    /// its slice.
    pub(super) gather: Option<(Scope, u64)>,
    /// Gate weight.
    pub(super) gate: BufferId,
    /// Gradient of the gate weight.
    pub(super) gate_gradient: Option<BufferId>,
}

impl Weights {
    /// Allocates weights; for training also gradients and the optimizer's state (Adam: two 4-byte
    /// moments, and a 4-byte master copy where weights are stored in half precision).
    pub(super) fn allocate(
        builder: &mut ProgramBuilder,
        layer: &ResolvedLayer,
        adaptive_r: u64,
        phase: Phase,
    ) -> Weights {
        let dtype = layer.spec.dtype;
        let parameters = layer.local_parameters();
        let bytes = parameters * dtype.bytes();
        let gate_parameters = layer.gate_weights();
        let slice = builder.persistent("expert weights", bytes);
        let gate = builder.persistent("gate weight", gate_parameters * 4);
        let gradients = (phase == Phase::Training).then(|| {
            let state = if dtype.bytes() == 2 { 12 } else { 8 };
            builder.persistent(
                "optimizer state (Adam)",
                (parameters + gate_parameters) * state,
            );
            (
                builder.persistent("gate gradient", gate_parameters * 4),
                builder.persistent("expert gradients", bytes),
            )
        });
        Weights {
            slice,
            gradient: gradients.map(|(_, experts)| experts),
            gate_gradient: gradients.map(|(gate, _)| gate),
            gather: gather_scope(layer, adaptive_r, dtype),
            gate,
        }
    }
}

/// Table 4: r = 0 gathers all weights over all W; 1 <= r < W/E gathers a 1/r slice of one expert in
/// groups of (W/E)/r GPUs; r = W/E (or whole experts a GPU) needs none.
fn gather_scope(layer: &ResolvedLayer, adaptive_r: u64, dtype: DType) -> Option<(Scope, u64)> {
    let slice_bytes = layer.local_parameters() * dtype.bytes();
    let group = match adaptive_r {
        0 => return Some((Scope::World, slice_bytes * layer.world_size)),
        r => layer.sharded_count / r,
    };
    (group > 1).then(|| {
        (
            Scope::Strided {
                size: group as u32,
                stride: 1,
            },
            slice_bytes * group,
        )
    })
}
