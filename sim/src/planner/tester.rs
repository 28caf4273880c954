//! What a way to run the layer or the model amounts to, and what it cannot beat.

use super::bound::Floor;
use super::figures::{Figures, Objectives, Played};
use super::limits::{Limits, Measured, Violation};
use super::loads::{Loaded, LoadedStep, Loads, Parts};
use super::space::{Candidate, Decision, Space, World};
use crate::compile::Plan;
use crate::ir::Program;
use crate::policy::{Runner, candidates};
use crate::simulate::{Scenario, Step, Trace, memory, program_of, simulate_program};
use crate::spec::{Choice, Policy, ResolvedLayer, SpecError, Strategy};
use crate::units::Time;

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

/// What a candidate cannot beat.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) candidate: Candidate,
    pub(super) measured: Measured,
}

/// Tries candidates of one world.
pub(super) struct Tester<'a> {
    space: &'a Space<'a>,
    limits: &'a Limits,
    world: &'a World,
    parts: Parts<'a>,
    loads: Loads,
}

impl<'a> Tester<'a> {
    pub(super) fn new(
        space: &'a Space<'a>,
        limits: &'a Limits,
        world: &'a World,
        candidates: &[Candidate],
    ) -> Result<Tester<'a>, String> {
        let parts = Parts::new(space, world).map_err(|error| error.to_string())?;
        Ok(Tester {
            space,
            limits,
            world,
            loads: Loads::new(space, &parts, candidates)?,
            parts,
        })
    }

    pub(super) fn scenario(&self) -> Scenario<'_> {
        self.space.scenario(self.world)
    }

    fn strategy(&self, candidate: &Candidate) -> &Strategy {
        &self.space.strategies[candidate.strategy]
    }

    /// The steps of a candidate.
    pub(super) fn loaded(&self, candidate: &Candidate) -> Result<&Loaded, SpecError> {
        let found = self.loads.of(self.space, candidate);
        found.ok_or_else(|| SpecError::new("plan", "one of those to be tried", "another"))
    }

    /// What `candidate` cannot beat: the floor of its steps' times and, exactly, its memory and drops. Of layers
    /// that adapt each for itself only the drops are known.
    pub(super) fn bound(&self, candidate: &Candidate) -> Result<Bound, SpecError> {
        let plans = match candidate.decision {
            Decision::Always(plan) => vec![plan],
            Decision::Adapts(_) if self.parts.layers.len() > 1 => Vec::new(),
            Decision::Adapts(_) => {
                let mut plans = candidates(self.strategy(candidate), &self.world.layer)?;
                plans.retain(|plan| candidate.balancing.is_none() || plan.adaptive_r != 0);
                plans
            }
        };
        let loaded = self.loaded(candidate)?;
        let steps = &loaded.steps;
        let mut floors = Vec::with_capacity(steps.len());
        let mut memory_bytes = 0;
        for step in steps {
            // Whatever is chosen is one of these.
            let bounds = plans.iter().map(|&plan| self.floor(plan, loaded, step));
            let bounds = bounds.collect::<Result<Vec<_>, SpecError>>()?;
            let time = bounds.iter().map(|(floor, _)| *floor).min();
            let memory = bounds.iter().map(|(_, memory)| *memory).min();
            floors.push(time.unwrap_or(Time::ZERO));
            memory_bytes = memory_bytes.max(memory.unwrap_or(0));
        }
        let dropped = steps
            .iter()
            .map(|step| self.parts.drops(&step.loads).fraction);
        let dropped = dropped.sum::<f64>() / steps.len().max(1) as f64;
        let step_time = Time::mean(floors.into_iter());
        Ok(Bound {
            candidate: *candidate,
            measured: self.measured(step_time, self.objectives(step_time, memory_bytes, dropped)),
        })
    }

    /// The floor of a step's time where all layers run `plan`, and its memory.
    fn floor(
        &self,
        plan: Plan,
        loaded: &Loaded,
        step: &LoadedStep,
    ) -> Result<(Time, u64), SpecError> {
        let scenario = self.scenario();
        let plans = vec![plan; loaded.layers.len()];
        let (floor, memory) = match (&self.parts.model, &self.parts.outline) {
            (Some((run, _)), Some(outline)) => {
                let runs = self.parts.runs(loaded, &step.loads, &plans);
                let (floor, bytes) = outline.floor(run, &runs, scenario.model)?;
                (floor, bytes.saturating_add(scenario.reserved_bytes))
            }
            _ => {
                let program = self.program(&plans, loaded, step)?;
                let floor = Floor::of(&program, scenario.model);
                (floor, memory(&scenario, &program))
            }
        };
        Ok((self.in_all(floor.step_time()) + step.moving, memory))
    }

    /// Plays a step of what is planned; `plans` has one a group of layers.
    pub(super) fn trace(
        &self,
        plans: &[Plan],
        loaded: &Loaded,
        step: &LoadedStep,
    ) -> Result<Trace, SpecError> {
        let program = self.program(plans, loaded, step)?;
        let drops = self.parts.drops(&step.loads);
        let mut trace = simulate_program(&self.scenario(), plans[0], drops, program);
        trace.step.time = self.in_all(trace.step.time) + step.moving;
        Ok(trace)
    }

    /// What is planned: the layer, or the model with it.
    fn program(
        &self,
        plans: &[Plan],
        loaded: &Loaded,
        step: &LoadedStep,
    ) -> Result<Program, SpecError> {
        match &self.parts.model {
            None => {
                let scenario = self.alone(&loaded.layers[0]);
                program_of(&scenario, plans[0], &step.loads[0])
            }
            Some((run, _)) => {
                let runs = self.parts.runs(loaded, &step.loads, plans);
                run.program(run.model, &runs)
            }
        }
    }

    /// One layer of the world by itself.
    fn alone<'l>(&'l self, layer: &'l ResolvedLayer) -> Scenario<'l> {
        Scenario {
            layer,
            ..self.scenario()
        }
    }

    /// The time of a step whose program took `played`.
    fn in_all(&self, played: Time) -> Time {
        let model = self.parts.model.as_ref();
        played + model.map_or(Time::ZERO, |(run, _)| run.scaling_loss(played))
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
        let loaded = self.loaded(candidate)?;
        let steps = match candidate.decision {
            Decision::Always(plan) => {
                let plans = vec![plan; loaded.layers.len()];
                let played = |step: &LoadedStep| {
                    let step = self.trace(&plans, loaded, step)?.step;
                    let plans = plans.clone();
                    Ok(Played { plans, step })
                };
                let steps = loaded.steps.iter().map(played);
                steps.collect::<Result<Vec<_>, SpecError>>()?
            }
            Decision::Adapts(policy) => self.adapted(candidate, policy, loaded)?,
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

    /// Plays all steps of `candidate`, whose layers `policy` decides on, for every group alone.
    fn adapted(
        &self,
        candidate: &Candidate,
        policy: Policy,
        loaded: &Loaded,
    ) -> Result<Vec<Played>, SpecError> {
        let template = self.strategy(candidate).clone();
        let strategy = Strategy {
            policy,
            capacity_factor: Some(candidate.capacity),
            adaptive_r: match candidate.balancing {
                None => template.adaptive_r,
                Some(_) => Choice::Fixed(1),
            },
            ..template
        };
        let mut runners = (loaded.layers.iter())
            .map(|layer| Runner::new(self.alone(layer), strategy.clone(), false))
            .collect::<Result<Vec<_>, SpecError>>()?;
        let played = loaded.steps.iter().map(|step| {
            let decided = runners.iter_mut().zip(&step.loads);
            let decided = decided
                .map(|(runner, load)| Ok(runner.step_of(load)?.step))
                .collect::<Result<Vec<Step>, SpecError>>()?;
            let plans: Vec<Plan> = decided.iter().map(|step| step.plan).collect();
            let step = match (&self.parts.model, decided.into_iter().next()) {
                // What was decided on is all there is.
                (None, Some(alone)) => Step {
                    time: alone.time + step.moving,
                    ..alone
                },
                _ => self.trace(&plans, loaded, step)?.step,
            };
            Ok(Played { plans, step })
        });
        played.collect()
    }
}
