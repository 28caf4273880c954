//! The steps that a machine is measured by.

use crate::error::Error;
use crate::routing::shape_of;
use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
use moeplan_sim::ir::Program;
use moeplan_sim::spec::{
    DType, Encode, Experts, Gate, LayerSpec, Layout, Padding, Phase, ResolvedLayer, SpecError,
};
use moeplan_traces::RoutingStep;

/// What a case is measured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Core time of its operations.
    Operations,
    /// Time around operations and meetings: a step so small that nothing else is left.
    Overheads,
    /// The step as a whole where ranks share cores.
    Sharing,
}

/// One step of made-up, even routing.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) id: String,
    pub(super) purpose: Purpose,
    pub(super) layer: ResolvedLayer,
    pub(super) gpus_per_node: u64,
    pub(super) plan: Plan,
    pub(super) phase: Phase,
}

/// Ranks at which overheads and sharing are measured.
const RANKS: [u64; 5] = [1, 2, 4, 8, 16];

fn layer(
    ranks: u64,
    tokens: u64,
    dims: (u64, u64),
    per_gpu: f64,
) -> Result<ResolvedLayer, SpecError> {
    LayerSpec {
        tokens_per_step: tokens,
        model_dim: dims.0,
        hidden_dim: dims.1,
        experts: Experts::PerGpu(per_gpu),
        top_k: if per_gpu * ranks as f64 >= 2.0 { 2 } else { 1 },
        capacity_factor: 1.0,
        dtype: DType::Fp32,
        gate: Gate::Linear,
    }
    .resolve(ranks)
}

/// Both passes in `degree` chunks.
fn pipelined(degree: u64) -> Plan {
    Plan {
        forward_degree: degree,
        backward_degree: degree,
        ..Plan::PLAIN
    }
}

/// Every case of a CPU of `cores`.
pub(super) fn cpu(cores: u64) -> Result<Vec<Case>, SpecError> {
    let mut cases = Vec::new();
    let mut add = |purpose, layer: ResolvedLayer, gpus_per_node, plan: Plan, phase| {
        cases.push(Case::new(purpose, layer, gpus_per_node, plan, phase));
    };
    let training = Phase::Training;
    // All cores at work, none shared: what an operation takes beside its likes.
    let ranks = cores.clamp(1, 4);
    for (tokens, dims) in [
        (64, (256, 512)),
        (192, (512, 256)),
        (384, (256, 256)),
        (384, (512, 512)),
        (768, (512, 768)),
        (256, (1024, 512)),
        (1536, (256, 512)),
    ] {
        for (per_gpu, plan) in [
            (2.0, Plan::PLAIN),
            (2.0, pipelined(4)),
            (
                4.0,
                Plan {
                    layout: Layout::Conventional,
                    ..Plan::PLAIN
                },
            ),
            (
                2.0,
                Plan {
                    adaptive_r: 0,
                    ..Plan::PLAIN
                },
            ),
        ] {
            let layer = layer(ranks, tokens, dims, per_gpu)?;
            add(Purpose::Operations, layer, ranks, plan, training);
        }
        // One expert over two ranks: repetition, local sums, gathered slices.
        if ranks.is_multiple_of(2) {
            for adaptive_r in [1, 2] {
                let plan = Plan {
                    adaptive_r,
                    ..Plan::PLAIN
                };
                let layer = layer(ranks, tokens, dims, 0.5)?;
                add(Purpose::Operations, layer, ranks, plan, training);
            }
        }
        if tokens <= 384 {
            let plan = Plan {
                encode: Encode::Dense,
                ..Plan::PLAIN
            };
            add(
                Purpose::Operations,
                layer(ranks, tokens, dims, 2.0)?,
                ranks,
                plan,
                training,
            );
        }
    }
    for (tokens, dims, projection_dim) in [
        (64, (256, 256), 64),
        (192, (256, 256), 256),
        (384, (512, 256), 128),
        (768, (256, 256), 256),
        (1536, (256, 256), 512),
    ] {
        let mut layer = layer(ranks, tokens, dims, 2.0)?;
        layer.spec.gate = Gate::Cosine { projection_dim };
        add(Purpose::Operations, layer, ranks, Plan::PLAIN, training);
    }
    for ranks in RANKS {
        for (adaptive_r, degree, phase) in [
            (0, 1, Phase::Forward),
            (1, 1, Phase::Forward),
            (1, 1, training),
            (1, 4, training),
        ] {
            let plan = Plan {
                adaptive_r,
                ..pipelined(degree)
            };
            add(
                Purpose::Overheads,
                layer(ranks, 4, (8, 8), 1.0)?,
                ranks,
                plan,
                phase,
            );
        }
        for (dims, per_gpu, plan) in [
            ((512, 384), 2.0, Plan::PLAIN),
            ((384, 512), 2.0, pipelined(2)),
            (
                (256, 512),
                1.0,
                Plan {
                    adaptive_r: 0,
                    ..Plan::PLAIN
                },
            ),
        ] {
            add(
                Purpose::Sharing,
                layer(ranks, 320, dims, per_gpu)?,
                ranks,
                plan,
                training,
            );
        }
    }
    Ok(cases)
}

