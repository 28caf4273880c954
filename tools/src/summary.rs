//! Many steps of a strategy as one row of results.

use crate::play::Run;
use crate::routing::RoutingSource;
use moeplan_sim::compile::Plan;
use moeplan_sim::cost::provenance::Provenance;
use moeplan_sim::economy::Cost;
use moeplan_sim::ir::Stage;
use moeplan_sim::policy::Decided;
use moeplan_sim::simulate::Step;
use moeplan_sim::spec::ResolvedLayer;
use moeplan_sim::units::Time;
use serde::{Serialize, Serializer};

/// One run: a strategy over its steps. Times are means over the steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Name of the strategy.
    pub strategy: String,
    /// W.
    pub gpus: u64,
    /// Mean time of a step.
    pub step_time_ns: u64,
    /// Time of the slowest step but a twentieth.
    pub step_time_p95_ns: u64,
    /// Time of all steps.
    pub total_time_ns: u64,
    /// Mean time by stage; stages that overlap both count.
    #[serde(serialize_with = "as_map")]
    pub stages_ns: Vec<(&'static str, u64)>,
    /// Mean time in which communication ran and nothing computed.
    pub exposed_communication_ns: u64,
    /// Mean time of all All-to-Alls.
    pub all_to_all_ns: u64,
    /// Most memory a GPU needs in any step.
    pub memory_bytes_per_gpu: u64,
    /// Memory a GPU has.
    pub memory_available_bytes: u64,
    /// Whether all steps fit.
    pub fits: bool,
    /// Share of token copies dropped.
    pub dropped_fraction: f64,
    /// Mean capacity factor f.
    pub capacity_factor: f64,
    /// Largest capacity factor f.
    pub capacity_factor_max: f64,
    /// The plan of most steps.
    pub chosen: Chosen,
    /// All plans with their steps, most first.
    pub plans: Vec<PlanCount>,
    /// Steps in which the dictionary tried a plan.
    pub trials: usize,
    /// Mean time of a step lost against the best plan of each step.
    pub regret_ns: Option<u64>,
    /// Where each figure comes from.
    #[serde(serialize_with = "as_map")]
    pub provenance: Vec<(&'static str, String)>,
    /// Number of steps.
    pub steps: usize,
    /// Money and energy, where asked for.
    #[serde(flatten)]
    pub cost: Option<Cost>,
    /// Every step, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_step: Option<Vec<StepRow>>,
}

/// The choices of a plan that adapt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chosen {
    /// r.
    pub adaptive_r: u64,
    /// d of the forward pass.
    pub pipeline_degree: u64,
    /// d of the backward pass.
    pub backward_degree: u64,
    /// a; none under r = 0, where no tokens travel.
    pub all_to_all: Option<&'static str>,
}

/// A plan and the number of steps it was chosen in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanCount {
    /// As people write it: `r=1 d=4 2dh`.
    pub plan: String,
    /// Steps.
    pub steps: usize,
}

/// One step of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRow {
    /// Number of the step in its recording.
    pub step: u64,
    /// Its time.
    pub step_time_ns: u64,
    /// Time of the best plan.
    pub best_time_ns: Option<u64>,
    /// Its plan.
    pub plan: String,
    /// Whether the dictionary was trying.
    pub trial: bool,
    /// f.
    pub capacity_factor: f64,
    /// Share of copies dropped.
    pub dropped_fraction: f64,
    /// Memory of the fullest GPU.
    pub memory_bytes_per_gpu: u64,
}

