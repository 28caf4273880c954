//! `plan`: from a layer, limits and money to a cluster and a strategy, with reasons.

use super::compare::to_json;
use crate::error::{Error, Exit};
use crate::output::{Answer, plan as shown};
use crate::resolve::Given;
use crate::resolve::plan::{Asked, asked};
use crate::session::Session;
use moeplan_sim::planner::explain::{Limiting, Neighbour, limiting, neighbours};
use moeplan_sim::planner::sensitivity::sensitivities;
use moeplan_sim::planner::{
    Decision, Evaluated, Goal, Outcome, Pruning, Sensitivity, Space, Verdict, Violation, search,
};
use moeplan_sim::spec::ResolvedLayer;
use moeplan_sim::units::Time;
use serde::Serialize;
use serde_json::json;

/// A plan as results show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanRow {
    /// Kind of cluster.
    pub cluster: String,
    /// W.
    pub gpus: u64,
    /// T.
    pub tokens_per_gpu: u64,
    /// Number type.
    pub dtype: &'static str,
    /// k.
    pub top_k: u32,
    /// GPUs that share a model's weights.
    pub tensor_parallel: u64,
    /// Parts of a GPU's batch that run one after the other.
    pub micro_batches: u64,
    /// Capacity setting x.
    pub capacity_setting: f64,
    /// Capacity factor f it amounts to.
    pub capacity_factor: f64,
    /// Encode and decode kernels.
    pub encode: &'static str,
    /// Layout after dispatch.
    pub layout: &'static str,
    /// Padded or dropless.
    pub padding: &'static str,
    /// Who decides.
    pub policy: &'static str,
    /// Who moves experts.
    pub balancing: String,
    /// r; of the slowest step (and of a model the first MoE layer) where a policy decides.
    pub adaptive_r: u64,
    /// d.
    pub pipeline_degree: u64,
    /// a; none under r = 0.
    pub all_to_all: Option<&'static str>,
    /// Mean time of a step.
    pub step_time_ns: u64,
    /// Time of the slowest step but a twentieth.
    pub step_time_p95_ns: u64,
    /// Mean time in which communication ran and nothing computed.
    pub exposed_communication_ns: u64,
    /// Mean time of matrix products.
    pub matrix_products_ns: u64,
    /// Mean time of memory-bound kernels.
    pub memory_bound_ns: u64,
    /// Mean time in which nothing ran.
    pub waiting_ns: u64,
    /// Most memory a GPU needs.
    pub memory_bytes_per_gpu: u64,
    /// Share of token copies dropped.
    pub dropped_fraction: f64,
    /// Tokens a second over all GPUs.
    pub tokens_per_second: f64,
    /// Money an hour.
    pub cost_per_hour: f64,
    /// Money for 10^9 tokens.
    pub cost_per_billion_tokens: f64,
    /// Joules a token.
    pub joules_per_token: f64,
    /// The least trustworthy price in its step time.
    pub provenance: String,
    /// Limits it does not meet.
    pub violations: Vec<Violation>,
}

/// A neighbour of the recommended plan, and why it lost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NeighbourRow {
    /// What differs.
    pub differs: String,
    /// Its figures, where it can be run.
    pub plan: Option<PlanRow>,
    /// Why it is not recommended.
    pub why: String,
}

/// What a plan waits for, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitingRow {
    /// Of what the critical path is made.
    pub limit: &'static str,
    /// Its time.
    pub time_ns: u64,
    /// Its share of the step.
    pub share: f64,
}

/// Everything `plan` says.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// Which plan is recommended.
    pub goal: Goal,
    /// Where tokens go under the recommended plan, or the nearest.
    pub routing: String,
    /// How many ways there are.
    pub candidates: usize,
    /// How many of them were simulated; bounds left out the others.
    pub simulated: usize,
    /// The plan recommended.
    pub recommended: Option<PlanRow>,
    /// The cheapest that meets all limits.
    pub cheapest: Option<PlanRow>,
    /// The fastest that meets all limits.
    pub fastest: Option<PlanRow>,
    /// Plans that meet all limits and that nothing is better than, by number of GPUs.
    pub front: Vec<PlanRow>,
    /// Where nothing meets all limits: what is least far off.
    pub nearest: Option<PlanRow>,
    /// Plans that differ from the recommended one in one choice.
    pub neighbours: Vec<NeighbourRow>,
    /// What limits the recommended plan.
    pub limiting: Vec<LimitingRow>,
    /// Mean time a rank waits for slower ones.
    pub straggling_ns: u64,
    /// What more of each resource would buy.
    pub sensitivities: Vec<Sensitivity>,
    /// Sizes at which the layer cannot be run.
    pub refused: Vec<RefusedRow>,
}

