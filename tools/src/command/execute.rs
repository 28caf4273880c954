//! `execute`: the program run for real, shown as `simulate` shows it.

use super::compare::{settings, sinks, to_json};
use crate::error::{Error, Exit, Place};
use crate::machine::{self, Gpus};
use crate::output::numbers::{count, percent, time};
use crate::output::{Answer, comparison, perfetto};
use crate::play::{Played, Run, Seen, Watch, refused, scenario};
use crate::resolve::{Given, Planned, Resolved};
use crate::routing::shape_of;
use crate::run_file::recorder::Recorder;
use crate::session::Session;
use crate::settings::Study;
use crate::summary::RunSummary;
use moeplan_executor::assign::tokens_of;
use moeplan_executor::{Backend, Inputs, Routing as Routed, tokens_of_step};
use moeplan_sim::compile::{Routing, Source, compile};
use moeplan_sim::policy::{Decided, Runner};
use moeplan_sim::simulate::{Scenario, Trace, measured_step};
use moeplan_sim::spec::{AllToAll, Choice, DType, Strategy};
use moeplan_sim::units::Time;
use serde::Serialize;

/// Ranks when nothing is said.
const RANKS: u64 = 4;
/// Repeats when nothing is said.
const REPEATS: usize = 5;

/// The strategy when nothing is said: fast kernels, nothing left to a simulator of another machine.
pub fn strategies() -> Vec<Planned> {
    vec![Planned {
        strategy: Strategy {
            name: "tutel, r=1 d=1 linear".into(),
            all_to_all: Choice::Fixed(AllToAll::Linear),
            pipeline_degree: Choice::Fixed(1),
            adaptive_r: Choice::Fixed(1),
            ..Strategy::tutel()
        },
        cover_routing: false,
    }]
}

/// Adds what a machine of one's own runs when nothing is said: few ranks, a small layer, FP32.
pub fn defaults(given: &mut Given) {
    let Given { flags, file, .. } = given;
    let ranks = flags.execute.ranks.or(flags.cluster.gpus);
    let ranks = ranks.or(file.execute.ranks).or(file.cluster.gpus);
    flags.cluster.gpus = Some(ranks.unwrap_or(RANKS));
    let named = |study: &Study| study.layer.preset.is_some() || study.layer.file.is_some();
    if !named(flags) && !named(file) {
        let layer = &mut file.layer;
        layer.tokens_per_step.get_or_insert(512);
        layer.model_dim.get_or_insert(512);
        layer.hidden_dim.get_or_insert(512);
    }
    file.layer.dtype.get_or_insert(DType::Fp32);
}

/// How much the repeats of a step differ, over all steps.
#[derive(Debug, Clone, Serialize)]
struct Spread {
    strategy: String,
    repeats: usize,
    /// Mean over the steps of the fastest, median and slowest repeat.
    step_time_min_ns: u64,
    step_time_median_ns: u64,
    step_time_max_ns: u64,
    /// (slowest - fastest) / median.
    relative: f64,
    /// FLOPs, bytes of kernels and bytes between ranks of the last step, as counted and checked.
    flops: u64,
    bytes: u64,
    exchanged_bytes: u64,
}

