//! One step of a model: compiled, priced, played and summed up.

use super::{ModelSpec, Moe};
use crate::compile::{Load, ModelSource, MoeRun, Plan, Routing, compile_model};
use crate::cost::CostModel;
use crate::cost::price::price;
use crate::cost::provenance::Provenance;
use crate::engine::run;
use crate::hardware::Hardware;
use crate::ir::{Lifetime, Program};
use crate::policy::{best, candidates};
use crate::simulate::{Scenario, StageTime, exposed, peak_memory, stage_times};
use crate::spec::{Experts, Gate, LayerSpec, Phase, SpecError, Strategy};
use crate::units::Time;

/// How the feed-forwards that a model has experts in are run.
#[derive(Debug, Clone, PartialEq)]
pub enum Variant {
    /// As plain ones of an expert's size.
    Dense,
    /// As MoE layers under this strategy, what is `auto` decided for the layer alone.
    Moe(Strategy),
}

impl Variant {
    /// Its name in tables.
    pub fn name(&self) -> &str {
        match self {
            Variant::Dense => "dense",
            Variant::Moe(strategy) => &strategy.name,
        }
    }
}

/// What is run.
#[derive(Clone, Copy)]
pub struct ModelRun<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// The cluster.
    pub hardware: &'a Hardware,
    /// Its prices.
    pub prices: &'a dyn CostModel,
    /// W.
    pub gpus: u64,
    /// m.
    pub gpus_per_node: u64,
    /// Items of a GPU.
    pub batch: u64,
    /// Forward only, or a training step.
    pub phase: Phase,
    /// Whether optimizer states of what all GPUs hold are spread over them.
    pub shard_states: bool,
}

/// Memory of one GPU, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelMemory {
    /// Parameters, gathered ones not included.
    pub parameters: u64,
    /// Gradients.
    pub gradients: u64,
    /// The optimizer's states.
    pub optimizer: u64,
    /// Everything else at the worst moment.
    pub activations: u64,
    /// What the software holds.
    pub reserved: u64,
}

impl ModelMemory {
    /// All of it.
    pub const fn total(&self) -> u64 {
        self.parameters
            .saturating_add(self.gradients)
            .saturating_add(self.optimizer)
            .saturating_add(self.activations)
            .saturating_add(self.reserved)
    }
}

/// One step of a model.
#[derive(Debug, Clone)]
pub struct ModelStep {
    /// From the first operation to the last, with `scaling_loss`.
    pub time: Time,
    /// By stage; stages that overlap both count.
    pub stages: Vec<StageTime>,
    /// What nodes beyond the first cost without any communication (a fitted constant of the software).
    pub scaling_loss: Time,
    /// Time communication ran while nothing computed.
    pub exposed_communication: Time,
    /// Memory of a GPU.
    pub memory: ModelMemory,
    /// Whether that fits.
    pub fits: bool,
    /// Images or tokens per second and GPU.
    pub rate_per_gpu: f64,
    /// Model FLOPs of a GPU and step: two a multiply-add, three passes in training.
    pub flops_per_gpu: f64,
    /// Share of the fitted tensor-core peak that is.
    pub mfu: f64,
    /// Plans of the distinct MoE layers, in order.
    pub plans: Vec<Plan>,
    /// The least trustworthy price.
    pub provenance: Provenance,
}