/// A size at which the layer cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedRow {
    /// Kind of cluster.
    pub cluster: String,
    /// W.
    pub gpus: u64,
    /// Why.
    pub reason: String,
}

/// Searches and explains.
///
/// # Errors
/// Settings that cannot be used.
pub fn run(given: &Given, session: &mut Session<'_>) -> Result<(Answer, Exit), Error> {
    let asked = asked(given)?;
    let routes = |recorded: usize, layer: &ResolvedLayer| {
        let routes = asked.routes(recorded, layer);
        routes.map_err(|error| error.to_string())
    };
    let space = asked.space(&routes);
    let pruning = match asked.study.plan.exhaustive {
        true => Pruning::Off,
        false => Pruning::ByBound,
    };
    let clock = session.clock();
    let outcome = session.on_threads(|| search(&space, &asked.limits, pruning))?;
    let searched = clock.elapsed();
    if outcome.worlds.is_empty()
        && let Some(refused) = outcome.refused.first()
    {
        let message = format!("no number of GPUs can run the layer: {}", refused.reason);
        return Err(Error::input(crate::error::Place::default(), message));
    }
    let findings = session.on_threads(|| findings(&asked, &space, &outcome))??;
    if session.output.verbose {
        session.note(&format!(
            "search {searched:.1?}, with reasons {:.1?}",
            clock.elapsed()
        ));
    }
    let exit = match findings.recommended {
        Some(_) => Exit::Done,
        None => Exit::NoFeasiblePlan,
    };
    let text = shown::text(&asked, &findings);
    let mut settings = to_json(&asked.study)?;
    if let Some(settings) = settings.as_object_mut() {
        settings.shift_remove("output");
        settings.insert(
            "prices".into(),
            json!({
                "list": asked.prices.list(),
                "kind": asked.prices.kind(),
            }),
        );
    }
    let body = match to_json(&findings)? {
        serde_json::Value::Object(body) => body,
        other => [("plan".to_owned(), other)].into_iter().collect(),
    };
    let answer = Answer {
        command: "plan",
        settings,
        seed: asked.seed,
        body,
        rows: "front",
        text,
    };
    Ok((answer, exit))
}

fn findings(asked: &Asked, space: &Space<'_>, outcome: &Outcome) -> Result<Findings, Error> {
    let goal = asked.limits.goal();
    let row = |plan: &Evaluated| plan_row(asked, space, plan, outcome.world(plan));
    let at = |index: Option<usize>| index.map(|index| row(&outcome.evaluated[index]));
    let winner = outcome.winner(goal);
    let nearest = || outcome.nearest.map(|index| &outcome.evaluated[index]);
    let routing = match winner.or_else(nearest) {
        Some(shown) => asked.routing_of(&outcome.world(shown).layer)?,
        None => String::new(),
    };
    let mut found = Findings {
        goal,
        routing,
        candidates: outcome.candidates,
        simulated: outcome.evaluated.len(),
        recommended: winner.map(row),
        cheapest: at(outcome.cheapest),
        fastest: at(outcome.fastest),
        front: outcome
            .front
            .iter()
            .map(|&index| row(&outcome.evaluated[index]))
            .collect(),
        nearest: at(outcome.nearest),
        neighbours: Vec::new(),
        limiting: Vec::new(),
        straggling_ns: 0,
        sensitivities: Vec::new(),
        refused: outcome
            .refused
            .iter()
            .map(|refused| RefusedRow {
                cluster: space.sites[refused.site].hardware.name.clone(),
                gpus: refused.gpus,
                reason: refused.reason.clone(),
            })
            .collect(),
    };
    let Some(winner) = winner else {
        return Ok(found);
    };
    let world = outcome.world(winner);
    found.neighbours = neighbours(space, &asked.limits, outcome, winner)
        .iter()
        .map(|neighbour| neighbour_row(asked, space, neighbour, winner, goal))
        .collect();
    if let Some(Limiting { shares, straggling }) =
        limiting(space, world, &winner.candidate, &winner.figures.plans)
    {
        let of = |share: &moeplan_sim::planner::Share| LimitingRow {
            limit: share.limit.name(),
            time_ns: share.time.as_ns(),
            share: share.share,
        };
        found.limiting = shares.iter().map(of).collect();
        found.straggling_ns = straggling.as_ns();
    }
    // Changed hardware has no table of the user's, so its times would not compare.
    if !asked.own_gemm_table {
        found.sensitivities = sensitivities(space, world, winner);
    }
    Ok(found)
}

