//! Tries what the bounds leave, and says which plans are wanted.

use super::figures::Objectives;
use super::limits::{Goal, Limits};
use super::pareto::front;
use super::space::{Space, World};
use super::tester::{Bound, Evaluated, Tester};
use crate::spec::SpecError;
use rayon::prelude::*;

/// Candidates tried at once. What is found in one batch prunes the next, so this and not the number of
/// threads decides what is tried.
const BATCH: usize = 32;

/// Whether bounds may leave candidates out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    /// Those that cannot be wanted are not tried.
    ByBound,
    /// Everything is tried: what the bounds are held against in tests.
    Off,
}

/// A size at which the layer cannot be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Index of the site.
    pub site: usize,
    /// W.
    pub gpus: u64,
    /// Why.
    pub reason: String,
}

/// What a search found.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Worlds in which the layer can run.
    pub worlds: Vec<World>,
    /// Sizes at which it cannot.
    pub refused: Vec<Refused>,
    /// Candidates there are.
    pub candidates: usize,
    /// Those that were tried, in order.
    pub evaluated: Vec<Evaluated>,
    /// Index in `evaluated` of the cheapest that meets all limits.
    pub cheapest: Option<usize>,
    /// Index in `evaluated` of the fastest that meets all limits.
    pub fastest: Option<usize>,
    /// Indices in `evaluated` of the plans that meet all limits and that nothing is better than.
    pub front: Vec<usize>,
    /// Where none meets all limits: index in `evaluated` of the one that is least far off.
    pub nearest: Option<usize>,
}

impl Outcome {
    /// The plan wanted.
    pub fn winner(&self, goal: Goal) -> Option<&Evaluated> {
        let index = match goal {
            Goal::Cheapest => self.cheapest,
            Goal::Fastest => self.fastest,
        };
        index.map(|index| &self.evaluated[index])
    }

    /// The world of a plan.
    pub fn world(&self, evaluated: &Evaluated) -> &World {
        &self.worlds[evaluated.candidate.world]
    }
}

/// Searches `space` for plans within `limits`.
///
/// Exact: a candidate is left out only where its bound violates a limit, or is dominated by a plan
/// that meets all of them; such a candidate is neither wanted nor on the front, ties included.
pub fn search(space: &Space<'_>, limits: &Limits, pruning: Pruning) -> Outcome {
    let mut outcome = Outcome::default();
    for world in space.worlds() {
        match world {
            Ok(world) => outcome.worlds.push(world),
            Err((site, gpus, error)) => outcome.refused.push(Refused {
                site,
                gpus,
                reason: error.to_string(),
            }),
        }
    }
    let mut far = Vec::new();
    for index in 0..outcome.worlds.len() {
        let world = outcome.worlds[index].clone();
        let tried = try_world(
            space,
            limits,
            pruning,
            (index, &world),
            &mut outcome,
            &mut far,
        );
        if let Err(reason) = tried {
            outcome.refused.push(Refused {
                site: world.site,
                gpus: world.gpus,
                reason,
            });
        }
    }
    if !outcome.evaluated.iter().any(meets) {
        nearest(space, limits, &far, &mut outcome);
    }
    outcome.evaluated.sort_by_key(|plan| plan.candidate.index);
    conclude(&mut outcome);
    outcome
}

fn meets(plan: &Evaluated) -> bool {
    plan.violations.is_empty()
}