/// Runs one step.
///
/// # Errors
/// A layer that the GPUs cannot hold evenly, or a plan it cannot run.
pub fn step(run_of: &ModelRun<'_>, variant: &Variant) -> Result<ModelStep, SpecError> {
    if !(1..=1 << 16).contains(&run_of.batch) {
        return Err(SpecError::new("batch", "1 to 65536", run_of.batch));
    }
    let dense;
    let (model, runs) = match variant {
        Variant::Dense => {
            dense = run_of.model.dense();
            (&dense, Vec::new())
        }
        Variant::Moe(strategy) => (run_of.model, moe_runs(run_of, strategy)?),
    };
    let by_layer: Vec<&MoeRun> = model
        .moe_layers()
        .filter_map(|moe| runs.iter().find(|(known, _)| known == moe))
        .map(|(_, run)| run)
        .collect();
    let program = compile_model(ModelSource {
        model,
        moe: &by_layer,
        items: run_of.batch,
        world_size: run_of.gpus,
        gpus_per_node: run_of.gpus_per_node,
        phase: run_of.phase,
        shard_states: run_of.shard_states,
    })?;
    let priced = price(&program, run_of.prices);
    let (timeline, _) = run(&program, &priced, run_of.prices.concurrency());
    let spans = timeline.rank(timeline.slowest_rank());
    let played = timeline.step_time();
    let nodes = run_of.gpus / run_of.gpus_per_node;
    let loss = run_of.hardware.software.framework.loss_per_node;
    let scaling_loss = played.scale(loss * (nodes - 1) as f64);
    let time = played + scaling_loss;
    let memory = memory(&program, run_of.hardware.reserved_bytes());
    let items = run_of.batch as f64;
    let passes = match run_of.phase {
        Phase::Forward => 1.0,
        Phase::Training => 3.0,
    };
    let flops_per_gpu = 2.0 * passes * model.macs() * items;
    let seconds = time.as_secs_f64();
    let peak = run_of.hardware.gpu.gemm.tensor_tflops * 1e12;
    Ok(ModelStep {
        time,
        stages: stage_times(&program, spans, &|op| priced[op].provenance),
        scaling_loss,
        exposed_communication: exposed(&program, spans),
        fits: memory.total() <= run_of.hardware.memory_bytes(),
        memory,
        rate_per_gpu: items * model.unit.per_item() as f64 / seconds,
        flops_per_gpu,
        mfu: flops_per_gpu / seconds / peak,
        plans: runs.iter().map(|(_, run)| run.plan).collect(),
        provenance: priced
            .iter()
            .map(|op| op.provenance)
            .max()
            .unwrap_or(Provenance::Measured),
    })
}

/// The distinct MoE layers of a model and how each is run: decided for the layer alone.
fn moe_runs(run_of: &ModelRun<'_>, strategy: &Strategy) -> Result<Vec<(Moe, MoeRun)>, SpecError> {
    let mut runs: Vec<(Moe, MoeRun)> = Vec::new();
    for moe in run_of.model.moe_layers() {
        if runs.iter().any(|(known, _)| known == moe) {
            continue;
        }
        let x = strategy.capacity_factor.unwrap_or(moe.capacity_factor);
        let layer = LayerSpec {
            tokens_per_step: moe.tokens.saturating_mul(run_of.batch),
            model_dim: moe.model_dim,
            hidden_dim: moe.plain_hidden_dim(),
            experts: Experts::Total(moe.experts),
            top_k: moe.top_k,
            capacity_factor: x,
            dtype: moe.dtype,
            gate: Gate::Linear,
        }
        .resolve(run_of.gpus)?;
        let load = Load::new(&layer, x, strategy.padding, &Routing::Balanced);
        let scenario = Scenario {
            layer: &layer,
            gpus_per_node: run_of.gpus_per_node,
            memory_bytes: run_of.hardware.memory_bytes(),
            reserved_bytes: run_of.hardware.reserved_bytes(),
            model: run_of.prices,
            phase: run_of.phase,
        };
        let plan = best(&scenario, &candidates(strategy, &layer)?, &load)?.plan;
        runs.push((*moe, MoeRun { layer, load, plan }));
    }
    Ok(runs)
}

fn memory(program: &Program, reserved: u64) -> ModelMemory {
    let (mut parameters, mut gradients, mut optimizer) = (0u64, 0u64, 0u64);
    for buffer in &program.buffers {
        if buffer.lifetime != Lifetime::Persistent {
            continue;
        }
        let kind = match buffer.name.as_str() {
            name if name.contains("optimizer") => &mut optimizer,
            name if name.contains("gradient") => &mut gradients,
            _ => &mut parameters,
        };
        *kind = kind.saturating_add(*buffer.bytes.get(0));
    }
    let persistent = parameters
        .saturating_add(gradients)
        .saturating_add(optimizer);
    ModelMemory {
        parameters,
        gradients,
        optimizer,
        activations: peak_memory(program).saturating_sub(persistent),
        reserved,
    }
}
