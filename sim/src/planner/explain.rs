//! Why the winner wins: what its neighbours lack, and what limits it.

use super::limits::Limits;
use super::search::Outcome;
use super::space::{Candidate, Decision, Space, World};
use super::tester::{Evaluated, Tester};
use crate::compile::Plan;
use crate::cost::price::price;
use crate::engine::Resource;
use crate::ir::{critical_path, waiting_for_others};
use crate::policy::candidates;
use crate::spec::Strategy;
use crate::units::Time;
use rayon::prelude::*;
use serde::Serialize;

/// What the critical path of a step is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Tensor cores.
    Gemm,
    /// HBM.
    Memory,
    /// NVLink ports.
    NvLink,
    /// NICs and the network behind them.
    Nic,
    /// The host, which had not issued what came next.
    Launch,
}

impl Limit {
    const ALL: [Limit; 5] = [
        Limit::Gemm,
        Limit::Memory,
        Limit::NvLink,
        Limit::Nic,
        Limit::Launch,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Gemm => "matrix products",
            Limit::Memory => "memory-bound kernels",
            Limit::NvLink => "NVLink",
            Limit::Nic => "NICs",
            Limit::Launch => "launches by the host",
        }
    }
}

/// A part of the critical path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// Of what.
    pub limit: Limit,
    /// Its time on the path.
    pub time: Time,
    /// Its share of the step, 0 to 1.
    pub share: f64,
}

/// What a plan waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limiting {
    /// Parts of the critical path of the slowest step, the largest first.
    pub shares: Vec<Share>,
    /// Mean time a rank waits for slower ones at collectives.
    pub straggling: Time,
}

/// Why a neighbour of the winner is not the winner.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The layer cannot be run so.
    Refused(String),
    /// It was tried.
    Tried(Box<Evaluated>),
}

/// A plan that differs from the winner in one choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbour {
    /// What differs: `pipeline degree 4`.
    pub differs: String,
    /// Its world, where there is one.
    pub world: Option<World>,
    /// How it did.
    pub verdict: Verdict,
}

/// What limits `winner` where its groups of layers run `plans`; nothing where it cannot be played again.
pub fn limiting(
    space: &Space<'_>,
    world: &World,
    winner: &Candidate,
    plans: &[Plan],
) -> Option<Limiting> {
    let limits = Limits::default();
    let tester = Tester::new(space, &limits, world, &[*winner]).ok()?;
    let scenario = tester.scenario();
    let loaded = tester.loaded(winner).ok()?;
    let traces = loaded.steps.par_iter();
    let traces = traces.map(|step| tester.trace(plans, loaded, step).ok());
    let slowest = traces.flatten().reduce_with(|slowest, trace| {
        if trace.step.time > slowest.step.time {
            trace
        } else {
            slowest
        }
    })?;
    let total = slowest.step.time.as_secs_f64().max(f64::MIN_POSITIVE);
    let path = critical_path(&slowest.program, &slowest.timeline);
    let priced = price(&slowest.program, scenario.model);
    let time_of = |limit: Limit| -> Time {
        path.iter()
            .map(|on_path| {
                let limited_by = match priced[on_path.op.index()].resource {
                    Resource::Gemm => Limit::Gemm,
                    Resource::Memory => Limit::Memory,
                    Resource::NvLink => Limit::NvLink,
                    // Collectives of weights on one node are priced as others; their wire is NVLink.
                    Resource::Nic if world.gpus <= world.gpus_per_node => Limit::NvLink,
                    Resource::Nic => Limit::Nic,
                };
                match limit {
                    Limit::Launch => on_path.waited,
                    limit if limit == limited_by => on_path.ran,
                    Limit::Gemm | Limit::Memory | Limit::NvLink | Limit::Nic => Time::ZERO,
                }
            })
            .sum()
    };
    let mut shares: Vec<Share> = Limit::ALL
        .into_iter()
        .map(|limit| {
            let time = time_of(limit);
            Share {
                limit,
                time,
                share: time.as_secs_f64() / total,
            }
        })
        .filter(|share| share.time > Time::ZERO)
        .collect();
    shares.sort_by_key(|share| (std::cmp::Reverse(share.time), share.limit));
    let waits = waiting_for_others(&slowest.program, &slowest.timeline);
    let waited: Time = waits.iter().copied().sum();
    Some(Limiting {
        shares,
        straggling: Time::from_ps(waited.as_ps() / waits.len().max(1) as u64),
    })
}

