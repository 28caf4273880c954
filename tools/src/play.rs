//! Plays all strategies over all steps, one step of routing in memory at a time.

use crate::error::{Error, Place};
use crate::resolve::{Planned, Resolved};
use crate::session::Session;
use moeplan_sim::compile::Routing;
use moeplan_sim::cost::CostModel;
use moeplan_sim::policy::{Decided, Runner};
use moeplan_sim::simulate::{Scenario, Trace};
use moeplan_sim::spec::{Padding, ResolvedLayer, SpecError};
use moeplan_sim::units::Time;
use moeplan_traces::RoutingStep;
use rayon::prelude::*;
use std::time::Duration;

/// One step of one strategy.
#[derive(Debug, Clone)]
pub struct Played {
    /// Number of the step in its recording.
    pub label: u64,
    /// The step as the policy ran it.
    pub decided: Decided,
}

/// All steps of one strategy.
#[derive(Debug, Clone)]
pub struct Run {
    /// The strategy, its capacity filled in.
    pub planned: Planned,
    /// Its steps, in order; fewer than asked for after an interruption.
    pub steps: Vec<Played>,
}

/// Where the time of the program itself went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Drawing routing.
    pub routing: Duration,
    /// Compiling, pricing, playing and searching.
    pub search: Duration,
}

/// One step of all strategies, as a [`Watch`] sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Number in the run, from 0.
    pub index: usize,
    /// Number in its recording.
    pub label: u64,
    /// The layer in this step.
    pub layer: &'a ResolvedLayer,
    /// Where its tokens went; none where that is balanced.
    pub routing: Option<&'a RoutingStep>,
    /// By strategy.
    pub decided: &'a [Decided],
    /// Program and timeline by strategy, where asked for; else none.
    pub traces: &'a [Trace],
    /// What the simulator says, beside a step that was run for real.
    pub predicted: Option<Time>,
}

/// Who is told of every step of a run while it goes on.
pub trait Watch {
    /// The run begins with these strategies.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn start(&mut self, _planned: &[Planned]) -> Result<(), Error> {
        Ok(())
    }

    /// Whether programs and timelines of step `index` are wanted.
    fn wants_traces(&self, _index: usize) -> bool {
        false
    }

    /// A step is done.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn step(&mut self, _seen: Seen<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// The run is done, or was interrupted.
    ///
    /// # Errors
    /// Whatever it could not keep.
    fn end(&mut self, _interrupted: bool) -> Result<(), Error> {
        Ok(())
    }
}

/// Nobody.
impl Watch for () {}

/// What [`play`] returns.
#[derive(Debug, Clone)]
pub struct Plays {
    /// One a strategy.
    pub runs: Vec<Run>,
    /// Whether the user stopped it.
    pub interrupted: bool,
    /// What it took.
    pub timings: Timings,
}

/// The scenario of `resolved` under `model`.
pub fn scenario<'a>(resolved: &'a Resolved, model: &'a dyn CostModel) -> Scenario<'a> {
    Scenario {
        layer: resolved.layer(0),
        gpus_per_node: resolved.gpus_per_node,
        memory_bytes: resolved.hardware.memory_bytes(),
        reserved_bytes: resolved.hardware.reserved_bytes(),
        model,
        phase: resolved.phase,
    }
}

/// An error of the specification that no setting is known to be behind.
pub fn refused(error: &SpecError) -> Error {
    let place = Place {
        field: Some(error.field.to_owned()),
        ..Place::default()
    };
    Error::input(
        place,
        format!("expected {}, found {}", error.expected, error.found),
    )
}

