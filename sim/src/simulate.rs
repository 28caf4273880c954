//! The facade: one layer, one strategy, routing steps in; times, memory and trust out.

use crate::compile::{Drops, Load, Plan, Source, compile};
use crate::cost::CostModel;
use crate::cost::price::price;
use crate::cost::provenance::Provenance;
use crate::engine::{PricedOp, RunStats, run};
use crate::ir::{OpKind, Program, Span, Stage, Stream, Timeline};
use crate::spec::{Phase, ResolvedLayer, SpecError};
use crate::units::Time;

/// What is simulated: a layer on a cluster, and how its GPUs are priced.
#[derive(Clone, Copy)]
pub struct Scenario<'a> {
    /// The layer on its world.
    pub layer: &'a ResolvedLayer,
    /// m: GPUs a node.
    pub gpus_per_node: u64,
    /// Memory of one GPU.
    pub memory_bytes: u64,
    /// Memory that the runtime holds on every GPU whatever the program.
    pub reserved_bytes: u64,
    /// Prices.
    pub model: &'a dyn CostModel,
    /// Forward only, or a training step.
    pub phase: Phase,
}

/// A stage of the layer in one step, on the slowest rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// Time its operations ran, forward and backward; stages that overlap both count.
    pub busy: Time,
    /// The least trustworthy price in it.
    pub provenance: Provenance,
}

/// One simulated step under one plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// The choices made.
    pub plan: Plan,
    /// From the first operation to the last on the slowest rank.
    pub time: Time,
    /// By stage, in the order of the layer; stages without operations are left out.
    pub stages: Vec<StageTime>,
    /// Time the slowest rank's communication ran while nothing computed.
    pub exposed_communication: Time,
    /// Time of all All-to-Alls, with the copies of hierarchical ones.
    pub all_to_all: Time,
    /// Time of everything on the compute stream.
    pub compute: Time,
    /// Time of the part of it that multiplies matrices.
    pub matrix_products: Time,
    /// Most memory any GPU needs, with the runtime's share.
    pub memory_bytes: u64,
    /// Whether that fits.
    pub fits: bool,
    /// Capacity factor f in force.
    pub capacity_factor: f64,
    /// Share of token copies dropped.
    pub dropped_fraction: f64,
    /// Token copies dropped over all ranks.
    pub dropped: u64,
    /// Engine counters.
    pub stats: RunStats,
}

/// A step with the program and timeline it came from, for breakdowns and exports.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The summary.
    pub step: Step,
    /// The program.
    pub program: Program,
    /// Its prices.
    pub priced: Vec<PricedOp>,
    /// When everything ran.
    pub timeline: Timeline,
}

/// Simulates one step of `scenario` under `plan`.
///
/// # Errors
/// A plan the layer cannot run.
pub fn simulate_step(scenario: &Scenario<'_>, plan: Plan, load: &Load) -> Result<Trace, SpecError> {
    let program = program_of(scenario, plan, load)?;
    Ok(simulate_program(scenario, plan, load.drops(), program))
}

/// The same where the step fits in memory; else the memory it needs, and it is not timed.
///
/// # Errors
/// A plan the layer cannot run.
pub fn simulate_if_fits(
    scenario: &Scenario<'_>,
    plan: Plan,
    load: &Load,
) -> Result<Result<Trace, u64>, SpecError> {
    let program = program_of(scenario, plan, load)?;
    let memory = memory(scenario, &program);
    Ok(if memory <= scenario.memory_bytes {
        Ok(simulate_program(scenario, plan, load.drops(), program))
    } else {
        Err(memory)
    })
}

/// Prices, plays and sums up `program`, a step under `plan`.
pub(crate) fn simulate_program(
    scenario: &Scenario<'_>,
    plan: Plan,
    drops: Drops,
    program: Program,
) -> Trace {
    let priced = price(&program, scenario.model);
    let (timeline, stats) = run(&program, &priced, scenario.model.concurrency());
    let provenance = |op: usize| priced[op].provenance;
    let step = summarise(
        scenario,
        plan,
        drops,
        &program,
        &provenance,
        &timeline,
        stats,
    );
    Trace {
        step,
        program,
        priced,
        timeline,
    }
}

