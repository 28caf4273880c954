//! One step of a model: compiled, priced, played and summed up.

use super::{MemorySaving, ModelRouting, ModelSpec, MoeGroup, MoeGroups};
use crate::compile::{Drops, Load, ModelSource, MoeRun, Plan, Routing, compile_model};
use crate::cost::CostModel;
use crate::cost::price::price;
use crate::cost::provenance::Provenance;
use crate::engine::run;
use crate::hardware::Hardware;
use crate::ir::{Lifetime, Program};
use crate::policy::Runner;
use crate::simulate::{Scenario, StageTime, exposed, stage_times};
use crate::spec::{Phase, ResolvedLayer, SpecError, Strategy};
use crate::units::Time;

/// How the feed-forwards that a model has experts in are run.
#[derive(Debug, Clone, PartialEq)]
pub enum Variant {
    /// As plain ones of an expert's size.
    Dense,
    /// As MoE layers under this strategy, what is `auto` decided for each layer alone.
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
    /// What is done to need less memory.
    pub saving: MemorySaving,
    /// GPUs of a node that share everything but experts.
    pub tensor_parallel: u64,
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
    /// Plans of the groups of MoE layers, in order.
    pub plans: Vec<Plan>,
    /// What their capacities leave out.
    pub drops: Drops,
    /// The least trustworthy price.
    pub provenance: Provenance,
}

/// Runs one step on balanced routing.
///
/// # Errors
/// A layer that the GPUs cannot hold evenly, or a plan it cannot run.
pub fn step(run_of: &ModelRun<'_>, variant: &Variant) -> Result<ModelStep, SpecError> {
    let mut steps = steps(run_of, variant, &ModelRouting::balanced(run_of.model))?;
    let first = steps.drain(..).next();
    first.ok_or_else(|| SpecError::new("steps", "at least one", 0))
}

/// Runs the steps of `routing`, in order: what a strategy leaves `auto` its policy decides, for every group of
/// MoE layers alone. The dense variant has one step, as all are alike.
///
/// # Errors
/// As [`step`].
pub fn steps(
    run_of: &ModelRun<'_>,
    variant: &Variant,
    routing: &ModelRouting,
) -> Result<Vec<ModelStep>, SpecError> {
    run_of.check()?;
    let Variant::Moe(strategy) = variant else {
        let drops = Drops::sum(std::iter::empty());
        return Ok(vec![run_of.step(&run_of.model.dense(), &[], drops)?]);
    };
    let groups = &routing.groups;
    let layers = run_of.layers(groups)?;
    let mut runners = layers
        .iter()
        .map(|layer| Runner::new(run_of.scenario(layer), strategy.clone(), false))
        .collect::<Result<Vec<_>, _>>()?;
    let count = routing.steps.iter().map(Vec::len).min().unwrap_or(1);
    let mut found = Vec::with_capacity(count);
    for index in 0..count {
        let step_of = routing.steps.iter().map(|steps| &steps[index]);
        let loads: Vec<Load> = runners
            .iter()
            .zip(step_of)
            .map(|(runner, step)| runner.load(&Routing::of(step.as_deref())))
            .collect();
        let plans = runners
            .iter_mut()
            .zip(&loads)
            .map(|(runner, load)| Ok(runner.step_of(load)?.step.plan))
            .collect::<Result<Vec<Plan>, SpecError>>()?;
        let runs = groups.runs(&layers, &loads, &plans);
        let drops = run_of.drops(groups, &layers, &loads);
        found.push(ModelStep {
            plans,
            ..run_of.step(run_of.model, &runs, drops)?
        });
    }
    Ok(found)
}

impl ModelStep {
    /// Steps of one run summed up: times are means, memory is that of the fullest, plans those of the slowest.
    /// `None` without a step.
    pub fn mean(steps: &[ModelStep]) -> Option<ModelStep> {
        let slowest = steps.iter().reduce(|slowest, step| {
            if step.time > slowest.time {
                step
            } else {
                slowest
            }
        })?;
        let count = steps.len() as f64;
        let mean_of = |of: &dyn Fn(&ModelStep) -> Time| Time::mean(steps.iter().map(of));
        let stages = slowest.stages.iter().map(|stage| {
            let same = |step: &ModelStep| {
                let mut found = step.stages.iter();
                let found = found.find(|other| other.stage == stage.stage);
                found.map_or(Time::ZERO, |found| found.busy)
            };
            StageTime {
                busy: mean_of(&same),
                ..*stage
            }
        });
        let time = mean_of(&|step| step.time);
        let fullest = steps.iter().map(|step| step.memory);
        let share = slowest.time.as_secs_f64() / time.as_secs_f64();
        let drops = |of: &dyn Fn(&Drops) -> f64| {
            steps.iter().map(|step| of(&step.drops)).sum::<f64>() / count
        };
        Some(ModelStep {
            time,
            stages: stages.collect(),
            scaling_loss: mean_of(&|step| step.scaling_loss),
            exposed_communication: mean_of(&|step| step.exposed_communication),
            memory: fullest.max_by_key(ModelMemory::total)?,
            fits: steps.iter().all(|step| step.fits),
            rate_per_gpu: slowest.rate_per_gpu * share,
            flops_per_gpu: slowest.flops_per_gpu,
            mfu: slowest.mfu * share,
            plans: slowest.plans.clone(),
            drops: Drops {
                capacity_factor: drops(&|drops| drops.capacity_factor),
                dropped: steps.iter().map(|step| step.drops.dropped).sum(),
                fraction: drops(&|drops| drops.fraction),
            },
            provenance: steps
                .iter()
                .map(|step| step.provenance)
                .fold(slowest.provenance, Provenance::worse),
        })
    }
}