/// All plans that differ from `winner` in one choice of the space, and how they do.
pub fn neighbours(
    space: &Space<'_>,
    limits: &Limits,
    outcome: &Outcome,
    winner: &Evaluated,
) -> Vec<Neighbour> {
    let world = outcome.world(winner);
    let mut found: Vec<Neighbour> = Vec::new();
    for neighbour in of_same_world(space, limits, outcome, winner) {
        // From r = 0 every r has many plans, as r = 0 says nothing of degree and All-to-All.
        match found
            .iter_mut()
            .find(|known| known.differs == neighbour.differs)
        {
            Some(known) if better(&neighbour, known) => *known = neighbour,
            Some(_) => {}
            None => found.push(neighbour),
        }
    }
    let others = other_worlds(space, world).into_par_iter();
    let others: Vec<Neighbour> = others
        .map(|(differs, other)| match other {
            Err(reason) => Neighbour {
                differs,
                world: None,
                verdict: Verdict::Refused(reason),
            },
            Ok(other) => Neighbour {
                differs,
                verdict: match fitted(space, &other, &winner.candidate) {
                    Some(candidate) => {
                        let tester = Tester::new(space, limits, &other, &[candidate]);
                        verdict(tester.as_ref(), &candidate)
                    }
                    None => Verdict::Refused("no such r on that many GPUs".into()),
                },
                world: Some(other),
            },
        })
        .collect();
    found.extend(others);
    found
}

/// Whether a neighbour comes nearer to being wanted than another that differs in the same.
fn better(neighbour: &Neighbour, other: &Neighbour) -> bool {
    let rank = |neighbour: &Neighbour| match &neighbour.verdict {
        Verdict::Refused(_) => (true, f64::INFINITY),
        Verdict::Tried(plan) => (
            !plan.violations.is_empty(),
            plan.objectives.seconds_per_token,
        ),
    };
    rank(neighbour) < rank(other)
}

/// All candidates of the winner's world that differ in one choice; what the search tried is not
/// tried again.
fn of_same_world(
    space: &Space<'_>,
    limits: &Limits,
    outcome: &Outcome,
    winner: &Evaluated,
) -> Vec<Neighbour> {
    let world = outcome.world(winner);
    let all = same_world(space, world, &winner.candidate);
    let alike = |a: &Candidate, b: &Candidate| {
        (a.world, a.strategy, a.capacity, a.decision, a.balancing)
            == (b.world, b.strategy, b.capacity, b.decision, b.balancing)
    };
    let known: Vec<Option<&Evaluated>> = all
        .iter()
        .map(|(_, candidate)| {
            let mut tried = outcome.evaluated.iter();
            tried.find(|plan| alike(&plan.candidate, candidate))
        })
        .collect();
    let left: Vec<Candidate> = all
        .iter()
        .zip(&known)
        .filter(|(_, known)| known.is_none())
        .map(|((_, candidate), _)| *candidate)
        .collect();
    let tester = Tester::new(space, limits, world, &left);
    all.into_par_iter()
        .zip(known)
        .map(|((differs, candidate), known)| Neighbour {
            differs,
            world: Some(world.clone()),
            verdict: match known {
                Some(plan) => Verdict::Tried(Box::new(plan.clone())),
                None => verdict(tester.as_ref(), &candidate),
            },
        })
        .collect()
}

/// How `candidate` does.
fn verdict(tester: Result<&Tester<'_>, &String>, candidate: &Candidate) -> Verdict {
    let evaluated = tester.map_err(String::clone).and_then(|tester| {
        tester
            .evaluate(candidate)
            .map_err(|error| error.to_string())
    });
    match evaluated {
        Ok(evaluated) => Verdict::Tried(Box::new(evaluated)),
        Err(reason) => Verdict::Refused(reason),
    }
}

/// Candidates of the same world that differ in one choice.
fn same_world(space: &Space<'_>, world: &World, winner: &Candidate) -> Vec<(String, Candidate)> {
    let strategy = &space.strategies[winner.strategy];
    let mut found: Vec<(String, Candidate)> = Vec::new();
    let all = space
        .candidates(winner.world, &world.layer, 0)
        .unwrap_or_default();
    for other in all {
        let of = &space.strategies[other.strategy];
        let mut differences = strategies_differ(strategy, of);
        if other.capacity != winner.capacity {
            differences.push(format!("capacity setting {}", other.capacity));
        }
        differences.extend(decisions_differ(winner.decision, other.decision));
        if other.balancing != winner.balancing {
            let by = other.balancing.map(|index| &space.balancing[index].policy);
            differences.push(match by {
                None => "experts that stay".to_owned(),
                Some(policy) => format!("experts moved by {policy}"),
            });
        }
        if let [only] = &differences[..] {
            found.push((only.clone(), other));
        }
    }
    found
}