/// Runs the strategy of `resolved` on this machine.
///
/// # Errors
/// Settings that cannot be run here, a missing part of the machine, or a run that disagrees with
/// its program.
pub fn run(
    given: &Given,
    mut resolved: Resolved,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let kind = resolved.study.execute.backend.unwrap_or_default();
    let place = given.place(&["execute"], None, "devices");
    let execute = &resolved.study.execute;
    let gpus = Gpus::new(execute, execute.ranks_apart, place)?;
    let mut backend = machine::backend(kind, gpus)?;
    let repeats = repeats(given, &resolved)?;
    let dtype = resolved.layer(0).spec.dtype;
    if !backend.dtypes().contains(&dtype) {
        let place = given.place(&["layer"], None, "dtype");
        let names: Vec<&str> = backend.dtypes().iter().map(|dtype| dtype.name()).collect();
        let (names, name) = (names.join(", "), backend.name());
        let message =
            format!("expected {names}, which the {name} backend computes in, found {dtype}");
        return Err(Error::input(place, message));
    }
    let routing = &resolved.study.routing;
    let by_gates = given.flags.routing.routing.is_none()
        && given.file.routing.routing.is_none()
        && routing.trace.is_none();
    if by_gates {
        resolved.routing = resolved.routing.by_gates();
        resolved.study.routing = resolved.routing.settings.clone();
    }
    let model = resolved.model()?;
    let scenario = scenario(&resolved, &*model);
    let planned = resolved.strategies[0].clone();
    let mut runner =
        Runner::new(scenario, planned.strategy.clone(), false).map_err(|error| refused(&error))?;
    let mut run = Run {
        planned,
        steps: Vec::new(),
    };
    let mut spread = Vec::new();
    let mut audit = moeplan_executor::audit::Audit::default();
    let wants_export = given.export().export.is_some();
    let mut longest: Option<(Time, String)> = None;
    let steps = resolved.routing.len();
    let name = backend.name();
    let mut recorded = resolved.clone();
    recorded.hardware.description = this_machine(&*backend);
    let mut recorder = Recorder::new("execute", &recorded, true, sinks(&recorded)?);
    recorder.start(std::slice::from_ref(&run.planned))?;
    let progress = session.progress(steps as u64);
    let mut interrupted = false;
    check_inputs(&*backend, &resolved)?;
    let mut inputs = inputs(given, &resolved, 0)?;
    for index in 0..steps {
        let layer = resolved.layer(index);
        let scenario = Scenario { layer, ..scenario };
        runner.reroute(layer);
        match resolved.routing.step(index)? {
            Some(step) => inputs.routing = Routed::Forced(tokens_of(&step)?),
            None if by_gates => {
                if index > 0 {
                    inputs = self::inputs(given, &resolved, index)?;
                }
            }
            None => {
                let step =
                    moeplan_traces::RoutingStep::uniform(&shape_of(layer)?, index as u64, 0)?;
                inputs.routing = Routed::Forced(tokens_of(&step)?);
            }
        }
        let tokens = tokens_of_step(&mut *backend, layer, &inputs)?;
        let counts = tokens.counts();
        let routing = Routing::Step(&counts);
        let decided = runner.step(&routing).map_err(|error| refused(&error))?;
        let plan = decided.step.plan;
        let load = runner.load(&routing);
        let source = Source {
            layer,
            gpus_per_node: resolved.gpus_per_node,
            plan,
            load: &load,
            phase: resolved.phase,
        };
        let program = compile(source).map_err(|error| refused(&error))?;
        machine::check_memory(&*backend, &program, layer)?;
        let ran = machine::repeat(&mut *backend, &program, layer, &inputs, &tokens, repeats)?;
        let timeline = &ran.median.timeline;
        let mut step = measured_step(&scenario, plan, &load, &program, timeline);
        step.memory_bytes = ran.median.peak_bytes.iter().copied().max().unwrap_or(0);
        step.fits = true;
        if longest.as_ref().is_none_or(|(time, _)| step.time > *time) && wants_export {
            let what = perfetto::About {
                strategy: &run.planned.strategy.name,
                step: resolved.routing.label(index),
                plan,
            };
            let trace = perfetto::export(given, &resolved, &what, &program, timeline, None)?;
            longest = Some((step.time, trace));
        }
        // Only where --cluster describes this machine is there something to compare.
        let predicted = resolved.hardware.cpu.is_some().then_some(decided.step.time);
        let decided = Decided {
            step,
            trial: decided.trial,
            oracle: None,
        };
        let label = resolved.routing.label(index);
        let traces: Vec<Trace> = recorder
            .wants_traces(index)
            .then(|| Trace {
                step: decided.step.clone(),
                program: program.clone(),
                priced: Vec::new(),
                timeline: timeline.clone(),
            })
            .into_iter()
            .collect();
        recorder.step(Seen {
            index,
            label,
            layer,
            routing: Some(&counts),
            decided: std::slice::from_ref(&decided),
            traces: &traces,
            predicted,
        })?;
        run.steps.push(Played { label, decided });
        audit = ran.median.audit;
        spread.push(ran.times);
        progress.inc(1);
        if session.is_interrupted() && index + 1 < steps {
            interrupted = true;
            break;
        }
    }
    progress.finish_and_clear();
    recorder.end(interrupted)?;
    let exit = if interrupted {
        Exit::Interrupted
    } else {
        Exit::Done
    };
    if let Some((_, trace)) = longest {
        return Ok((Answer::document(trace), exit));
    }
    resolved.hardware.description = this_machine(&*backend);
    let per_step = resolved.study.report.per_step;
    let memory = machine::memory_bytes(&*backend);
    let summary = RunSummary::new(&run, resolved.layer(0), memory, &resolved.routing, per_step);
    let runs: Vec<RunSummary> = summary.into_iter().collect();
    let spread = summed(&run.planned.strategy.name, &spread, &audit);
    let text = text(&resolved, &runs, &spread);
    let answer = Answer {
        command: "execute",
        settings: settings(&resolved)?,
        seed: resolved.seed,
        body: [
            ("backend".to_owned(), to_json(&name)?),
            ("place".to_owned(), to_json(&backend.place())?),
            ("routing".to_owned(), to_json(&resolved.routing.describe())?),
            ("interrupted".to_owned(), to_json(&interrupted)?),
            ("runs".to_owned(), to_json(&runs)?),
            ("repeats".to_owned(), to_json(&spread)?),
        ]
        .into_iter()
        .collect(),
        rows: "runs",
        text,
    };
    Ok((answer, exit))
}