/// Sums up a step that was run, not simulated, as [`simulate_step`] does. The scenario's prices are not
/// looked at.
pub fn measured_step(
    scenario: &Scenario<'_>,
    plan: Plan,
    load: &Load,
    program: &Program,
    timeline: &Timeline,
) -> Step {
    let measured = |_| Provenance::Measured;
    let stats = RunStats {
        rows: timeline.rows(),
        ..RunStats::default()
    };
    let drops = load.drops();
    summarise(scenario, plan, drops, program, &measured, timeline, stats)
}

/// Most memory any GPU needs, with the runtime's share.
pub(crate) fn memory(scenario: &Scenario<'_>, program: &Program) -> u64 {
    scenario
        .reserved_bytes
        .saturating_add(program.largest_peak_memory())
}

/// The program of a step under `plan`.
///
/// # Errors
/// A plan the layer cannot run.
pub(crate) fn program_of(
    scenario: &Scenario<'_>,
    plan: Plan,
    load: &Load,
) -> Result<Program, SpecError> {
    compile(Source {
        layer: scenario.layer,
        gpus_per_node: scenario.gpus_per_node,
        plan,
        load,
        phase: scenario.phase,
    })
}

fn summarise(
    scenario: &Scenario<'_>,
    plan: Plan,
    drops: Drops,
    program: &Program,
    provenance_of: &dyn Fn(usize) -> Provenance,
    timeline: &Timeline,
    stats: RunStats,
) -> Step {
    let slowest = timeline.slowest_rank();
    let spans = timeline.rank(slowest);
    let busy = |keep: &dyn Fn(usize) -> bool| busy(spans, keep);
    let stages = stage_times(program, spans, provenance_of);
    let stream = |stream: Stream| move |op: usize| program.ops[op].stream == stream;
    let all_to_all = |op: usize| {
        let op = &program.ops[op];
        op.stream == Stream::Communication
            && matches!(
                op.kind,
                OpKind::Exchange { .. } | OpKind::Elementwise { .. }
            )
    };
    let memory_bytes = memory(scenario, program);
    Step {
        plan,
        time: timeline.step_time(),
        stages,
        exposed_communication: exposed(program, spans),
        all_to_all: busy(&all_to_all),
        compute: busy(&stream(Stream::Compute)),
        matrix_products: busy(&|op| program.ops[op].multiplies_matrices(program.dtype)),
        memory_bytes,
        fits: memory_bytes <= scenario.memory_bytes,
        capacity_factor: drops.capacity_factor,
        dropped_fraction: drops.fraction,
        dropped: drops.dropped,
        stats,
    }
}

fn busy(spans: &[Span], keep: &dyn Fn(usize) -> bool) -> Time {
    (0..spans.len())
        .filter(|&op| keep(op))
        .map(|op| spans[op].end - spans[op].start)
        .sum()
}

/// Time by stage in `spans`, those of one rank.
pub(crate) fn stage_times(
    program: &Program,
    spans: &[Span],
    provenance_of: &dyn Fn(usize) -> Provenance,
) -> Vec<StageTime> {
    let stage_time = |stage: Stage| {
        let of_stage = |op: &usize| program.ops[*op].stage == stage;
        let provenance = (0..spans.len()).filter(of_stage).map(provenance_of).max()?;
        Some(StageTime {
            stage,
            busy: busy(spans, &|op| of_stage(&op)),
            provenance,
        })
    };
    let stages = Stage::ALL.into_iter().chain(Stage::MODEL);
    stages.filter_map(stage_time).collect()
}

/// Time in which communication ran and computation did not.
pub(crate) fn exposed(program: &Program, spans: &[Span]) -> Time {
    let of = |stream: Stream| {
        let mut spans: Vec<Span> = program
            .ops
            .iter()
            .zip(spans)
            .filter(|(op, span)| op.stream == stream && span.end > span.start)
            .map(|(_, span)| *span)
            .collect();
        spans.sort_by_key(|span| span.start);
        spans
    };
    let compute = of(Stream::Compute);
    let mut exposed = Time::ZERO;
    let mut first = 0;
    for communication in of(Stream::Communication) {
        let mut from = communication.start;
        while first < compute.len() && compute[first].end <= from {
            first += 1;
        }
        for busy in &compute[first..] {
            if busy.start >= communication.end {
                break;
            }
            exposed += busy.start - from;
            from = from.max(busy.end);
        }
        exposed += communication.end - from.min(communication.end);
    }
    exposed
}