impl ModelRun<'_> {
    /// What nodes beyond the first cost a step that took `played`, without any communication.
    pub(crate) fn scaling_loss(&self, played: Time) -> Time {
        let nodes = self.gpus / self.gpus_per_node;
        let loss = self.hardware.software.framework.loss_per_node;
        played.scale(loss * (nodes - 1) as f64)
    }

    /// The layers of `groups` on this world.
    ///
    /// # Errors
    /// No items, or experts that the GPUs cannot hold evenly.
    pub fn layers(&self, groups: &MoeGroups) -> Result<Vec<ResolvedLayer>, SpecError> {
        self.check()?;
        let items = self.items();
        let layer = |group: &MoeGroup| group.moe.layer(items).resolve(self.gpus);
        groups.iter().map(layer).collect()
    }

    /// What all layers of `groups` drop in a step, of the loads of one micro-batch.
    pub(crate) fn drops(
        &self,
        groups: &MoeGroups,
        layers: &[ResolvedLayer],
        loads: &[Load],
    ) -> Drops {
        let drops = groups.drops(layers, loads);
        drops.times(self.saving.micro_batches)
    }

    /// Items of a GPU in one micro-batch.
    const fn items(&self) -> u64 {
        self.batch / self.saving.micro_batches
    }

    fn check(&self) -> Result<(), SpecError> {
        if !(1..=65_536).contains(&self.batch) {
            return Err(SpecError::new("batch", "1 to 65536", self.batch));
        }
        self.saving.check(self.batch, self.phase)?;
        let (group, node, heads) = (
            self.tensor_parallel,
            self.gpus_per_node,
            self.model.head_groups,
        );
        let divides = |what: u64| group > 0 && what.is_multiple_of(group);
        if divides(node) && divides(heads) {
            return Ok(());
        }
        let expected = format!(
            "a divisor of the {node} GPUs of a node and of the {heads} groups of heads of {}",
            self.model.name
        );
        Err(SpecError::new("tensor-parallel", expected, group))
    }

    /// `layer` alone on this world.
    pub(crate) fn scenario<'l>(&'l self, layer: &'l ResolvedLayer) -> Scenario<'l> {
        Scenario {
            layer,
            gpus_per_node: self.gpus_per_node,
            memory_bytes: self.hardware.memory_bytes(),
            reserved_bytes: self.hardware.reserved_bytes(),
            model: self.prices,
            phase: self.phase,
        }
    }

    /// The program of a step of `model`, this run's or its dense variant; `moe` has a run for every MoE layer.
    pub(crate) fn program(
        &self,
        model: &ModelSpec,
        moe: &[MoeRun<'_>],
    ) -> Result<Program, SpecError> {
        compile_model(ModelSource {
            model,
            moe,
            items: self.items(),
            world_size: self.gpus,
            gpus_per_node: self.gpus_per_node,
            phase: self.phase,
            saving: self.saving,
            tensor_parallel: self.tensor_parallel,
        })
    }

    /// Plays a step and sums it up, but for its plans.
    fn step(
        &self,
        model: &ModelSpec,
        moe: &[MoeRun<'_>],
        drops: Drops,
    ) -> Result<ModelStep, SpecError> {
        let program = self.program(model, moe)?;
        let priced = price(&program, self.prices);
        let (timeline, _) = run(&program, &priced, self.prices.concurrency());
        let spans = timeline.rank(timeline.slowest_rank());
        let played = timeline.step_time();
        let scaling_loss = self.scaling_loss(played);
        let time = played + scaling_loss;
        let memory = memory(&program, self.hardware.reserved_bytes());
        let items = self.batch as f64;
        let passes = match self.phase {
            Phase::Forward => 1.0,
            Phase::Training => 3.0,
        };
        let flops_per_gpu = 2.0 * passes * model.macs() * items;
        let seconds = time.as_secs_f64();
        let peak = self.hardware.gpu.gemm.tensor_tflops * 1e12;
        Ok(ModelStep {
            time,
            stages: stage_times(&program, spans, &|op| priced[op].provenance),
            scaling_loss,
            exposed_communication: exposed(&program, spans),
            fits: memory.total() <= self.hardware.memory_bytes(),
            memory,
            rate_per_gpu: items * model.unit.per_item() as f64 / seconds,
            flops_per_gpu,
            mfu: flops_per_gpu / seconds / peak,
            plans: Vec::new(),
            drops,
            provenance: priced
                .iter()
                .map(|op| op.provenance)
                .max()
                .unwrap_or(Provenance::Measured),
        })
    }
}

fn memory(program: &Program, reserved: u64) -> ModelMemory {
    let (mut parameters, mut gradients, mut optimizer) = (0u64, 0u64, 0u64);
    for buffer in &program.buffers {
        if buffer.lifetime != Lifetime::Persistent {
            continue;
        }
        let kind = match buffer.name.as_ref() {
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
        activations: program.largest_peak_memory().saturating_sub(persistent),
        reserved,
    }
}