/// Plays every strategy of `resolved` over its routing, and tells `watch`.
///
/// # Errors
/// Routing that cannot be drawn, or a plan the layer cannot run.
pub fn play(
    resolved: &Resolved,
    model: &dyn CostModel,
    session: &mut Session<'_>,
    watch: &mut dyn Watch,
) -> Result<Plays, Error> {
    let planned = session.on_threads(|| cover(resolved))??;
    watch.start(&planned)?;
    let scenario = scenario(resolved, model);
    let mut runners = planned
        .iter()
        .map(|planned| Runner::new(scenario, planned.strategy.clone(), true))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refused(&error))?;
    let mut runs: Vec<Run> = planned
        .into_iter()
        .map(|planned| Run {
            planned,
            steps: Vec::new(),
        })
        .collect();
    let count = resolved.routing.len();
    let mut timings = Timings::default();
    let mut interrupted = false;
    let clock = session.clock();
    let mut next = Some(session.on_threads(|| resolved.routing.step(0))??);
    timings.routing += clock.elapsed();
    let progress = session.progress(count as u64);
    for index in 0..count {
        let Some(routing) = next.take() else { break };
        let clock = session.clock();
        let (decided, ahead) = session.on_threads(|| {
            rayon::join(
                || step(&mut runners, resolved.layer(index), routing.as_deref()),
                || (index + 1 < count).then(|| resolved.routing.step(index + 1)),
            )
        })?;
        timings.search += clock.elapsed();
        let decided = decided.map_err(|error| refused(&error))?;
        let label = resolved.routing.label(index);
        let traces = match watch.wants_traces(index) {
            true => session
                .on_threads(|| traces(&runners, routing.as_deref(), &decided))?
                .map_err(|error| refused(&error))?,
            false => Vec::new(),
        };
        watch.step(Seen {
            index,
            label,
            layer: resolved.layer(index),
            routing: routing.as_deref(),
            decided: &decided,
            traces: &traces,
            predicted: None,
        })?;
        for (run, decided) in runs.iter_mut().zip(decided) {
            run.steps.push(Played { label, decided });
        }
        progress.inc(1);
        next = ahead.transpose()?;
        if session.is_interrupted() && index + 1 < count {
            interrupted = true;
            break;
        }
    }
    progress.finish_and_clear();
    watch.end(interrupted)?;
    Ok(Plays {
        runs,
        interrupted,
        timings,
    })
}

fn step<'a>(
    runners: &mut [Runner<'a>],
    layer: &'a ResolvedLayer,
    routing: Option<&RoutingStep>,
) -> Result<Vec<Decided>, SpecError> {
    let routing = Routing::of(routing);
    runners
        .par_iter_mut()
        .map(|runner| {
            runner.reroute(layer);
            runner.step(&routing)
        })
        .collect()
}

/// The programs and timelines of a step just decided.
fn traces(
    runners: &[Runner<'_>],
    routing: Option<&RoutingStep>,
    decided: &[Decided],
) -> Result<Vec<Trace>, SpecError> {
    let routing = Routing::of(routing);
    runners
        .par_iter()
        .zip(decided)
        .map(|(runner, decided)| runner.trace(&routing, decided.step.plan))
        .collect()
}

/// The strategies, with a fixed capacity where one is asked for that covers all steps.
fn cover(resolved: &Resolved) -> Result<Vec<Planned>, Error> {
    let mut planned = resolved.strategies.clone();
    if !planned.iter().any(|planned| planned.cover_routing) {
        return Ok(planned);
    }
    let needed = (0..resolved.routing.len())
        .into_par_iter()
        .map(|index| {
            let step = resolved.routing.step(index)?;
            let routing = Routing::of(step.as_deref());
            let layer = resolved.layer(index);
            Ok(covering(layer, routing.largest_count(layer)))
        })
        .collect::<Result<Vec<f64>, Error>>()?;
    let x = needed.into_iter().fold(0.0, f64::max);
    for planned in &mut planned {
        if planned.cover_routing && planned.strategy.padding == Padding::Capacity {
            planned.strategy.capacity_factor = Some(x);
        }
    }
    Ok(planned)
}

/// The least fixed capacity setting x whose capacity, `k * int(x * ceil(T / E))`, holds `count`.
fn covering(layer: &ResolvedLayer, count: u64) -> f64 {
    let samples = layer.tokens().div_ceil(layer.num_experts);
    let wanted = count.div_ceil(u64::from(layer.spec.top_k)).max(1);
    let x = wanted as f64 / samples as f64;
    // Division rounds: the product must not fall below the whole number it was made of.
    if ((x * samples as f64) as u64) < wanted {
        x.next_up()
    } else {
        x
    }
}