fn strategies_differ(a: &Strategy, b: &Strategy) -> Vec<String> {
    let mut differences = Vec::new();
    if a.encode != b.encode {
        differences.push(format!("{} encode", b.encode));
    }
    if a.layout != b.layout {
        differences.push(format!("{} layout", b.layout));
    }
    if a.padding != b.padding {
        differences.push(format!("padding {}", b.padding));
    }
    differences
}

fn decisions_differ(a: Decision, b: Decision) -> Vec<String> {
    let (Decision::Always(x), Decision::Always(y)) = (a, b) else {
        return match a == b {
            true => Vec::new(),
            false => vec![format!("decided by {b}")],
        };
    };
    let mut differences = Vec::new();
    if x.adaptive_r != y.adaptive_r {
        differences.push(format!("r = {}", y.adaptive_r));
        // What r = 0 does not use differs with it.
        if x.adaptive_r == 0 || y.adaptive_r == 0 {
            return differences;
        }
    }
    if (x.forward_degree, x.backward_degree) != (y.forward_degree, y.backward_degree) {
        differences.push(format!("pipelining degree {}", y.forward_degree));
    }
    if x.all_to_all != y.all_to_all {
        differences.push(format!("{} all-to-all", y.all_to_all));
    }
    differences
}

/// The next smaller and larger numbers of GPUs, and every other site, number type, k and way to slice.
fn other_worlds(space: &Space<'_>, world: &World) -> Vec<(String, Result<World, String>)> {
    let spec = &world.layer.spec;
    let with = |site, gpus, dtype, top_k, slices| {
        let world = space.world(site, gpus, dtype, top_k, slices);
        world.map_err(|error| error.to_string())
    };
    let at = |site, gpus, dtype, top_k| with(site, gpus, dtype, top_k, world.slices);
    let mut found = Vec::new();
    let fewer = space
        .gpus
        .iter()
        .copied()
        .filter(|&gpus| gpus < world.gpus)
        .max();
    let more = space
        .gpus
        .iter()
        .copied()
        .filter(|&gpus| gpus > world.gpus)
        .min();
    for gpus in fewer.into_iter().chain(more) {
        let other = at(world.site, gpus, spec.dtype, spec.top_k);
        found.push((format!("{gpus} GPUs"), other));
    }
    for site in (0..space.sites.len()).filter(|&site| site != world.site) {
        let name = space.sites[site].hardware.name.clone();
        found.push((name, at(site, world.gpus, spec.dtype, spec.top_k)));
    }
    for &dtype in space.dtypes.iter().filter(|&&dtype| dtype != spec.dtype) {
        found.push((
            dtype.to_string(),
            at(world.site, world.gpus, dtype, spec.top_k),
        ));
    }
    for &top_k in space.top_k.iter().filter(|&&top_k| top_k != spec.top_k) {
        found.push((
            format!("top-{top_k}"),
            at(world.site, world.gpus, spec.dtype, top_k),
        ));
    }
    for slices in space.slices_on(world.site, world.gpus) {
        let groups = slices.tensor_parallel != world.slices.tensor_parallel;
        let parts = slices.micro_batches != world.slices.micro_batches;
        let name = match (groups, parts) {
            (true, false) => format!("{} GPUs share weights", slices.tensor_parallel),
            (false, true) if slices.micro_batches == 1 => "one micro-batch".to_owned(),
            (false, true) => format!("{} micro-batches", slices.micro_batches),
            (true, true) | (false, false) => continue,
        };
        let other = with(world.site, world.gpus, spec.dtype, spec.top_k, slices);
        found.push((name, other));
    }
    found
}

/// The winner's choices in another world, if it allows them.
fn fitted(space: &Space<'_>, world: &World, winner: &Candidate) -> Option<Candidate> {
    let plans = candidates(&space.strategies[winner.strategy], &world.layer).ok()?;
    let allowed = match winner.decision {
        Decision::Adapts(_) => true,
        Decision::Always(plan) => plans.contains(&plan),
    };
    allowed.then_some(*winner)
}