fn plan_row(
    asked: &Asked,
    space: &Space<'_>,
    plan: &Evaluated,
    world: &moeplan_sim::planner::World,
) -> PlanRow {
    let (figures, candidate) = (&plan.figures, &plan.candidate);
    let strategy = &space.strategies[candidate.strategy];
    let spec = &world.layer.spec;
    let chosen = figures.plans[0];
    PlanRow {
        cluster: asked.clusters[world.site].hardware.name.clone(),
        gpus: world.gpus,
        tokens_per_gpu: world.tokens,
        dtype: spec.dtype.name(),
        top_k: spec.top_k,
        tensor_parallel: world.slices.tensor_parallel,
        micro_batches: world.slices.micro_batches,
        capacity_setting: candidate.capacity,
        capacity_factor: figures.capacity_factor,
        encode: strategy.encode.name(),
        layout: strategy.layout.name(),
        padding: strategy.padding.name(),
        policy: match candidate.decision {
            Decision::Always(_) => "static",
            Decision::Adapts(policy) => policy.name(),
        },
        balancing: match candidate.balancing {
            None => "static".to_owned(),
            Some(index) => space.balancing[index].policy.clone(),
        },
        adaptive_r: chosen.adaptive_r,
        pipeline_degree: chosen.forward_degree,
        all_to_all: (chosen.adaptive_r != 0).then(|| chosen.all_to_all.name()),
        step_time_ns: figures.step_time.as_ns(),
        step_time_p95_ns: figures.step_time_p95.as_ns(),
        exposed_communication_ns: figures.exposed_communication.as_ns(),
        matrix_products_ns: figures.matrix_products.as_ns(),
        memory_bound_ns: figures.memory_bound.as_ns(),
        waiting_ns: figures.waiting().as_ns(),
        memory_bytes_per_gpu: figures.memory_bytes,
        dropped_fraction: figures.dropped_fraction,
        tokens_per_second: figures.cost.tokens_per_second,
        cost_per_hour: figures.cost.cost_per_hour,
        cost_per_billion_tokens: figures.cost.cost_per_billion_tokens,
        joules_per_token: figures.cost.joules_per_token,
        provenance: figures.provenance.to_string(),
        violations: plan.violations.clone(),
    }
}

fn neighbour_row(
    asked: &Asked,
    space: &Space<'_>,
    neighbour: &Neighbour,
    winner: &Evaluated,
    goal: Goal,
) -> NeighbourRow {
    let (plan, why) = match (&neighbour.verdict, &neighbour.world) {
        (Verdict::Refused(reason), _) => (None, reason.clone()),
        (Verdict::Tried(plan), world) => (
            world
                .as_ref()
                .map(|world| plan_row(asked, space, plan, world)),
            why(plan, winner, goal),
        ),
    };
    NeighbourRow {
        differs: neighbour.differs.clone(),
        plan,
        why,
    }
}

/// Why `plan` lost against `winner`: a limit it breaks, or where its time or money goes.
fn why(plan: &Evaluated, winner: &Evaluated, goal: Goal) -> String {
    if let Some(worst) = plan.violations.first() {
        return shown::violation(worst);
    }
    let (its, best) = (&plan.objectives, &winner.objectives);
    let slower = its.seconds_per_token / best.seconds_per_token - 1.0;
    let dearer = its.cost / best.cost - 1.0;
    let worse = match goal {
        Goal::Fastest => slower,
        Goal::Cheapest => dearer,
    };
    let verdict = match (goal, its.gpus == best.gpus) {
        (Goal::Fastest, true) => shown::more(slower, "slower", "faster"),
        (Goal::Fastest, false) => shown::more(slower, "more time a token", "less time a token"),
        (Goal::Cheapest, _) => shown::more(dearer, "dearer", "cheaper"),
    };
    if worse == 0.0 {
        return "as good, and later in the order of the search".into();
    }
    if its.gpus != best.gpus {
        let (fewer, gpus) = (its.gpus < best.gpus, its.gpus.abs_diff(best.gpus));
        return format!(
            "{verdict} with {gpus} GPUs {}",
            if fewer { "fewer" } else { "more" }
        );
    }
    let (a, b) = (&plan.figures, &winner.figures);
    let parts = [
        (
            "exposed communication",
            a.exposed_communication,
            b.exposed_communication,
        ),
        ("matrix products", a.matrix_products, b.matrix_products),
        ("memory-bound kernels", a.memory_bound, b.memory_bound),
        ("waiting", a.waiting(), b.waiting()),
    ];
    // Of equals the first.
    let grown = parts
        .into_iter()
        .fold(("", Time::ZERO), |most, (name, mine, best)| {
            let growth = mine.saturating_sub(best);
            if growth > most.1 {
                (name, growth)
            } else {
                most
            }
        });
    match grown {
        (_, Time::ZERO) => verdict,
        (name, growth) => format!("{verdict}: {name} +{growth}"),
    }
}