/// Every case of one GPU that plays all ranks: small products and large ones on every kind of unit (FP16 has the rates of BF16).
pub(super) fn gpu() -> Result<Vec<Case>, SpecError> {
    let dropless = Plan {
        padding: Padding::Dropless,
        ..Plan::PLAIN
    };
    let mut cases = Vec::new();
    for dtype in [DType::Bf16, DType::Tf32, DType::Fp32] {
        for (ranks, tokens, dims, per_gpu, plan) in [
            (1, 128, (512, 512), 2.0, Plan::PLAIN),
            (1, 64, (2048, 2048), 8.0, Plan::PLAIN),
            (1, 1024, (1024, 1024), 2.0, Plan::PLAIN),
            (1, 1024, (768, 3072), 16.0, Plan::PLAIN),
            (1, 4096, (768, 3072), 4.0, dropless),
            (1, 4096, (2048, 2048), 2.0, Plan::PLAIN),
            (1, 8192, (1024, 4096), 4.0, pipelined(4)),
            (1, 16384, (2048, 2048), 1.0, Plan::PLAIN),
            (1, 8192, (4096, 4096), 1.0, Plan::PLAIN),
            (4, 512, (1024, 1024), 1.0, pipelined(2)),
            (4, 4096, (2048, 512), 1.0, Plan::PLAIN),
            (8, 1024, (1024, 512), 1.0, dropless),
        ] {
            let mut layer = layer(ranks, tokens, dims, per_gpu)?;
            layer.spec.dtype = dtype;
            let (purpose, phase) = (Purpose::Operations, Phase::Training);
            cases.push(Case::new(purpose, layer, ranks, plan, phase));
        }
    }
    Ok(cases)
}

impl Case {
    fn new(
        purpose: Purpose,
        layer: ResolvedLayer,
        gpus_per_node: u64,
        plan: Plan,
        phase: Phase,
    ) -> Case {
        let spec = &layer.spec;
        let number = match spec.dtype {
            DType::Fp32 => String::new(),
            dtype => format!("{dtype} "),
        };
        let gate = match spec.gate {
            Gate::Linear => String::new(),
            gate @ Gate::Cosine { .. } => format!("{gate} "),
        };
        let id = format!(
            "{purpose:?} {number}{gate}W{} m{gpus_per_node} T{} D{} H{} E{} {plan} {} {} {} {phase}",
            layer.world_size,
            spec.tokens_per_step,
            spec.model_dim,
            spec.hidden_dim,
            layer.num_experts,
            plan.encode,
            plan.layout,
            plan.padding
        );
        Case {
            id,
            purpose,
            layer,
            gpus_per_node,
            plan,
            phase,
        }
    }

    /// Even routing of this case.
    pub(super) fn routing(&self) -> Result<RoutingStep, Error> {
        Ok(RoutingStep::uniform(&shape_of(&self.layer)?, 0, 0)?)
    }

    /// Its program.
    pub(super) fn program(&self, routing: &RoutingStep) -> Result<Program, SpecError> {
        let x = self.layer.spec.capacity_factor;
        let load = Load::new(&self.layer, x, self.plan.padding, &Routing::Step(routing));
        compile(Source {
            layer: &self.layer,
            gpus_per_node: self.gpus_per_node,
            plan: self.plan,
            load: &load,
            phase: self.phase,
        })
    }
}
