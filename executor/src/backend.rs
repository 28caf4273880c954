//! What runs tasks, and the run around it.

use crate::ExecError;
use crate::assign::{Assignment, locate, order};
use crate::audit::{self, Audit};
use crate::inputs::{ExpertWeights, Inputs, Routing};
use crate::lower::{Lowered, lower};
use crate::memory::{Allocation, modelled_bytes};
use crate::slices;
use crate::task::Count;
use moeplan_sim::ir::{Program, Timeline};
use moeplan_sim::spec::{DType, ResolvedLayer};
use moeplan_sim::units::Time;
use moeplan_traces::TokenStep;

/// One step to run.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// Order, streams and dependencies.
    pub program: &'a Program,
    /// What every rank does for every operation.
    pub lowered: &'a Lowered,
    /// The numbers.
    pub inputs: &'a Inputs,
    /// Each rank's slice of all expert weights, as [`crate::slices`] lays it out.
    pub weights: &'a [Vec<f32>],
    /// Experts of every token; the gate has to choose the same.
    pub tokens: &'a TokenStep,
}

/// What a rank leaves; buffers as they lie in memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RankOutputs {
    /// (T, D).
    pub output: Vec<f32>,
    /// (T, D); empty without a backward pass, as all that follow.
    pub token_gradient: Vec<f32>,
    /// (D, E).
    pub gate_gradient: Vec<f32>,
    /// Of the rank's slice of weights.
    pub expert_gradient: Vec<f32>,
    /// (T, k): gradients of the factors of the choices.
    pub score_gradient: Vec<f32>,
    /// What the gate decided.
    pub assignment: Assignment,
    /// Balancing loss.
    pub balance_loss: f32,
}

/// What a backend returns of one step.
#[derive(Debug, Clone)]
pub struct Ran {
    /// When every operation ran on every rank.
    pub timeline: Timeline,
    /// Time each operation kept its core or stream busy, without waiting, by operation and rank.
    pub busy: Vec<Vec<Time>>,
    /// By operation and rank.
    pub counts: Vec<Vec<Count>>,
    /// By rank.
    pub outputs: Vec<RankOutputs>,
    /// Most bytes of buffers alive at once, by rank.
    pub peak_bytes: Vec<u64>,
}

/// Something that runs tasks: CPU threads, GPU streams.
pub trait Backend {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Where ranks run, for people.
    fn place(&self) -> String;

    /// Memory that all ranks share; `None` where it is the host's.
    fn memory_bytes(&self) -> Option<u64>;

    /// When it decides where buffers lie.
    fn allocation(&self) -> Allocation;

    /// Number types of the layers it runs.
    fn dtypes(&self) -> &'static [DType];

    /// The experts that every token's gate chooses.
    ///
    /// # Errors
    /// Anything the machine refuses.
    fn route(&mut self, layer: &ResolvedLayer, inputs: &Inputs) -> Result<TokenStep, ExecError>;

    /// Runs one step: every rank's tasks, each stream in order, no operation before those it comes
    /// after, collectives together.
    ///
    /// # Errors
    /// Anything the machine refuses.
    fn run(&mut self, job: &Job<'_>) -> Result<Ran, ExecError>;
}

/// One executed step.
#[derive(Debug, Clone)]
pub struct Executed {
    /// When every operation ran on every rank.
    pub timeline: Timeline,
    /// Time each operation kept its core or stream busy, without waiting, by operation and rank.
    pub busy: Vec<Vec<Time>>,
    /// By rank.
    pub ranks: Vec<RankOutputs>,
    /// Gradients of all experts; empty without a backward pass.
    pub expert_gradients: Vec<ExpertWeights>,
    /// Most bytes of buffers alive at once, by rank.
    pub peak_bytes: Vec<u64>,
    /// What the program's memory model says of them.
    pub modelled_bytes: Vec<u64>,
    /// What was counted, held against the program.
    pub audit: Audit,
}

/// The routing of a step: as forced, or as the gates of `backend` decide.
///
/// # Errors
/// Inputs that do not fit the layer.
pub fn tokens_of_step(
    backend: &mut dyn Backend,
    layer: &ResolvedLayer,
    inputs: &Inputs,
) -> Result<TokenStep, ExecError> {
    inputs.check(layer)?;
    check_dtype(backend, layer.spec.dtype)?;
    match &inputs.routing {
        Routing::Gate => backend.route(layer, inputs),
        Routing::Forced(tokens) => Ok(tokens.clone()),
    }
}

/// Runs `program`, which was compiled for `layer` and the counts of `tokens`.
///
/// # Errors
/// Inputs or a program that do not fit, a machine that refuses, or a run that touched other bytes
/// or FLOPs than the program states.
pub fn execute(
    program: &Program,
    layer: &ResolvedLayer,
    backend: &mut dyn Backend,
    inputs: &Inputs,
    tokens: &TokenStep,
) -> Result<Executed, ExecError> {
    inputs.check(layer)?;
    check_dtype(backend, program.dtype)?;
    slices::check(layer)?;
    let lowered = lower(program, &tokens.counts())?;
    let weights: Vec<Vec<f32>> = (0..layer.world_size as usize)
        .map(|rank| slices::slice(layer, &inputs.experts, rank))
        .collect();
    let job = Job {
        program,
        lowered: &lowered,
        inputs,
        weights: &weights,
        tokens,
    };
    let ran = backend.run(&job)?;
    let audit = audit::check(program, &lowered, &ran.counts)?;
    check_routing(&ran.outputs, tokens)?;
    let gradients: Vec<&[f32]> = ran
        .outputs
        .iter()
        .map(|rank| rank.expert_gradient.as_slice())
        .collect();
    let allocation = backend.allocation();
    let modelled =
        (0..program.world_size).map(|rank| modelled_bytes(program, &lowered, allocation, rank));
    Ok(Executed {
        expert_gradients: match lowered.roles.backward {
            None => Vec::new(),
            Some(_) => slices::join(layer, &gradients),
        },
        timeline: ran.timeline,
        busy: ran.busy,
        ranks: ran.outputs,
        peak_bytes: ran.peak_bytes,
        modelled_bytes: modelled.collect(),
        audit,
    })
}

/// Fails where the backend does not compute in the layer's number type.
fn check_dtype(backend: &dyn Backend, dtype: DType) -> Result<(), ExecError> {
    if backend.dtypes().contains(&dtype) {
        return Ok(());
    }
    let names: Vec<&str> = backend.dtypes().iter().map(|dtype| dtype.name()).collect();
    let expected = format!(
        "{}, which the {} backend computes in",
        names.join(", "),
        backend.name()
    );
    Err(ExecError::input("dtype", expected, dtype))
}

/// Whether every gate chose what the program was compiled for.
fn check_routing(outputs: &[RankOutputs], tokens: &TokenStep) -> Result<(), ExecError> {
    for (rank, output) in outputs.iter().enumerate() {
        if output.assignment.ids != tokens.ids(rank) {
            return Err(ExecError::Disagrees(format!(
                "the gate of rank {rank} chose other experts than the step was compiled for"
            )));
        }
    }
    Ok(())
}

/// Slots of tokens whose experts and scores are known.
pub fn assign(
    ids: Vec<u32>,
    scores: Vec<f32>,
    best: &[f32],
    top_k: usize,
    experts: usize,
    prioritized: bool,
) -> Assignment {
    let (locations, counts) = locate(&ids, top_k, experts, &order(best, prioritized));
    Assignment {
        ids,
        scores,
        locations,
        counts,
    }
}
