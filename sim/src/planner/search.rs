//! Tries what the bounds leave, and says which plans are wanted.

use super::bound::step_time_floor;
use super::figures::{Figures, Objectives, mean};
use super::limits::{Goal, Limits, Measured, Violation};
use super::pareto::front;
use super::space::{Candidate, Decision, Loads, Space, World};
use crate::compile::{Load, Plan};
use crate::ir::Program;
use crate::policy::{Runner, candidates};
use crate::simulate::{Scenario, Step, Trace, memory, program_of, simulate_program};
use crate::spec::{SpecError, Strategy};
use crate::units::Time;
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

/// A candidate that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Which.
    pub candidate: Candidate,
    /// What it amounts to.
    pub figures: Figures,
    /// What it is held against others by.
    pub objectives: Objectives,
    /// The limits it does not meet, the worst first.
    pub violations: Vec<Violation>,
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

/// What a candidate cannot beat.
#[derive(Debug, Clone, Copy)]
struct Bound {
    candidate: Candidate,
    measured: Measured,
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

/// Tries candidates of one world.
pub(super) struct Tester<'a> {
    space: &'a Space<'a>,
    limits: &'a Limits,
    world: &'a World,
    loads: Loads,
}

impl<'a> Tester<'a> {
    pub(super) fn new(
        space: &'a Space<'a>,
        limits: &'a Limits,
        world: &'a World,
        candidates: &[Candidate],
    ) -> Result<Tester<'a>, String> {
        Ok(Tester {
            space,
            limits,
            world,
            loads: Loads::new(space, world, candidates)?,
        })
    }

    pub(super) fn scenario(&self) -> Scenario<'_> {
        self.space.scenario(self.world)
    }

    fn strategy(&self, candidate: &Candidate) -> &Strategy {
        &self.space.strategies[candidate.strategy]
    }

    pub(super) fn loads(&self, candidate: &Candidate) -> &[Load] {
        let padding = self.strategy(candidate).padding;
        self.loads.of(padding, candidate.capacity)
    }

    /// What `candidate` cannot beat: the floor of its steps' times and, exactly, its memory and drops.
    fn bound(&self, candidate: &Candidate) -> Result<Bound, SpecError> {
        let plans = match candidate.decision {
            Decision::Always(plan) => vec![plan],
            Decision::Adapts(_) => candidates(self.strategy(candidate), &self.world.layer)?,
        };
        let loads = self.loads(candidate);
        let mut floors = Vec::with_capacity(loads.len());
        let mut memory_bytes = 0;
        for load in loads {
            // Whatever is chosen is one of these.
            let (mut time, mut memory) = (Time::MAX, u64::MAX);
            for &plan in &plans {
                let (floor, needed) = self.floor(candidate.capacity, plan, load)?;
                time = time.min(floor);
                memory = memory.min(needed);
            }
            floors.push(time);
            memory_bytes = memory_bytes.max(memory);
        }
        let dropped = loads.iter().map(|load| load.dropped_fraction).sum::<f64>();
        let step_time = mean(floors.into_iter());
        Ok(Bound {
            candidate: *candidate,
            measured: self.measured(
                step_time,
                self.objectives(step_time, memory_bytes, dropped / loads.len().max(1) as f64),
            ),
        })
    }

    /// The floor of a step's time under `plan`, and its memory.
    fn floor(&self, x: f64, plan: Plan, load: &Load) -> Result<(Time, u64), SpecError> {
        let scenario = self.scenario();
        let program = self.program(x, plan, load)?;
        let floor = step_time_floor(&program, scenario.model);
        Ok((self.in_all(floor), memory(&scenario, &program)))
    }

    /// Plays a step of `plan` under capacity setting `x`.
    pub(super) fn trace(&self, x: f64, plan: Plan, load: &Load) -> Result<Trace, SpecError> {
        let program = self.program(x, plan, load)?;
        let mut trace = simulate_program(&self.scenario(), plan, load, program);
        trace.step.time = self.in_all(trace.step.time);
        Ok(trace)
    }

    /// What is planned, under `plan`: the layer, or the model with it.
    fn program(&self, x: f64, plan: Plan, load: &Load) -> Result<Program, SpecError> {
        match self.space.model_run(self.world) {
            None => program_of(&self.scenario(), plan, load),
            Some(model) => model.program_under(plan, x),
        }
    }

    /// The time of a step whose program took `played`.
    fn in_all(&self, played: Time) -> Time {
        let model = self.space.model_run(self.world);
        played + model.map_or(Time::ZERO, |model| model.scaling_loss(played))
    }

    fn objectives(&self, step_time: Time, memory_bytes: u64, dropped: f64) -> Objectives {
        let per_gpu_hour = self.space.sites[self.world.site].per_gpu_hour;
        Objectives::new(self.world, per_gpu_hour, step_time, memory_bytes, dropped)
    }

    fn measured(&self, step_time: Time, objectives: Objectives) -> Measured {
        let site = &self.space.sites[self.world.site];
        let memory = site.hardware.memory_bytes();
        Measured::new(self.world, site.per_gpu_hour, memory, step_time, objectives)
    }

    /// Plays all steps of `candidate`.
    pub(super) fn evaluate(&self, candidate: &Candidate) -> Result<Evaluated, SpecError> {
        let steps: Vec<Step> = match candidate.decision {
            Decision::Always(plan) => {
                let step = |load: &Load| Ok(self.trace(candidate.capacity, plan, load)?.step);
                self.loads(candidate)
                    .iter()
                    .map(step)
                    .collect::<Result<_, SpecError>>()?
            }
            Decision::Adapts(policy) => {
                let strategy = Strategy {
                    policy,
                    capacity_factor: Some(candidate.capacity),
                    ..self.strategy(candidate).clone()
                };
                let mut runner = Runner::new(self.scenario(), strategy, false)?;
                self.loads(candidate)
                    .iter()
                    .map(|load| Ok(runner.step_of(load)?.step))
                    .collect::<Result<_, SpecError>>()?
            }
        };
        let site = &self.space.sites[self.world.site];
        let figures = Figures::new(self.world, site.per_gpu_hour, self.space.power, &steps)
            .ok_or_else(|| SpecError::new("steps", "at least one", 0))?;
        let objectives = figures.objectives(self.world, site.per_gpu_hour);
        let measured = self.measured(figures.step_time, objectives);
        Ok(Evaluated {
            candidate: *candidate,
            violations: self.limits.violations(&measured),
            figures,
            objectives,
        })
    }
}