impl RunSummary {
    /// Sums up `run`, which has at least one step.
    pub fn new(
        run: &Run,
        layer: &ResolvedLayer,
        memory_available_bytes: u64,
        routing: &RoutingSource,
        per_step: bool,
    ) -> Option<RunSummary> {
        let steps: Vec<_> = run.steps.iter().map(|played| &played.decided).collect();
        let first = steps.first()?;
        let mean = |of: &dyn Fn(&Step) -> Time| -> u64 {
            let total: u128 = steps.iter().map(|d| u128::from(of(&d.step).as_ps())).sum();
            nanoseconds(total / steps.len() as u128)
        };
        let mut stages_ns = Vec::new();
        let mut provenance = Vec::new();
        let mut worst = Provenance::Measured;
        let mut communication = Provenance::Measured;
        for stage in Stage::ALL {
            let of = |step: &Step| {
                step.stages
                    .iter()
                    .find(|found| found.stage == stage)
                    .copied()
            };
            let busy = mean(&|step| of(step).map_or(Time::ZERO, |found| found.busy));
            let trust = steps
                .iter()
                .filter_map(|d| of(&d.step).map(|found| found.provenance))
                .max();
            stages_ns.push((stage.name(), busy));
            let Some(trust) = trust else {
                // r = 0 has no dispatch; readers still find the key.
                provenance.push((stage.name(), "not-used".into()));
                continue;
            };
            provenance.push((stage.name(), trust.to_string()));
            worst = worst.worse(trust);
            if matches!(stage, Stage::Dispatch | Stage::Combine) {
                communication = communication.worse(trust);
            }
        }
        provenance.push(("step_time", worst.to_string()));
        provenance.push(("exposed_communication", worst.to_string()));
        provenance.push(("all_to_all", communication.to_string()));
        // Counted buffer by buffer on the program; what the runtime reserves is a constant of the
        // cluster file.
        provenance.push(("memory", "counted".into()));
        provenance.push(("dropped_fraction", routing.trust().into()));
        let times = || steps.iter().map(|decided| decided.step.time);
        let total: u128 = times().map(|time| u128::from(time.as_ps())).sum();
        let plans = count_plans(run);
        let most = plans.first().map_or(first.step.plan, |(plan, _)| *plan);
        let regret = |d: &Decided| Some(d.step.time.saturating_sub(d.oracle?));
        let regrets: Option<Vec<Time>> = steps.iter().map(|d| regret(d)).collect();
        let regret_ns = regrets.map(|regrets| {
            let total: u128 = regrets.iter().map(|time| u128::from(time.as_ps())).sum();
            nanoseconds(total / steps.len() as u128)
        });
        let average = |of: &dyn Fn(&Step) -> f64| {
            steps.iter().map(|d| of(&d.step)).sum::<f64>() / steps.len() as f64
        };
        Some(RunSummary {
            strategy: run.planned.strategy.name.clone(),
            gpus: layer.world_size,
            step_time_ns: mean(&|step| step.time),
            step_time_p95_ns: Time::p95(times()).as_ns(),
            total_time_ns: nanoseconds(total),
            stages_ns,
            exposed_communication_ns: mean(&|step| step.exposed_communication),
            all_to_all_ns: mean(&|step| step.all_to_all),
            memory_bytes_per_gpu: steps.iter().map(|d| d.step.memory_bytes).max().unwrap_or(0),
            memory_available_bytes,
            fits: steps.iter().all(|d| d.step.fits),
            dropped_fraction: average(&|step| step.dropped_fraction),
            capacity_factor: average(&|step| step.capacity_factor),
            capacity_factor_max: steps
                .iter()
                .map(|d| d.step.capacity_factor)
                .fold(0.0, f64::max),
            chosen: Chosen {
                adaptive_r: most.adaptive_r,
                pipeline_degree: most.forward_degree,
                backward_degree: most.backward_degree,
                all_to_all: (most.adaptive_r != 0).then(|| most.all_to_all.name()),
            },
            plans: plans
                .into_iter()
                .map(|(plan, steps)| PlanCount {
                    plan: plan.to_string(),
                    steps,
                })
                .collect(),
            trials: steps.iter().filter(|d| d.trial).count(),
            regret_ns,
            provenance,
            steps: steps.len(),
            cost: None,
            per_step: per_step.then(|| run.steps.iter().map(step_row).collect()),
        })
    }
}

/// Plans by number of steps, most first; of equals the one chosen first.
fn count_plans(run: &Run) -> Vec<(Plan, usize)> {
    let mut plans: Vec<(Plan, usize)> = Vec::new();
    for played in &run.steps {
        let plan = played.decided.step.plan;
        match plans.iter_mut().find(|(known, _)| *known == plan) {
            Some((_, steps)) => *steps += 1,
            None => plans.push((plan, 1)),
        }
    }
    plans.sort_by_key(|(_, steps)| std::cmp::Reverse(*steps));
    plans
}

fn step_row(played: &crate::play::Played) -> StepRow {
    let step = &played.decided.step;
    StepRow {
        step: played.label,
        step_time_ns: step.time.as_ns(),
        best_time_ns: played.decided.oracle.map(Time::as_ns),
        plan: step.plan.to_string(),
        trial: played.decided.trial,
        capacity_factor: step.capacity_factor,
        dropped_fraction: step.dropped_fraction,
        memory_bytes_per_gpu: step.memory_bytes,
    }
}

fn nanoseconds(picoseconds: u128) -> u64 {
    u64::try_from((picoseconds + 500) / 1000).unwrap_or(u64::MAX)
}

/// Pairs as a map that keeps their order.
fn as_map<S: Serializer, V: Serialize>(
    pairs: &[(&'static str, V)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}
