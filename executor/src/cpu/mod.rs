//! The CPU backend: a rank is a compute and a communication thread on shared memory.

mod cosine;
mod gate;
mod gemm;
mod kernels;
mod memory;
mod overlap;
mod rows;
mod streams;

use crate::ExecError;
use crate::assign::Assignment;
use crate::backend::{Backend, Job, Ran, RankOutputs};
use crate::cosine::CosineLayout;
use crate::inputs::{Inputs, Routing};
use crate::memory::Allocation;
pub use overlap::overlap;

use gate::{Forced, GateShape};
use memory::{RankMemory, Spare};
use moeplan_sim::ir::BufferId;
use moeplan_sim::spec::{DType, ResolvedLayer};
use moeplan_traces::TokenStep;
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

/// Ranks as threads. Results are the same whatever the number of cores: every sum has a fixed order.
#[derive(Debug, Default)]
pub struct Cpu {
    /// Freed buffers of the last step, by rank.
    spare: Vec<Spare>,
    /// Buffer sizes of the last step: those of another shape would pile up.
    sizes: Vec<Vec<usize>>,
}

impl Cpu {
    /// A backend that has run nothing.
    pub fn new() -> Cpu {
        Cpu::default()
    }
}

/// All ranks of a step.
struct World<'a> {
    job: &'a Job<'a>,
    ranks: Vec<RankMemory>,
}

impl World<'_> {
    fn gate_shape(&self) -> GateShape {
        let geometry = &self.job.lowered.geometry;
        GateShape {
            tokens: geometry.tokens,
            model_dim: geometry.model_dim,
            experts: geometry.experts,
            top_k: geometry.top_k,
        }
    }

    fn forced(&self, rank: usize) -> Option<Forced<'_>> {
        match &self.job.inputs.routing {
            Routing::Gate => None,
            Routing::Forced(step) => Some(Forced {
                ids: step.ids(rank),
                scores: step.scores(rank),
            }),
        }
    }

    fn gate(&self, rank: usize) -> Result<RwLockReadGuard<'_, (Assignment, f32)>, ExecError> {
        self.ranks[rank]
            .gate
            .try_read()
            .map_err(|_| ExecError::Disagrees("the gate is read while it is written".into()))
    }

    fn gate_mut(&self, rank: usize) -> Result<RwLockWriteGuard<'_, (Assignment, f32)>, ExecError> {
        self.ranks[rank]
            .gate
            .try_write()
            .map_err(|_| ExecError::Disagrees("the gate is written while it is read".into()))
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn place(&self) -> String {
        "ranks as threads".into()
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn allocation(&self) -> Allocation {
        Allocation::AsUsed
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::Fp32]
    }

    fn route(&mut self, layer: &ResolvedLayer, inputs: &Inputs) -> Result<TokenStep, ExecError> {
        let shape = GateShape {
            tokens: layer.tokens() as usize,
            model_dim: layer.spec.model_dim as usize,
            experts: layer.num_experts as usize,
            top_k: layer.spec.top_k as usize,
        };
        let mut ids = Vec::new();
        let mut scores = vec![0.0; shape.tokens * shape.experts];
        let kind = layer.spec.gate;
        let layout = CosineLayout::new(kind, shape.tokens, shape.model_dim, shape.experts);
        let saved = kind.saved(layer.tokens(), layer.num_experts).unwrap_or(0);
        let mut directions = vec![0.0; saved as usize];
        for (rank, tokens) in inputs.tokens.iter().enumerate() {
            let cosine = layout.map(|layout| (layout, &mut directions[..]));
            let noise = inputs.noise(rank);
            gate::probabilities(shape, tokens, &inputs.gate, cosine, noise, &mut scores)?;
            ids.extend(gate::choose(shape, &scores));
        }
        let tokens = vec![shape.tokens; inputs.tokens.len()];
        TokenStep::new(0, 0, layer.spec.top_k, shape.experts, &tokens, ids, None)
            .map_err(|error| ExecError::Disagrees(error.to_string()))
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Ran, ExecError> {
        let (program, lowered) = (job.program, job.lowered);
        let world = program.world_size;
        let sizes: Vec<Vec<usize>> = lowered
            .buffers
            .iter()
            .map(|plan| plan.elements.clone())
            .collect();
        if self.sizes != sizes {
            self.spare.clear();
            self.sizes = sizes;
        }
        self.spare.resize_with(world, Spare::new);
        let uses: Vec<Vec<Vec<BufferId>>> =
            (0..world).map(|rank| lowered.uses(program, rank)).collect();
        let spare = std::mem::take(&mut self.spare);
        let ranks = spare.into_iter().enumerate();
        let ranks = ranks.map(|(rank, spare)| RankMemory::new(lowered, &uses[rank], rank, spare));
        let state = World {
            job,
            ranks: ranks.collect(),
        };
        for (rank, memory) in state.ranks.iter().enumerate() {
            memory.allocate_persistent()?;
            memory.upload(lowered.roles.tokens, &job.inputs.tokens[rank])?;
            memory.upload(lowered.roles.gate, &job.inputs.gate)?;
            memory.upload(lowered.roles.experts, &job.weights[rank])?;
            if let Some(backward) = lowered.roles.backward {
                memory.upload(backward.output_gradient, &job.inputs.output_gradient[rank])?;
            }
        }
        let streams::Played {
            timeline,
            busy,
            counts,
        } = streams::play(&state, &uses)?;
        let mut outputs = Vec::new();
        for memory in &state.ranks {
            let (assignment, balance_loss) = memory
                .gate
                .try_read()
                .map_err(|_| ExecError::Disagrees("a stream outlives its step".into()))?
                .clone();
            let mut output = RankOutputs {
                output: memory.take(lowered.roles.output)?,
                assignment,
                balance_loss,
                ..RankOutputs::default()
            };
            if let Some(backward) = lowered.roles.backward {
                let choices = lowered.geometry.tokens * lowered.geometry.top_k;
                output.token_gradient = memory.take(backward.token_gradient)?;
                output.gate_gradient = memory.take(backward.gate_gradient)?;
                output.expert_gradient = memory.take(backward.expert_gradient)?;
                output.score_gradient = memory.take(backward.score_gradient)?;
                output.score_gradient.truncate(choices);
            }
            outputs.push(output);
        }
        let peak_bytes = state.ranks.iter().map(RankMemory::peak_bytes).collect();
        self.spare = state
            .ranks
            .into_iter()
            .map(RankMemory::into_spare)
            .collect();
        Ok(Ran {
            timeline,
            busy,
            counts,
            outputs,
            peak_bytes,
        })
    }
}