/// Tries the candidates of one world. Those whose bounds violate a limit go to `far`, in case
/// nothing meets the limits.
fn try_world(
    space: &Space<'_>,
    limits: &Limits,
    pruning: Pruning,
    (index, world): (usize, &World),
    outcome: &mut Outcome,
    far: &mut Vec<Bound>,
) -> Result<(), String> {
    let all = space
        .candidates(index, &world.layer, outcome.candidates)
        .map_err(|error| error.to_string())?;
    outcome.candidates += all.len();
    let tester = Tester::new(space, limits, world, &all)?;
    let bounds: Vec<Result<Bound, SpecError>> = all
        .par_iter()
        .map(|candidate| tester.bound(candidate))
        .collect();
    let mut bounds: Vec<Bound> = bounds
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    // What may be fastest first: it prunes most.
    bounds.sort_by_key(|bound| (bound.measured.step_time, bound.candidate.index));
    for batch in bounds.chunks(BATCH) {
        let promising: Vec<&Bound> = batch
            .iter()
            .filter(|bound| {
                if pruning == Pruning::Off {
                    return true;
                }
                let hopeless = limits.excess(&bound.measured) > 0.0;
                if hopeless {
                    far.push(**bound);
                }
                !hopeless && !beaten(&bound.measured.objectives, &outcome.evaluated)
            })
            .collect();
        let tried: Vec<Result<Evaluated, SpecError>> = promising
            .par_iter()
            .map(|bound| tester.evaluate(&bound.candidate))
            .collect();
        for plan in tried {
            outcome
                .evaluated
                .push(plan.map_err(|error| error.to_string())?);
        }
    }
    Ok(())
}

/// Whether a plan that meets all limits is better than whatever has this bound.
fn beaten(bound: &Objectives, evaluated: &[Evaluated]) -> bool {
    evaluated
        .iter()
        .any(|plan| meets(plan) && plan.objectives.dominates(bound))
}

/// Tries candidates whose bounds violate a limit, from the least far off on, until no bound is nearer
/// than what was found.
fn nearest(space: &Space<'_>, limits: &Limits, far: &[Bound], outcome: &mut Outcome) {
    let excess = |plan: &Evaluated| plan.violations.first().map_or(0.0, |worst| worst.excess);
    let mut best = outcome
        .evaluated
        .iter()
        .map(excess)
        .fold(f64::INFINITY, f64::min);
    let mut left: Vec<(f64, &Bound)> = far
        .iter()
        .map(|bound| (limits.excess(&bound.measured), bound))
        .collect();
    left.sort_by(|a, b| (a.0.total_cmp(&b.0)).then(a.1.candidate.index.cmp(&b.1.candidate.index)));
    for batch in left.chunks(BATCH) {
        if batch[0].0 > best {
            break;
        }
        let tried: Vec<Option<Evaluated>> = batch
            .par_iter()
            .map(|(_, bound)| {
                let world = &outcome.worlds[bound.candidate.world];
                let tester = Tester::new(space, limits, world, &[bound.candidate]).ok()?;
                tester.evaluate(&bound.candidate).ok()
            })
            .collect();
        for plan in tried.into_iter().flatten() {
            best = best.min(excess(&plan));
            outcome.evaluated.push(plan);
        }
    }
}

/// Names the plans that are wanted among those tried.
fn conclude(outcome: &mut Outcome) {
    let plans = &outcome.evaluated;
    let kept: Vec<usize> = (0..plans.len())
        .filter(|&index| meets(&plans[index]))
        .collect();
    // Of equals the better in all else, and then the first: a dominated plan never wins a tie.
    let order = |of: fn(&Objectives) -> f64| {
        move |a: &&usize, b: &&usize| {
            let (x, y) = (&plans[**a].objectives, &plans[**b].objectives);
            (of(x).total_cmp(&of(y)))
                .then(x.partial_cmp(y).unwrap_or(std::cmp::Ordering::Equal))
                .then(plans[**a].candidate.index.cmp(&plans[**b].candidate.index))
        }
    };
    let best = |of: fn(&Objectives) -> f64| kept.iter().min_by(order(of)).copied();
    let cheapest = best(|plan| plan.cost);
    let fastest = best(|plan| plan.seconds_per_token);
    let points: Vec<Objectives> = kept.iter().map(|&index| plans[index].objectives).collect();
    let on_front = front(&points)
        .into_iter()
        .map(|index| kept[index])
        .collect();
    let nearest = (kept.is_empty() && !plans.is_empty()).then(|| {
        let excess = |index: &usize| plans[*index].violations.first().map_or(0.0, |v| v.excess);
        (0..plans.len()).min_by(|a, b| excess(a).total_cmp(&excess(b)))
    });
    outcome.cheapest = cheapest;
    outcome.fastest = fastest;
    outcome.front = on_front;
    outcome.nearest = nearest.flatten();
}