fn this_machine(backend: &dyn Backend) -> String {
    format!(
        "this machine ({}, {} cores), {} backend: {}",
        machine::processor(),
        machine::cores(),
        backend.name(),
        backend.place()
    )
}

fn repeats(given: &Given, resolved: &Resolved) -> Result<usize, Error> {
    let repeats = resolved.study.execute.repeats.unwrap_or(REPEATS);
    if (1..=10_000).contains(&repeats) {
        return Ok(repeats);
    }
    let place: Place = given.place(&["execute"], None, "repeats");
    Err(Error::input(
        place,
        format!("expected 1 to 10000, found {repeats}"),
    ))
}

/// What step `index` starts from where its gate decides on routing.
fn inputs(given: &Given, resolved: &Resolved, index: usize) -> Result<Inputs, Error> {
    let (layer, gate) = (resolved.layer(index), &resolved.study.gate);
    for (field, value) in [
        ("gate-noise", gate.gate_noise),
        ("balance-weight", gate.balance_weight),
    ] {
        if let Some(value) = value.filter(|value| !value.is_finite() || *value < 0.0) {
            let message = format!("expected a number from 0 on, found {value}");
            return Err(Error::input(given.place(&["gate"], None, field), message));
        }
    }
    let seed = resolved.seed.wrapping_add(index as u64);
    let mut inputs = Inputs::random(layer, seed, Routed::Gate);
    inputs.prioritized = gate.batch_prioritized;
    inputs.balance_weight = gate.balance_weight.unwrap_or(inputs.balance_weight);
    Ok(match gate.gate_noise {
        Some(scale) => inputs.with_gate_noise(layer, seed, scale),
        None => inputs,
    })
}

/// Fails before anything is drawn where the layer alone is too large.
fn check_inputs(backend: &dyn Backend, resolved: &Resolved) -> Result<(), Error> {
    let layer = resolved.layer(0);
    let world = layer.world_size as usize;
    let empty = moeplan_sim::ir::ProgramBuilder::new(world, world, DType::Fp32).finish();
    machine::check_memory(backend, &empty, layer)
}

fn summed(
    strategy: &str,
    steps: &[Vec<Time>],
    audit: &moeplan_executor::audit::Audit,
) -> Vec<Spread> {
    let mean = |pick: fn(&Vec<Time>) -> Time| {
        let total: u64 = steps.iter().map(|times| pick(times).as_ns()).sum();
        total / steps.len().max(1) as u64
    };
    let fastest = mean(|times| times[0]);
    let median = mean(|times| times[times.len() / 2]);
    let slowest = mean(|times| times[times.len() - 1]);
    vec![Spread {
        strategy: strategy.to_owned(),
        repeats: steps.first().map_or(0, Vec::len),
        step_time_min_ns: fastest,
        step_time_median_ns: median,
        step_time_max_ns: slowest,
        relative: (slowest - fastest) as f64 / median.max(1) as f64,
        flops: audit.flops,
        bytes: audit.bytes,
        exchanged_bytes: audit.exchanged,
    }]
}

fn text(resolved: &Resolved, runs: &[RunSummary], spread: &[Spread]) -> String {
    let mut text = comparison::heading(resolved);
    text.push('\n');
    text += &comparison::table(runs, &vec![1.0; runs.len()], None);
    text += &comparison::per_step(runs);
    for spread in spread {
        text += &format!(
            "\nmedian of {} repeats a step: {} to {} ({} of the median)\ncounted and as the program states: {} \
             FLOP, {} bytes moved, {} between ranks\n",
            spread.repeats,
            time(spread.step_time_min_ns),
            time(spread.step_time_max_ns),
            percent(spread.relative),
            count(spread.flops),
            count(spread.bytes),
            count(spread.exchanged_bytes),
        );
    }
    text
}
